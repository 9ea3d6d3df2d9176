"""The linear warmup's course: a short sweep, weights put back, a warmup, and losses that are watched."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.optim import Optimizer

from autolr_ray.schedule.burst import Burst
from autolr_ray.schedule.layerwise import LAYERWISE_HIGHEST, LAYERWISE_RISE, is_layerwise, layerwise_peak
from autolr_ray.schedule.leg import Leg, Rise
from autolr_ray.schedule.pace import Pace
from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.rollback import SnapshotStore
from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.sweep import Sweep, momentum_share
from autolr_ray.schedule.swing import Swing
from autolr_ray.schedule.switch import SWEEPS, Evidence, SwitchRule, Verdict

# To this many times the learning rate that the sweep found, over this share of the steps that are left. When
# the loss passes its minimum again, or lies above where it began, on with this many times the learning rate
# at the minimum.
_TARGET, _LINEAR_SHARE, _BACK_OFF = 1.5, 0.2, 0.5
# A burst counts from this share of a warmup's peak on: one at the foot of it heals, and would leave the rest
# of the run a learning rate that is far too low.
_BURST_FROM = 0.4
# Of a learning rate's effect, where momentum adds gradients up: else the pace is not yet its.
_SEEN = 0.5
# A loss that rises by more than this share of its mean pace asks for no higher learning rate, however little
# the weights swing: where gradients are clipped, they tell too little of it.
_RISING = 0.1
# Of the floor's rise, the least that the loss itself has to show: the rest may be swinging that has ended, or
# that was measured where there was none.
_OWN = 0.5
# A sweep that took more than this share of all steps is not thrown away: on from its lowest loss.
_DEAR_SWEEP = 0.05


class SweptWarmup:
    """Decides and does what :class:`AutoWarmup` describes as its linear warmup (a ``Course``).

    Args:
        optimizer: whose state and weights are put back.
        rule: that watches the losses after the sweep, unused.
        rise: the sweep's learning rates, and how many steps it has at most.
        total_steps, warmup_steps: of the run, and as long as losses are watched.
        test_every: optimizer steps between tests, after the sweep.
        final_lr: the learning rate after the last step.
        start, snapshots: stores for the weights at the start, and near the loss's minimum.
        legs: filled as the course is decided.
        lr_at: the learning rate of a step, as decided so far.

    Attributes:
        rule: that of the leg now watched.
        positives: positive tests in a row.
        layerwise: whether the optimizer changes each layer by the learning rate times its norm; None before
            that is known.
    """

    def __init__(
        self, optimizer: Optimizer, rule: SwitchRule, rise: Rise, *, total_steps: int, warmup_steps: int,
        test_every: int, final_lr: float, start: SnapshotStore, snapshots: SnapshotStore, legs: list[Leg],
        lr_at: Callable[[int], float],
    ) -> None:  # fmt: skip
        self.optimizer, self.rule, self.rise, self.legs = optimizer, rule, rise, legs
        self.total_steps, self.warmup_steps, self.test_every = total_steps, warmup_steps, test_every
        self.positives = 0
        self.sweep = Sweep(rise.steps + 1)
        self.layerwise: bool | None = None
        self.lowest_lr = max(rise.min_lr, final_lr)
        self._lr_at = lr_at
        self._start, self._snapshots = start, snapshots
        self._unused_rule = copy.deepcopy(rule)
        self._unused_optimizer = start.optimizer_state()
        self._burst, self._swing = Burst(), Swing(optimizer)
        self._pace, self._floor_pace = Pace(0), Pace(0)  # of the losses, and of those without the swinging
        self._fallen = 0.0  # how far the last test's minimum lies below the level that training starts from
        self._by_layers = False  # the peak came from the steps left, not from the sweep: rank 0 has said so

    @property
    def may_change(self) -> bool:
        """Whether anything is left to decide: nothing is at the lowest learning rate."""
        return not self.legs or self.legs[-1].peak_lr > self.lowest_lr

    def next_look(self, step: int) -> int:
        """Each step of the sweep; then the next test, the leg's turn, or the end."""
        if not self.legs:
            return step + 1
        leg, n = self.legs[-1], self.test_every
        test = leg.start + ((step - leg.start) // n + 1) * n
        own = (leg.turn - leg.rise_steps, leg.turn) if self._swing.watches else (leg.turn,)
        return min(self.warmup_steps, test, *(at for at in own if at > step))

    def judge(self, step: int, losses: Array) -> Receipt:
        """What is known after ``step``, with the losses [k] of the last k steps."""
        if self.legs:
            self._pace.observe(losses)
            losses = self._swing.floor(losses, self._fallen)
            self._floor_pace.observe(losses)
            self.rule.observe(losses, self._horizon())
            leg = self.legs[-1]
            # Steps of a fixed share of the norm do not run away: a rise near the peak heals by itself.
            if self._by_layers and step <= leg.turn + leg.last_stretch:
                self.rule.forgive()
            elif self._lr_at(step - 1) >= _BURST_FROM * leg.peak_lr:
                self._burst.observe(losses)
            if step == leg.turn - leg.rise_steps:
                self._swing.restart()
            return self._watch(step, leg)
        self.sweep.observe(losses)
        if self.layerwise is None and step > 1:
            # A step may change nothing, as one that a gradient scaler leaves out: then the next one tells.
            self.layerwise = is_layerwise(self._start.weights(1), self._start.present(), self.optimizer)
        return self._sweep_on(step)

    def follow(self, receipt: Receipt) -> Receipt:
        """Do what ``receipt`` says; it, with the step whose weights were put back, if any were."""
        self.positives = receipt.positives
        step, verdict = receipt.step, receipt.verdict
        if self.legs:
            if verdict.ends_warmup and verdict is not Verdict.REACHED:
                return self._go_back(receipt)
            self._snapshots.take(step, receipt.argmin_step, receipt.earliest_step)
            if verdict is Verdict.RISES_ON:
                self.legs[-1] = self.legs[-1].risen()
                self._swing.restart()
            if step >= self.warmup_steps:
                self._swing.end()
            return receipt
        if verdict is not Verdict.RISING:
            return self._warm_up(receipt)
        if step == 1:  # at the lowest learning rate, which has changed next to nothing
            self._start.take(step, step)
            if any(group.get("capturable") for group in self.optimizer.param_groups):
                # A CUDA graph holds on to the tensors of the state: they have to stay.
                self._unused_optimizer = self._start.optimizer_state()
        self._snapshots.take(step, receipt.argmin_step)
        return receipt

    def is_kept(self, receipt: Receipt) -> bool:
        """Whether it is not that of a step of the sweep, unless the last."""
        return receipt.verdict is not Verdict.RISING

    def _sweep_on(self, step: int) -> Receipt:
        sweep, rise = self.sweep, self.rise
        verdict = Verdict.RISING
        if sweep.over:
            verdict = Verdict.SWEPT if sweep.improved else Verdict.NOT_SEEN
            verdict = verdict if sweep.any_finite else Verdict.NO_EVIDENCE
        rate = sweep.lr(np.array([rise.lr(i) for i in range(step)]))
        # The steps that its momentum had seen when the sweep was at that rate.
        rate *= momentum_share(self.optimizer.param_groups[0], 1.0 + rise.step_of(rate))
        # Where no fall was seen, the lowest loss is chance, perhaps that of weights already damaged.
        lowest = 0 if verdict is Verdict.NOT_SEEN else sweep.lowest
        if verdict in SWEEPS and self.layerwise:
            verdict, rate = Verdict.LAYERWISE, layerwise_peak(self.total_steps - step)
        receipt = Receipt.of(self.rule, rise, step, Evidence.none(), verdict, 0)
        rate = min(max(rate, rise.min_lr), rise.max_lr)
        return dataclasses.replace(receipt, argmin_step=lowest, earliest_step=lowest, argmin_lr=rate)

    def _watch(self, step: int, leg: Leg) -> Receipt:
        any_finite = self.rule.smoother.count > 0
        evidence = self.rule.evidence()
        if any_finite:
            self._burst.look(self.sweep.level, self.sweep.noise, evidence)
            self._fallen = self.sweep.level - float(evidence.mean.min())
        burst = self._burst.strength
        evidence = dataclasses.replace(evidence, strength=max(evidence.strength, burst))
        positives = self.positives + 1 if evidence.positive else 0
        # Means of a window that are too few are NaN, and say nothing against it.
        of_swinging = self._pace.risen() < _OWN * self._floor_pace.risen()
        if (positives >= self.rule.patience or burst >= 1.0) and not of_swinging:
            fallen = self.sweep.improved or self.sweep.below_noise(self._burst.lowest)
            verdict = Verdict.PASSED if evidence.improved and fallen else Verdict.DIVERGED
        elif step == leg.turn:
            verdict = Verdict.RISES_ON if self._rises_on(leg) else Verdict.REACHED
        else:
            verdict = Verdict.WATCHED
        # The rule's first losses are the sweep's, and so are its positions.
        first = leg.start - self.sweep.steps // 2
        argmin, earliest = (
            max(self.rule.step_of(position, step - first) + first, leg.start)
            for position in (evidence.argmin, evidence.earliest)
        )
        # The loss of a step is that of the weights before it: the step before was the last to lower it.
        argmin, earliest = max(argmin - 1.0, leg.start), max(earliest - 1.0, leg.start)
        receipt = Receipt.of(self.rule, self.rise, step, evidence, verdict, positives)
        return dataclasses.replace(
            receipt, lr=self._lr_at(step - 1), start_step=first, argmin_step=argmin,
            earliest_step=min(earliest, argmin), argmin_lr=self._lr_at(round(argmin)),
        )  # fmt: skip

    def _rises_on(self, leg: Leg) -> bool:
        """Whether the loss asks for more than the warmup's peak."""
        on, pace = leg.risen(), self._pace
        # What comes of it has to be seen for as long as it takes.
        if 2 * on.turn - leg.turn > self.warmup_steps or on.peak_lr > self.rise.max_lr:
            return False
        level, noise, fallen = self.sweep.level, self.sweep.noise, pace.fall(self.sweep.level)
        if self._by_layers:
            holds = not pace.few and self._floor_pace.holds(level, noise, rising=False)
            return holds and on.peak_lr <= LAYERWISE_HIGHEST and not self._swing.is_much(fallen)
        seen = momentum_share(self.optimizer.param_groups[0], pace.window)
        if pace.few and (leg.rises > 0 or seen < _SEEN):
            return False
        if self._floor_pace.holds(level, noise, rising=leg.rises > 0):
            return True
        return pace.share(level) >= -_RISING and self._swing.is_little(fallen, noise)

    def _warm_up(self, receipt: Receipt) -> Receipt:
        """From the sweep to the first leg."""
        step, verdict = receipt.step, receipt.verdict
        self._by_layers = verdict is Verdict.LAYERWISE
        leg = self._warmup_to(receipt)
        dear = step > _DEAR_SWEEP * self.total_steps
        gentle = self._gentle_steps(leg.peak_lr) if dear and verdict is Verdict.NOT_SEEN else 1
        if gentle > 1:
            # Nothing was learned, but nothing harmed: up to here it was the beginning of a warmup.
            back = self._snapshots.restore(gentle)
            leg = leg.begun(sum(self.rise.lr(i) for i in range(gentle)))
        else:
            learned = dear and receipt.argmin_step > 1
            store, at = (self._snapshots, receipt.argmin_step) if learned else (self._start, 1.0)
            back = store.restore(at, optimizer=self._unused_optimizer)
        self._start.clear()
        self._unused_optimizer = {}
        self._begin(step, leg)
        return receipt.went_back(back)

    def _go_back(self, receipt: Receipt) -> Receipt:
        """To the loss's minimum, and into the decay."""
        back = self._snapshots.restore(receipt.argmin_step)
        # The first time the learning rate at the minimum is as good as any: most alarms are false. Not where
        # training has lost all that it had gained.
        false = len(self.legs) == 1 and not self.sweep.above_noise(self._burst.lowest_of_last)
        peak = (1.0 if false else _BACK_OFF) * receipt.argmin_lr
        self._begin(receipt.step, Leg(receipt.step, 0, max(peak, self.lowest_lr)))
        return receipt.went_back(back)

    def _warmup_to(self, receipt: Receipt) -> Leg:
        step = receipt.step
        if receipt.verdict is Verdict.NO_EVIDENCE:
            return Leg(step, 0, self.rise.min_lr)
        left = self.total_steps - step
        warmup = min(max(1, int(_LINEAR_SHARE * left)), self.warmup_steps - step)
        if self._by_layers:
            return Leg(step, warmup, receipt.argmin_lr, rise=LAYERWISE_RISE)
        return Leg(step, warmup, min(_TARGET * receipt.argmin_lr, self.rise.max_lr))

    def _gentle_steps(self, peak_lr: float) -> int:
        """How many steps of the sweep ran at no more than ``peak_lr``, of those that have a snapshot."""
        steps = (step for step in self._snapshots.steps if self.rise.lr(step - 1) <= peak_lr)
        return max(steps, default=0)

    def _begin(self, step: int, leg: Leg) -> None:
        """Watch a new leg, with the sweep's first losses for the level that training starts from."""
        self.legs.append(leg)
        self.positives = 0
        self.rule = copy.deepcopy(self._unused_rule)
        self._burst, self._fallen = Burst(), 0.0
        self._pace, self._floor_pace = Pace(leg.warmup), Pace(leg.warmup)
        self._swing.begin(leg.warmup if self.may_change else 0)
        self.rule.observe(np.array(self.sweep.losses[: self.sweep.steps // 2]), self._horizon())
        self._snapshots.clear()
        self._snapshots.take(step, step)

    def _horizon(self) -> int:
        """The losses that the rule will have seen at the end of the leg, if it is watched to the end."""
        return self.warmup_steps - self.legs[-1].start + self.sweep.steps // 2

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors, without what AutoWarmup's own state holds: legs, rule and snapshots."""
        return {
            "positives": self.positives, "sweep": self.sweep.state_dict(), "layerwise": self.layerwise,
            "burst": self._burst.state_dict(), "pace": self._pace.state_dict(),
            "floor_pace": self._floor_pace.state_dict(),
            "swing": self._swing.state_dict(), "fallen": self._fallen, "start": self._start.state_dict(),
            "unused_optimizer": self._unused_optimizer,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], receipts: Sequence[Receipt]) -> None:
        """Continue from ``state``, with the legs loaded before, and the decisions of until then."""
        self.positives = int(state["positives"])
        self._start.load_state_dict(state["start"])
        self.sweep.load_state_dict(state["sweep"])
        self._unused_optimizer = state["unused_optimizer"]
        # The sweep's receipt has said so.
        self._by_layers = bool(receipts) and receipts[0].verdict is Verdict.LAYERWISE
        # Unknown to states from before they were there.
        self.layerwise = state.get("layerwise")
        if state.get("burst") is not None:
            self._burst.load_state_dict(state["burst"])
        warmup = self.legs[-1].warmup if self.legs else 0
        self._pace, self._floor_pace = Pace(warmup), Pace(warmup)
        if state.get("pace") is not None:
            self._pace.load_state_dict(state["pace"])
            self._floor_pace.load_state_dict(state.get("floor_pace", state["pace"]))
        self._fallen = float(state.get("fallen", 0.0))
        self._swing.end()
        if state.get("swing") is not None:
            self._swing.load_state_dict(state["swing"])
