"""The training loop: one run from its spec, in whatever surroundings. Never calls Ray."""

from __future__ import annotations

import contextlib
import math
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from autolr_ray.schedule import AutoWarmup, Schedule
from autolr_ray.schedule.look_inside import receipt_row
from autolr_ray.tasks import Splits, Task, get_task
from autolr_ray.tasks.task import Examples
from autolr_ray.train.batches import TrainBatches, derive_seed, evaluation_batches
from autolr_ray.train.context import RunContext, State
from autolr_ray.train.record import EpochRow, Posterior, ReceiptRow, RunRecord, Trace
from autolr_ray.train.spec import RunSpec
from autolr_ray.train.versions import device_name, versions

_TRACE_POINTS = 1000


def run(
    spec: RunSpec,
    context: RunContext,
    *,
    study: str = "",
    arm: str = "",
    point: str = "",
    launched_at: float | None = None,
) -> RunRecord:
    """Train as ``spec`` says, from the newest saved state if there is one; the finished record.

    Args:
        spec: the run.
        context: where it happens.
        study, arm, point: labels for the record.
        launched_at: when the run was asked for (seconds since the epoch), to measure the start-up.

    Raises:
        ValueError: the data or the state do not fit the spec.
    """
    launched_at = launched_at or time.time()
    trainer = _Trainer(spec, context)
    trainer.resume()
    trainer.start_clock()
    startup = trainer.startup_seconds or time.time() - launched_at
    trainer.startup_seconds = startup
    for epoch in range(trainer.epochs_done, spec.epochs):
        row = trainer.train_epoch(epoch)
        context.report(row, trainer.state())
    record = trainer.record(study=study, arm=arm, point=point)
    if context.rank == 0:
        context.finish(record)
    return record


class _Trainer:
    """What one run holds on to between its steps."""

    def __init__(self, spec: RunSpec, context: RunContext) -> None:
        if context.world_size != spec.workers:
            raise ValueError(f"workers: {spec.workers} were asked for, {context.world_size} are running")
        self.spec, self.context = spec, context
        self._began = math.nan
        self._earlier_seconds = 0.0
        self.startup_seconds = 0.0
        self.restarts = 0
        self.epochs_done = 0
        self.rows: list[EpochRow] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.task = get_task(spec.task, spec.model)
        self.splits = _splits(spec.task, spec.model, spec.data_dir)
        # The same weights on every rank and for every arm with this seed.
        torch.manual_seed(spec.seed)
        network = self.task.model()
        self.model = context.wrap(network)
        self.network = network.to(context.device)
        self.optimizer = spec.optimizer.build(self.network.parameters())
        self.batches = TrainBatches(self.splits.train, spec, context.rank, context.device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * spec.epochs
        self.schedule: Schedule = spec.schedule.build(
            self.optimizer, self.total_steps, self.steps_per_epoch, self.network
        )
        self._generator = torch.Generator(device=context.device)

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
        return {
            "cell": self.spec.cell,
            "epochs_done": self.epochs_done,
            "seconds": self.seconds,
            "startup_seconds": self.startup_seconds,
            "restarts": self.restarts,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rows": [row.model_dump() for row in self.rows],
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
        }

    def resume(self) -> None:
        """Continue from the newest saved state, if there is one."""
        state = self.context.restore()
        if state is None:
            return
        if state["cell"] != self.spec.cell:
            raise ValueError(f"checkpoint: it belongs to run {state['cell']}, this is {self.spec.cell}")
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done = state["epochs_done"]
        self._earlier_seconds = state["seconds"]
        self.startup_seconds = state["startup_seconds"]
        self.restarts = state["restarts"] + 1
        self.rows = [EpochRow(**row) for row in state["rows"]]
        self.losses, self.rates = state["losses"].tolist(), state["rates"].tolist()

    def train_epoch(self, epoch: int) -> EpochRow:
        """One pass over the training part, then validation."""
        self.model.train()
        losses = torch.zeros(self.steps_per_epoch, device=self.context.device)
        for number, micro_batches in enumerate(self.batches.epoch(epoch)):
            self._seed(epoch * self.steps_per_epoch + number)
            self.rates.append(float(self.schedule.get_last_lr()[0]))
            loss = self._step(micro_batches)
            losses[number] = loss
            self.schedule.step(loss)
        epoch_losses = self._sum_over_ranks(losses) / self.context.world_size
        self.losses += epoch_losses.tolist()
        self.epochs_done = epoch + 1
        row = EpochRow(
            epoch=self.epochs_done,
            step=self.epochs_done * self.steps_per_epoch,
            lr=self.rates[-1],
            train_loss=float(epoch_losses.mean()),
            validation_accuracy=self.evaluate(self.splits.validation),
            seconds=self.seconds,
        )
        self.rows.append(row)
        return row

    def _seed(self, step: int) -> None:
        # Every draw (dropout, augmentation) depends on seed, step and rank: nothing to save or restore.
        seed = derive_seed(self.spec.seed, 1 + step, 1 + self.context.rank)
        torch.manual_seed(seed)
        self._generator.manual_seed(seed)

    def _step(self, micro_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """One optimizer step; the mean training loss of this rank's share, 0-d, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.context.device)
        for number, (inputs, targets) in enumerate(micro_batches):
            if self.task.augment is not None:
                inputs = self.task.augment(inputs, self._generator)
            last = number == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self._no_sync():
                loss = self.task.loss(self.model(self.task.transform(inputs)), targets) / len(micro_batches)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimizer.step()
        return total

    def _no_sync(self) -> Any:
        no_sync = getattr(self.model, "no_sync", None)
        return no_sync() if no_sync is not None else contextlib.nullcontext()

    @torch.no_grad()
    def evaluate(self, examples: Examples) -> float:
        """Mean score over all of ``examples``, shared among the ranks."""
        if self.context.world_size > 1:
            # Without SyncBatchNorm each rank has running statistics of its own; rank 0's count.
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)
        self.network.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.context.device)
        for inputs, targets in evaluation_batches(
            examples, self.spec, self.context.rank, self.context.device
        ):
            correct = self.task.correct(self.network(self.task.transform(inputs)), targets)
            sums += torch.stack([correct.sum(), torch.tensor(float(len(correct)), device=sums.device)])
        correct_sum, count = self._sum_over_ranks(sums).tolist()
        return float(correct_sum / count)

    def _sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.context.world_size > 1:
            dist.all_reduce(values)
        return values.cpu()

    def record(self, *, study: str, arm: str, point: str) -> RunRecord:
        """The finished run; reads the test part, once."""
        spec, schedule = self.spec, self.schedule
        test_accuracy = self.evaluate(self.splits.test)
        auto = schedule if isinstance(schedule, AutoWarmup) else None
        decision = auto.receipts[-1] if auto and auto.switch_step is not None else None
        peak_lr = auto.peak_lr if auto else spec.schedule.peak_lr  # type: ignore[union-attr]
        switch_step = auto.switch_step if auto else schedule.warmup_steps  # type: ignore[attr-defined]
        kept = np.unique(np.linspace(0, self.total_steps - 1, _TRACE_POINTS).round().astype(int))
        posterior = Posterior(step=[], mean=[], sd=[])
        if decision is not None:
            steps = np.linspace(0.0, decision.step, len(decision.mean))
            posterior = Posterior(step=steps.tolist(), mean=decision.mean.tolist(), sd=decision.sd.tolist())
        return RunRecord(
            cell=spec.cell, study=study, arm=arm, point=point,
            batch_size=spec.batch_size, seed=spec.seed, task=self.task.name, model=spec.model or "",
            optimizer=spec.optimizer.name, schedule=spec.schedule.kind, workers=spec.workers,
            device=device_name(self.context.device), epochs=spec.epochs, total_steps=self.total_steps,
            peak_lr=math.nan if peak_lr is None else peak_lr,
            warmup_fraction=math.nan if switch_step is None else switch_step / self.total_steps,
            switch_step=-1 if switch_step is None else switch_step,
            verdict=decision.verdict.name.lower() if decision else "",
            rolled_back_to=decision.rolled_back_to if decision else -1,
            train_loss=self.rows[-1].train_loss,
            validation_accuracy=self.rows[-1].validation_accuracy,
            test_accuracy=test_accuracy,
            device_seconds=self.seconds * spec.workers,
            startup_seconds=self.startup_seconds,
            restarts=self.restarts,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            epoch_rows=self.rows,
            trace=Trace(
                step=kept.tolist(),
                lr=[self.rates[i] for i in kept],
                loss=[self.losses[i] for i in kept],
            ),
            receipts=[
                ReceiptRow.model_validate(
                    {key: value for key, value in receipt_row(r).items() if key in ReceiptRow.model_fields}
                    | {"argmin_step": round(r.argmin_step)}
                )
                for r in (auto.receipts if auto else [])
            ],
            posterior=posterior,
        )  # fmt: skip


@lru_cache(maxsize=1)
def _splits(task: str, model: str | None, data_dir: Path | None) -> Splits:
    """The data, loaded once per process: cells that share a process share it."""
    found: Task = get_task(task, model)
    return found.data(data_dir)
