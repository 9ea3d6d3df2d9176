"""One run, said whole: everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from autolr_ray.train.config import Config
from autolr_ray.train.optimizers import AdamW, OptimizerSpec
from autolr_ray.train.schedules import AutoWarmupSpec, ScheduleSpec

PositiveInt = Annotated[int, Field(ge=1)]


def require_divisible(field: str, batch_size: int, workers: int, accumulation_steps: int) -> None:
    """ValueError that names ``field`` unless every worker and micro-batch gets the same share."""
    parts = workers * accumulation_steps
    if batch_size % parts:
        raise ValueError(
            f"{field}: {batch_size} is not allowed; it must be divisible by workers x accumulation_steps "
            f"({workers} x {accumulation_steps} = {parts})"
        )


class RunSpec(Config):
    """One training run.

    Attributes:
        task: a packaged data set's name, or "package.module:attribute" of a user's task.
        model: a model's name; None: the data set's own choice, or the user's task's.
        data_dir: where the data set lies; None for the packaged one.
        batch_size: global batch size = workers x per-worker batch x accumulation_steps.
        workers: processes that share each batch.
        accumulation_steps: micro-batches in a row that make up a worker's share of one batch.
        epochs: passes over the training part; a last batch that is not full is left out.
        optimizer, schedule: see their modules.
        seed: decides initial weights, data order and every other random draw.
        loader_workers: loading processes for data that is not held in memory.
    """

    task: str
    model: str | None = None
    data_dir: Path | None = None
    batch_size: PositiveInt
    workers: PositiveInt = 1
    accumulation_steps: PositiveInt = 1
    epochs: PositiveInt
    optimizer: OptimizerSpec = AdamW()
    schedule: ScheduleSpec = AutoWarmupSpec()
    seed: Annotated[int, Field(ge=0)] = 0
    loader_workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisible("batch_size", self.batch_size, self.workers, self.accumulation_steps)
        return self

    @property
    def micro_batch_size(self) -> int:
        """Examples that one worker takes at once."""
        return self.batch_size // (self.workers * self.accumulation_steps)

    @property
    def cell(self) -> str:
        """Hash of all that decides the result: equal specs have equal results. 16 hex digits."""
        decisive = self.model_dump(mode="json", exclude={"data_dir", "loader_workers"})
        text = json.dumps({"format": 1, **decisive}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
