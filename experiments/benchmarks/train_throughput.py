"""Our training loop beside a hand-written one, AutoWarmup beside a cosine, and what checkpoints cost.

    python experiments/benchmarks/train_throughput.py --json [--workers 1 2] [--model resnet18]

Every figure comes from epochs that take turns in one process (or in one group of processes), so that both
sides see the same machine; ratios are medians over pairs of neighbouring epochs.

- ``loop``: images/s of ``TrainingRun`` over those of a plain PyTorch loop with the same model, data, batches,
  optimizer and cosine schedule; both evaluate on the validation part once an epoch.
- ``auto_warmup``: images/s of the loop with AutoWarmup (in its warmup, rollback on) over those of the loop
  with a cosine schedule, both at a learning rate of 1e-3; ``share``: seconds in ``AutoWarmup.step`` over
  seconds of the epoch, which noise of the machine does not touch.
- ``checkpoint``: milliseconds of an epoch's checkpoint that the loop waits for (the copy to the host) and
  until it is on the disk, and megabytes, of ResNet-18 with AdamW after the warmup's end.
- ``startup``: seconds from launching a run to its first step, in a plain process that has just been started,
  and as a ``TorchTrainer`` of one worker on a Ray that is up.
- On a GPU, ``resnet50``: images/s in bfloat16, channels_last, synthetic 224x224 images on the device,
  and the share of the device's measured bfloat16 matrix-multiplication rate (3 x 4.09e9 x 2 operations an
  image).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from autolr_ray.schedule import AutoWarmup, LinearWarmup
from autolr_ray.tasks import TensorData, get_task
from autolr_ray.tasks.models import build_model
from autolr_ray.train import LocalContext, RunSpec
from autolr_ray.train.batches import TrainBatches, evaluation_batches
from autolr_ray.train.loop import TrainingRun

LINEAR = {"kind": "linear_warmup", "peak_lr": 1e-3, "warmup_fraction": 0.0}
# The same learning rates, nearly, for the whole benchmark: what a step costs depends on the weights' values.
AUTO = {"kind": "auto_warmup", "min_lr": 1e-3, "max_lr": 1.001e-3}
_OPERATIONS_PER_IMAGE = 3 * 4.09e9 * 2  # ResNet-50 at 224x224, forward and backward


class GlooContext(LocalContext):
    """One of several processes of ``torch.distributed`` on this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder)
        if dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        """DDP where there are several processes."""
        return nn.parallel.DistributedDataParallel(model) if self.world_size > 1 else super().wrap(model)


def spec_of(model: str, batch_size: int, workers: int, schedule: dict[str, Any]) -> RunSpec:
    """Many epochs of the packaged subset: the benchmark ends before they do."""
    return RunSpec.model_validate(
        {
            "task": "fashion_mnist_subset", "model": model, "batch_size": batch_size, "workers": workers,
            "epochs": 1000, "schedule": schedule,
        }
    )  # fmt: skip


def our_epochs(spec: RunSpec, folder: Path) -> Iterator[int]:
    """Train an epoch of the project's loop each time it is asked for the next; images trained on."""
    training = TrainingRun(spec, GlooContext(folder), elastic=False)
    training.start_clock()
    for epoch in range(spec.epochs):
        training.train_epoch(epoch)
        yield training.steps_per_epoch * spec.batch_size


def plain_epochs(spec: RunSpec) -> Iterator[int]:
    """The same in the loop that one would write by hand."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = get_task(spec.task, spec.model)
    splits = task.data(None)
    assert isinstance(splits.train, TensorData)
    torch.manual_seed(spec.seed)
    network = task.model().to(device)
    model = nn.parallel.DistributedDataParallel(network) if spec.workers > 1 else network
    batches = TrainBatches(splits.train, spec, rank, device)
    total = batches.steps_per_epoch * spec.epochs
    optimizer = spec.optimizer.build(network.parameters(), total)
    schedule = LinearWarmup(optimizer, total, peak_lr=1e-3, warmup_fraction=0.0)
    for epoch in range(spec.epochs):
        model.train()
        losses = []
        for ((inputs, targets),) in batches.epoch(epoch):
            optimizer.zero_grad(set_to_none=True)
            loss = task.loss(model(task.transform(inputs)), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        network.eval()
        with torch.no_grad():
            right = sum(
                task.correct(network(task.transform(inputs)), targets).sum()
                for inputs, targets in evaluation_batches(splits.validation, spec, rank, device)
            )
            float(right)
        yield batches.steps_per_epoch * spec.batch_size


def compare(ours: Iterator[int], theirs: Iterator[int], rounds: int) -> dict[str, float]:
    """Median images/s of both, and the median, lowest and highest ratio of neighbouring epochs."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):  # neither is always the first
            if dist.is_initialized():
                dist.barrier()
            began = time.perf_counter()
            images = next((ours, theirs)[side])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first warms up
                speeds[side].append(images / (time.perf_counter() - began))
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    return {
        "images_per_second": statistics.median(speeds[0]),
        "other_images_per_second": statistics.median(speeds[1]),
        "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "pairs": rounds,
    }  # fmt: skip


def one_worker(workers: int, model: str, batch_size: int, rounds: int, tell: Callable[..., None]) -> None:
    """Both comparisons, in this process as one of ``workers``."""
    with tempfile.TemporaryDirectory() as folder:
        linear = spec_of(model, batch_size, workers, LINEAR)
        auto = spec_of(model, batch_size, workers, AUTO)
        found = compare(our_epochs(linear, Path(folder)), plain_epochs(linear), rounds)
        tell("loop", workers=workers, model=model, batch_size=batch_size, **found)
        found = compare(our_epochs(auto, Path(folder)), our_epochs(linear, Path(folder)), rounds)
        found["share"] = share_of_steps(our_epochs(auto, Path(folder)), max(2, rounds // 3))
        tell("auto_warmup", workers=workers, model=model, batch_size=batch_size, **found)


def share_of_steps(epochs: Iterator[int], rounds: int) -> float:
    """Seconds in ``AutoWarmup.step``, tests and snapshots included, over seconds of training."""
    step, inside = AutoWarmup.step, 0.0

    def timed(self: AutoWarmup, loss: Any) -> None:
        nonlocal inside
        began = time.perf_counter()
        step(self, loss)
        inside += time.perf_counter() - began

    AutoWarmup.step = timed  # type: ignore[method-assign]
    try:
        next(epochs)
        inside, began = 0.0, time.perf_counter()
        for _ in range(rounds):
            next(epochs)
        return inside / (time.perf_counter() - began)
    finally:
        AutoWarmup.step = step  # type: ignore[method-assign]


def time_checkpoints(repeats: int, tell: Callable[..., None]) -> None:
    """What an epoch's checkpoint of ResNet-18 with AdamW costs."""
    with tempfile.TemporaryDirectory() as folder:
        context = LocalContext(Path(folder) / "run", Path(folder))
        training = TrainingRun(spec_of("resnet18", 8, 1, LINEAR), context, elastic=False)
        training.start_clock()
        training.steps_done = 1
        inputs, targets = next(training.batches.epoch(0))[0]
        training._step([(inputs, targets)])  # the optimizer has its state after one step
        training.rates.append(0.0)
        training.losses.append(0.0)
        waited, written = [], []
        for _ in range(repeats):
            began = time.perf_counter()
            context.save(training.state())
            waited.append((time.perf_counter() - began) * 1e3)
            context.close()
            written.append((time.perf_counter() - began) * 1e3)
            training.steps_done += 1
            training.losses.append(0.0)
        size = len(context.checkpoints.paths()[0].read_bytes()) / 1e6
        tell(
            "checkpoint", model="resnet18", waits_milliseconds=statistics.median(waited),
            on_disk_milliseconds=statistics.median(written), megabytes=size, repeats=repeats,
        )  # fmt: skip


def time_startup(tell: Callable[..., None]) -> None:
    """Launch a run of one epoch in a fresh process; its own record says when the first step came."""
    code = (
        "import sys, time; launched = float(sys.argv[2])\n"
        "from pathlib import Path\n"
        "from autolr_ray.train import LocalContext, RunSpec, run\n"
        "spec = RunSpec.model_validate_json(sys.argv[3])\n"
        "folder = Path(sys.argv[1])\n"
        "print(run(spec, LocalContext(folder / 'run', folder), launched_at=launched).startup_seconds)"
    )
    spec = spec_of("cnn", 4096, 1, LINEAR).model_copy(update={"epochs": 1})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, folder, str(time.time()), spec.model_dump_json()]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
    tell("startup", where="plain process", seconds=float(found.stdout))


def time_startup_on_ray(tell: Callable[..., None]) -> None:
    """The same run as a ``TorchTrainer``."""
    import ray

    from autolr_ray.train.record import RunRecord
    from autolr_ray.train.trainer import RunRequest, build_trainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    spec = spec_of("cnn", 4096, 1, LINEAR).model_copy(update={"epochs": 1})
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            _temp_dir=temporary, object_store_memory=100_000_000,
        )  # fmt: skip
        try:
            folder = Path(temporary) / "out"
            build_trainer(RunRequest(spec=spec, runs_dir=folder / "runs", record_dir=folder)).fit()
            text = (folder / f"{spec.cell}.json").read_text()
        finally:
            ray.shutdown()
    tell("startup", where="TorchTrainer", seconds=RunRecord.model_validate_json(text).startup_seconds)


def on_a_gpu(rounds: int, tell: Callable[..., None]) -> None:
    """ResNet-50 on synthetic images, and the rate of a large matrix multiplication."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def timed(action: Callable[[], object], times: int) -> float:
        action()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            action()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    rate = 2 * 8192**3 / timed(lambda: a @ a, 50)
    network = build_model("resnet50", classes=1000, channels=3, image_size=224).cuda()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    inputs = torch.randn(256, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    targets = torch.randint(1000, (256,), device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    speed = 256 / timed(step, 10 * rounds)
    tell(
        "resnet50", images_per_second=speed, matmul_operations_per_second=rate,
        share_of_matmul_rate=speed * _OPERATIONS_PER_IMAGE / rate,
    )  # fmt: skip


def main() -> None:
    """Command line; with ``--rank`` one process of a group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: %(default)s)")
    parser.add_argument("--model", default="cnn", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="global (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of epochs (default: %(default)s)")
    parser.add_argument("--only-loops", action="store_true", help="no checkpoints, start-up, ResNet-50")
    parser.add_argument("--rank", help=argparse.SUPPRESS)  # RANK/SIZE/FILE
    options = parser.parse_args()
    torch.set_num_threads(1)

    def tell(name: str, **found: Any) -> None:
        if dist.is_initialized() and dist.get_rank():
            return
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        print(json.dumps({"name": name} | found) if options.json else f"{name}: {shown}", flush=True)

    if options.rank is not None:
        rank, size, file = options.rank.split("/", 2)
        dist.init_process_group("gloo", f"file://{file}", rank=int(rank), world_size=int(size))
        one_worker(int(size), options.model, options.batch_size, options.rounds, tell)
        dist.destroy_process_group()
        return
    for workers in options.workers:
        if workers == 1:
            one_worker(1, options.model, options.batch_size, options.rounds, tell)
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, *sys.argv[1:]]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            ranks = [
                subprocess.Popen([*command, "--rank", f"{rank}/{workers}/{folder}/store"], env=environment)
                for rank in range(workers)
            ]
            if sum(process.wait() != 0 for process in ranks):
                raise SystemExit(f"--workers {workers}: a process failed")
    if not options.only_loops:
        time_checkpoints(max(3, options.rounds // 3), tell)
        time_startup(tell)
        time_startup_on_ray(tell)
        if torch.cuda.is_available():
            on_a_gpu(options.rounds, tell)


if __name__ == "__main__":
    main()
