"""Pieces of a course: an exponential rise, and a leg of a warmup and the decay after it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

# One rise beyond the warmup: by this share of the peak so far, in half that share of the warmup's steps.
_RISE = 0.5
_KINDS: tuple[Callable[[float], Any], ...] = (int, int, float, int, int, float)  # of a leg's fields


@dataclasses.dataclass(frozen=True)
class Rise:
    """From ``min_lr`` to ``max_lr`` in ``steps`` steps, each by the same factor."""

    min_lr: float
    max_lr: float
    steps: int

    @property
    def _log_growth(self) -> float:
        return math.log(self.max_lr / self.min_lr)

    def lr(self, step: float) -> float:
        """The learning rate of step ``step`` >= 0; ``max_lr`` from ``steps`` on."""
        return min(self.min_lr * math.exp(self._log_growth * step / self.steps), self.max_lr)

    def step_of(self, lr: float) -> float:
        """The step that has ``lr``."""
        return math.log(lr / self.min_lr) / self._log_growth * self.steps


@dataclasses.dataclass(frozen=True)
class Leg:
    """From ``start`` on: ``warmup`` steps linearly up to ``first_peak``, as though there had been ``skipped``
    of them before, then ``rises``, each by the share ``rise`` of the learning rate so far in half that share
    of the warmup's steps, then the decay.
    """

    start: int
    warmup: int
    first_peak: float
    skipped: int = 0
    rises: int = 0
    rise: float = _RISE

    @classmethod
    def of(cls, values: Iterable[float]) -> Leg:
        """From its fields in order, as ``dataclasses.astuple`` has them; the last ones may be missing."""
        return cls(*(kind(value) for kind, value in zip(_KINDS, values, strict=False)))

    @property
    def turn(self) -> int:
        """The step that has ``peak_lr``, from which it falls."""
        return self.start + self.warmup + self.rises * self.rise_steps

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return self.first_peak * (1.0 + self.rise) ** self.rises

    @property
    def last_stretch(self) -> int:
        """The steps of the last rise, or of the warmup if there is none."""
        return self.rise_steps if self.rises else self.warmup

    @property
    def rise_steps(self) -> int:
        """The steps of one rise."""
        return max(2, round(self.rise / 2.0 * self.warmup))

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, ``start <= step <= turn``."""
        done = step - self.start
        if done < self.warmup:
            return self.first_peak * (done + self.skipped + 1) / (self.warmup + self.skipped + 1)
        rises, into = divmod(done - self.warmup, self.rise_steps)
        return self.first_peak * (1.0 + self.rise) ** rises * (1.0 + self.rise * into / self.rise_steps)

    def begun(self, summed: float) -> Leg:
        """Without its first steps, whose learning rates come to at most ``summed``."""
        unit = self.first_peak / (self.warmup + 1)
        skipped = min(int((math.sqrt(1.0 + 8.0 * summed / unit) - 1.0) / 2.0), self.warmup - 1)
        return dataclasses.replace(self, warmup=self.warmup - skipped, skipped=skipped)

    def risen(self) -> Leg:
        """With one rise more."""
        return dataclasses.replace(self, rises=self.rises + 1)
