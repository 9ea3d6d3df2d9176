"""What a switch test costs, and a step between tests, beside the authors' code and beside PyTorch's cosine.

    python experiments/benchmarks/switch_test.py --json [--peer PATH_TO_THEIR_autowu.py]

One JSON line a measurement: ``{"name", "n", "milliseconds", "minimum", "maximum", "repeats"}`` with the
median, and a last line ``{"ratios": ...}``. Everything is measured in turn in one run, on one thread.

- ``robust``/``paper``: one test of a curve of ``n`` losses that has just grown by a block of ``--block``
  losses: taking them in (which moves all the statistics), fit and verdict.
- ``peer``: one test of the authors' code on the same curve (their ``maybe_switch``: fit on 100 points,
  five posteriors on 500).
- ``step``: one call of ``step(loss)`` between two tests, loss a 0-d CPU tensor, in microseconds, and the
  same of ``torch.optim.lr_scheduler.CosineAnnealingLR.step()``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolr_ray.schedule import RULES, AutoWarmup, SwitchRule


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
    spec = importlib.util.spec_from_file_location("peer_autowu", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--peer: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = module.AutoWU(optimizer, steps_per_epoch=n, total_epochs=4, immediate_cooldown=True)
    scheduler.warmup_phase_regressor.add_data(torch.tensor(curve(n), dtype=torch.float32))
    # Its switch is undone by asking again: the verdict of one test does not end the warmup.
    return median_time(scheduler.maybe_switch, repeats)


def time_steps(calls: int = 2000, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Microseconds of one ``step`` between tests, ours and CosineAnnealingLR's, in turn."""

    def make() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    loss = torch.tensor(1.0)
    ours, cosine = [], []
    for _ in range(rounds):
        auto = AutoWarmup(make(), total_steps=400 * calls)
        began = time.perf_counter()
        for _ in range(calls):
            auto.step(loss)
        ours.append((time.perf_counter() - began) / calls * 1e6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it expects an optimizer step first
            peer = torch.optim.lr_scheduler.CosineAnnealingLR(make(), T_max=400 * calls)
            began = time.perf_counter()
            for _ in range(calls):
                peer.step()
        cosine.append((time.perf_counter() - began) / calls * 1e6)
    return {
        name: {"microseconds": statistics.median(times), "minimum": min(times), "maximum": max(times)}
        for name, times in (("step", ours), ("cosine_annealing_step", cosine))
    }


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

    def ratio(above: str, below: str, unit: str = "milliseconds") -> float:
        return found[above][unit] / found[below][unit]

    ratios = {f"{rule}: 1e6 over 1e5": ratio(f"{rule}_1000000", f"{rule}_100000") for rule in RULES}
    ratios["step over cosine"] = ratio("step", "cosine_annealing_step", "microseconds")
    if options.peer is not None:
        for rule in RULES:
            ratios[f"peer over {rule} at 1e5"] = ratio("peer_100000", f"{rule}_100000")
    print(json.dumps({"ratios": ratios}) if options.json else ratios)


if __name__ == "__main__":
    main()
