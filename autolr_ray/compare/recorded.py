"""The rise of a recorded run, to be replayed with other settings."""

from __future__ import annotations

import numpy as np

from autolr_ray.compare.folder import ReadingError, read_runs
from autolr_ray.remote import Location
from autolr_ray.schedule.replay import Curve, CurveError
from autolr_ray.train.schedules import AutoWarmupSpec


def recorded_curve(path: Location, cell: str) -> Curve:
    """Losses and learning rates of a run of AutoWarmup, from its start to the end of its warmup.

    Args:
        path: a ledger, or a study's results folder, here or in object storage.
        cell: the run's hash, or its beginning.

    Raises:
        CurveError: there is no such run, or it has no such rise.
    """
    try:
        runs = read_runs(path)
    except ReadingError as error:
        raise CurveError(str(error)) from error
    matching = [record for record in runs.records if record.cell.startswith(cell)]
    if len(matching) != 1 or not cell:
        rising = [record.cell for record in runs.records if record.schedule == "auto_warmup"]
        raise CurveError(
            f"cell: {cell!r} is not allowed; it names {len(matching)} runs; those of auto_warmup are "
            f"{', '.join(rising[:8]) or 'none'}{' ...' if len(rising) > 8 else ''}"
        )
    (record,) = matching
    if record.schedule != "auto_warmup":
        raise CurveError(
            f"cell: {record.cell} is not allowed; the learning rate of {record.schedule} does not rise "
            "exponentially, a run of auto_warmup is needed"
        )
    if record.sweep_steps:
        raise CurveError(
            f"cell: {record.cell} is not allowed; its learning rate rose in a short sweep, then linearly; "
            "a run with warmup: exponential is needed"
        )
    schedule = next((c.spec.schedule for c in runs.cells if c.spec.cell == record.cell), None)
    notes: tuple[str, ...] = ()
    if not isinstance(schedule, AutoWarmupSpec):
        schedule = AutoWarmupSpec()
        notes = ("no study.yaml says which settings the run had: the usual ones are taken",)
    steps = np.array(record.trace.step, dtype=np.float64)
    rise = steps < (record.switch_step if record.switch_step >= 0 else np.inf)
    if not rise.any():
        raise CurveError(f"cell: {record.cell} is not allowed; its record holds no loss of the warmup")
    return Curve(
        losses=np.array(record.trace.loss, dtype=np.float64)[rise],
        steps=steps[rise],
        rates=np.array(record.trace.lr, dtype=np.float64)[rise],
        rule=schedule.rule,
        warmup_steps=max(1, int(record.total_steps * schedule.max_warmup_fraction)),
        steps_per_epoch=record.total_steps // record.epochs,
        notes=notes,
    )
