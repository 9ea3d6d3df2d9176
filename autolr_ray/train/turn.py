"""The moment at which AutoWarmup stopped raising the learning rate, for those who watch a run."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict

from autolr_ray.schedule import Verdict
from autolr_ray.train.checkpoints import State
from autolr_ray.train.record import EpochRow


class Turn(BaseModel):
    """Where the warmup of a run ended, and why.

    Attributes:
        step: optimizer steps done by then.
        peak_lr: the learning rate from which it falls.
        reason: the verdict in words.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    peak_lr: float
    reason: str

    @classmethod
    def within(cls, row: EpochRow, state: State, epochs: int = 1) -> Self | None:
        """The turn in the last epochs up to that of ``row``, from the run's state then; None without one."""
        schedule = state["schedule"]
        step, steps_per_epoch = schedule.get("switch_step"), row.step // row.epoch
        if step is None or step <= row.step - epochs * steps_per_epoch:
            return None
        verdicts = (Verdict[name] for name in reversed(schedule["receipts"]["verdicts"]))
        verdict = next(verdict for verdict in verdicts if verdict.ends_warmup)
        return cls(step=step, peak_lr=schedule["peak_lr"], reason=verdict.value)

    def __str__(self) -> str:
        return f"the learning rate turned after step {self.step}, down from {self.peak_lr:.3g}: {self.reason}"
