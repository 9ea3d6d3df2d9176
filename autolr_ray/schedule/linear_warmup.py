"""Linear warmup to a peak learning rate, then a decay: the schedule that people tune."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from autolr_ray.schedule.base import Loss, Schedule, require_finite
from autolr_ray.schedule.decay import Decay


class LinearWarmup(Schedule):
    """Linear warmup, then decay (Goyal et al. 2017, section 2.2, with the decay of choice).

    Optimizer step ``t`` of the warmup runs at ``peak_lr * (t + 1) / warmup_steps``.

    Args:
        optimizer: whose groups' ``lr`` is set; ratios between groups are kept.
        total_steps: optimizer steps of the whole run, >= 1.
        peak_lr: the highest learning rate, > 0.
        warmup_fraction: length of the warmup as a share of ``total_steps``, in [0, 1].
        decay: "cosine", "constant-then-cosine" or a function.
        final_lr: the learning rate after the last step, in [0, peak_lr].

    Raises:
        ValueError: a setting outside its bounds, by name.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = LinearWarmup(optimizer, 4, peak_lr=0.8, warmup_fraction=0.5)
    >>> rates = schedule.get_last_lr()
    >>> for _ in range(4):
    ...     optimizer.step()
    ...     schedule.step()
    ...     rates += schedule.get_last_lr()
    >>> [round(rate, 3) for rate in rates]
    [0.4, 0.8, 0.8, 0.4, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        peak_lr: float,
        warmup_fraction: float = 0.05,
        decay: str | Decay = "cosine",
        final_lr: float = 0.0,
    ) -> None:
        super().__init__(optimizer, total_steps, decay=decay, final_lr=final_lr)
        require_finite("peak_lr", peak_lr, above=0.0)
        require_finite("final_lr", final_lr, low=0.0, high=peak_lr)
        require_finite("warmup_fraction", warmup_fraction, low=0.0, high=1.0)
        self.peak_lr = float(peak_lr)
        self.warmup_steps = round(total_steps * warmup_fraction)
        self._set_lr(self._lr())

    def step(self, loss: Loss | None = None) -> None:
        """Call once after each optimizer step; the loss is not used."""
        self._advance()
        self._set_lr(self._lr())

    def _lr(self) -> float:
        if self.last_epoch >= self.total_steps:
            return self.final_lr
        if self.last_epoch < self.warmup_steps:
            return self.peak_lr * (self.last_epoch + 1) / self.warmup_steps
        return self._decayed(self.peak_lr, self.warmup_steps, self.last_epoch)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"peak_lr": self.peak_lr, "warmup_steps": self.warmup_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``; ValueError, and nothing changed, where it does not fit."""
        super().load_state_dict(state_dict)
        self._set_lr(self._lr())
