"""Tasks small enough to train in a fraction of a second, and runs that are cut off and taken up again.

The tasks are named in specs as ``train_helpers:NAME``, so that this module is also what a user's own is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from autolr_ray.tasks import Splits, Task, TensorData
from autolr_ray.train import OPTIMIZERS, LocalContext, RunRecord, RunSpec, run
from autolr_ray.train.checkpoints import State
from autolr_ray.train.record import EpochRow

FEATURES, CLASSES = 12, 3
SIZES = {"train": 200, "validation": 51, "test": 67}
STEPS_PER_EPOCH = 25  # of a batch of 8


def examples(part: str) -> TensorData:
    """Bytes [n, 12] with noisy labels of a linear teacher, the same on every call."""
    generator = torch.Generator().manual_seed(len(part))
    inputs = torch.randint(0, 256, (SIZES[part], FEATURES), generator=generator, dtype=torch.uint8)
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(SIZES[part], CLASSES, generator=generator)
    return TensorData(inputs=inputs, targets=(scale(inputs) @ teacher + 0.3 * noise).argmax(dim=1))


def scale(inputs: Tensor) -> Tensor:
    """Bytes to [-0.5, 0.5]."""
    return inputs.to(torch.float32) / 255 - 0.5


def scale64(inputs: Tensor) -> Tensor:
    """The same in float64."""
    return inputs.to(torch.float64) / 255 - 0.5


def jitter(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A random shift of each value by up to ten."""
    shift = torch.randint(-10, 11, inputs.shape, generator=generator)
    return (inputs.to(torch.int64) + shift).clamp(0, 255)


def network() -> nn.Module:
    """With what makes a run hard to repeat: BatchNorm's running statistics and dropout."""
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES)
    )


def simple_network() -> nn.Module:
    """In float64, nothing random: the same gradient, however a batch is shared out, but for 16 digits."""
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()


def tensors(data_dir: Path | None) -> Splits:
    """All three parts in memory."""
    return Splits(**{part: examples(part) for part in SIZES})


READS: Counter[tuple[str, int]] = Counter()


class Listed(Dataset[tuple[Tensor, int]]):
    """The same examples one by one, each read counted in ``READS``."""

    def __init__(self, part: str) -> None:
        self.part, self.data = part, examples(part)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        READS[self.part, index] += 1
        return self.data.inputs[index], int(self.data.targets[index])


class Shaken(Listed):
    """As image folders are: the example itself is drawn, from torch's global generator."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, target = super().__getitem__(index)
        return jitter(inputs, torch.default_generator), target


def listed(data_dir: Path | None) -> Splits:
    """All three parts as data sets for a loader."""
    return Splits(**{part: Listed(part) for part in SIZES})


def shaken(data_dir: Path | None) -> Splits:
    """A training part with random examples."""
    return Splits(train=Shaken("train"), validation=Listed("validation"), test=Listed("test"))


mlp = Task(name="mlp", data=tensors, model=network, transform=scale, augment=jitter)
mlp_files = Task(name="mlp", data=listed, model=network, transform=scale, augment=jitter)
mlp_shaken = Task(name="shaken", data=shaken, model=network, transform=scale)
simple = Task(name="simple", data=tensors, model=simple_network, transform=scale64)


# 160 steps of warmup at most: the robust rule then looks every second or third step, and at the end of an
# epoch of 25 steps some losses wait for the next look.
AUTO = {"kind": "auto_warmup", "warmup": "exponential", "max_lr": 10.0, "max_warmup_fraction": 0.8}
SWEPT = {"kind": "auto_warmup"}
PAPER = AUTO | {"rule": "paper"}
LINEAR = {"kind": "linear_warmup", "peak_lr": 0.02, "warmup_fraction": 0.1}


# Optimizers that leave the learning rate to the schedule; the two others have tests of their own.
SCHEDULED = tuple(name for name in OPTIMIZERS if name not in ("prodigy", "schedule_free_adamw"))


def spec_of(task: str = "mlp", **changes: Any) -> RunSpec:
    """A run of 8 epochs of 25 steps: long enough to turn and roll back."""
    settings = {"task": f"train_helpers:{task}", "batch_size": 8, "epochs": 8, "schedule": AUTO} | changes
    return RunSpec.model_validate(settings)


class Cut(Exception):
    """The run ends here, as if the process were killed."""


class SpyContext(LocalContext):
    """A plain process that keeps what was saved last, and can be cut off when an epoch ends.

    Args:
        folder: checkpoint and record go there.
        cut: called with each epoch's number and "before" or "after" its save; it may raise ``Cut``.
    """

    def __init__(self, folder: Path, cut: Callable[[int, str], None] = lambda epoch, when: None) -> None:
        super().__init__(
            folder / "run",
            folder / "records",
            device=torch.device("cpu"),
            on_report=lambda row: cut(row.epoch, "after"),
        )
        self.cut = cut
        self.saved: State = {}

    def report(self, row: EpochRow, state: State) -> None:
        self.cut(row.epoch, "before")
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self.saved = torch.load(buffer, weights_only=True)
        super().report(row, state)
        # Not while the next epoch goes on, so that tests know when what happens.
        self.close()
        self.poll()


def train(spec: RunSpec, folder: Path) -> tuple[RunRecord, State]:
    """An undisturbed run: its record, and its state after the last epoch."""
    context = SpyContext(folder)
    return run(spec, context), context.saved


def train_with_cuts(
    spec: RunSpec, folder: Path, when: str, epochs: range | None = None
) -> tuple[RunRecord, State]:
    """The same, cut off once in each of ``epochs`` (default: all), and run again from what was saved."""
    left = set(epochs or range(1, spec.epochs + 1))

    def cut(epoch: int, moment: str) -> None:
        if moment == when and epoch in left:
            left.remove(epoch)
            raise Cut

    saved: State = {}
    while True:
        context = SpyContext(folder, cut)
        # What an interrupted process leaves in torch's generator must not matter.
        torch.manual_seed(len(left) + 1_000)
        try:
            record = run(spec, context)
        except Cut:
            saved = context.saved or saved
            continue
        assert not left
        return record, context.saved or saved


# A commit made while the tests run is in "versions".
_CLOCK = {"device_seconds", "startup_seconds", "finished_at", "restarts", "versions"}


def result(record: RunRecord) -> str:
    """Everything in the record but the clock's part, as text, so that NaN equals NaN."""
    rows = [row.model_copy(update={"seconds": 0.0}) for row in record.epoch_rows]
    return record.model_copy(update={"epoch_rows": rows}).model_dump_json(exclude=_CLOCK, indent=0)


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Nested states are equal bit for bit (NaN equals NaN), but for the clock's part."""
    if isinstance(left, Tensor):
        assert isinstance(right, Tensor), where
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True, msg=where)
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - {"seconds"} - _CLOCK:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert left == right or left != left, f"{where}: {left} != {right}"


# --- Two processes without Ray -------------------------------------------------------------------------


class GlooContext(LocalContext):
    """One of several processes of ``torch.distributed``; the first saves for all."""

    def __init__(self, rank: int, folder: Path, cut: Callable[[int], None]) -> None:
        super().__init__(folder / "run", folder / "records", device=torch.device("cpu"))
        self.rank, self.cut = rank, cut
        self.world_size = dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model)

    def report(self, row: EpochRow, state: State) -> None:
        if self.rank == 0:
            super().report(row, state)
            self.close()
            self.poll()
        dist.barrier()
        self.cut(row.epoch)


def two_processes(rank: int, folder: Path, specs: dict[str, tuple[RunSpec, bool]]) -> None:
    """One rank's part: each spec undisturbed, then, if so asked, cut off after every epoch.

    Rank 0 leaves ``folder/NAME/whole/result.json`` and ``folder/NAME/cut/result.json``.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    for name, (spec, is_cut) in specs.items():
        for how in ("whole", "cut") if is_cut else ("whole",):
            here = folder / name / how
            left = set(range(1, spec.epochs + 1)) if how == "cut" else set()

            def cut(epoch: int, left: set[int] = left) -> None:
                if epoch in left:
                    left.remove(epoch)
                    raise Cut

            record = None
            while record is None:
                with contextlib.suppress(Cut):
                    record = run(spec, GlooContext(rank, here, cut))
                dist.barrier()
            if rank == 0:
                (here / "result.json").write_text(record.model_dump_json())
    dist.destroy_process_group()


def shrinking(rank: int, world_size: int, folder: Path, spec: RunSpec, last_epoch: int) -> None:
    """One rank's part of a life of an elastic run: up to ``last_epoch``, then the node is lost."""
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{world_size}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)

    def cut(epoch: int) -> None:
        if epoch == last_epoch:
            raise Cut

    with contextlib.suppress(Cut):
        run(spec, GlooContext(rank, folder, cut), elastic=True)
    dist.destroy_process_group()


# --- On Ray --------------------------------------------------------------------------------------------

WATCH = "AUTOLR_TEST_WATCH"  # the folder in which a worker writes what it saw, and is told what to do


class _Watch:
    """Writes the learning rates of each optimizer step of this process, and waits there to be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.rates = folder / f"rates-{self.rank}-{os.getpid()}"

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with self.rates.open("a") as file:
            file.write(" ".join(repr(float(group["lr"])) for group in optimizer.param_groups) + "\n")
        self.steps += 1
        armed = ""
        with contextlib.suppress(FileNotFoundError):
            armed = (self.folder / "kill").read_text()  # "RANK STEP"
        if armed == f"{self.rank} {self.steps}":
            (self.folder / "pid.new").write_text(str(os.getpid()))
            (self.folder / "pid.new").rename(self.folder / "pid")
            time.sleep(120)
            raise RuntimeError("nobody came to kill this worker")


def _watched(model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        register_optimizer_step_pre_hook(_Watch(Path(os.environ[WATCH])))
        return model()

    return build


ray_mlp = Task(name="mlp", data=tensors, model=_watched(network), transform=scale, augment=jitter)
ray_simple = Task(name="simple", data=tensors, model=_watched(simple_network), transform=scale64)


class _Hold:
    """Waits on rank 0, once ``WATCH/hold`` names a step of this process, until that file is gone.

    ``WATCH/held`` then says which process on which node waits, in the middle of an epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 0

    def __call__(self, *_: Any) -> None:
        import ray

        self.steps += 1
        hold = self.folder / "hold"
        if hold.exists() and hold.read_text() == str(self.steps):
            (self.folder / "held.new").write_text(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}")
            (self.folder / "held.new").rename(self.folder / "held")
            for _ in range(2400):
                if not hold.exists():
                    return
                time.sleep(0.05)
            raise RuntimeError("nobody came to release this worker")


def _held(model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if not dist.is_initialized() or dist.get_rank() == 0:
            register_optimizer_step_pre_hook(_Hold(Path(os.environ[WATCH])))
        return model()

    return build


held_mlp = Task(name="mlp", data=tensors, model=_held(network), transform=scale, augment=jitter)
held_simple = Task(name="simple", data=tensors, model=_held(simple_network), transform=scale64)


def _leave() -> None:
    """End the process without taking it down piece by piece: gloo's threads, which what is left of DDP may
    still hold, then end it now and then by SIGABRT ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":  # FOLDER SPECS RANK, or FOLDER SPEC RANK WORLD_SIZE LAST_EPOCH
    # Under this name too, because specs name tasks of the module train_helpers.
    import train_helpers

    if len(sys.argv) == 6:
        folder, file, *numbers = sys.argv[1:]
        rank_, world_size, last_epoch = map(int, numbers)
        shrunk = RunSpec.model_validate_json(Path(file).read_text())
        train_helpers.shrinking(rank_, world_size, Path(folder), shrunk, last_epoch)
        _leave()
    folder, file, rank = sys.argv[1:]
    specs = {
        name: (RunSpec.model_validate(spec), is_cut)
        for name, (spec, is_cut) in json.loads(Path(file).read_text()).items()
    }
    train_helpers.two_processes(int(rank), Path(folder), specs)
    _leave()
