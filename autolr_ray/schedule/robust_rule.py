"""The switch rule for real runs: scale-free, in units of learning-rate growth, blind to no blow-up."""

from __future__ import annotations

import math

import numpy as np

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


class RobustRule(SwitchRule):
    """PLACEHOLDER."""

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
        clip_noise: float = 6.0,
        quiet: float = 0.125,
        warm: float = 1 / 16,
    ) -> None:
        self.confidence = confidence
        self.patience = patience
        self.tests = tests
        self.rise = rise
        self.noise_rise = noise_rise
        self.clip_drop, self.clip_noise, self.quiet, self.warm = clip_drop, clip_noise, quiet, warm
        self.smoother = LossSmoother(lengthscale)
        self._first: list[float] = []
        self._level = math.nan
        self._spread = math.nan
        self._lowest = math.nan
        self._recent_finite = True
        self._steps = 0
        self._warmup_steps = 0

    def test_interval(self, warmup_steps: int, steps_per_epoch: int | None) -> int:
        """A sixty-fourth of the longest warmup: the same learning-rate growth between any two tests."""
        return max(1, warmup_steps // self.tests)

    def observe(self, losses: Array, warmup_steps: int) -> None:
        """Take in the losses [k] of the next k steps."""
        self._warmup_steps = warmup_steps
        self._steps += len(losses)
        self._recent_finite = bool(np.isfinite(losses).any())
        if math.isnan(self._level):
            self._first += losses.tolist()
            finite = np.array([v for v in self._first if math.isfinite(v)])
            if len(finite) < max(6, math.ceil(warmup_steps * self.warm)):
                return
            self._level = float(np.median(finite))
            self._spread = (
                1.4826 * float(np.median(np.abs(np.diff(finite)))) / math.sqrt(2) if len(finite) > 1 else 0.0
            )
            self._lowest = self._level
            losses = np.array(self._first)
            self._first = []
        self.smoother.update(self._clipped(losses))

    def _clipped(self, losses: Array) -> Array:
        ceiling = self._level + max(
            self.clip_drop * (self._level - self._lowest), self.clip_noise * self._spread
        )
        return np.minimum(np.where(np.isfinite(losses), losses, ceiling), ceiling)

    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """Of highest marginal likelihood."""
        return fit_marginal_likelihood(spectrum)

    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite."""
        spectrum = self.smoother.spectrum()
        with single_threaded_blas():
            hyper = fit_marginal_likelihood(spectrum)
            posterior = LossPosterior(spectrum, hyper)
            lowest = float(posterior.mean(GRID).min())
        self._lowest = min(self._lowest, lowest)
        margin = max(self.rise * (self._level - lowest), self.noise_rise * math.sqrt(hyper.noise))
        e = judge(posterior, confidence=self.confidence, margin=margin)
        positive = e.positive or not self._recent_finite
        if self._steps < self.quiet * self._warmup_steps:
            positive = False
        import dataclasses

        return dataclasses.replace(e, positive=positive)

    def settings(self) -> dict[str, float | int | str]:
        return {"name": self.name}
