"""A loss far above its minimum, several steps in a row: a quick look for steps that are too large.

The rules' sums are made to be sure; after a sweep that is dear: at a learning rate a few times too high
every step undoes what was learned, and a short run has few. Spikes at a good learning rate are lower or
shorter (``experiments/LOG.md``).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.switch import Evidence

_NOISE_DROP = 10.0
# An alarm of the rule takes two losses at least.
_LAST = 2


class Burst:
    """Counts losses in a row that lie more than ``height`` drops above the minimum.

    A drop is the way from the starting level down to the lowest posterior mean, at least ten noise sd's: the
    posterior's, or half of the largest step between losses before any learning, whichever is more, since
    the posterior of a few losses may pass through all of them.
    Multiplying all losses by a positive number or adding one to them changes nothing.

    Args:
        height: in drops, > 0.
        steps: so many in a row are a burst, >= 1.

    Attributes:
        lowest: the lowest loss so far; inf before any finite one.
    """

    def __init__(self, *, height: float = 0.5, steps: int = 3) -> None:
        self.height, self.steps = height, steps
        self._threshold = math.nan
        self._run = self._longest = 0
        self.lowest = math.inf
        self._last: deque[float] = deque(maxlen=_LAST)

    def observe(self, losses: Array) -> None:
        """Take in the losses [k] of the next k steps; none counts before the first :meth:`look`."""
        for loss in losses.tolist():
            below = math.isnan(self._threshold) or loss <= self._threshold
            self._run = 0 if below else self._run + 1  # NaN is not below
            self._longest = max(self._longest, self._run)
            self._last.append(loss if math.isfinite(loss) else math.inf)
            self.lowest = min(self.lowest, self._last[-1])

    def look(self, level: float, step: float, evidence: Evidence) -> None:
        """What the losses to come are compared with.

        Args:
            level: that training started from.
            step: the largest between losses before any learning.
            evidence: a test's.
        """
        low = float(evidence.mean.min())
        drop = max(level - low, _NOISE_DROP * max(math.sqrt(evidence.hyper.noise), step / 2.0))
        self._threshold = low + self.height * drop

    @property
    def strength(self) -> float:
        """The longest run so far as a share of a burst; from 1 on it is one."""
        return self._longest / self.steps

    @property
    def lowest_of_last(self) -> float:
        """Of the last two losses, inf for one that is not finite; -inf before there are two."""
        return min(self._last) if len(self._last) == _LAST else -math.inf

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "threshold": self._threshold, "run": self._run, "longest": self._longest, "lowest": self.lowest,
            "last": list(self._last),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._threshold, self.lowest = float(state["threshold"]), float(state["lowest"])
        self._run, self._longest = int(state["run"]), int(state["longest"])
        self._last = deque(state.get("last", ()), maxlen=_LAST)  # unknown to earlier states
