"""The losses that the scheduler has seen, thinned evenly to a bounded number, for people to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from autolr_ray.schedule.smoother import Array

_MOST_POINTS = 1024


class LossTrace:
    """Every ``stride``-th loss; when full, every second one goes and the stride doubles."""

    def __init__(self) -> None:
        self.stride = 1
        self._steps = 0
        self._kept: list[float] = []

    def update(self, losses: Array) -> None:
        """Take in the losses [k] of the next k steps."""
        first = -self._steps % self.stride
        self._kept += losses[first :: self.stride].tolist()
        self._steps += len(losses)
        while len(self._kept) > _MOST_POINTS:
            self._kept = self._kept[::2]
            self.stride *= 2

    def points(self) -> tuple[Array, Array]:
        """Steps and losses, [points] each."""
        return np.arange(len(self._kept), dtype=np.float64) * self.stride, np.array(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and a tensor."""
        kept = torch.tensor(self._kept, dtype=torch.float64)
        return {"stride": self.stride, "steps": self._steps, "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.stride, self._steps = int(state["stride"]), int(state["steps"])
        self._kept = state["kept"].tolist()
