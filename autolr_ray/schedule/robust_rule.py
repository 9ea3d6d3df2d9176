"""The switch rule for real runs: scale-free, in units of learning-rate growth, no loss ignored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr

from autolr_ray.schedule.base import require_finite
from autolr_ray.schedule.blas import single_threaded_blas
from autolr_ray.schedule.smoother import (
    Array,
    Hyperparameters,
    LossPosterior,
    LossSmoother,
    Spectrum,
    fit_marginal_likelihood,
)
from autolr_ray.schedule.switch import GRID, Evidence, SwitchRule, judge

_FEWEST_FIRST_LOSSES, _MOST_FIRST_LOSSES = 6, 64
# Of Gaussian noise, in standard deviations: median and mean |difference| of neighbours.
_MEDIAN_STEP, _MEAN_STEP = 0.954, 2.0 / math.sqrt(math.pi)
# A loss has fallen when its minimum is this many sd's of the starting level below it.
_FALLEN = 2.0


class RobustRule(SwitchRule):
    """AutoWU's test, made to hold on runs of any length, scale and noise.

    Multiplying all losses by a positive number or adding one to them changes no decision.

    - Tests come at even growth of the learning rate, ``tests`` in the longest warmup, so that what is
      overshot does not depend on the length of an epoch; none in the first ``quiet`` share.
    - The first losses, before the learning rate can have done anything, give the level that training
      starts from (their median) and their spread (from the median step between neighbours).
    - The posterior is that of losses clipped at ``level + max(clip_drop * drop so far, clip_spread *
      spread)``, non-finite ones at that, with the hyperparameters of highest marginal likelihood.
      ``drop``, the unit of losses, is the way from the level down to its minimum, at least
      ``noise_drop`` noise sd's.
    - Three one-sided sequential tests (CUSUM) sum, step by step, how far each loss lies above the last
      test's minimum, in drops; a sum below zero starts anew. The *rise*, for explosions, sums squares:
      bumps that heal are seldom much higher than one drop. One loss counts at most ``largest``, so no
      single one ends a warmup; a non-finite one counts as that much. The *stay*, for a loss that rose and
      came down half-way, sums at most ``largest`` of each loss above the lowest mean + sd of the
      posterior, less ``slack`` noise sd's. The *drift*, for long low rises, sums at most
      ``drift_largest`` of each.
    - A test is positive when the rise exceeds ``rise``, when the stay exceeds ``stay``, or when the drift
      exceeds ``drift`` and the loss is still rising: higher at the end than one lengthscale before, with
      probability ``confidence``. A bump that heals is falling by then. Beyond ``long_steps`` warmup steps
      the thresholds grow in proportion. ``patience`` positive tests in a row end the warmup.

    Args:
        confidence: in (0, 1).
        patience: >= 1.
        lengthscale: of the kernel, as a share of the steps so far.
        tests: >= 8.
        rise, largest: > 0, in squared drops; ``largest`` < ``rise``.
        stay, drift, drift_largest: > 0, in drops; ``drift_largest`` < ``drift``.
        slack: >= 0, in noise sd's.
        long_steps: >= 1.
        noise_drop, clip_drop, clip_spread: >= 0.
        quiet: in [0, 1).

    Raises:
        ValueError: a setting outside its bounds, by name.
    """

    name = "robust"

    def __init__(
        self,
        *,
        confidence: float = 0.9998,
        patience: int = 1,
        lengthscale: float = 0.1,
        tests: int = 64,
        rise: float = 5.0,
        largest: float = 3.0,
        drift: float = 2.0,
        drift_largest: float = 0.2,
        stay: float = 4.5,
        slack: float = 0.2,
        long_steps: int = 2500,
        noise_drop: float = 10.0,
        clip_drop: float = 0.25,
        clip_spread: float = 6.0,
        quiet: float = 0.125,
    ) -> None:
        require_finite("confidence", confidence, above=0.0, below=1.0)
        require_finite("patience", patience, low=1)
        require_finite("tests", tests, low=8)
        require_finite("rise", rise, above=0.0)
        require_finite("largest", largest, above=0.0, below=rise)
        require_finite("drift", drift, above=0.0)
        require_finite("drift_largest", drift_largest, above=0.0, below=drift)
        require_finite("stay", stay, above=0.0)
        require_finite("slack", slack, low=0.0)
        require_finite("long_steps", long_steps, low=1)
        require_finite("noise_drop", noise_drop, low=0.0)
        require_finite("clip_drop", clip_drop, low=0.0)
        require_finite("clip_spread", clip_spread, low=0.0)
        require_finite("quiet", quiet, low=0.0, below=1.0)
        self.confidence = confidence
        self.patience = patience
        self.tests = tests
        self.rise, self.largest = rise, largest
        self.drift, self.drift_largest = drift, drift_largest
        self.stay, self.slack = stay, slack
        self.long_steps, self.noise_drop = long_steps, noise_drop
        self.clip_drop, self.clip_spread = clip_drop, clip_spread
        self.quiet = quiet
        self.smoother = LossSmoother(lengthscale)
        # Losses wait here until there are enough of them to tell level and spread.
        self._first: list[float] = []
        self._level = math.nan
        self._spread = 0.0
        self._level_sd = 0.0
        self._fallen = False
        # The last loss as it counted, and the steps between neighbours so far: their noise.
        self._last = math.nan
        self._step_total = 0.0
        self._step_count = 0
        # What the tests found: the lowest posterior mean of all; the minimum and noise sd of the last;
        # how much wider the noise counts for being correlated, NaN until the quiet share is over.
        self._lowest = math.nan
        self._minimum = math.nan
        self._ceiling = math.nan
        self._noise = math.nan
        self._widening = math.nan
        self._risen = 0.0
        self._drifted = 0.0
        self._stayed = 0.0
        self._steps = 0
        self._warmup_steps = 0

    def test_interval(self, warmup_steps: int, steps_per_epoch: int | None) -> int:
        """Even learning-rate growth: ``warmup_steps / tests``, at least one step."""
        return max(1, warmup_steps // self.tests)

    def observe(self, losses: Array, warmup_steps: int) -> None:
        """Take in the losses [k] of the next k steps."""
        if not len(losses):
            return
        self._warmup_steps = warmup_steps
        self._steps += len(losses)
        if math.isnan(self._level):
            self._first += losses.tolist()
            losses = np.array(self._first)
            finite = losses[np.isfinite(losses)]
            enough = max(_FEWEST_FIRST_LOSSES, min(_MOST_FIRST_LOSSES, math.ceil(warmup_steps / 16)))
            if len(finite) < min(enough, warmup_steps) and len(losses) < min(2 * enough, warmup_steps):
                return
            self._first = []
            if not len(finite):
                self.smoother.update(losses)  # there is no level to count them at
                return
            self._level = self._lowest = self._last = float(np.median(finite))
            if len(finite) > 1:
                self._spread = float(np.median(np.abs(np.diff(finite)))) / _MEDIAN_STEP
                self._level_sd = 1.25 * self._spread / math.sqrt(len(finite))  # of a median
        losses = np.where(np.isfinite(losses), losses, math.inf)
        self._add_rise(losses)
        drop = self._level - self._lowest
        counted = np.minimum(
            losses, self._level + max(self.clip_drop * drop, self.clip_spread * self._spread)
        )
        self._step_total += float(np.abs(np.diff(counted, prepend=self._last)).sum())
        self._step_count += len(counted)
        self._last = float(counted[-1])
        self.smoother.update(counted)

    def _add_rise(self, losses: Array) -> None:
        """Add up how far ``losses`` [k] lie above the last test's minimum, in its drops."""
        if math.isnan(self._minimum):
            return
        noise = max(self._noise, self._step_noise()) * float(np.fmax(self._widening, 1.0))
        drop = max(self._level - self._minimum, self.noise_drop * noise, 1e-300)
        above = (losses - self._minimum) / drop
        above = np.clip(above, -self.rise, max(1.0, self.largest, self.drift_largest))
        squares = np.where(above > 0.0, np.minimum(above**2, self.largest), above)
        self._risen = _cusum(self._risen, squares)
        self._drifted = _cusum(self._drifted, np.minimum(above, self.drift_largest))
        stays = (losses - self._ceiling - self.slack * noise) / drop
        self._stayed = _cusum(self._stayed, np.clip(stays, -self.rise, self.largest))

    def _step_noise(self) -> float:
        """The noise sd by the steps between neighbours."""
        return self._step_total / self._step_count / _MEAN_STEP if self._step_count else 0.0

    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """Of highest marginal likelihood."""
        with single_threaded_blas():
            return fit_marginal_likelihood(spectrum)

    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite.

        Noise that is correlated between steps has small steps for its sd. If it is autoregressive (of
        order one), that ratio tells how much wider its sums are than those of independent noise. Noise
        and posterior count as that much wider; the least factor of all tests is taken, because a loss
        that rises looks correlated, too.
        """
        spectrum = self.smoother.spectrum()
        posterior = LossPosterior(spectrum, self.hyperparameters(spectrum))
        with single_threaded_blas():
            on_grid = posterior.on_grid(len(GRID))
        mean, sd, variance = on_grid
        self._minimum, self._ceiling = float(mean.min()), float((mean + sd).min())
        self._lowest = min(self._lowest, self._minimum)
        self._noise = math.sqrt(posterior.hyper.noise)
        # Asked while the losses are at their minimum: a rise bends the posterior before it as well.
        # The lowest mean + sd: a wiggly fit to noise has not fallen.
        if self._risen == 0.0 and self._level - self._ceiling > _FALLEN * self._level_sd:
            self._fallen = True
        if self._steps < self.quiet * self._warmup_steps:
            self.forgive()
        else:
            steps = self._step_noise()
            ratio = min(self._noise / steps, 1e3) if steps else 1.0
            self._widening = float(np.fmin(self._widening, math.sqrt(max(1.0, 2.0 * ratio**2 - 1.0))))
        before = round((1.0 - self.smoother.lengthscale) * (len(GRID) - 1))
        widened = max(math.sqrt(variance[before]) * float(np.fmax(self._widening, 1.0)), 1e-300)
        rising = float(ndtr((mean[-1] - mean[before]) / widened)) > self.confidence
        long = max(1.0, self._warmup_steps / self.long_steps)
        strength = max(
            self._risen / self.rise,
            self._stayed / self.stay,
            self._drifted / self.drift if rising else 0.0,
        )
        strength /= long
        return dataclasses.replace(
            judge(posterior, confidence=self.confidence, on_grid=on_grid),
            positive=strength > 1.0,
            strength=strength,
            improved=self._fallen,
        )

    def forgive(self) -> None:
        """Forget what speaks for a rise so far; the losses stay."""
        self._risen = self._drifted = self._stayed = 0.0

    def hopeless(self) -> bool:
        """No finite loss in the first ``quiet`` share of the longest warmup, and at least a few losses."""
        waited = self._steps >= max(_FEWEST_FIRST_LOSSES, self.quiet * self._warmup_steps)
        return waited and not self.smoother.count and not np.isfinite(self._first).any()

    def settings(self) -> dict[str, float | int | str]:
        """Every argument, by name."""
        return {
            "name": self.name, "confidence": self.confidence, "patience": self.patience,
            "lengthscale": self.smoother.lengthscale, "tests": self.tests, "rise": self.rise,
            "largest": self.largest, "stay": self.stay, "slack": self.slack, "drift": self.drift,
            "drift_largest": self.drift_largest, "long_steps": self.long_steps,
            "noise_drop": self.noise_drop, "clip_drop": self.clip_drop, "clip_spread": self.clip_spread,
            "quiet": self.quiet,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return super().state_dict() | {
            "first": torch.tensor(self._first, dtype=torch.float64),
            "level": self._level,
            "spread": self._spread,
            "level_sd": self._level_sd,
            "fallen": self._fallen,
            "last": self._last,
            "step_total": self._step_total,
            "step_count": self._step_count,
            "lowest": self._lowest,
            "minimum": self._minimum,
            "ceiling": self._ceiling,
            "noise": self._noise,
            "widening": self._widening,
            "risen": self._risen,
            "drifted": self._drifted,
            "stayed": self._stayed,
            "steps": self._steps,
            "warmup_steps": self._warmup_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        super().load_state_dict(state)
        self._first = state["first"].tolist()
        self._level, self._spread = float(state["level"]), float(state["spread"])
        self._level_sd, self._fallen = float(state["level_sd"]), bool(state["fallen"])
        self._last = float(state["last"])
        self._step_total, self._step_count = float(state["step_total"]), int(state["step_count"])
        self._lowest, self._minimum = float(state["lowest"]), float(state["minimum"])
        self._noise, self._widening = float(state["noise"]), float(state["widening"])
        self._risen, self._drifted = float(state["risen"]), float(state["drifted"])
        self._stayed, self._ceiling = float(state["stayed"]), float(state["ceiling"])
        self._steps, self._warmup_steps = int(state["steps"]), int(state["warmup_steps"])


def _cusum(start: float, scores: Array) -> float:
    """The sum after adding ``scores`` [k] one by one, each time starting anew at zero if below."""
    sums = start + np.cumsum(scores)
    return float(sums[-1] - min(0.0, sums.min()))
