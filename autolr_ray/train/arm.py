"""What an arm is made of: from a model and a budget to an optimizer and the schedule of its learning rate.

The packaged schedules (:mod:`autolr_ray.train.schedules`) are such arms; a user's own is a function
``arm(parts) -> (optimizer, scheduler)``, named as ``package.module:attribute``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Scheduler(Protocol):
    """What the loop asks of a schedule; :class:`autolr_ray.Schedule` has it all."""

    def step(self, loss: torch.Tensor) -> None:
        """After each optimizer step, with its training loss (0-d, this rank's part)."""

    def get_last_lr(self) -> list[Any]:
        """The learning rate of each parameter group for the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""

    def synchronize(self) -> None:
        """Make every rank's state that of rank 0, before it is saved."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an arm may use.

    Attributes:
        model: the network, initialised and on the device.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
        scaler: the gradient scaler; it does nothing unless the precision is float16.
        make_optimizer: a new optimizer over the model's parameters, as the study names it.
        range_test: an LR range test of ``(make_optimizer, min_lr, max_lr, steps)``: the learning rate found.
            Weights are put back, and its time is charged to the arm as tuning.
        settings: what the study says to an arm of its own.
    """

    model: nn.Module
    total_steps: int
    steps_per_epoch: int
    scaler: GradScaler
    make_optimizer: Callable[[], Optimizer]
    range_test: Callable[[Callable[[], Optimizer], float, float, int], float]
    settings: dict[str, Any] = field(default_factory=dict)


class WithoutLoss:
    """A scheduler of PyTorch, whose ``step`` takes no loss, as the loop wants it; None leaves the LR alone.

    Args:
        optimizer: whose learning rate is reported.
        scheduler: stepped once after each optimizer step.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler

    def step(self, loss: torch.Tensor) -> None:
        """The loss is not used."""
        if self._scheduler is not None:
            self._scheduler.step()

    def get_last_lr(self) -> list[Any]:
        """The groups' learning rates as they are."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's, or nothing."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; the optimizer's carries the learning rate."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state_dict)

    def synchronize(self) -> None:
        """Nothing to do: it looks at no losses."""


def as_scheduler(optimizer: Optimizer, scheduler: object, arm: str) -> Scheduler:
    """What a user's arm returned beside its optimizer, as the loop wants it.

    Raises:
        ValueError: it is no scheduler; ``arm`` is named.
    """
    from autolr_ray.schedule import Schedule

    if scheduler is None or (isinstance(scheduler, LRScheduler) and not isinstance(scheduler, Schedule)):
        return WithoutLoss(optimizer, scheduler)
    lacking = [name for name in ("step", "get_last_lr", "state_dict", "load_state_dict", "synchronize")
               if not callable(getattr(scheduler, name, None))]  # fmt: skip
    if lacking:
        raise ValueError(
            f"arm: {arm!r} is not allowed; it returned a {type(scheduler).__name__} as scheduler, without "
            f"{', '.join(lacking)}; a torch.optim.lr_scheduler.LRScheduler, an autolr_ray Schedule or None "
            "is needed"
        )
    return cast(Scheduler, scheduler)
