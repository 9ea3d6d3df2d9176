"""A short sweep over learning rates: at which of them does the loss fall, and how far can they go?

An LR range test (Smith 2017, section 3.3) of a few steps. It gives the scale of the learning rate, a factor
of three or so on either side; what the factor is, the linear warmup after it finds out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from autolr_ray.schedule.smoother import Array

_FEWEST, _MOST, _SHARE = 8, 64, 0.03
_FIRST = 3
# A rise counts as an explosion from so many of the largest steps between the losses of the first half. Where
# that half is only four losses, their three steps may be a tenth of what they are usually: then it takes more
# before any fall, which should come first.
_EXPLOSION, _EXPLOSION_BEFORE_FALL, _FEW = 5.0, 20.0, 4
# A fall counts from so many of them: of sweeps of eight losses that are nothing but noise, 8% fall that far
# (30% as far as one).
_FALL = 2.0
# Where no fall is seen. Below an explosion, measured where both are: a twentieth to a thirty-fifth. Without a
# rise a rate has done no harm: 1.5 times as high as this is how far the warmup goes.
_BELOW_EXPLOSION, _BELOW_HARMLESS = 1 / 30, 2 / 3


def sweep_steps(total_steps: int) -> int:
    """How many optimizer steps a sweep takes: 3% of all, at least 8, at most 64."""
    return min(max(_FEWEST, int(_SHARE * total_steps)), _MOST)


def momentum_share(group: dict[str, Any], steps: float) -> float:
    """How long a step is after ``steps`` steps with momentum, as a share of what it comes to at last.

    A buffer that adds gradients up, as SGD's does, makes steps ``1 / (1 - momentum)`` times as long, but not
    at once: what a sweep of a few steps bears, training does not. Optimizers whose momentum is an average
    (Adam's, LAMB's) have no such build-up.

    Args:
        group: of the optimizer's ``param_groups``.
        steps: that the buffer has seen, >= 1.

    Returns:
        In (0, 1]; 1 where there is no momentum.

    >>> round(momentum_share({"momentum": 0.9}, 7), 3)
    0.522
    """
    momentum = float(group.get("momentum", 0.0))
    if not 0.0 < momentum < 1.0:
        return 1.0
    kept = 1.0 - float(group.get("dampening", 0.0))  # of every gradient but the first
    if not kept > 0.0:
        return 1.0
    seen = steps + bool(group.get("nesterov", False))  # its look-ahead is one step further
    share = 1.0 - math.pow(momentum, seen - 1.0) * (1.0 - (1.0 - momentum) / kept)
    return min(share, 1.0)


class Sweep:
    """The losses of a sweep, one a step, and what they say.

    Multiplying all losses by a positive number or adding one to them changes nothing.

    Args:
        steps: its length, >= 8.

    Attributes:
        losses: of the steps so far, non-finite ones as inf.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []

    def observe(self, losses: Array) -> None:
        """Take in the losses [k] of the next k steps."""
        self.losses += [loss if math.isfinite(loss) else math.inf for loss in losses.tolist()]

    @property
    def any_finite(self) -> bool:
        """Whether any loss was."""
        return bool(np.isfinite(self.losses).any())

    @property
    def level(self) -> float:
        """What training starts from: the median of the first finite losses; NaN before any."""
        finite = [loss for loss in self.losses if math.isfinite(loss)][:_FIRST]
        return float(np.median(finite)) if finite else math.nan

    @property
    def noise(self) -> float:
        """The largest step between neighbours in the first half, where learning rates do little yet."""
        first = np.array(self.losses[: self.steps // 2])
        first = first[np.isfinite(first)]
        return float(np.abs(np.diff(first)).max()) if len(first) > 1 else 0.0

    @property
    def exploded(self) -> bool:
        """The last loss is not finite or far above the first ones; never said in the first half."""
        if len(self.losses) <= self.steps // 2:
            return False
        doubtful = self.steps // 2 <= _FEW and not self.improved
        height = _EXPLOSION_BEFORE_FALL if doubtful else _EXPLOSION
        rise = max(height * self.noise, self.level - min(self.losses))
        return not self.losses[-1] <= self.level + rise

    @property
    def over(self) -> bool:
        """It has its length, or went as far as training can bear."""
        return len(self.losses) >= self.steps or self.exploded

    @property
    def improved(self) -> bool:
        """Some loss was lower than the first ones by more than noise."""
        return self.below_noise(min(self.losses))

    def below_noise(self, loss: float) -> bool:
        """Whether ``loss`` lies below the first ones by more than noise."""
        return self.level - loss > _FALL * self.noise

    def above_noise(self, loss: float) -> bool:
        """Whether ``loss`` lies above the first ones by more than noise."""
        return not loss - self.level <= _FALL * self.noise

    @property
    def lowest(self) -> int:
        """How many steps had been done when the loss was lowest."""
        return int(np.argmin(self.losses))

    def lr(self, rates: Array) -> float:
        """The learning rate that brought the loss down: a mean of logarithms.

        Each step counts with the square of how far below the level the loss after it was, so that no
        single noisy loss decides, and the result lies between the rates that were tried. Where the last loss
        lies above the lowest by no more than noise, it is at least two thirds of the highest rate whose loss
        was seen: the lowest may be chance.

        Where no loss was lower than the first ones by more than noise, the steps were too few to learn
        anything. Then it is a thirtieth of the highest rate whose loss was seen: so far below an explosion
        lies the result where there is a fall. If the last loss is no higher than the first ones by more than
        noise either, two thirds of that rate.

        Args:
            rates: [len(losses)] learning rates of the steps.

        Returns:
            At least the lowest of ``rates``, and that if no loss was finite.
        """
        losses = np.array(self.losses)
        highest = float(rates[len(losses) - 2]) if self.any_finite and len(losses) > 1 else 0.0
        if not self.improved:
            share = _BELOW_EXPLOSION if self.above_noise(self.losses[-1]) else _BELOW_HARMLESS
            return max(share * highest, float(rates.min()))
        weights = np.clip((self.level - losses[1:]) / (self.level - losses.min()), 0.0, 1.0) ** 2
        if not weights.sum() > 0.0:
            return float(rates.min())
        mean = np.exp((weights * np.log(rates[: len(weights)])).sum() / weights.sum())
        if losses[-1] - losses.min() <= _FALL * self.noise:  # no rise was seen
            mean = max(mean, _BELOW_HARMLESS * highest)
        return float(np.clip(mean, rates.min(), rates.max()))  # but for rounding it is

    def state_dict(self) -> dict[str, Any]:
        """A tensor."""
        return {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.losses = state["losses"].tolist()
