"""Has the loss passed its minimum? From losses to evidence, and from evidence to a verdict.

A rule watches the losses of the warmup and is asked, at its own interval, for :class:`Evidence`.
What is made of the evidence, :func:`decide`, is a pure function and the same for every rule.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtr

from autolr_ray.schedule.blas import single_threaded_blas
from autolr_ray.schedule.smoother import (
    Array,
    Hyperparameters,
    LossPosterior,
    LossSmoother,
    Spectrum,
)

GRID = np.linspace(0.0, 1.0, 500)
RECEIPT_POINTS = 64
_RECEIPT_GRID = np.linspace(0.0, 1.0, RECEIPT_POINTS)


class Verdict(enum.Enum):
    """What was decided; the value is the sentence that users read."""

    RISING = "the loss has not clearly passed its minimum: the learning rate keeps rising"
    PASSED = "the loss has passed its minimum: the warmup ends at the learning rate of the minimum"
    EXHAUSTED = (
        "the longest warmup is over without a verdict: the warmup ends at the learning rate of the "
        "lowest loss so far"
    )
    STILL_FALLING = (
        "the longest warmup is over and the loss was still falling: the highest learning rate is kept"
    )
    HIGHEST_KEPT = "the longest warmup is over without a verdict: the highest learning rate is kept, as asked"
    NO_EVIDENCE = "the longest warmup is over and no loss was finite: the lowest learning rate is kept"
    DIVERGED = (
        "the loss rose, or was not finite, before it had clearly fallen: training diverged from the start; "
        "the warmup ends at the learning rate of the lowest loss so far"
    )

    SWEPT = (
        "the sweep has shown at which learning rates the loss falls: a linear warmup to their scale begins"
    )
    WATCHED = "the loss has not clearly passed its minimum: the learning rate goes on as planned"
    REACHED = "the warmup has reached the scale that the sweep found, and the loss has not passed its minimum"
    NOT_SEEN = (
        "the sweep was too short to see the loss fall: a linear warmup to far below the highest learning "
        "rate that was tried begins"
    )
    LAYERWISE = (
        "the optimizer changes each layer by the learning rate times its norm: a linear warmup to the "
        "learning rate that the steps left ask for begins"
    )
    RISES_ON = (
        "the loss, without what swinging costs, falls at the end of the warmup as it has all along, or the "
        "weights hardly swing about their average: the learning rate goes on rising"
    )

    @property
    def ends_warmup(self) -> bool:
        """Whether the learning rate stops rising."""
        return self not in (Verdict.RISING, Verdict.WATCHED, Verdict.RISES_ON, *SWEEPS)


SWEEPS = (Verdict.SWEPT, Verdict.NOT_SEEN, Verdict.LAYERWISE)
"""Those that end a sweep, after which a linear warmup begins."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a rule says at one test.

    Attributes:
        positive: the test says that the minimum is passed, or that the loss was never finite.
        improved: the loss has fallen below its start, as far as noise lets that be told.
        strength: what the test weighs, as a share of what makes it positive: above 1 it is.
        probability: the largest posterior probability of any earlier point being below the last.
        argmin: where the posterior mean is lowest, a share of the steps so far, in [0, 1].
        earliest: the first point that may be as low: one-sd bands of the two overlap.
        mean, sd: the posterior on even points of the steps so far, [RECEIPT_POINTS].
        hyper: what the posterior was made with.
    """

    positive: bool
    improved: bool
    strength: float
    probability: float
    argmin: float
    earliest: float
    mean: Array
    sd: Array
    hyper: Hyperparameters

    @classmethod
    def none(cls, *, positive: bool = False) -> Evidence:
        """Before the first finite loss: nothing known, and the minimum at the start."""
        unknown = np.full(RECEIPT_POINTS, math.nan)
        hyper = Hyperparameters(outputscale=math.nan, noise=math.nan, mean=math.nan)
        return cls(
            positive=positive, improved=False, strength=math.inf if positive else 0.0,
            probability=math.nan, argmin=0.0, earliest=0.0,
            mean=unknown, sd=unknown, hyper=hyper,
        )  # fmt: skip


def decide(
    *,
    positives: int,
    patience: int,
    exhausted: bool,
    improved: bool,
    argmin: float,
    fallback: str,
    any_finite: bool,
) -> Verdict:
    """The verdict, given the evidence so far: pure, no state.

    Args:
        positives: positive tests in a row, this one counted.
        patience: how many in a row end the warmup.
        exhausted: the longest warmup is over.
        improved: the loss has fallen below its start, as far as noise lets that be told.
        argmin: where the posterior mean is lowest, as a share of the steps so far.
        fallback: what to do when exhausted: "argmin" or "keep" (the highest learning rate).
        any_finite: whether any loss was finite.
    """
    if positives >= patience:
        return Verdict.PASSED if improved else Verdict.DIVERGED
    if not exhausted:
        return Verdict.RISING
    if fallback == "keep":
        return Verdict.HIGHEST_KEPT
    if not any_finite:
        return Verdict.NO_EVIDENCE
    # An argmin at the very end means that the loss never turned: nothing to fall back to.
    return Verdict.EXHAUSTED if argmin < 0.98 else Verdict.STILL_FALLING


class SwitchRule(ABC):
    """Turns losses into evidence. Deterministic; keeps no losses.

    Attributes:
        name: how users ask for it.
        patience: positive tests in a row that end the warmup.
    """

    name: ClassVar[str]
    patience: int = 3
    smoother: LossSmoother

    @abstractmethod
    def test_interval(self, warmup_steps: int, steps_per_epoch: int | None) -> int:
        """Optimizer steps between tests; ValueError where the rule lacks something it needs."""

    @abstractmethod
    def observe(self, losses: Array, warmup_steps: int) -> None:
        """Take in the losses [k] of the next k steps."""

    @abstractmethod
    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite."""

    def forgive(self) -> None:  # noqa: B027  # a rule that adds nothing up has nothing to forget
        """Forget what speaks for a rise so far; the losses stay."""

    def hopeless(self) -> bool:
        """Whether so many losses were seen, and none finite, that it is no use to wait for one."""
        return False

    def evidence(self) -> Evidence:
        """What :meth:`test` says; before any finite loss nothing, unless it is hopeless."""
        return self.test() if self.smoother.count else Evidence.none(positive=self.hopeless())

    @abstractmethod
    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """What a look between tests uses."""

    def minimum(self) -> tuple[float, float]:
        """Between tests: ``argmin`` and ``earliest`` (see :class:`Evidence`); 1.0 before any finite loss."""
        if not self.smoother.count:
            return 1.0, 1.0
        spectrum = self.smoother.spectrum()
        with single_threaded_blas():
            mean, sd, _ = LossPosterior(spectrum, self.hyperparameters(spectrum)).on_grid(len(GRID))
        return _minimum(mean, sd)

    def step_of(self, position: float, steps: int) -> float:
        """The step that ``position`` in [0, 1] of a curve of ``steps`` losses stands for, <= steps - 1."""
        return min(position * steps, steps - 1.0)

    @abstractmethod
    def settings(self) -> dict[str, float | int | str]:
        """What decides the rule's behaviour, to refuse a state that belongs to another."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return {"smoother": self.smoother.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.smoother.load_state_dict(state["smoother"])


def judge(
    posterior: LossPosterior,
    *,
    confidence: float,
    jitter: float = 0.0,
    margin: float = 0.0,
    on_grid: tuple[Array, Array, Array] | None = None,
) -> Evidence:
    """P(f_i + margin < f_last) on the grid, its maximum compared with ``confidence``.

    ``on_grid``: ``posterior.on_grid(len(GRID))``, from a caller that has it already.
    """
    if on_grid is None:
        with single_threaded_blas():
            on_grid = posterior.on_grid(len(GRID))
    mean, sd, variance = on_grid
    deviation = np.sqrt(np.maximum(variance + jitter, 1e-300))
    probability = float(ndtr((mean[-1] - margin - mean[:-1]) / deviation[:-1]).max())
    argmin, earliest = _minimum(mean, sd)
    return Evidence(
        positive=probability > confidence,
        improved=bool(mean[0] - mean.min() > math.sqrt(posterior.hyper.noise)),
        strength=probability / confidence,
        probability=probability,
        argmin=argmin,
        earliest=earliest,
        mean=np.interp(_RECEIPT_GRID, GRID, mean),
        sd=np.interp(_RECEIPT_GRID, GRID, sd),
        hyper=posterior.hyper,
    )


def _minimum(mean: Array, sd: Array) -> tuple[float, float]:
    lowest = int(np.argmin(mean))
    earliest = int(np.argmax(mean - sd <= mean[lowest] + sd[lowest]))
    return float(GRID[lowest]), float(GRID[earliest])
