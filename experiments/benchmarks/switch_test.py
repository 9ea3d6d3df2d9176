"""What a switch test costs, and a step between tests, beside the authors' code and beside PyTorch's cosine.

    python experiments/benchmarks/switch_test.py --json [--peer PATH_TO_THEIR_autowu.py]

One JSON line a measurement: ``{"name", "n", "milliseconds", "minimum", "maximum", "repeats"}`` with the
median, and a last line ``{"ratios": ...}``. Everything is measured in turn in one run, on one thread.

- ``robust``/``paper``: one test of a curve of ``n`` losses that has just grown by a block of ``--block``
  losses: taking them in (which moves all the statistics), fit and verdict.
- ``peer``: one test of the authors' code on the same curve (their ``maybe_switch``: fit on 100 points,
  five posteriors on 500).
- ``step``: one call of ``step(loss)`` between two tests, loss a 0-d CPU tensor, in microseconds, and the
  same of ``torch.optim.lr_scheduler.CosineAnnealingLR.step()``; ``step_without_rollback`` with a model and
  ``rollback=False``. With CUDA also ``step_cuda``, the loss on the device, and the synchronisations of 1000
  such steps (``torch.cuda.set_sync_debug_mode``).
- ``snapshot``: one snapshot of a ResNet-18 trained with AdamW, until the host goes on (and, on a GPU, until
  the copy is done), and one training step at batch size 64 of 32x32 images beside it; megabytes of the
  parameters, of one snapshot, and of the most that are held at once.
- ``swing``: what ``Swing`` does before each optimizer step while losses are watched, for the same ResNet-18.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_decisions import load_peer

from autolr_ray.schedule import RULES, AutoWarmup, SwitchRule
from autolr_ray.schedule.rollback import SnapshotStore
from autolr_ray.schedule.swing import Swing
from autolr_ray.tasks.models import build_model


def curve(n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A loss that falls from 2.3 to 0.5 and begins to rise, with noise of standard deviation 0.1."""
    x = np.arange(n) / n
    noise = np.random.default_rng(0).normal(scale=0.1, size=n)
    falling: np.ndarray[Any, np.dtype[np.float64]] = 0.5 + 1.8 / (1.0 + np.exp(20.0 * (x - 0.4))) + noise
    return falling + 2.0 * np.maximum(0.0, x - 0.8)


def median_time(action: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median, minimum and maximum of ``repeats`` runs after one more, in milliseconds."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1e3)
    return {"milliseconds": statistics.median(times), "minimum": min(times), "maximum": max(times)}


def time_rule(rule: SwitchRule, n: int, block: int, repeats: int) -> dict[str, float]:
    """One test after ``n`` losses and a block more."""
    losses = curve(n)
    rule.observe(losses, 2 * n)
    rule.test()

    def test() -> None:
        rule.observe(losses[-block:], 2 * n)
        rule.test()

    return median_time(test, repeats)


def time_peer(path: Path, n: int, repeats: int) -> dict[str, float]:
    """One test of the authors' code, on ``n`` losses."""
    module = load_peer(path)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = module.AutoWU(optimizer, steps_per_epoch=n, total_epochs=4, immediate_cooldown=True)
    scheduler.warmup_phase_regressor.add_data(torch.tensor(curve(n), dtype=torch.float32))
    # Its switch is undone by asking again: the verdict of one test does not end the warmup.
    return median_time(scheduler.maybe_switch, repeats)


def time_steps(calls: int = 2000, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Microseconds of one ``step`` between tests, ours and CosineAnnealingLR's, in turn."""
    model = torch.nn.Linear(1, 1)

    def make() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def auto(loss: torch.Tensor, **settings: Any) -> Callable[[], object]:
        schedule = AutoWarmup(make(), total_steps=400 * calls, **settings)
        return lambda: schedule.step(loss)

    kinds: dict[str, Callable[[], Callable[[], object]]] = {
        "step": lambda: auto(torch.tensor(1.0)),
        "step_without_rollback": lambda: auto(torch.tensor(1.0), model=model, rollback=False),
        "cosine_annealing_step": lambda: (
            torch.optim.lr_scheduler.CosineAnnealingLR(make(), T_max=400 * calls).step
        ),
    }
    if torch.cuda.is_available():
        kinds["step_cuda"] = lambda: auto(torch.tensor(1.0, device="cuda"))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's schedule expects an optimizer step first
        for _ in range(rounds):
            for kind, prepare in kinds.items():
                step = prepare()
                began = time.perf_counter()
                for _ in range(calls):
                    step()
                times[kind].append((time.perf_counter() - began) / calls * 1e6)
    return {
        kind: {"microseconds": statistics.median(found), "minimum": min(found), "maximum": max(found)}
        for kind, found in times.items()
    }


def synchronisations(steps: int = 1000) -> int:
    """How many of ``steps`` calls of ``step`` between tests make the host wait for the GPU."""
    schedule = AutoWarmup(torch.optim.SGD([torch.zeros(1, device="cuda")], lr=1.0), 400 * steps)
    loss = torch.ones((), device="cuda")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                schedule.step(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told)


def time_snapshots(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a snapshot and of a training step of ResNet-18, and megabytes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model("resnet18", classes=10, channels=3, image_size=32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(64, 3, 32, 32, device=device)
    targets = torch.randint(10, (64,), device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        wait()

    train()
    found = {"training_step": median_time(train, max(3, repeats // 6))}
    places = ("host", "device") if device.type == "cuda" else ("host",)
    for place in places:
        store = SnapshotStore(model, optimizer, place=place)
        taken = 0

        def take(store: SnapshotStore = store) -> None:
            nonlocal taken
            taken += 1
            store.take(taken, 0.0)

        def take_and_wait(store: SnapshotStore = store) -> None:
            take(store)
            wait()

        take()
        megabytes = {
            "parameters_megabytes": sum(p.nbytes for p in model.parameters()) / 1e6,
            "snapshot_megabytes": store.nbytes / 1e6,
        }
        times = median_time(take_and_wait, repeats) | megabytes
        if device.type == "cuda":
            issued = []
            for _ in range(repeats):
                began = time.perf_counter()
                take()
                issued.append((time.perf_counter() - began) * 1e3)
                wait()
            times["until_the_host_goes_on"] = statistics.median(issued)
        found[f"snapshot_{place}"] = times | {"most_megabytes": store.nbytes / 1e6}
    swing = Swing(optimizer)
    swing.begin(1000)

    def look() -> None:
        swing.observe()
        wait()

    look()  # the first makes the average
    found["swing"] = median_time(look, repeats)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line a measurement")
    parser.add_argument("--peer", type=Path, help="the authors' autowu.py (needs gpytorch)")
    parser.add_argument("--block", type=int, default=100, help="losses between tests (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}

    def tell(name: str, times: dict[str, float], **more: float) -> None:
        found[name] = times
        line = {"name": name, **more, **times}
        text = ", ".join(f"{key} {value:.4g}" for key, value in line.items() if not isinstance(value, str))
        print(json.dumps(line) if options.json else f"{name}: {text}", flush=True)

    for n in (1_000, 100_000, 1_000_000):
        for make in RULES.values():
            times = time_rule(make(), n, options.block, options.repeats)
            tell(f"{make.name}_{n}", times, n=n, block=options.block, repeats=options.repeats)
    if options.peer is not None:
        repeats = max(3, options.repeats // 6)
        tell("peer_100000", time_peer(options.peer, 100_000, repeats), n=100_000, repeats=repeats)
    for name, times in time_steps().items():
        tell(name, times)
    if torch.cuda.is_available():
        tell("synchronisations", {"count": float(synchronisations())})
    for name, times in time_snapshots(options.repeats).items():
        tell(name, times)

    def ratio(above: str, below: str, unit: str = "milliseconds") -> float:
        return found[above][unit] / found[below][unit]

    ratios = {f"{rule}: 1e6 over 1e5": ratio(f"{rule}_1000000", f"{rule}_100000") for rule in RULES}
    for kind in ("step", "step_without_rollback", "step_cuda"):
        if kind in found:
            ratios[f"{kind} over cosine"] = ratio(kind, "cosine_annealing_step", "microseconds")
    # One every 64th of the longest warmup at most: what 64 cost beside a run of 10,000 steps.
    ratios["64 snapshots over 5,000 training steps"] = 64 * ratio("snapshot_host", "training_step") / 5_000
    ratios["swing over a training step"] = ratio("swing", "training_step")
    if options.peer is not None:
        for rule in RULES:
            ratios[f"peer over {rule} at 1e5"] = ratio("peer_100000", f"{rule}_100000")
    print(json.dumps({"ratios": ratios}) if options.json else ratios)


if __name__ == "__main__":
    main()
