"""The exponential warmup's course, the original's: up until the loss has passed its minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from autolr_ray.schedule.leg import Leg, Rise
from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.rollback import SnapshotStore
from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.switch import Evidence, SwitchRule, Verdict, decide

_SNAPSHOTS_PER_WARMUP = 64


class ExponentialWarmup:
    """Decides and does what :class:`AutoWarmup` describes as its exponential warmup (a ``Course``).

    Args:
        rule: that watches the losses.
        rise: the learning rates, over the longest warmup.
        test_every: optimizer steps between tests.
        fallback: what a warmup without a verdict comes to, "argmin" or "keep".
        snapshots: a store for the weights near the loss's minimum; None: no rollback.
        legs: gets the decay that follows.
    """

    def __init__(
        self, rule: SwitchRule, rise: Rise, *, test_every: int, fallback: str,
        snapshots: SnapshotStore | None, legs: list[Leg],
    ) -> None:  # fmt: skip
        self.rule, self.rise, self.legs = rule, rise, legs
        self.positives = 0
        self.fallback = fallback
        self._test_every, self._snapshots = test_every, snapshots
        self._snapshot_every = rise.steps
        if snapshots is not None:
            self._snapshot_every = max(1, rise.steps // _SNAPSHOTS_PER_WARMUP)

    @property
    def may_change(self) -> bool:
        """Whether it still rises."""
        return not self.legs

    def next_look(self, step: int) -> int:
        """The next test or snapshot after ``step``, or the end."""
        return min(self.rise.steps, *((step // n + 1) * n for n in (self._test_every, self._snapshot_every)))

    def judge(self, step: int, losses: Array) -> Receipt:
        """What is known after ``step``, with the losses [k] of the last k steps."""
        self.rule.observe(losses, self.rise.steps)
        return self._test(step) if self._tests(step) else self._glance(step)

    def follow(self, receipt: Receipt) -> Receipt:
        """Do what ``receipt`` says; it, with the step whose weights were put back, if any were."""
        self.positives = receipt.positives
        if receipt.verdict.ends_warmup:
            return self._turn(receipt)
        if self._snapshots is not None and receipt.step % self._snapshot_every == 0:
            self._snapshots.take(receipt.step, receipt.argmin_step, receipt.earliest_step)
        return receipt

    def is_kept(self, receipt: Receipt) -> bool:
        """Whether it is a test's."""
        return self._tests(receipt.step)

    def _tests(self, step: int) -> bool:
        return step >= self.rise.steps or step % self._test_every == 0

    def _test(self, step: int) -> Receipt:
        exhausted = step >= self.rise.steps
        any_finite = self.rule.smoother.count > 0
        evidence = self.rule.evidence()
        # The end of the longest warmup is no test of the rule's: it only asks for the minimum.
        counts = evidence.positive and step % self._test_every == 0 and not exhausted
        positives = self.positives + 1 if counts else 0
        verdict = decide(
            positives=positives,
            patience=self.rule.patience,
            exhausted=exhausted,
            improved=evidence.improved,
            argmin=evidence.argmin,
            fallback=self.fallback,
            any_finite=any_finite,
        )
        return Receipt.of(self.rule, self.rise, step, evidence, verdict, positives)

    def _glance(self, step: int) -> Receipt:
        """Between tests: where the minimum is now, for the choice of snapshots."""
        argmin, earliest = self.rule.minimum()
        evidence = dataclasses.replace(Evidence.none(), argmin=argmin, earliest=earliest)
        return Receipt.of(self.rule, self.rise, step, evidence, Verdict.RISING, self.positives)

    def _turn(self, receipt: Receipt) -> Receipt:
        goes_back = receipt.verdict in (Verdict.PASSED, Verdict.EXHAUSTED, Verdict.DIVERGED)
        peak = receipt.argmin_lr if goes_back else receipt.lr
        if receipt.verdict is Verdict.NO_EVIDENCE:
            peak = self.rise.min_lr
        back = None
        if goes_back and self._snapshots is not None:
            back = self._snapshots.restore(receipt.argmin_step)
        self.legs.append(Leg(receipt.step, 0, peak))
        return receipt.went_back(back)

    def state_dict(self) -> dict[str, Any]:
        """A number."""
        return {"positives": self.positives}

    def load_state_dict(self, state: dict[str, Any], receipts: Sequence[Receipt]) -> None:
        """Continue from ``state``."""
        self.positives = int(state["positives"])
