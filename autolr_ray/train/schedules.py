"""Schedules as configuration: what a study may say about AutoWarmup, its baseline and its rivals."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch.optim import Optimizer

from autolr_ray.schedule import AutoWarmup, LinearWarmup
from autolr_ray.tasks.named import named_object
from autolr_ray.train.arm import Parts, Scheduler, as_scheduler
from autolr_ray.train.config import Config

PositiveLR = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayName = Literal["cosine", "linear", "constant-then-cosine"]


class AutoWarmupSpec(Config):
    """Settings of :class:`autolr_ray.AutoWarmup`."""

    kind: Literal["auto_warmup"] = "auto_warmup"
    rule: Literal["robust", "paper"] = "robust"
    warmup: Literal["linear", "exponential"] | None = None
    decay: DecayName | None = None
    fallback: Literal["argmin", "keep"] = "argmin"
    rollback: bool = True
    min_lr: PositiveLR = 1e-5
    max_lr: PositiveLR = 1.0
    max_warmup_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _rises(self) -> Self:
        _require_rise(self.min_lr, self.max_lr)
        return self

    @model_validator(mode="after")
    def _can_be_linear(self) -> Self:
        if self.warmup == "linear" and (self.rule == "paper" or not self.rollback):
            raise ValueError(
                "warmup: 'linear' is not allowed with rule 'paper' or without rollback; 'exponential' is"
            )
        return self

    @property
    def always_exponential(self) -> bool:
        """Whatever the run, the warmup is the original's."""
        return self.warmup == "exponential" or self.rule == "paper" or not self.rollback

    def build(self, parts: Parts) -> tuple[Optimizer, Scheduler]:
        """The optimizer and its schedule."""
        optimizer = parts.make_optimizer()
        return optimizer, AutoWarmup(
            optimizer, parts.total_steps, steps_per_epoch=parts.steps_per_epoch,
            model=parts.model if self.rollback else None, scaler=parts.scaler, rule=self.rule,
            warmup=self.warmup, decay=self.decay, fallback=self.fallback,
            min_lr=self.min_lr, max_lr=self.max_lr, max_warmup_fraction=self.max_warmup_fraction,
        )  # fmt: skip


class LinearWarmupSpec(Config):
    """Settings of :class:`autolr_ray.LinearWarmup`."""

    kind: Literal["linear_warmup"] = "linear_warmup"
    peak_lr: PositiveLR
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    decay: DecayName = "cosine"

    def build(self, parts: Parts) -> tuple[Optimizer, Scheduler]:
        """The optimizer and its schedule."""
        optimizer = parts.make_optimizer()
        return optimizer, LinearWarmup(
            optimizer, parts.total_steps, peak_lr=self.peak_lr, warmup_fraction=self.warmup_fraction,
            decay=self.decay,
        )  # fmt: skip


class RangeTestSpec(Config):
    """An LR range test (Smith 2017, section 3.3), then linear warmup to the learning rate it found.

    The test is torch-lr-finder's: ``steps`` optimizer steps with an exponentially rising learning rate, the
    suggestion where the smoothed loss falls most steeply. Training then starts anew from the initial weights.
    """

    kind: Literal["lr_range_test"] = "lr_range_test"
    min_lr: PositiveLR = 1e-7
    max_lr: PositiveLR = 10.0
    steps: Annotated[int, Field(ge=30)] = 100
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    decay: DecayName = "cosine"

    @model_validator(mode="after")
    def _rises(self) -> Self:
        _require_rise(self.min_lr, self.max_lr)
        return self

    def build(self, parts: Parts) -> tuple[Optimizer, Scheduler]:
        """The optimizer and its schedule, after the test."""
        peak_lr = parts.range_test(parts.make_optimizer, self.min_lr, self.max_lr, self.steps)
        linear = LinearWarmupSpec(peak_lr=peak_lr, warmup_fraction=self.warmup_fraction, decay=self.decay)
        return linear.build(parts)


class ConstantSpec(Config):
    """The same learning rate throughout, for optimizers that bring their own schedule."""

    kind: Literal["constant"] = "constant"
    lr: PositiveLR = 2.5e-3

    def build(self, parts: Parts) -> tuple[Optimizer, Scheduler]:
        """The optimizer and its schedule."""
        optimizer = parts.make_optimizer()
        return optimizer, LinearWarmup(
            optimizer, parts.total_steps, peak_lr=self.lr, warmup_fraction=0.0, decay=_no_decay
        )


class OwnSpec(Config):
    """A user's arm: ``arm`` names a function ``(parts: Parts) -> (optimizer, scheduler)``.

    ``settings`` reach it as ``parts.settings``.
    """

    kind: Literal["own"] = "own"
    arm: str
    settings: dict[str, Any] = Field(default_factory=dict)

    def function(self) -> Any:
        """The function; ValueError where the name leads to none."""
        return named_object("arm", self.arm, "a function of Parts", callable)

    def build(self, parts: Parts) -> tuple[Optimizer, Scheduler]:
        """The optimizer and its schedule, as the user's function makes them."""
        made = self.function()(dataclasses.replace(parts, settings=dict(self.settings)))
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Optimizer)):
            raise ValueError(
                f"arm: {self.arm!r} is not allowed; it returned a {type(made).__name__}, an (optimizer, "
                "scheduler) pair is needed"
            )
        optimizer, scheduler = made
        return optimizer, as_scheduler(optimizer, scheduler, self.arm)


def _no_decay(progress: float, start: float) -> float:
    return 1.0


def _require_rise(min_lr: float, max_lr: float) -> None:
    if min_lr >= max_lr:
        raise ValueError(f"min_lr: {min_lr:g} is not allowed; it must be below max_lr ({max_lr:g})")


ScheduleSpec = Annotated[
    AutoWarmupSpec | LinearWarmupSpec | RangeTestSpec | ConstantSpec | OwnSpec, Field(discriminator="kind")
]
