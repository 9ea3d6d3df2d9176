"""One run, said whole: everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from autolr_ray.train.compute import Compute
from autolr_ray.train.config import Config
from autolr_ray.train.optimizers import AdamW, OptimizerSpec
from autolr_ray.train.schedules import AutoWarmupSpec, OwnSpec, ScheduleSpec

PositiveInt = Annotated[int, Field(ge=1)]


def _steps_or_auto(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{value!r} is not allowed; an integer >= 1 or 'auto' is needed")


AccumulationSteps = Annotated[int | Literal["auto"], PlainValidator(_steps_or_auto)]


def require_divisible(
    field: str, batch_size: int, workers: int, accumulation_steps: AccumulationSteps
) -> None:
    """ValueError that names ``field`` unless every worker and micro-batch gets the same share."""
    steps = 1 if accumulation_steps == "auto" else accumulation_steps
    parts = workers * steps
    if batch_size % parts:
        raise ValueError(
            f"{field}: {batch_size} is not allowed; it must be divisible by workers x accumulation_steps "
            f"({workers} x {steps} = {parts})"
        )


_NOT_DECIDING = {"data_dir", "loader_workers", "checkpoint_every", "on_non_finite"}
# Left out of the hash at their usual values, so that runs from before they existed keep their names.
_ADDED_LATER: dict[str, Any] = {"compute": Compute().model_dump(mode="json"), "code": ""}
# Of the linear warmup's decisions: raised when they change, so that runs from before are not taken for them.
_REVISION = 13
# Optimizers that set the size of their steps by themselves, and the schedules that leave them to it.
_SELF_SCALING = {
    "prodigy": ("linear_warmup", "constant", "own"),
    "schedule_free_adamw": ("constant", "own"),
}


class RunSpec(Config):
    """One training run.

    Attributes:
        task: a packaged data set's name, or "package.module:attribute" of a user's task.
        model: a model's name; None: the data set's own choice, or the user's task's.
        data_dir: where the data set lies; None for the packaged one.
        batch_size: global batch size = workers x per-worker batch x accumulation_steps.
        workers: processes that share each batch.
        accumulation_steps: micro-batches in a row that make up a worker's share of one batch; "auto": as few
            as the GPU's memory allows, found before the first step.
        epochs: passes over the training part; a last batch that is not full is left out.
        optimizer, schedule: see their modules.
        seed: decides initial weights, data order and every other random draw.
        compute: see :class:`Compute`.
        loader_workers: loading processes for data that is not held in memory.
        checkpoint_every: optimizer steps between checkpoints inside an epoch; there is one at each epoch's
            end anyway (in runs of 200 epochs and more, of a few steps each, at the end of every few).
        code: fingerprint of the code behind ``package.module:attribute`` names; a worker with other code
            refuses the run. "" where nobody asked.
        on_non_finite: when every loss of an epoch after the warmup was NaN or infinite, "finish" the run as
            it is (in a comparison that is a result) or "raise" an error.
    """

    task: str
    model: str | None = None
    data_dir: Path | None = None
    batch_size: PositiveInt
    workers: PositiveInt = 1
    accumulation_steps: AccumulationSteps = 1
    epochs: PositiveInt
    optimizer: OptimizerSpec = AdamW()
    schedule: ScheduleSpec = AutoWarmupSpec()
    seed: Annotated[int, Field(ge=0)] = 0
    compute: Compute = Compute()
    loader_workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt | None = None
    code: str = ""
    on_non_finite: Literal["finish", "raise"] = "finish"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisible("batch_size", self.batch_size, self.workers, self.accumulation_steps)
        return self

    @model_validator(mode="after")
    def _schedules(self) -> Self:
        allowed = _SELF_SCALING.get(self.optimizer.name)
        if allowed is not None and self.schedule.kind not in allowed:
            raise ValueError(
                f"schedule.kind: {self.schedule.kind!r} is not allowed with the optimizer "
                f"{self.optimizer.name!r}, which scales its own steps; allowed: {', '.join(allowed)}"
            )
        return self

    @property
    def own_names(self) -> list[str]:
        """The ``package.module:attribute`` names whose code decides the result."""
        names = [self.task] if ":" in self.task else []
        return [*names, *([self.schedule.arm] if isinstance(self.schedule, OwnSpec) else [])]

    @property
    def cell(self) -> str:
        """Hash of all that decides the result: equal specs have equal results. 16 hex digits."""
        decisive = self.model_dump(mode="json", exclude=_NOT_DECIDING)
        for name, usual in _ADDED_LATER.items():
            if decisive[name] == usual:
                del decisive[name]
        if isinstance(self.schedule, AutoWarmupSpec):
            if self.schedule.always_exponential:
                # The only warmup there once was; its runs keep their names.
                del decisive["schedule"]["warmup"]
                decisive["schedule"]["decay"] = self.schedule.decay or "cosine"
            else:
                decisive["schedule"]["revision"] = _REVISION
        text = json.dumps({"format": 1, **decisive}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
