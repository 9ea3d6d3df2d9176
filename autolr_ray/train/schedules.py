"""Schedules as configuration: what a study may say about AutoWarmup and its baseline."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from autolr_ray.schedule import AutoWarmup, LinearWarmup, Schedule
from autolr_ray.train.config import Config

PositiveLR = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DecayName = Literal["cosine", "constant-then-cosine"]


class AutoWarmupSpec(Config):
    """Settings of :class:`autolr_ray.AutoWarmup`."""

    kind: Literal["auto_warmup"] = "auto_warmup"
    rule: Literal["robust", "paper"] = "robust"
    decay: DecayName = "cosine"
    fallback: Literal["argmin", "keep"] = "argmin"
    rollback: bool = True
    min_lr: PositiveLR = 1e-5
    max_lr: PositiveLR = 1.0
    max_warmup_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.min_lr >= self.max_lr:
            raise ValueError(
                f"min_lr: {self.min_lr:g} is not allowed; it must be below max_lr ({self.max_lr:g})"
            )
        return self

    def build(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        model: nn.Module,
        scaler: GradScaler,
    ) -> Schedule:
        """The schedule for a run of ``total_steps``."""
        return AutoWarmup(
            optimizer, total_steps, steps_per_epoch=steps_per_epoch,
            model=model if self.rollback else None, scaler=scaler, rule=self.rule, decay=self.decay,
            fallback=self.fallback, min_lr=self.min_lr, max_lr=self.max_lr,
            max_warmup_fraction=self.max_warmup_fraction,
        )  # fmt: skip


class LinearWarmupSpec(Config):
    """Settings of :class:`autolr_ray.LinearWarmup`."""

    kind: Literal["linear_warmup"] = "linear_warmup"
    peak_lr: PositiveLR
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    decay: DecayName = "cosine"

    def build(
        self,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int,
        model: nn.Module,
        scaler: GradScaler,
    ) -> Schedule:
        """The schedule for a run of ``total_steps``."""
        return LinearWarmup(
            optimizer,
            total_steps,
            peak_lr=self.peak_lr,
            warmup_fraction=self.warmup_fraction,
            decay=self.decay,
        )


ScheduleSpec = Annotated[AutoWarmupSpec | LinearWarmupSpec, Field(discriminator="kind")]
