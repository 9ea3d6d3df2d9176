"""What the two warmups of :class:`AutoWarmup` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.switch import SwitchRule


class Course(Protocol):
    """Decides what the learning rate does, and does it; where it goes it adds to the legs that it was given.

    After the steps that :meth:`next_look` names, :meth:`judge` says what losses come to, on every rank;
    :meth:`follow` does what rank 0's receipt says.

    Attributes:
        rule: that watches the losses now.
    """

    rule: SwitchRule

    @property
    def may_change(self) -> bool:
        """Whether anything is left to decide."""

    def next_look(self, step: int) -> int:
        """The next step after ``step`` whose losses are read: a test, a snapshot, or the end of a warmup."""

    def judge(self, step: int, losses: Array) -> Receipt:
        """What is known after ``step``, with the losses [k] since the last look."""

    def follow(self, receipt: Receipt) -> Receipt:
        """Do what ``receipt`` says; it, with the step whose weights were put back, if any were."""

    def is_kept(self, receipt: Receipt) -> bool:
        """Whether the receipt is a decision's, and not that of a look between them."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors, without what AutoWarmup's own state holds: legs, rule and snapshots."""

    def load_state_dict(self, state: dict[str, Any], receipts: Sequence[Receipt]) -> None:
        """Continue from ``state``, with the legs loaded before, and the decisions of until then."""
