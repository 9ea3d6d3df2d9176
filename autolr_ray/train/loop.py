"""The training loop: one run from its spec, in whatever surroundings. Never calls Ray."""

from __future__ import annotations

import contextlib
import math
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.optim import Optimizer

from autolr_ray.schedule import AutoWarmup, DivergenceError
from autolr_ray.tasks import Splits, get_task
from autolr_ray.tasks.named import code_fingerprint
from autolr_ray.tasks.task import Examples
from autolr_ray.train.arm import Parts
from autolr_ray.train.batches import TrainBatches, derive_seed, evaluation_batches
from autolr_ray.train.checkpoints import State
from autolr_ray.train.context import RunContext
from autolr_ray.train.evaluation import mean_score, scored_weights, set_mode
from autolr_ray.train.finished import finished_record
from autolr_ray.train.micro_batch import find_accumulation_steps, rehearse
from autolr_ray.train.range_test import range_test
from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.spec import RunSpec

# As many epochs share a checkpoint as make so many steps, as long as a run has so many checkpoints.
_FEW_STEPS, _FEWEST_CHECKPOINTS = 16, 100


def run(
    spec: RunSpec,
    context: RunContext,
    *,
    study: str = "",
    arm: str = "",
    point: str = "",
    device_share: float = 1.0,
    launched_at: float | None = None,
    elastic: bool = False,
) -> RunRecord:
    """Train as ``spec`` says, from the newest saved state if there is one; the finished record.

    Args:
        spec: the run.
        context: where it happens.
        study, arm, point: labels for the record.
        device_share: the part of a device that each worker has: its time is charged by it.
        launched_at: when the run was asked for (seconds since the epoch), to measure the start-up.
        elastic: fewer workers than ``spec.workers`` may run; they share the same global batches.

    Raises:
        ValueError: the data, the state or the number of workers do not fit the spec.
        OSError: a checkpoint or the record cannot be written.
        DivergenceError: ``spec.on_non_finite`` is "raise" and no loss of an epoch was finite.
    """
    launched_at = launched_at or time.time()
    try:
        training = TrainingRun(spec, context, elastic=elastic)
        training.start_clock()
        training.startup_seconds = training.startup_seconds or time.time() - launched_at
        for epoch in range(training.steps_done // training.steps_per_epoch, spec.epochs):
            row = training.train_epoch(epoch)
            if training.saves_after(epoch):
                context.report(row, training.state())
            else:
                context.hold(row)
        test_accuracy = training.evaluate(training.splits.test)
        record = finished_record(
            training, test_accuracy, study=study, arm=arm, point=point, device_share=device_share
        )
        if context.rank == 0:
            context.finish(record)
    finally:
        context.close()
    return record


class TrainingRun:
    """What one run holds on to between its steps."""

    def __init__(self, spec: RunSpec, context: RunContext, *, elastic: bool) -> None:
        if context.world_size != spec.workers and not (elastic and context.world_size < spec.workers):
            raise ValueError(f"workers: {spec.workers} were asked for, {context.world_size} are running")
        self.spec, self.context = spec, context
        self._began = math.nan
        self._earlier_seconds = 0.0
        self.startup_seconds = 0.0
        self.restarts = 0
        self.steps_done = 0
        self.rows: list[EpochRow] = []
        # Buffers: every epoch's state has a copy, and to copy long lists takes longer than to train.
        self._columns = {field: array("d") for field in EpochRow.model_fields}
        self.losses, self.rates = array("d"), array("d")
        self.task = get_task(spec.task, spec.model)
        self.splits = _splits(spec.task, spec.model, spec.data_dir)
        if spec.code and (code := code_fingerprint(spec.own_names)) != spec.code:
            raise ValueError(
                f"code: this worker's {' and '.join(spec.own_names)} has code {code}, the run was made for "
                f"{spec.code}; every node needs the same files"
            )
        state = context.restore()
        if state is not None and state["cell"] != spec.cell:
            raise ValueError(f"checkpoint: it belongs to run {state['cell']}, this is {spec.cell}")
        # The same weights on every rank and for every arm with this seed.
        torch.manual_seed(spec.seed)
        self.network = spec.compute.prepare(self.task.model(), context.device)
        self.accumulation_steps = self._accumulation_steps(state)
        self.batches = TrainBatches(
            self.splits.train, spec, context.rank, context.device,
            world_size=context.world_size, accumulation_steps=self.accumulation_steps,
        )  # fmt: skip
        self.model = context.wrap(self.network)
        if spec.compute.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        self.scaler = spec.compute.scaler(context.device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * spec.epochs
        self._generator = torch.Generator(device=context.device)
        self.found_lr: float | None = None if state is None else state["found_lr"]
        self.tuning_seconds = 0.0
        self.optimizer, self.schedule = spec.schedule.build(self._parts())
        # Losses of this epoch's steps that are not yet in ``losses``, on the device.
        self._waiting = torch.zeros(self.steps_per_epoch, device=context.device)
        if state is not None:
            self._resume(state)

    def start_clock(self) -> None:
        """Device time counts from here: imports and loading, which reused processes skip, are start-up."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time in the loop so far, earlier lives of the run included."""
        return self._earlier_seconds + time.perf_counter() - self._began

    def state(self) -> State:
        """All that a later life of this run needs; random draws depend on seed and step alone.

        Every rank calls it: ranks exchange what only they know.
        """
        self.schedule.synchronize()
        self._collect_losses()
        return {
            "cell": self.spec.cell,
            "step": self.steps_done,
            "seconds": self.seconds,
            "startup_seconds": self.startup_seconds,
            "restarts": self.restarts,
            "accumulation_steps": self.accumulation_steps,
            "found_lr": self.found_lr,
            "tuning_seconds": self.tuning_seconds,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state_dict(),
            # By field [epochs]: so many tensors to copy and write, however many epochs there were.
            "rows": {field: _vector(column) for field, column in self._columns.items()},
            "losses": _vector(self.losses),
            "rates": _vector(self.rates),
        }

    def _resume(self, state: State) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps_done = state["step"]
        self._earlier_seconds = state["seconds"]
        self.tuning_seconds = state["tuning_seconds"]
        self.startup_seconds = state["startup_seconds"]
        self.restarts = state["restarts"] + 1
        for row in _rows_of(state["rows"]):
            self._keep(row)
        self.losses, self.rates = (array("d", state[name].tolist()) for name in ("losses", "rates"))

    def _parts(self) -> Parts:
        """What the arm is built from."""
        return Parts(
            model=self.network,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            scaler=self.scaler,
            make_optimizer=lambda: self.spec.optimizer.build(self.network.parameters(), self.total_steps),
            range_test=self._range_test,
        )

    def _range_test(
        self, make_optimizer: Callable[[], Optimizer], min_lr: float, max_lr: float, steps: int
    ) -> float:
        """The learning rate that the range test finds, or found in an earlier life; its time is charged."""
        if self.found_lr is None:
            began = time.perf_counter()
            self.model.train()
            self.found_lr = range_test(
                self.model, lambda inputs, targets: self._loss(self.model, inputs, targets),
                self._probe_batches(), make_optimizer, min_lr, max_lr, steps,
                scaler=self.spec.compute.scaler(self.context.device), world_size=self.context.world_size,
            )  # fmt: skip
            self.tuning_seconds = time.perf_counter() - began
            self._earlier_seconds += self.tuning_seconds
        return self.found_lr

    def _probe_batches(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Training batches without end, with random draws that no training step has."""
        step = 0
        while True:
            for micro_batches in self.batches.epoch(step // self.steps_per_epoch):
                step += 1
                self._seed(-1 - step)
                yield micro_batches

    def train_epoch(self, epoch: int) -> EpochRow:
        """What is left of one pass over the training part, then validation."""
        self.model.train()
        set_mode(self.optimizer, "train")
        first = self.steps_done - epoch * self.steps_per_epoch
        for number, micro_batches in enumerate(self.batches.epoch(epoch, first), start=first):
            self._seed(self.steps_done)
            self.rates.append(self._rate())
            loss = self._step(micro_batches)
            self._waiting[number] = loss
            self.schedule.step(loss)
            self.steps_done += 1
            self.context.poll()
            if self._saves_here():
                self.context.save(self.state())
        self._collect_losses()
        epoch_losses = torch.tensor(self.losses[-self.steps_per_epoch :].tolist())
        self._check_losses(epoch_losses)
        row = EpochRow(
            epoch=epoch + 1,
            step=self.steps_done,
            lr=self.rates[-1],
            train_loss=float(epoch_losses.mean()),
            validation_accuracy=self.evaluate(self.splits.validation),
            seconds=self.seconds,
        )
        self._keep(row)
        return row

    def _keep(self, row: EpochRow) -> None:
        self.rows.append(row)
        for field, column in self._columns.items():
            column.append(getattr(row, field))

    def _rate(self) -> float:
        """The learning rate of the next step; Prodigy multiplies the schedule's by what it has found."""
        scale = self.optimizer.param_groups[0].get("d", 1.0)
        return float(self.schedule.get_last_lr()[0]) * float(scale)

    def saves_after(self, epoch: int) -> bool:
        """Whether the state at that epoch's end is saved: of runs of many epochs of a few steps not each.

        To write a state takes longer than a step of a small network. As many epochs go together as make
        sixteen steps, but no more than a hundredth of the run.
        """
        together = min(self.spec.epochs // _FEWEST_CHECKPOINTS, math.ceil(_FEW_STEPS / self.steps_per_epoch))
        return (epoch + 1) % max(1, together) == 0 or epoch + 1 == self.spec.epochs

    def _saves_here(self) -> bool:
        every = self.spec.checkpoint_every
        return (
            every is not None and self.steps_done % every == 0 and self.steps_done % self.steps_per_epoch > 0
        )

    def _collect_losses(self) -> None:
        """Move this epoch's losses, averaged over the ranks, from the device to ``losses``."""
        known, done = len(self.losses), self.steps_done
        if known < done:
            first = known % self.steps_per_epoch
            waiting = self._waiting[first : first + done - known]
            self.losses.extend((self._sum_over_ranks(waiting.clone()) / self.context.world_size).tolist())

    def _check_losses(self, epoch_losses: torch.Tensor) -> None:
        """A run whose weights are lost: go on or raise, as asked. The warmup may yet roll them back."""
        warming_up = isinstance(self.schedule, AutoWarmup) and self.schedule.phase == "warmup"
        if self.spec.on_non_finite == "finish" or warming_up or bool(epoch_losses.isfinite().any()):
            return
        finite = [step for step, loss in enumerate(self.losses) if math.isfinite(loss)]
        lost = finite[-1] + 1 if finite else 0
        raise DivergenceError(
            f"loss: not finite since step {lost} (learning rate {self.rates[lost]:.3g}), and through all of "
            f"epoch {self.steps_done // self.steps_per_epoch}; on_non_finite='finish' goes on all the same"
        )

    def _accumulation_steps(self, state: State | None) -> int:
        """As given; for "auto" as in the run's earlier life, or what fits in every rank's memory."""
        asked = self.spec.accumulation_steps
        if asked != "auto":
            return asked
        if state is not None:
            return int(state["accumulation_steps"])
        device = self.context.device
        whole = TrainBatches(self.splits.train, self.spec, self.context.rank, device, accumulation_steps=1)
        ((inputs, targets),) = next(whole.epoch(0))
        self._generator = torch.Generator(device=device)

        def attempt(size: int) -> None:
            rehearse(self.network, lambda: self._loss(self.network, inputs[:size], targets[:size]))

        self.network.train()
        found = torch.tensor(find_accumulation_steps(len(targets), attempt), device=device)
        if self.context.world_size > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def _seed(self, step: int) -> None:
        # Every draw (dropout, augmentation) depends on seed, step and rank: nothing to save or restore.
        seed = derive_seed(self.spec.seed, 1 + step, 1 + self.context.rank)
        # torch.manual_seed records the call stack at each call where CUDA is not in use: 0.1 ms a step.
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._generator.manual_seed(seed)

    def _step(self, micro_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """One optimizer step; this rank's part of the mean training loss, 0-d, detached.

        The mean over the ranks of what this returns is the mean over the global batch, and so are the
        gradients: each micro-batch counts the same, whoever computes it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.context.device)
        parts = self.batches.micro_batches / self.context.world_size
        for number, (inputs, targets) in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self._no_sync():
                loss = self._loss(self.model, inputs, targets) / parts
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _loss(self, model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of one micro-batch, augmented."""
        if self.task.augment is not None:
            inputs = self.task.augment(inputs, self._generator)
        with self._autocast():
            return self.task.loss(model(self._prepared(inputs)), targets)

    def _prepared(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.spec.compute.inputs(self.task.transform(inputs))

    def _no_sync(self) -> Any:
        no_sync = getattr(self.model, "no_sync", None)
        return no_sync() if no_sync is not None else contextlib.nullcontext()

    def evaluate(self, examples: Examples) -> float:
        """Mean score over all of ``examples``, shared among the ranks."""
        context = self.context
        batches = evaluation_batches(
            examples, self.spec, context.rank, context.device, world_size=context.world_size
        )
        with scored_weights(self.optimizer, self.network, self._recent_inputs, self._autocast):
            return mean_score(
                self.network, batches, self._outputs, self.task.correct, world_size=context.world_size
            )

    def _recent_inputs(self) -> Iterator[torch.Tensor]:
        """The training inputs of the last epoch, as the network sees them."""
        epoch = (self.steps_done - 1) // self.steps_per_epoch
        for micro_batches in self.batches.epoch(epoch):
            yield from (self._prepared(inputs) for inputs, _ in micro_batches)

    def _outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            outputs: torch.Tensor = self.network(self._prepared(inputs))
        return outputs

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return self.spec.compute.autocast(self.context.device)

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.context.world_size > 1:
            dist.all_reduce(values)
        return values.cpu()


def _vector(numbers: array[float]) -> torch.Tensor:
    """A copy [n] float64."""
    return torch.from_numpy(np.array(numbers))


def _rows_of(state: dict[str, torch.Tensor] | list[dict[str, Any]]) -> list[EpochRow]:
    """Of a state's columns; older states have a dictionary for each row."""
    if isinstance(state, list):
        return [EpochRow(**row) for row in state]
    values = zip(*(state[field].tolist() for field in EpochRow.model_fields), strict=True)
    return [EpochRow(**dict(zip(EpochRow.model_fields, row, strict=True))) for row in values]


_loaded: dict[tuple[str, str | None, Path | None], Splits] = {}


def _splits(task: str, model: str | None, data_dir: Path | None) -> Splits:
    """The data, loaded once per process: cells that share a process share it."""
    if (task, model, data_dir) not in _loaded:
        preload(task, model, data_dir, get_task(task, model).data(data_dir))
    return _loaded[task, model, data_dir]


def preload(task: str, model: str | None, data_dir: Path | None, splits: Splits) -> None:
    """Runs in this process take ``splits`` as the data of that task; those of the one before are let go."""
    _loaded.clear()
    _loaded[task, model, data_dir] = splits
