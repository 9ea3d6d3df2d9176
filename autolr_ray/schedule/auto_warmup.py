"""AutoWarmup: the learning-rate schedule that finds its own peak and warmup length."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from autolr_ray.schedule import look_inside
from autolr_ray.schedule.base import Loss, Schedule, require_finite
from autolr_ray.schedule.decay import Decay
from autolr_ray.schedule.divergence import ON_DIVERGENCE, report_divergence
from autolr_ray.schedule.pending import PendingLosses, from_rank_zero, is_distributed
from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.rollback import PLACES, HasState, SnapshotStore
from autolr_ray.schedule.rules import get_rule
from autolr_ray.schedule.switch import Evidence, SwitchRule, Verdict, decide
from autolr_ray.schedule.trace import LossTrace

FALLBACKS = ("argmin", "keep")
_SNAPSHOTS_PER_WARMUP = 64


class AutoWarmup(Schedule):
    r"""AutoWU (Kim et al. 2021, arXiv 2107.05855): no learning rate to choose.

    The learning rate rises exponentially, step ``t`` at ``min_lr * (max_lr / min_lr) ** (t / W)``, over
    at most ``W = max_warmup_fraction * total_steps`` steps. A Gaussian process smooths the losses; when
    the rule says that they have passed their minimum, the learning rate goes back to the one at the
    minimum (and, with ``model``, so do weights and optimizer state), then decays to ``final_lr``.

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
        decay: "cosine", "constant-then-cosine" or a function (see ``decay``).
        fallback: when the longest warmup is over without a verdict: "argmin" goes back to the learning
            rate of the lowest loss, "keep" (the original's way) decays from the highest.
        on_divergence: what to do, besides going back to the lowest loss, when the loss rises or is never
            finite before it has fallen: "warn" (``DivergenceWarning``) or "raise" (``DivergenceError``, on
            every rank, with the receipt written).
        min_lr, max_lr: where the rise starts and ends, 0 < min_lr < max_lr.
        max_warmup_fraction: longest warmup as a share of ``total_steps``, in (0, 1].
        final_lr: the learning rate after the last step, in [0, max_lr].
        distributed: whether to share decisions through ``torch.distributed``'s default group.
            Default: whenever it has several processes.

    Attributes:
        peak_lr: the learning rate that the decay starts from; None during the warmup.
        switch_step: the optimizer steps done when the warmup ended; None during the warmup.
        rolled_back_to: the step whose weights were put back; None without a rollback.
        receipts: a :class:`Receipt` for every test, oldest first.
        trace: the warmup's losses, thinned.

    Raises:
        ValueError: a setting outside its bounds, by name; a loss with more than one element.
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
        decay: str | Decay = "cosine",
        fallback: str = "argmin",
        on_divergence: str = "warn",
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        max_warmup_fraction: float = 0.5,
        final_lr: float = 0.0,
        distributed: bool | None = None,
    ) -> None:
        super().__init__(optimizer, total_steps, decay=decay, final_lr=final_lr)
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
        self._log_growth = math.log(self.max_lr / self.min_lr)
        self.fallback = fallback
        self.on_divergence = on_divergence
        self.warmup_steps = max(1, int(total_steps * max_warmup_fraction))
        self.rule = get_rule(rule)
        self._test_every = self.rule.test_interval(self.warmup_steps, steps_per_epoch)
        is_distributed(distributed)  # an error here rather than at the first test
        self._distributed = distributed
        self._pending = PendingLosses()
        self._positives = 0
        self._snapshots: SnapshotStore | None = None
        self._snapshot_every = self.warmup_steps
        if model is not None and rollback is not False:
            self._snapshots = SnapshotStore(model, optimizer, scaler=scaler, place=snapshot_device)
            self._snapshot_every = max(1, self.warmup_steps // _SNAPSHOTS_PER_WARMUP)
        self.peak_lr: float | None = None
        self.switch_step: int | None = None
        self.rolled_back_to: int | None = None
        self.receipts: list[Receipt] = []
        self.trace = LossTrace()
        self._last_look = 0
        self._next_look = self._look_after(0)
        self._set_lr(self._lr())

    @property
    def phase(self) -> str:
        """Where the schedule is: "warmup" or "decay"."""
        return "warmup" if self.peak_lr is None else "decay"

    @property
    def reason(self) -> str:
        """What the last test decided, in words."""
        return self.receipts[-1].reason if self.receipts else "no test yet"

    def step(self, loss: Loss) -> None:  # type: ignore[override]
        """Call once after each optimizer step, with the training loss of that step.

        Args:
            loss: a float or a tensor of one element, on any device; NaN and inf are allowed. After the
                warmup it is not used.
        """
        if self.peak_lr is None and self.last_epoch < self.total_steps:
            self._pending.add(loss, capacity=self._next_look - self._last_look)
        self._advance()
        looks = self.last_epoch == self._next_look and self.peak_lr is None
        if looks:
            self._look()
        self._set_lr(self._lr())
        if looks and self.peak_lr is not None:
            report_divergence(
                self.receipts[-1], min_lr=self.min_lr, peak_lr=self.peak_lr, on_divergence=self.on_divergence
            )

    def lr_at(self, step: int) -> float:
        """The learning rate that optimizer step ``step`` runs at, as decided so far; no ratios applied."""
        if step >= self.total_steps:
            return self.final_lr
        if self.peak_lr is None or self.switch_step is None or step < self.switch_step:
            return self._warmup_lr(step)
        return self._decayed(self.peak_lr, self.switch_step, step)

    plot = look_inside.plot
    receipts_frame = look_inside.receipts_frame

    def synchronize(self) -> None:
        """Average the losses that wait for the next look over the ranks (one reduction).

        Call it on every rank before rank 0's ``state_dict`` is saved for all of them: without it the
        others' losses since the last look are lost to the resumed run. Nothing to do on one process.
        """
        if self.peak_lr is None and is_distributed(self._distributed):
            self._pending.fill(self._pending.drain(distributed=True).tolist())

    def _lr(self) -> float:
        return self.lr_at(self.last_epoch)

    def _warmup_lr(self, step: float) -> float:
        return min(self.min_lr * math.exp(self._log_growth * step / self.warmup_steps), self.max_lr)

    def _look_after(self, step: int) -> int:
        """The next step at which losses are read: a test, a snapshot, or the longest warmup's end."""
        every = (self._test_every, self._snapshot_every)
        return min(self.warmup_steps, *((step // n + 1) * n for n in every))

    def _look(self) -> None:
        """Read the waiting losses; test, take a snapshot, end the warmup, as the step demands."""
        step = self.last_epoch
        distributed = is_distributed(self._distributed)
        losses = self._pending.drain(distributed=distributed)
        self.trace.update(losses)
        self.rule.observe(losses, self.warmup_steps)
        exhausted = step >= self.warmup_steps
        is_test = exhausted or step % self._test_every == 0
        receipt = self._judge(step, exhausted) if is_test else self._glance(step)
        if distributed:
            receipt = Receipt.from_vector(from_rank_zero(receipt.to_vector()))
        self._positives = receipt.positives
        self._last_look, self._next_look = step, self._look_after(step)
        if receipt.verdict.ends_warmup:
            receipt = self._switch(receipt)
        elif self._snapshots is not None and step % self._snapshot_every == 0:
            self._snapshots.take(step, receipt.argmin_step, receipt.earliest_step)
        if is_test:
            self.receipts.append(receipt)

    def _judge(self, step: int, exhausted: bool) -> Receipt:
        any_finite = self.rule.smoother.count > 0
        evidence = self.rule.test() if any_finite else Evidence.none(positive=self.rule.hopeless())
        # The end of the longest warmup is no test of the rule's: it only asks for the minimum.
        counts = evidence.positive and step % self._test_every == 0 and not exhausted
        positives = self._positives + 1 if counts else 0
        verdict = decide(
            positives=positives,
            patience=self.rule.patience,
            exhausted=exhausted,
            improved=evidence.improved,
            argmin=evidence.argmin,
            fallback=self.fallback,
            any_finite=any_finite,
        )
        return self._receipt(step, evidence, verdict, positives)

    def _glance(self, step: int) -> Receipt:
        """Between tests: where the minimum is now, for the choice of snapshots."""
        argmin, earliest = self.rule.minimum()
        evidence = dataclasses.replace(Evidence.none(), argmin=argmin, earliest=earliest)
        return self._receipt(step, evidence, Verdict.RISING, self._positives)

    def _receipt(self, step: int, evidence: Evidence, verdict: Verdict, positives: int) -> Receipt:
        argmin_step = self.rule.step_of(evidence.argmin, step)
        return Receipt(
            step=step,
            lr=self._warmup_lr(step - 1),
            verdict=verdict,
            strength=evidence.strength,
            probability=evidence.probability,
            positives=positives,
            argmin_step=argmin_step,
            argmin_lr=self._warmup_lr(argmin_step),
            earliest_step=min(self.rule.step_of(evidence.earliest, step), argmin_step),
            outputscale=evidence.hyper.outputscale,
            noise=evidence.hyper.noise,
            prior_mean=evidence.hyper.mean,
            mean=evidence.mean,
            sd=evidence.sd,
        )

    def _switch(self, receipt: Receipt) -> Receipt:
        turned = receipt.verdict in (Verdict.PASSED, Verdict.EXHAUSTED, Verdict.DIVERGED)
        self.switch_step = receipt.step
        if turned:
            self.peak_lr = receipt.argmin_lr
        else:
            self.peak_lr = self.min_lr if receipt.verdict is Verdict.NO_EVIDENCE else receipt.lr
        if self._snapshots is not None:
            if turned:
                self.rolled_back_to = self._snapshots.restore(receipt.argmin_step)
            self._snapshots.clear()
        return dataclasses.replace(
            receipt, rolled_back_to=-1 if self.rolled_back_to is None else self.rolled_back_to
        )

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "min_lr": self.min_lr, "max_lr": self.max_lr, "warmup_steps": self.warmup_steps,
            "test_every": self._test_every, "fallback": self.fallback,
            "rollback": self._snapshots is not None,
            **{f"rule.{key}": value for key, value in self.rule.settings().items()},
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tensors; during the warmup with the snapshots, if any.

        With several ranks call :meth:`synchronize` first, on all of them.
        """
        return super().state_dict() | {
            "peak_lr": self.peak_lr,
            "switch_step": self.switch_step,
            "rolled_back_to": self.rolled_back_to,
            "positives": self._positives,
            "last_look": self._last_look,
            "pending": self._pending.tensor().cpu(),
            "rule": self.rule.state_dict(),
            "receipts": [receipt.to_dict() for receipt in self.receipts],
            "trace": self.trace.state_dict(),
            "snapshots": self._snapshots.state_dict() if self._snapshots is not None else None,
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
        self._positives = int(state_dict["positives"])
        self._last_look = int(state_dict["last_look"])
        self._next_look = self._look_after(self._last_look)
        self._pending.fill(state_dict["pending"].tolist())
        self.rule.load_state_dict(state_dict["rule"])
        self.receipts = [Receipt.from_dict(receipt) for receipt in state_dict["receipts"]]
        self.trace.load_state_dict(state_dict["trace"])
        self._set_lr(self._lr())
