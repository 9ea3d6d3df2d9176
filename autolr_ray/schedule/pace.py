"""Is the loss, at the end of a warmup, still falling as fast as it has all along?

Where it is, learning is held up by the learning rate: the loss falls with every bit that is added. Where a
warmup has come to the scale of the learning rate, most of the fall lies behind it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch

from autolr_ray.schedule.smoother import Array

# The last sixth of the warmup against all of it: a half of its mean pace to begin, a quarter to go on
# (``experiments/LOG.md``).
_PARTS, _FEWEST, _FEW = 6, 2, 4
_BEGIN, _GO_ON = 0.5, 0.25
# A loss that falls faster and faster may be leaving a plateau. It has left it when it has fallen by this many
# of the largest steps between losses before any learning.
_FALLEN = 10.0


class Pace:
    """How fast a loss falls over the last steps, as a share of its mean pace since ``level``.

    Multiplying all losses by a positive number or adding one to them changes nothing.

    Args:
        warmup: optimizer steps; a sixth of them are the last ones, and of fewer than four nothing is said.
    """

    def __init__(self, warmup: int) -> None:
        self.window = max(1, round(warmup / _PARTS))
        self._recent: deque[float] = deque(maxlen=2 * self.window)
        self._count = 0
        self._lowest = math.inf

    @property
    def few(self) -> bool:
        """Whether the losses that tell are so few that noise may have made the pace."""
        return self.window < _FEW

    def observe(self, losses: Array) -> None:
        """Take in the losses [k] of the next k steps."""
        self._recent.extend(losses.tolist())
        self._count += len(losses)
        self._lowest = min(self._lowest, self._means()[1])

    def share(self, level: float) -> float:
        """The fall from the window before the last to the last, a step, over that from ``level`` to it.

        Args:
            level: the loss that training started from.

        Returns:
            1 where the loss falls in a straight line; 0 where nothing can be said: too few losses, one among
            the last that is not finite, or none below the level.
        """
        before, last = self._means()
        mean = (level - last) / max(self._count - self.window / 2.0, 1.0)
        return (before - last) / self.window / mean if before < math.inf and mean > 0.0 else 0.0

    def fall(self, level: float) -> float:
        """How far the last losses lie below ``level``; -inf where they are too few, or not all finite."""
        return level - self._means()[1]

    def risen(self) -> float:
        """How far the last losses lie above where they were lowest; NaN as long as they are too few."""
        return self._means()[1] - self._lowest

    def holds(self, level: float, step: float, *, rising: bool) -> bool:
        """Whether the pace is kept, at least a half of the mean pace.

        Args:
            level: the loss that training started from.
            step: the largest between losses before any learning; less than ten times that is no fall.
            rising: beyond the warmup already; then a quarter is enough.
        """
        fallen = self.fall(level) >= _FALLEN * step
        return fallen and self.share(level) >= (_GO_ON if rising else _BEGIN)

    def _means(self) -> tuple[float, float]:
        """Of the window before the last and the last; inf where they are too few or not all finite."""
        if self.window < _FEWEST or self._count < 3 * self.window:
            return math.inf, math.inf
        recent, n = list(self._recent), self.window
        before, last = sum(recent[:n]) / n, sum(recent[n:]) / n
        finite = math.isfinite(before) and math.isfinite(last)
        return (before, last) if finite else (math.inf, math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and a tensor."""
        recent = torch.tensor(list(self._recent), dtype=torch.float64)
        return {"count": self._count, "recent": recent, "lowest": self._lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._count = int(state["count"])
        self._lowest = float(state.get("lowest", math.inf))  # unknown to states from before it was there
        self._recent.clear()
        self._recent.extend(state["recent"].tolist())
