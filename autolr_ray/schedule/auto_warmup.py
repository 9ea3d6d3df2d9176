"""AutoWarmup: the learning-rate schedule that finds its own peak and warmup length."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from torch.optim import Optimizer

from autolr_ray.schedule import look_inside
from autolr_ray.schedule.base import Loss, Schedule, require_finite
from autolr_ray.schedule.blas import single_threaded_blas
from autolr_ray.schedule.course import Course
from autolr_ray.schedule.decay import Decay, get_decay
from autolr_ray.schedule.divergence import ON_DIVERGENCE, report_divergence
from autolr_ray.schedule.exponential_warmup import ExponentialWarmup
from autolr_ray.schedule.leg import Leg, Rise
from autolr_ray.schedule.pending import PendingLosses, from_rank_zero, is_distributed
from autolr_ray.schedule.receipt import Receipt, receipts_of, receipts_state
from autolr_ray.schedule.robust_rule import RobustRule
from autolr_ray.schedule.rollback import PLACES, HasState, SnapshotStore
from autolr_ray.schedule.rules import get_rule
from autolr_ray.schedule.sweep import sweep_steps
from autolr_ray.schedule.swept_warmup import SweptWarmup
from autolr_ray.schedule.switch import SwitchRule
from autolr_ray.schedule.trace import LossTrace

FALLBACKS = ("argmin", "keep")
WARMUPS = ("linear", "exponential")


class AutoWarmup(Schedule):
    r"""AutoWU (Kim et al. 2021, arXiv 2107.05855): no learning rate to choose.

    The learning rate rises, a Gaussian process smooths the losses, and when the rule says that they have
    passed their minimum, the learning rate goes down, and, with ``model``, weights and optimizer state go
    back to what they were there. Two warmups:

    ``"linear"``: a short exponential sweep from ``min_lr`` to ``max_lr`` (3% of the steps, at least 8, at
    most 64) finds the scale of the learning rate, then weights are put back: to the start, or, where the
    sweep was more than 5% of all steps, to its lowest loss (if it was too short to see a fall: to the last
    step within the peak to come, and it counts for the warmup). A linear warmup over a fifth of what is left
    goes up to 1.5 times what was found (with an optimizer that changes each layer by the
    learning rate times its norm, as LAMB does, to ``.25 * sqrt(3 / steps left)``: see
    ``autolr_ray.schedule.layerwise``). As long as the loss still falls there as it has all along (see
    ``autolr_ray.schedule.pace``), or, in a warmup of 32 steps and more, the weights hardly swing about their
    running average (see ``autolr_ray.schedule.swing``), the learning rate goes on rising, by halves, then the
    decay follows. (With LAMB and its like it rises by quarters, to .05 at most, as long as the loss falls as
    it has and the weights do not swing much.) The rule watches until ``max_warmup_fraction`` of the steps:
    whenever the loss has passed its minimum, or three losses in a row lie far above it, training goes on from
    there, the decay starting at the learning rate that it had there, from the second time on, or where all
    that was gained is lost, at half of it.
    (With LAMB and its like the loss may rise, uncounted, for as long after the peak as the last stretch up to
    it took.) Pace, rule and minimum are those of the losses without what swinging costs.

    ``"exponential"`` (the original): step ``t`` runs at ``min_lr * (max_lr / min_lr) ** (t / W)``, over at
    most ``W = max_warmup_fraction * total_steps`` steps; after the minimum the decay starts from the
    learning rate there.

    Call ``step(loss)`` once after every ``optimizer.step()``, on every rank. Ranks average their losses
    at each look (one reduction), rank 0 decides, all apply its numbers (one broadcast).

    Args:
        optimizer: whose groups' ``lr`` is set; the ratios between groups are kept, their values not.
        total_steps: optimizer steps of the whole run, >= 1.
        steps_per_epoch: optimizer steps of one epoch; needed by ``rule="paper"``, which tests once an
            epoch.
        model: the network, for the rollback; None: no rollback.
        rollback: put weights and optimizer state back to the snapshot nearest the minimum when the
            warmup ends. Default: whenever ``model`` is given.
        scaler: a ``torch.amp.GradScaler`` (or anything with ``state_dict`` and ``load_state_dict``) to be
            rolled back with the model.
        snapshot_device: where the (at most five) snapshots wait: "host" (pinned memory when the model is
            on a GPU) or "device".
        rule: "robust", "paper" (the original rule), or a ``SwitchRule``.
        warmup: see above. Default: "linear" where weights can be put back, the rule is "robust" and there
            are steps enough (32 with the usual settings), "exponential" elsewhere.
        decay: "linear", "cosine", "constant-then-cosine" or a function (see ``decay``). Default: "linear"
            after a linear warmup, "cosine" after an exponential one.
        fallback: when the longest exponential warmup is over without a verdict: "argmin" goes back to the
            learning rate of the lowest loss, "keep" (the original's way) decays from the highest.
        on_divergence: what to do, besides going back to the lowest loss, when the loss rises or is never
            finite before it has fallen: "warn" (``DivergenceWarning``) or "raise" (``DivergenceError``, on
            every rank, with the receipt written).
        min_lr, max_lr: where the rise starts and ends, 0 < min_lr < max_lr.
        max_warmup_fraction: how long losses are watched at most, as a share of ``total_steps``, in (0, 1];
            the longest warmup.
        final_lr: the learning rate after the last step, in [0, max_lr].
        distributed: whether to share decisions through ``torch.distributed``'s default group.
            Default: whenever it has several processes.

    Attributes:
        peak_lr: the learning rate that the decay starts from; None during the warmup.
        switch_step: the optimizer steps done when the warmup ended; None during the warmup. Both change
            when the loss passes its minimum after a linear warmup.
        rolled_back_to: the step whose weights were put back last; None without a rollback.
        receipts: a :class:`Receipt` for every test, oldest first.
        trace: the warmup's losses, thinned.

    Raises:
        ValueError: a setting outside its bounds, by name; ``warmup="linear"`` where it cannot be; a loss
            with more than one element.
        RuntimeError: a step past ``total_steps``; ``distributed`` without several processes.
        DivergenceError: see ``on_divergence``.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> scheduler = AutoWarmup(optimizer, total_steps=60, steps_per_epoch=2, rule="paper")
    >>> for t in range(60):
    ...     optimizer.step()
    ...     scheduler.step(abs(t - 15.0))  # falls, then rises
    >>> scheduler.receipts[-1].verdict.name, scheduler.switch_step
    ('PASSED', 22)
    >>> scheduler.get_last_lr()
    [0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        steps_per_epoch: int | None = None,
        model: nn.Module | None = None,
        rollback: bool | None = None,
        scaler: HasState | None = None,
        snapshot_device: str = "host",
        rule: str | SwitchRule = "robust",
        warmup: str | None = None,
        decay: str | Decay | None = None,
        fallback: str = "argmin",
        on_divergence: str = "warn",
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        max_warmup_fraction: float = 0.5,
        final_lr: float = 0.0,
        distributed: bool | None = None,
    ) -> None:
        super().__init__(
            optimizer, total_steps, decay="cosine" if decay is None else decay, final_lr=final_lr
        )
        require_finite("max_lr", max_lr, above=0.0)
        require_finite("min_lr", min_lr, above=0.0)
        if min_lr >= max_lr:
            raise ValueError(f"min_lr: {min_lr:g} is not allowed; it must be below max_lr ({max_lr:g})")
        require_finite("final_lr", final_lr, low=0.0, high=max_lr)
        require_finite("max_warmup_fraction", max_warmup_fraction, above=0.0, high=1.0)
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback: {fallback!r} is not allowed; allowed: {', '.join(FALLBACKS)}")
        if on_divergence not in ON_DIVERGENCE:
            raise ValueError(
                f"on_divergence: {on_divergence!r} is not allowed; allowed: {', '.join(ON_DIVERGENCE)}"
            )
        if steps_per_epoch is not None and (type(steps_per_epoch) is not int or steps_per_epoch < 1):
            raise ValueError(
                f"steps_per_epoch: {steps_per_epoch!r} is not allowed; it must be an integer >= 1"
            )
        if rollback and model is None:
            raise ValueError("rollback: True is not allowed without model, whose weights are put back")
        if snapshot_device not in PLACES:
            raise ValueError(
                f"snapshot_device: {snapshot_device!r} is not allowed; allowed: {', '.join(PLACES)}"
            )
        self.min_lr, self.max_lr = float(min_lr), float(max_lr)
        self.fallback = fallback
        self.on_divergence = on_divergence
        self.warmup_steps = max(1, int(total_steps * max_warmup_fraction))
        rule = get_rule(rule)
        can_roll_back = model is not None and rollback is not False
        self.warmup = self._choose_warmup(warmup, rule, can_roll_back)
        if decay is None and self.warmup == "linear":
            self.decay_name, self._decay = "linear", get_decay("linear")
        self._test_every = rule.test_interval(self.warmup_steps, steps_per_epoch)
        is_distributed(distributed)  # an error here rather than at the first test
        self._distributed = distributed
        self._pending = PendingLosses()

        def store() -> SnapshotStore | None:
            if model is None or not can_roll_back:
                return None
            return SnapshotStore(model, optimizer, scaler=scaler, place=snapshot_device)

        self._snapshots = store()
        self._legs: list[Leg] = []
        steps = sweep_steps(total_steps) - 1 if self.warmup == "linear" else self.warmup_steps
        self._rise = Rise(self.min_lr, self.max_lr, steps)
        self._course: Course
        if self.warmup == "linear":
            start = store()
            assert self._snapshots is not None
            assert start is not None
            self._course = SweptWarmup(
                optimizer, rule, self._rise, total_steps=total_steps, warmup_steps=self.warmup_steps,
                test_every=self._test_every, final_lr=self.final_lr, start=start, snapshots=self._snapshots,
                legs=self._legs, lr_at=self.lr_at,
            )  # fmt: skip
        else:
            self._course = ExponentialWarmup(
                rule, self._rise, test_every=self._test_every, fallback=fallback,
                snapshots=self._snapshots, legs=self._legs,
            )  # fmt: skip
        self.peak_lr: float | None = None
        self.switch_step: int | None = None
        self.rolled_back_to: int | None = None
        self.receipts: list[Receipt] = []
        self.trace = LossTrace()
        self._last_look = 0
        self._next_look = self._course.next_look(0)
        self._set_lr(self._lr())

    def _choose_warmup(self, asked: str | None, rule: SwitchRule, can_roll_back: bool) -> str:
        steps = 2 * sweep_steps(self.total_steps)
        missing = [
            *([] if can_roll_back else ["model and rollback: weights are put back after the sweep"]),
            *([] if rule.name != "paper" else ["another rule than 'paper', the original's"]),
            *([] if self.warmup_steps >= steps else [f"max_warmup_fraction * total_steps >= {steps}"]),
        ]
        if asked not in (None, *WARMUPS):
            raise ValueError(f"warmup: {asked!r} is not allowed; allowed: {', '.join(WARMUPS)}")
        if asked == "linear" and missing:
            raise ValueError(f"warmup: 'linear' is not allowed; it needs {' and '.join(missing)}")
        if asked is not None:
            return asked
        return "exponential" if missing or not isinstance(rule, RobustRule) else "linear"

    @property
    def phase(self) -> str:
        """Where the schedule is: "warmup" or "decay"."""
        return "warmup" if self.peak_lr is None else "decay"

    @property
    def decision(self) -> Receipt | None:
        """The receipt of the test that ended the warmup, the last that did; None during the warmup."""
        ended = [receipt for receipt in self.receipts if receipt.verdict.ends_warmup]
        return ended[-1] if ended and self.peak_lr is not None else None

    @property
    def reason(self) -> str:
        """What the test that ended the warmup decided, or the last one during it, in words."""
        receipt = self.decision or (self.receipts[-1] if self.receipts else None)
        return receipt.reason if receipt is not None else "no test yet"

    @property
    def rule(self) -> SwitchRule:
        """That watches the losses now."""
        return self._course.rule

    @property
    def _watching(self) -> bool:
        """The losses of the steps to come are looked at."""
        return self.last_epoch < self.warmup_steps and self._course.may_change

    def step(self, loss: Loss) -> None:  # type: ignore[override]
        """Call once after each optimizer step, with the training loss of that step.

        Args:
            loss: a float or a tensor of one element, on any device; NaN and inf are allowed. Once the
                losses are no longer watched it is not used.
        """
        if self._watching:
            self._pending.add(loss, capacity=self._next_look - self._last_look)
        looks = self._watching and self.last_epoch + 1 == self._next_look
        self._advance()
        tested = len(self.receipts)
        if looks:
            self._look()
        self._set_lr(self._lr())
        if len(self.receipts) > tested:
            last = self.receipts[-1]
            rate = self._legs[-1].peak_lr if self._legs else last.lr
            report_divergence(last, min_lr=self.min_lr, peak_lr=rate, on_divergence=self.on_divergence)

    def lr_at(self, step: int) -> float:
        """The learning rate that optimizer step ``step`` runs at, as decided so far; no ratios applied."""
        if step >= self.total_steps:
            return self.final_lr
        leg = next((leg for leg in reversed(self._legs) if leg.start <= step), None)
        if leg is None:
            return self._rise.lr(step)
        if step < leg.turn:
            return leg.lr(step)
        return self._decayed(leg.peak_lr, leg.turn, step)

    plot = look_inside.plot
    receipts_frame = look_inside.receipts_frame

    def synchronize(self) -> None:
        """Average the losses that wait for the next look over the ranks (one reduction).

        Call it on every rank before rank 0's ``state_dict`` is saved for all of them: without it the
        others' losses since the last look are lost to the resumed run. Nothing to do on one process.
        """
        if self._watching and is_distributed(self._distributed):
            self._pending.fill(self._pending.drain(distributed=True).tolist())

    def _lr(self) -> float:
        return self.lr_at(self.last_epoch)

    def _look(self) -> None:
        """Read the waiting losses; test, take a snapshot, change the course, as the step demands."""
        step = self.last_epoch
        distributed = is_distributed(self._distributed)
        losses = self._pending.drain(distributed=distributed)
        self.trace.update(losses)
        with single_threaded_blas():
            receipt = self._course.judge(step, losses)
        if distributed:
            receipt = Receipt.from_vector(from_rank_zero(receipt.to_vector()))
        receipt = self._course.follow(receipt)
        if receipt.rolled_back_to >= 0:
            self.rolled_back_to = receipt.rolled_back_to
        if self._legs and step >= self._legs[-1].turn:
            self.peak_lr, self.switch_step = self._legs[-1].peak_lr, self._legs[-1].turn
        if not self._watching and self._snapshots is not None:
            self._snapshots.clear()
        self._last_look, self._next_look = step, self._course.next_look(step)
        if self._course.is_kept(receipt):
            self.receipts.append(receipt)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            # Unknown to states from before there was a choice.
            "warmup": None if self.warmup == "exponential" else self.warmup,
            "min_lr": self.min_lr, "max_lr": self.max_lr, "warmup_steps": self.warmup_steps,
            "test_every": self._test_every, "fallback": self.fallback,
            "rollback": self._snapshots is not None,
            **{f"rule.{key}": value for key, value in self.rule.settings().items()},
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors; as long as losses are watched with the snapshots, if any.

        With several ranks call :meth:`synchronize` first, on all of them.
        """
        return super().state_dict() | {
            "peak_lr": self.peak_lr,
            "switch_step": self.switch_step,
            "rolled_back_to": self.rolled_back_to,
            "legs": [dataclasses.astuple(leg) for leg in self._legs],
            "last_look": self._last_look,
            "pending": self._pending.tensor().cpu(),
            "rule": self.rule.state_dict(),
            "receipts": receipts_state(self.receipts),
            "trace": self.trace.state_dict(),
            "snapshots": self._snapshots.state_dict() if self._snapshots is not None else None,
            **self._course.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``; ValueError, and nothing changed, where it does not fit."""
        self._check(state_dict)
        if self._snapshots is not None:
            self._snapshots.load_state_dict(state_dict["snapshots"])
        super().load_state_dict(state_dict)
        self.peak_lr = state_dict["peak_lr"]
        self.switch_step = state_dict["switch_step"]
        self.rolled_back_to = state_dict["rolled_back_to"]
        self._legs[:] = map(Leg.of, state_dict["legs"])
        self._last_look = int(state_dict["last_look"])
        self._pending.fill(state_dict["pending"].tolist())
        self.receipts = receipts_of(state_dict["receipts"])
        self._course.load_state_dict(state_dict, self.receipts)
        self._next_look = self._course.next_look(self._last_look)
        self.rule.load_state_dict(state_dict["rule"])
        self.trace.load_state_dict(state_dict["trace"])
        self._set_lr(self._lr())
