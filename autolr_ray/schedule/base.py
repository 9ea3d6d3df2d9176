"""What every schedule here shares: parameter groups, the step count, the decay, the state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from autolr_ray.schedule.decay import Decay, get_decay

Loss = float | torch.Tensor


class Schedule(LRScheduler):
    """A learning-rate schedule over a known number of optimizer steps.

    Optimizer step ``t`` (from 0) runs at the learning rate that this object has put into the
    optimizer's groups; ``step(loss)`` after it sets the one for step ``t + 1``. After the last
    ``step`` the learning rate is exactly ``final_lr``. Groups keep the ratios that their learning
    rates had when the schedule was made; the largest group follows the schedule itself.

    Args:
        optimizer: whose groups' ``lr`` (float or 0-d tensor, changed in place) is set.
        total_steps: optimizer steps of the whole run, >= 1.
        decay: "cosine", "constant-then-cosine" or a function (see ``decay``).
        final_lr: the learning rate after the last step, >= 0.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, *, decay: str | Decay, final_lr: float
    ) -> None:
        # Not LRScheduler's own constructor: it steps at once, without a loss.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: {type(optimizer).__name__} is not a torch.optim.Optimizer")
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(f"total_steps: {total_steps!r} is not allowed; it must be an integer >= 1")
        require_finite("final_lr", final_lr, low=0.0)
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.final_lr = float(final_lr)
        self.decay_name = decay if isinstance(decay, str) else getattr(decay, "__qualname__", repr(decay))
        self._decay = get_decay(decay)
        self._ratios = _group_ratios(optimizer)
        self.base_lrs: list[float | torch.Tensor] = list(self._ratios)
        self.last_epoch = 0
        self._last_lr: list[float | torch.Tensor] = []

    def step(self, loss: Loss) -> None:  # type: ignore[override]
        """Call once after each optimizer step, with its training loss."""
        raise NotImplementedError

    def get_last_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group, as last set."""
        return list(self._last_lr)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The same; what each group's learning rate is now."""
        return list(self._last_lr)

    def synchronize(self) -> None:
        """Make the state of every rank that of rank 0: call it on all ranks before rank 0 saves.

        Nothing to do, and no communication, for a schedule that looks at no losses.
        """

    def _advance(self) -> None:
        if self.last_epoch >= self.total_steps:
            raise RuntimeError(
                f"step: the schedule has {self.total_steps} steps (total_steps) and all are done; "
                "a further one is not allowed"
            )
        self.last_epoch += 1

    def _decayed(self, peak_lr: float, start: int, step: int) -> float:
        """The learning rate at ``step`` of a decay from ``peak_lr`` at step ``start``."""
        factor = self._decay(step / self.total_steps, start / self.total_steps)
        return self.final_lr + (peak_lr - self.final_lr) * factor

    def _set_lr(self, lr: float) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self._ratios):
            raise RuntimeError(
                f"param_groups: the optimizer has {len(groups)} groups, the schedule was made for "
                f"{len(self._ratios)}; make the schedule after the last group is added"
            )
        rates: list[float | torch.Tensor] = [lr * ratio for ratio in self._ratios]
        self._last_lr = rates
        for group, value in zip(groups, rates, strict=True):
            held = group["lr"]
            if type(held) is not float and isinstance(held, torch.Tensor):
                held.fill_(value)
            else:
                group["lr"] = value

    def _settings(self) -> dict[str, Any]:
        """What a state must agree on with the schedule that loads it."""
        return {"total_steps": self.total_steps, "decay": self.decay_name, "final_lr": self.final_lr}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors: loadable with ``weights_only=True``."""
        return {
            "version": 1,
            "kind": type(self).__name__,
            "settings": self._settings(),
            "last_epoch": self.last_epoch,
            "ratios": list(self._ratios),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``; ValueError, and nothing changed, where it does not fit."""
        self._check(state_dict)
        self.last_epoch = int(state_dict["last_epoch"])
        self._ratios = [float(ratio) for ratio in state_dict["ratios"]]
        self.base_lrs = list(self._ratios)

    def _check(self, state_dict: dict[str, Any]) -> None:
        for key, own in (("version", 1), ("kind", type(self).__name__)):
            if state_dict.get(key) != own:
                raise ValueError(
                    f"state_dict: {key} {state_dict.get(key)!r} is not allowed; {own!r} is needed"
                )
        for key, value in self._settings().items():
            stored = state_dict["settings"].get(key)
            if stored != value:
                raise ValueError(
                    f"state_dict: it was made with {key}={stored!r}, this schedule has {value!r}"
                )
        if len(state_dict["ratios"]) != len(self._ratios):
            raise ValueError(
                f"state_dict: it has {len(state_dict['ratios'])} parameter groups, "
                f"the optimizer has {len(self._ratios)}"
            )


def _group_ratios(optimizer: Optimizer) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(f"lr: the optimizer's groups have {rates}; finite numbers >= 0 are needed")
    highest = max(rates)
    # All zero says nothing about ratios: the groups are equal then.
    return [rate / highest for rate in rates] if highest > 0 else [1.0] * len(rates)


def require_finite(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> None:
    """ValueError that names the field unless low <= value <= high and above < value < below."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high and above < value < below):
        bounds = [f">= {low:g}"] if low > -math.inf else []
        bounds += [f"> {above:g}"] if above > -math.inf else []
        bounds += [f"<= {high:g}"] if high < math.inf else []
        bounds += [f"< {below:g}"] if below < math.inf else []
        raise ValueError(
            f"{name}: {value!r} is not allowed; it must be a finite number {' and '.join(bounds)}"
        )
