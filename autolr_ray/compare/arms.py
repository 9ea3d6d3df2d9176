"""The arms of a study: one schedule, a grid that is tuned, ASHA over such a grid, or a user's own."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from autolr_ray.train.config import Config, explain
from autolr_ray.train.optimizers import OptimizerSpec
from autolr_ray.train.schedules import AutoWarmupSpec, LinearWarmupSpec, ScheduleSpec
from autolr_ray.train.spec import PositiveInt


class Grid(Config):
    """The points of a tuned arm: every peak learning rate with every warmup fraction.

    ``extend``: how often, at each batch size, the grid may grow by itself where its best point is its lowest
    or its highest peak learning rate (see :mod:`autolr_ray.compare.extend`).
    """

    peak_lr: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)]
    warmup_fraction: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.05,)
    extend: Annotated[int, Field(ge=0, le=10)] = 3

    @field_validator("peak_lr", "warmup_fraction")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} is not allowed; each value may occur once")
        return values


class Arm(Config):
    """One schedule, AutoWarmup where none is named: one run for each batch size and seed, no tuning."""

    schedule: ScheduleSpec = AutoWarmupSpec()
    optimizer: OptimizerSpec | None = None


class GridArm(Config):
    """Linear warmup over a grid: the point of highest validation accuracy speaks for the arm."""

    grid: Grid
    decay: Literal["cosine", "constant-then-cosine"] = "cosine"
    optimizer: OptimizerSpec | None = None


class Asha(Config):
    """Asynchronous successive halving (Li et al. 2020), Ray Tune's, over the runs of a tuned arm.

    Attributes:
        of: the tuned arm.
        grace_epochs: no run is stopped before these.
        reduction_factor: of this many runs that reach a rung, one goes on.
        at_once: runs side by side.
    """

    of: str
    grace_epochs: PositiveInt = 1
    reduction_factor: Annotated[float, Field(gt=1, le=100)] = 3.0
    at_once: PositiveInt = 4


class AshaArm(Config):
    """A tuned arm's runs as ASHA would have stopped them (see :mod:`autolr_ray.compare.asha`)."""

    asha: Asha


AnyArm = Arm | GridArm | AshaArm


def read_arm(name: Any, arm: Any) -> Any:
    """The arm of that kind which its keys say, so that an error speaks of that kind alone."""
    if isinstance(arm, Config):
        return arm
    if not isinstance(arm, dict):
        raise ValueError(f"{name}: {arm!r} is not allowed; a mapping is needed, {{}} for AutoWarmup as it is")
    schedule = arm.get("schedule")
    if isinstance(schedule, dict):
        arm = {**arm, "schedule": {"kind": "auto_warmup", **schedule}}
    if "own" in arm:
        own = {"kind": "own", "arm": arm["own"], "settings": arm.get("settings", {})}
        arm = {key: value for key, value in arm.items() if key not in ("own", "settings")} | {"schedule": own}
    kind: type[Config] = GridArm if "grid" in arm else AshaArm if "asha" in arm else Arm
    try:
        return kind.model_validate(arm)
    except ValidationError as error:
        raise ValueError(f"{name}: " + "; ".join(explain(error).splitlines())) from error


def points_of(arm: AnyArm) -> list[tuple[str, ScheduleSpec]]:
    """Name and schedule of each point that has runs of its own; ASHA borrows those of a grid."""
    if isinstance(arm, AshaArm):
        return []
    if not isinstance(arm, GridArm):
        return [("", arm.schedule)]
    schedules = [
        LinearWarmupSpec(peak_lr=peak_lr, warmup_fraction=fraction, decay=arm.decay)
        for peak_lr, fraction in itertools.product(arm.grid.peak_lr, arm.grid.warmup_fraction)
    ]
    return [(point_name(schedule), schedule) for schedule in schedules]


def point_name(schedule: LinearWarmupSpec) -> str:
    """What a grid's point is called in tables and run names."""
    return f"peak_lr={schedule.peak_lr:g} warmup={schedule.warmup_fraction:g}"
