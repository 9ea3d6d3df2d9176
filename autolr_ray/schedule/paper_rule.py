"""The switch rule of the AutoWU paper, made deterministic and streaming."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from autolr_ray.schedule.base import require_finite
from autolr_ray.schedule.blas import single_threaded_blas
from autolr_ray.schedule.smoother import Array, Hyperparameters, LossPosterior, LossSmoother, Spectrum
from autolr_ray.schedule.switch import Evidence, SwitchRule, judge


class PaperRule(SwitchRule):
    """AutoWU's rule (Kim et al. 2021, section 3.2 and Algorithm 1), made deterministic.

    Once an epoch the hyperparameters take 100 more Adam steps on the marginal likelihood, warm-started
    from the last test as in the authors' code, and the test is positive when some earlier point of the
    curve is below the last with probability above ``confidence``. Where the authors' code draws random
    subsets of 100 losses (fit) and five of 500 (posterior, majority vote), every loss counts here, with
    the weight that makes them worth 100 and 500. Non-finite losses are ignored, as they are there.
    """

    name = "paper"
    _FIT_POINTS, _POSTERIOR_POINTS, _ADAM_STEPS, _ADAM_LR = 100, 500, 100, 0.01
    _NOISE_FLOOR, _JITTER = 1e-4, 1e-4

    def __init__(self, *, confidence: float = 0.95, patience: int = 3, lengthscale: float = 0.2) -> None:
        require_finite("confidence", confidence, above=0.0, below=1.0)
        require_finite("patience", patience, low=1)
        self.confidence = confidence
        self.patience = patience
        self.smoother = LossSmoother(lengthscale)
        # Raw (softplus) outputscale and noise, and the mean; then Adam's two moments of each.
        self._raw = np.array([0.0, math.log(math.expm1(1e-3 - self._NOISE_FLOOR)), 0.0])
        self._moment = np.zeros(3)
        self._moment2 = np.zeros(3)
        self._adam_steps = 0

    def test_interval(self, warmup_steps: int, steps_per_epoch: int | None) -> int:
        """One epoch; ValueError where its length was not given."""
        if steps_per_epoch is None:
            raise ValueError(
                "steps_per_epoch: None is not allowed with rule='paper', which tests once an epoch; "
                "give the optimizer steps of one epoch"
            )
        return steps_per_epoch

    def observe(self, losses: Array, warmup_steps: int) -> None:
        """Take in the losses [k] of the next k steps."""
        self.smoother.update(losses)

    def hyperparameters(self, spectrum: Spectrum) -> Hyperparameters:
        """As the last test left them; the mean before the first test is the losses'."""
        mean = self._raw[2] if self._adam_steps else spectrum.total / spectrum.count + spectrum.offset
        return Hyperparameters(
            outputscale=_softplus(self._raw[0]),
            noise=_softplus(self._raw[1]) + self._NOISE_FLOOR,
            mean=float(mean),
        )

    def test(self) -> Evidence:
        """Fit, and judge all losses so far. At least one must have been finite."""
        spectrum = self.smoother.spectrum()
        with single_threaded_blas():
            self._fit(spectrum, min(1.0, self._FIT_POINTS / spectrum.count))
        weight = min(1.0, self._POSTERIOR_POINTS / spectrum.count)
        posterior = LossPosterior(spectrum.weighted(weight), self.hyperparameters(spectrum))
        return judge(posterior, confidence=self.confidence, jitter=self._JITTER)

    def step_of(self, position: float, steps: int) -> float:
        """As the authors' code reads it: the learning rate at x is min_lr * (last lr / min_lr) ** x."""
        return position * (steps - 1)

    def _fit(self, full: Spectrum, weight: float) -> None:
        s = full.weighted(weight)
        gram, losses, ones, rank = s.gram, s.losses, s.ones, len(s.gram)
        sampling = gram * ((1.0 - weight) * self._residual_variance(full))
        # Three numbers each: as plain floats, several times quicker than as arrays.
        raw, moment, moment2 = self._raw.tolist(), self._moment.tolist(), self._moment2.tolist()
        raw[2] = s.total / s.count  # relative to the offset while fitting
        half = 0.5 / s.count
        for _ in range(self._ADAM_STEPS):
            scale, noise = _softplus(raw[0]), _softplus(raw[1]) + self._NOISE_FLOOR
            inverse = 1.0 / (noise + scale * gram)
            residual = losses - raw[2] * ones
            solved = residual * inverse
            spread = sampling * inverse
            solved2 = float(solved @ solved) + float(spread @ inverse)
            explained = scale * (float(solved @ residual) + float(spread.sum()))
            square = s.square - 2.0 * raw[2] * s.total + raw[2] ** 2 * s.count
            quadratic = (square - explained) / noise
            by_scale = float(gram @ inverse) - solved2
            by_noise = (s.count - rank + scale * solved2 - quadratic) / noise + float(inverse.sum())
            by_mean = 2.0 * (raw[2] * s.count - s.total + scale * float(solved @ ones)) / noise
            gradients = (
                by_scale * _sigmoid(raw[0]) * half, by_noise * _sigmoid(raw[1]) * half, by_mean * half
            )  # fmt: skip
            self._adam_steps += 1
            rate = self._ADAM_LR / (1.0 - 0.9**self._adam_steps)
            unbias2 = 1.0 - 0.999**self._adam_steps
            for i, gradient in enumerate(gradients):
                moment[i] += 0.1 * (gradient - moment[i])
                moment2[i] += 0.001 * (gradient * gradient - moment2[i])
                raw[i] -= rate * moment[i] / (math.sqrt(moment2[i] / unbias2) + 1e-8)
        raw[2] += s.offset
        self._raw, self._moment, self._moment2 = np.array(raw), np.array(moment), np.array(moment2)

    def _residual_variance(self, s: Spectrum) -> float:
        """Mean square of the losses about the posterior mean of all of them."""
        hyper = self.hyperparameters(s)
        mean = s.total / s.count
        residual = s.losses - mean * s.ones
        fitted = residual * hyper.outputscale / (hyper.noise + hyper.outputscale * s.gram)
        square = s.square - mean * s.total
        return max(0.0, square - 2.0 * float(fitted @ residual) + float(fitted**2 @ s.gram)) / s.count

    def settings(self) -> dict[str, float | int | str]:
        """Name, confidence, patience, lengthscale."""
        return {
            "name": self.name, "confidence": self.confidence, "patience": self.patience,
            "lengthscale": self.smoother.lengthscale,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        adam = np.stack([self._raw, self._moment, self._moment2])
        return super().state_dict() | {"adam": torch.from_numpy(adam), "adam_steps": self._adam_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        super().load_state_dict(state)
        self._raw, self._moment, self._moment2 = state["adam"].numpy().copy()
        self._adam_steps = int(state["adam_steps"])


def _softplus(raw: float) -> float:
    return math.log1p(math.exp(-abs(raw))) + max(float(raw), 0.0)


def _sigmoid(raw: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * float(raw)))
