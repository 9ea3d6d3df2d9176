"""From a run that has done its last step to the record that it leaves behind."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from autolr_ray.schedule import AutoWarmup, LinearWarmup
from autolr_ray.schedule.look_inside import receipt_row
from autolr_ray.train.record import Posterior, ReceiptRow, RunRecord, Trace
from autolr_ray.train.schedules import OwnSpec
from autolr_ray.train.versions import device_name, versions

if TYPE_CHECKING:
    from autolr_ray.train.loop import TrainingRun

_TRACE_POINTS = 1000


def finished_record(
    training: TrainingRun,
    test_accuracy: float,
    *,
    study: str,
    arm: str,
    point: str,
    device_share: float = 1.0,
) -> RunRecord:
    """The record of a run that is over, under these labels; each worker had ``device_share`` of a device."""
    spec, schedule = training.spec, training.schedule
    auto = schedule if isinstance(schedule, AutoWarmup) else None
    decision = auto.decision if auto else None
    linear = schedule if isinstance(schedule, LinearWarmup) else None
    peak_lr = auto.peak_lr if auto else linear.peak_lr if linear else max(training.rates)
    if "d" in training.optimizer.param_groups[0]:
        peak_lr = max(training.rates)
    switch_step = auto.switch_step if auto else linear.warmup_steps if linear else None
    own = spec.schedule if isinstance(spec.schedule, OwnSpec) else None
    kept = np.unique(np.linspace(0, training.total_steps - 1, _TRACE_POINTS).round().astype(int))
    posterior = Posterior(step=[], mean=[], sd=[])
    if decision is not None:
        steps = np.linspace(decision.start_step, decision.step, len(decision.mean))
        posterior = Posterior(step=steps.tolist(), mean=decision.mean.tolist(), sd=decision.sd.tolist())
    return RunRecord(
        cell=spec.cell, study=study, arm=arm, point=point,
        batch_size=spec.batch_size, seed=spec.seed, task=training.task.name, model=spec.model or "",
        optimizer=type(training.optimizer).__name__ if own else spec.optimizer.name,
        schedule=own.arm if own else spec.schedule.kind, workers=spec.workers,
        device=device_name(training.context.device), epochs=spec.epochs, total_steps=training.total_steps,
        peak_lr=math.nan if peak_lr is None else peak_lr,
        warmup_fraction=math.nan if switch_step is None else switch_step / training.total_steps,
        switch_step=-1 if switch_step is None else switch_step,
        verdict=decision.verdict.name.lower() if decision else "",
        rolled_back_to=-1 if auto is None or auto.rolled_back_to is None else auto.rolled_back_to,
        train_loss=training.rows[-1].train_loss,
        validation_accuracy=training.rows[-1].validation_accuracy,
        test_accuracy=test_accuracy,
        device_seconds=training.seconds * spec.workers * device_share,
        tuning_seconds=training.tuning_seconds * spec.workers * device_share,
        device_share=device_share,
        tuning="LR range test" if training.found_lr is not None else "",
        startup_seconds=training.startup_seconds,
        restarts=training.restarts,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        epoch_rows=training.rows,
        trace=Trace(
            step=kept.tolist(),
            lr=[training.rates[i] for i in kept],
            loss=[training.losses[i] for i in kept],
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
