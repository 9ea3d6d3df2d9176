r"""Streaming Gaussian-process posterior of a loss curve, exact and in constant memory.

The model is that of Kim et al. 2021 (arXiv 2107.05855, section 3.1): losses :math:`y_i` at
:math:`x_i = i / n` are a constant mean plus a Gaussian process with kernel
:math:`s \exp(-(x - x')^2 / 2 l^2)` plus Gaussian noise, the lengthscale :math:`l` fixed.

On [0, 1] that kernel is a matrix of low rank: in Chebyshev polynomials
:math:`T(x) = (T_0(2x - 1), \dots, T_{m-1}(2x - 1))`,
:math:`\exp(-(x - x')^2 / 2 l^2) = T(x)^\top W W^\top T(x')` to rounding error. So the sums

    c_j = sum_i T_j(x_i), j < 2m;   b_j = sum_i y_i T_j(x_i), j < m;   n;   sum y;   sum y^2

determine the posterior and the marginal likelihood: products of Chebyshev polynomials are sums of
two of them, :math:`\sum_i T_j T_k = (c_{j+k} + c_{|j-k|}) / 2`. When the curve grows from n to n'
steps every x shrinks by a = n / n', and :math:`T_j(a (t + 1) - 1)` expands in :math:`T_k(t), k \le j`:
the sums move to the new positions exactly, without the losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autolr_ray.schedule.blas import single_threaded_blas

Array = NDArray[np.float64]
_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Of the Gaussian process, in the losses' units: ``outputscale`` and ``noise`` are variances."""

    outputscale: float
    noise: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The sufficient statistics in the basis that makes the kernel's Gram matrix diagonal.

    Attributes:
        gram: eigenvalues of Phi^T Phi, [rank], where K = Phi Phi^T.
        losses: Phi^T (y - offset), rotated, [rank].
        ones: Phi^T 1, rotated, [rank].
        rotation: from Chebyshev coefficients' factor to this basis, [m, rank].
        count, total, square: n, sum (y - offset), sum (y - offset)^2, over finite losses.
        offset: what was taken off every loss, to keep sums of large losses exact.
    """

    gram: Array
    losses: Array
    ones: Array
    rotation: Array
    count: float
    total: float
    square: float
    offset: float

    def weighted(self, weight: float) -> Spectrum:
        """As if every loss counted ``weight`` times: a share below 1 stands for a random subset."""
        return Spectrum(
            gram=self.gram * weight, losses=self.losses * weight, ones=self.ones * weight,
            rotation=self.rotation, count=self.count * weight, total=self.total * weight,
            square=self.square * weight, offset=self.offset,
        )  # fmt: skip


class LossPosterior:
    """The latent (noise-free) loss curve given the losses: Gaussian at every position in [0, 1].

    Args:
        spectrum: the statistics to condition on.
        hyper: outputscale > 0, noise > 0, mean.
    """

    def __init__(self, spectrum: Spectrum, hyper: Hyperparameters) -> None:
        self.hyper = hyper
        damping = hyper.noise + hyper.outputscale * spectrum.gram
        residual = spectrum.losses - (hyper.mean - spectrum.offset) * spectrum.ones
        self._weights = hyper.outputscale / damping * residual
        self._variances = hyper.outputscale * hyper.noise / damping
        self._rotation = spectrum.rotation

    def features(self, x: Array) -> Array:
        """The basis at positions ``x`` [k]: [k, rank]."""
        return chebyshev(2.0 * x - 1.0, len(self._rotation)) @ self._rotation

    def mean(self, x: Array) -> Array:
        """Posterior mean at ``x`` [k], in the losses' units."""
        return np.asarray(self.hyper.mean + self.features(x) @ self._weights)

    def sd(self, x: Array) -> Array:
        """Posterior standard deviation at ``x`` [k], in the losses' units."""
        return np.asarray(np.sqrt(self.features(x) ** 2 @ self._variances))

    def difference_variance(self, x: Array, reference: float) -> Array:
        """Var(f(x) - f(reference)) [k]: a sum of squares, never negative."""
        gap = self.features(x) - self.features(np.array([reference]))
        return np.asarray(gap**2 @ self._variances)

    def on_grid(self, points: int) -> tuple[Array, Array, Array]:
        """On even points of [0, 1]: mean, sd and variance of the difference to the last, [points] each."""
        features = _even_basis(points, len(self._rotation)) @ self._rotation
        gap = features - features[-1]
        mean = self.hyper.mean + features @ self._weights
        return mean, np.sqrt(features**2 @ self._variances), gap**2 @ self._variances


class LossSmoother:
    """Sufficient statistics of a growing loss curve; O(1) memory, O(new losses) time.

    Non-finite losses take up their step but add nothing else.

    Args:
        lengthscale: of the kernel, as a share of the curve so far, in [0.05, 1].
    """

    def __init__(self, lengthscale: float = 0.2) -> None:
        if not 0.05 <= lengthscale <= 1.0:
            raise ValueError(f"lengthscale: {lengthscale} is not allowed; it must lie in [0.05, 1]")
        self.lengthscale = lengthscale
        self._factor = kernel_factor(lengthscale)
        self._size = len(self._factor)
        self.steps = 0
        self.count = 0
        self.offset = math.nan
        self._positions = np.zeros(2 * self._size)
        self._products = np.zeros(self._size)
        self._total = 0.0
        self._square = 0.0

    def update(self, losses: Array) -> None:
        """Append losses [k] of the next k steps."""
        losses = np.asarray(losses, dtype=np.float64)
        if losses.ndim != 1:
            raise ValueError(f"losses: shape {losses.shape} is not allowed; one dimension is needed")
        if not len(losses):
            return
        with single_threaded_blas():
            steps = self.steps + len(losses)
            self._rescale(self.steps / steps)
            for first in range(0, len(losses), _CHUNK):
                self._add(losses[first : first + _CHUNK], self.steps + first, steps)
            self.steps = steps

    def _rescale(self, shrink: float) -> None:
        if self.count and shrink < 1.0:
            move = rescaling(shrink, 2 * self._size)
            self._positions = move @ self._positions
            self._products = move[: self._size, : self._size] @ self._products

    def _add(self, losses: Array, first: int, steps: int) -> None:
        finite = np.isfinite(losses)
        values = losses[finite]
        if not len(values):
            return
        if not self.count:
            self.offset = float(values[0])
        values = values - self.offset
        x = (first + np.flatnonzero(finite)) / steps
        basis = chebyshev(2.0 * x - 1.0, 2 * self._size)
        self._positions += basis.sum(axis=0)
        self._products += values @ basis[:, : self._size]
        self._total += float(values.sum())
        self._square += float(values @ values)
        self.count += len(values)

    @property
    def mean(self) -> float:
        """Mean of the finite losses; NaN before the first."""
        return self.offset + self._total / self.count if self.count else math.nan

    def spectrum(self) -> Spectrum:
        """The statistics, diagonalised; ValueError before the first finite loss."""
        if not self.count:
            raise ValueError("losses: none is finite yet; at least one is needed for a posterior")
        with single_threaded_blas():
            sums, differences = _index_pairs(self._size)
            moments = (self._positions[sums] + self._positions[differences]) / 2.0
            gram, turn = np.linalg.eigh(self._factor.T @ moments @ self._factor)
            rotation = self._factor @ turn
            return Spectrum(
                gram=np.maximum(gram, 0.0),
                losses=rotation.T @ self._products,
                ones=rotation.T @ self._positions[: self._size],
                rotation=rotation,
                count=float(self.count),
                total=self._total,
                square=self._square,
                offset=self.offset,
            )

    def posterior(self, hyper: Hyperparameters, weight: float = 1.0) -> LossPosterior:
        """The posterior under ``hyper``, every loss counted ``weight`` times."""
        return LossPosterior(self.spectrum().weighted(weight), hyper)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return {
            "steps": self.steps, "count": self.count, "offset": self.offset,
            "total": self._total, "square": self._square,
            "positions": torch.from_numpy(self._positions.copy()),
            "products": torch.from_numpy(self._products.copy()),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; ValueError where it belongs to another lengthscale."""
        if len(state["products"]) != self._size:
            raise ValueError(
                f"smoother: the state has {len(state['products'])} products, this lengthscale "
                f"({self.lengthscale}) needs {self._size}"
            )
        self.steps, self.count = int(state["steps"]), int(state["count"])
        self.offset, self._total = float(state["offset"]), float(state["total"])
        self._square = float(state["square"])
        self._positions = state["positions"].numpy().astype(np.float64)
        self._products = state["products"].numpy().astype(np.float64)


def fit_marginal_likelihood(spectrum: Spectrum, max_ratio: float = 1e6) -> Hyperparameters:
    """The hyperparameters of highest marginal likelihood, by a deterministic global search.

    Mean and noise have closed forms given the ratio outputscale / noise, which is searched on a grid
    of its logarithm up to ``max_ratio`` and refined twice (step-like curves would push it without
    bound, where accuracy is lost).
    """
    low, high = math.log(1e-6), math.log(max_ratio)
    candidates = np.linspace(low, high, 65)
    for _ in range(3):
        nlml, *_ = _profile(spectrum, np.exp(candidates))
        best = int(np.argmin(nlml))
        width = candidates[1] - candidates[0]
        centre = candidates[best]
        candidates = np.linspace(max(low, centre - width), min(high, centre + width), 17)
    _, mean, noise = _profile(spectrum, np.exp(centre)[None])
    return Hyperparameters(
        outputscale=float(np.exp(centre) * noise[0]),
        noise=float(noise[0]),
        mean=float(mean[0]) + spectrum.offset,
    )


def _profile(s: Spectrum, ratios: Array) -> tuple[Array, Array, Array]:
    """Negative log marginal likelihood with mean and noise at their optimum, [k] each."""
    growth = 1.0 + ratios[:, None] * s.gram
    shrink = ratios[:, None] / growth
    q_yy = s.square - shrink @ s.losses**2
    q_1y = s.total - shrink @ (s.losses * s.ones)
    q_11 = s.count - shrink @ s.ones**2
    mean = q_1y / np.maximum(q_11, 1e-300)
    floor = 1e-14 * max(s.square, 1e-300)
    noise = np.maximum(q_yy - mean * q_1y, floor) / s.count
    nlml = 0.5 * s.count * np.log(2.0 * math.pi * math.e * noise) + 0.5 * np.log(growth).sum(axis=1)
    return nlml, mean, noise


def chebyshev(t: Array, size: int) -> Array:
    """T_0(t) .. T_{size-1}(t) for ``t`` [k] in [-1, 1]: [k, size]."""
    angle = np.arccos(np.clip(t, -1.0, 1.0))
    return np.asarray(np.cos(angle[:, None] * np.arange(size)))


@lru_cache(maxsize=8)
def _index_pairs(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sums j + k and the differences abs(j - k), [size, size] each."""
    index = np.arange(size)
    return index[:, None] + index, abs(index[:, None] - index)


@lru_cache(maxsize=8)
def _even_basis(points: int, size: int) -> Array:
    """T_0 .. T_{size-1} at even points of [-1, 1]: [points, size]."""
    return chebyshev(2.0 * np.linspace(0.0, 1.0, points) - 1.0, size)


def _nodes(size: int) -> tuple[Array, Array]:
    """Chebyshev nodes [size] and the matrix from values at them to coefficients [size, size]."""
    t = np.cos(math.pi * (np.arange(size) + 0.5) / size)
    to_coefficients = chebyshev(t, size).T * (2.0 / size)
    to_coefficients[0] /= 2.0
    return t, to_coefficients


@lru_cache(maxsize=8)
def _cached_nodes(size: int) -> tuple[Array, Array]:
    return _nodes(size)


@lru_cache(maxsize=8)
def kernel_factor(lengthscale: float) -> Array:
    """W [m, rank] with exp(-(x-x')^2 / 2 l^2) = T(x)^T W W^T T(x') on [0, 1], to rounding error."""
    size = max(16, 8 * math.ceil((14 + 3.2 / lengthscale) / 8))
    t, to_coefficients = _nodes(size)
    x = (t + 1.0) / 2.0
    kernel = np.exp(-0.5 * ((x[:, None] - x) / lengthscale) ** 2)
    with single_threaded_blas():
        values, vectors = np.linalg.eigh(to_coefficients @ kernel @ to_coefficients.T)
    keep = values > 1e-16 * values[-1]
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]))


def rescaling(shrink: float, size: int) -> Array:
    """R [size, size] with T_j(a (t + 1) - 1) = sum_k R_jk T_k(t), a = ``shrink`` in (0, 1]."""
    t, to_coefficients = _cached_nodes(size)
    return np.asarray((to_coefficients @ chebyshev(shrink * (t + 1.0) - 1.0, size)).T)
