"""The switch rule for real runs: scale-free, in units of learning-rate growth, no loss ignored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

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

_FEWEST_FIRST_LOSSES = 6


class RobustRule(SwitchRule):
    """AutoWU's test, made to hold on runs of any length, scale and noise.

    Multiplying all losses by a positive number or adding one to them changes no decision.

    - Tests come at even growth of the learning rate, ``tests`` in the longest warmup, so that what is
      overshot does not depend on the length of an epoch; none in the first ``quiet`` share.
    - The first losses, before the learning rate can have done anything, give the level that training
      starts from (their median) and their spread (from the median step between neighbours).
    - A loss counts at most ``level + max(clip_drop * drop, clip_spread * spread)``, where ``drop`` is how
      far the posterior mean has come down from the level; non-finite losses count as that much. A test is
      also positive when no loss since the last one was finite.
    - The hyperparameters are those of highest marginal likelihood on all losses.
    - A test is positive when some earlier point is lower than the last by more than
      ``max(rise * drop, noise_rise * noise sd)`` with probability above ``confidence``; ``patience``
      positive tests in a row end the warmup.

    Args:
        confidence: in (0, 1).
        patience: >= 1.
        lengthscale: of the kernel, as a share of the steps so far.
        tests: >= 8.
        rise, noise_rise, clip_drop, clip_spread: >= 0.
        quiet: in [0, 1).

    Raises:
        ValueError: a setting outside its bounds, by name.
    """

    name = "robust"

    def __init__(
        self,
        *,
        confidence: float = 0.95,
        patience: int = 3,
        lengthscale: float = 0.1,
        tests: int = 64,
        rise: float = 0.3,
        noise_rise: float = 0.3,
        clip_drop: float = 0.25,
        clip_spread: float = 6.0,
        quiet: float = 0.125,
    ) -> None:
        require_finite("confidence", confidence, above=0.0, high=1.0)
        require_finite("patience", patience, low=1)
        require_finite("tests", tests, low=8)
        for name, value in (("rise", rise), ("noise_rise", noise_rise), ("quiet", quiet)):
            require_finite(name, value, low=0.0)
        for name, value in (("clip_drop", clip_drop), ("clip_spread", clip_spread)):
            require_finite(name, value, low=0.0)
        self.confidence = confidence
        self.patience = patience
        self.tests = tests
        self.rise, self.noise_rise = rise, noise_rise
        self.clip_drop, self.clip_spread = clip_drop, clip_spread
        self.quiet = quiet
        self.smoother = LossSmoother(lengthscale)
        # Losses wait here until there are enough of them to tell level and spread.
        self._first: list[float] = []
        self._level = math.nan
        self._spread = math.nan
        self._lowest = math.nan
        self._steps = 0
        self._warmup_steps = 0
        self._any_finite_lately = True

    def test_interval(self, warmup_steps: int, steps_per_epoch: int | None) -> int:
        """Even learning-rate growth: ``warmup_steps / tests``, at least one step."""
        return max(1, warmup_steps // self.tests)

    def observe(self, losses: Array, warmup_steps: int) -> None:
        """Take in the losses [k] of the next k steps."""
        self._warmup_steps = warmup_steps
        self._steps += len(losses)
        self._any_finite_lately = bool(np.isfinite(losses).any())
        if math.isnan(self._level):
            self._first += losses.tolist()
            losses = np.array(self._first)
            finite = losses[np.isfinite(losses)]
            enough = max(_FEWEST_FIRST_LOSSES, math.ceil(warmup_steps / 16))
            if len(finite) < min(enough, warmup_steps):
                return
            self._level = self._lowest = float(np.median(finite))
            # For Gaussian noise the median |difference| of neighbours is 0.954 standard deviations.
            self._spread = float(np.median(np.abs(np.diff(finite)))) / 0.954
            self._first = []
        ceiling = self._level + max(
            self.clip_drop * (self._level - self._lowest), self.clip_spread * self._spread
        )
        self.smoother.update(np.minimum(np.where(np.isfinite(losses), losses, ceiling), ceiling))

    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """Of highest marginal likelihood."""
        with single_threaded_blas():
            return fit_marginal_likelihood(spectrum)

    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite."""
        spectrum = self.smoother.spectrum()
        hyper = self.hyperparameters(spectrum)
        posterior = LossPosterior(spectrum, hyper)
        with single_threaded_blas():
            lowest = float(posterior.mean(GRID).min())
        drop = max(0.0, self._level - lowest)
        self._lowest = min(self._lowest, lowest)
        margin = max(self.rise * drop, self.noise_rise * math.sqrt(hyper.noise))
        evidence = judge(posterior, confidence=self.confidence, margin=margin)
        positive = evidence.positive or not self._any_finite_lately
        quiet = self._steps < self.quiet * self._warmup_steps
        return dataclasses.replace(evidence, positive=positive and not quiet)

    def settings(self) -> dict[str, float | int | str]:
        """Every argument, by name."""
        return {
            "name": self.name, "confidence": self.confidence, "patience": self.patience,
            "lengthscale": self.smoother.lengthscale, "tests": self.tests, "rise": self.rise,
            "noise_rise": self.noise_rise, "clip_drop": self.clip_drop, "clip_spread": self.clip_spread,
            "quiet": self.quiet,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return super().state_dict() | {
            "first": torch.tensor(self._first, dtype=torch.float64),
            "level": self._level,
            "spread": self._spread,
            "lowest": self._lowest,
            "steps": self._steps,
            "warmup_steps": self._warmup_steps,
            "any_finite_lately": self._any_finite_lately,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        super().load_state_dict(state)
        self._first = state["first"].tolist()
        self._level, self._spread = float(state["level"]), float(state["spread"])
        self._lowest = float(state["lowest"])
        self._steps, self._warmup_steps = int(state["steps"]), int(state["warmup_steps"])
        self._any_finite_lately = bool(state["any_finite_lately"])
