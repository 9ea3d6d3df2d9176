"""The switch rule for real runs: scale-free, in units of learning-rate growth, no loss ignored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

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
      spread)``, non-finite ones at that, with the hyperparameters of highest marginal likelihood. Its
      minimum is the lowest value that some point lies below with probability ``confidence``; ``drop``,
      the unit of losses, is the way down to it from the level, at least ``noise_drop`` noise sd's.
    - A one-sided sequential test (CUSUM) sums, step by step, how far each loss lies above the last test's
      minimum, in drops, less ``slack`` noise sd's, and starts anew where the sum falls below zero: a
      short high bump and a long low one count alike. One loss counts at most ``largest``, so no single
      one ends a warmup; a non-finite one counts as that much.
    - A test is positive when that sum exceeds ``rise`` (``long_rise * warmup steps``, if more);
      ``patience`` positive tests in a row end the warmup.

    Args:
        confidence: in (0, 1).
        patience: >= 1.
        lengthscale: of the kernel, as a share of the steps so far.
        tests: >= 8.
        rise, largest: > 0, in drop-steps and in drops; ``largest`` < ``rise``.
        long_rise, noise_drop, slack, clip_drop, clip_spread: >= 0.
        quiet: in [0, 1).

    Raises:
        ValueError: a setting outside its bounds, by name.
    """

    name = "robust"

    def __init__(
        self,
        *,
        confidence: float = 0.84,
        patience: int = 1,
        lengthscale: float = 0.1,
        tests: int = 64,
        rise: float = 4.5,
        long_rise: float = 0.002,
        largest: float = 3.0,
        noise_drop: float = 10.0,
        slack: float = 0.2,
        clip_drop: float = 0.25,
        clip_spread: float = 6.0,
        quiet: float = 0.125,
    ) -> None:
        require_finite("confidence", confidence, above=0.0, below=1.0)
        require_finite("patience", patience, low=1)
        require_finite("tests", tests, low=8)
        require_finite("rise", rise, above=0.0)
        require_finite("largest", largest, above=0.0, below=rise)
        require_finite("long_rise", long_rise, low=0.0)
        require_finite("noise_drop", noise_drop, low=0.0)
        require_finite("slack", slack, low=0.0)
        require_finite("clip_drop", clip_drop, low=0.0)
        require_finite("clip_spread", clip_spread, low=0.0)
        require_finite("quiet", quiet, low=0.0, below=1.0)
        self.confidence = confidence
        self.patience = patience
        self.tests = tests
        self.rise, self.long_rise, self.largest = rise, long_rise, largest
        self.noise_drop, self.slack = noise_drop, slack
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
        # What the tests found: the lowest posterior mean of all; the minimum and noise sd of the last.
        self._lowest = math.nan
        self._minimum = math.nan
        self._noise = math.nan
        self._risen = 0.0
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
        noise = max(self._noise, self._step_total / self._step_count / _MEAN_STEP)
        drop = max(self._level - self._minimum, self.noise_drop * noise, 1e-300)
        above = (losses - self._minimum - self.slack * noise) / drop
        sums = self._risen + np.cumsum(np.clip(above, -self.rise, self.largest))
        self._risen = float(sums[-1] - min(0.0, sums.min()))

    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """Of highest marginal likelihood."""
        with single_threaded_blas():
            return fit_marginal_likelihood(spectrum)

    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite."""
        spectrum = self.smoother.spectrum()
        posterior = LossPosterior(spectrum, self.hyperparameters(spectrum))
        with single_threaded_blas():
            on_grid = posterior.on_grid(GRID)
        mean, sd, _ = on_grid
        self._minimum = float((mean + ndtri(self.confidence) * sd).min())
        self._lowest = min(self._lowest, float(mean.min()))
        self._noise = math.sqrt(posterior.hyper.noise)
        # Asked while the losses are at their minimum: a rise bends the posterior before it as well.
        if self._risen == 0.0 and self._level - self._minimum > _FALLEN * self._level_sd:
            self._fallen = True
        if self._steps < self.quiet * self._warmup_steps:
            self._risen = 0.0
        strength = self._risen / max(self.rise, self.long_rise * self._warmup_steps)
        return dataclasses.replace(
            judge(posterior, confidence=self.confidence, on_grid=on_grid),
            positive=strength > 1.0,
            strength=strength,
            improved=self._fallen,
        )

    def hopeless(self) -> bool:
        """No finite loss in the first ``quiet`` share of the longest warmup, and at least a few losses."""
        waited = self._steps >= max(_FEWEST_FIRST_LOSSES, self.quiet * self._warmup_steps)
        return waited and not self.smoother.count and not np.isfinite(self._first).any()

    def settings(self) -> dict[str, float | int | str]:
        """Every argument, by name."""
        return {
            "name": self.name, "confidence": self.confidence, "patience": self.patience,
            "lengthscale": self.smoother.lengthscale, "tests": self.tests, "rise": self.rise,
            "long_rise": self.long_rise, "largest": self.largest, "noise_drop": self.noise_drop,
            "slack": self.slack, "clip_drop": self.clip_drop, "clip_spread": self.clip_spread,
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
            "noise": self._noise,
            "risen": self._risen,
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
        self._noise, self._risen = float(state["noise"]), float(state["risen"])
        self._steps, self._warmup_steps = int(state["steps"]), int(state["warmup_steps"])
