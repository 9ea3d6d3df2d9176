"""What several tests of the schedules share: dense algebra, small runs, and reading the replay script."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import AdamP, Lamb
from torch import nn

from autolr_ray.schedule import AutoWarmup
from autolr_ray.schedule.receipt import receipts_state
from autolr_ray.schedule.switch import SWEEPS

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[2]
FOUR_TRACES = Path(__file__).with_name("data") / "four_traces.npz"
ALL_TRACES = ROOT.parent / "shared" / "data" / "traces" / "reference_traces.npz"

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=1.0),
    "sgd_momentum": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1.0),
    "adamp": lambda params: AdamP(params, lr=1.0, weight_decay=0.1, delta=0.1, wd_ratio=0.1),
    "lamb": lambda params: Lamb(params, lr=1.0),
}


def load_replay() -> ModuleType:
    """The replay script as a module."""
    path = ROOT / "experiments" / "benchmarks" / "replay.py"
    spec = importlib.util.spec_from_file_location("replay_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def dummy_optimizer(*rates: float) -> torch.optim.Optimizer:
    """SGD with one one-parameter group per rate (one group of 1.0 by default)."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates or (1.0,)]
    return torch.optim.SGD(groups, lr=1.0)


def valley(steps: int, lowest: float = 0.6, noise: float = 0.01, seed: int = 0) -> list[float]:
    """A loss curve that falls from 2 to 1 at ``lowest`` of ``steps``, then rises steeply; with noise."""
    x = np.arange(steps) / steps
    fall = 1.0 + ((x - lowest) / lowest) ** 2
    rise = 1.0 + 8.0 * np.maximum(x - lowest, 0.0)
    curve = np.where(x < lowest, fall, rise)
    return (curve + noise * np.random.default_rng(seed).standard_normal(steps)).tolist()


def small_net(batch_norm: bool, seed: int = 0) -> nn.Module:
    """Five inputs, three classes."""
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(4)] if batch_norm else []
    return nn.Sequential(nn.Linear(5, 4), *norm, nn.ReLU(), nn.Linear(4, 3))


def backward_on_batch(model: nn.Module, step: int) -> torch.Tensor:
    """Gradients of a batch that depends on ``step`` alone; its loss."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 5, generator=generator)
    targets = torch.randint(3, (8,), generator=generator)
    model.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    return loss.detach()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A flat copy of all that training changes: parameters, buffers, optimizer state, group values."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"model.{name}"] = tensor.detach().clone()
    for g, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in ("params", "lr", "initial_lr"):
                found[f"group{g}.{key}"] = value.clone() if isinstance(value, torch.Tensor) else value
        for p, parameter in enumerate(group["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"state{g}.{p}.{key}"] = value.clone() if isinstance(value, torch.Tensor) else value
    return found


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, through dictionaries and sequences; NaN equals NaN."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert a.device == b.device, where
        assert torch.equal(
            torch.nan_to_num(a.double(), nan=1.5e300), torch.nan_to_num(b.double(), nan=1.5e300)
        ), where
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b), where
    else:
        assert a == b, where


def saved_and_loaded(state: Any) -> Any:
    """Through a file and back, as plain data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def kernel(a: Array, b: Array, lengthscale: float) -> Array:
    """exp(-(a - b)^2 / 2 l^2), [len(a), len(b)]."""
    return np.exp(-0.5 * ((a[:, None] - b) / lengthscale) ** 2)


class DenseGaussianProcess:
    """Textbook Gaussian-process regression of finite losses y_i at x_i = i / n, by Cholesky."""

    def __init__(
        self, losses: Sequence[float] | Array, lengthscale: float, scale: float, noise: float, mean: float
    ) -> None:
        y = np.asarray(losses, dtype=np.float64)
        keep = np.isfinite(y)
        self.x = (np.arange(len(y)) / len(y))[keep]
        self.y = y[keep]
        self.lengthscale, self.scale, self.noise, self.prior = lengthscale, scale, noise, mean
        covariance = scale * kernel(self.x, self.x, lengthscale) + noise * np.eye(len(self.x))
        self.factor = np.linalg.cholesky(covariance)

    def solve(self, right: Array) -> Array:
        """Covariance^-1 right."""
        return np.linalg.solve(self.factor.T, np.linalg.solve(self.factor, right))

    def mean(self, x: Array) -> Array:
        """Posterior mean [k]."""
        cross = self.scale * kernel(x, self.x, self.lengthscale)
        return self.prior + cross @ self.solve(self.y - self.prior)

    def covariance(self, x: Array) -> Array:
        """Posterior covariance of the latent curve [k, k]."""
        cross = self.scale * kernel(x, self.x, self.lengthscale)
        half = np.linalg.solve(self.factor, cross.T)
        return self.scale * kernel(x, x, self.lengthscale) - half.T @ half

    def difference_variance(self, x: Array, reference: float) -> Array:
        """Var(f(x) - f(reference)) [k], from the prior covariance of the differences themselves."""
        at = np.array([reference])
        cross = self.scale * (kernel(x, self.x, self.lengthscale) - kernel(at, self.x, self.lengthscale))
        half = np.linalg.solve(self.factor, cross.T)
        prior = -2.0 * self.scale * np.expm1(-0.5 * ((x - reference) / self.lengthscale) ** 2)
        return prior - (half**2).sum(axis=0)

    def negative_log_likelihood(self) -> float:
        """Of the losses."""
        residual = self.y - self.prior
        log_determinant = 2.0 * np.log(np.diag(self.factor)).sum()
        return 0.5 * float(
            residual @ self.solve(residual) + log_determinant + len(self.y) * math.log(2 * math.pi)
        )


class Run:
    """A small network, trained for real on losses that are made up.

    The sweep's fall from 2.3 to 1.3 at the rate ``best`` and explode at ``explodes`` times that. After it
    they fall from 2.3 towards .5 (in a straight line of ``straight`` steps, if that is not 0), and are
    ``blown`` in the steps named by ``blows``. The optimizer leaves out those named by ``skipped``, as a
    gradient scaler does.
    """

    def __init__(
        self, total=100, name="adamw", best=1e-2, explodes=4.0, straight=0, blows=(), blown=30.0, skipped=(),
        **settings,
    ):  # fmt: skip
        self.model = small_net(batch_norm=True)
        self.optimizer = OPTIMIZERS[name](self.model.parameters())
        self.total, self.best, self.explodes = total, best, explodes
        self.straight, self.blows, self.blown, self.skipped = straight, blows, blown, skipped
        self.schedule = AutoWarmup(self.optimizer, total, model=self.model, **settings)
        self.rates, self.past, self.t = [], [everything(self.model, self.optimizer)], 0

    def loss(self):
        noise = 0.01 * math.sin(12.9898 * self.t)
        if not self.schedule._legs:
            lr = self.rates[-2] if len(self.rates) > 1 else 0.0
            if lr >= self.explodes * self.best:
                return 50.0
            return 2.3 - 1.0 / (1.0 + (self.best / max(lr, 1e-12)) ** 2) + noise
        if self.t in self.blows:
            return self.blown
        done = self.t - self.schedule._legs[0].start
        if self.straight:
            return 2.3 - 1.8 * min(done / self.straight, 1.0) + noise
        return 0.5 + 1.8 * math.exp(-done / 5.0) + noise

    def step(self):
        backward_on_batch(self.model, self.t)
        self.rates.append(self.schedule.get_last_lr()[0])
        if self.t not in self.skipped:
            self.optimizer.step()
        self.past.append(everything(self.model, self.optimizer))
        self.schedule.step(self.loss())
        self.t += 1

    def until(self, t):
        while self.t < t:
            self.step()
        return self

    def end(self):
        return self.until(self.total)

    @property
    def swept(self):
        return next(r for r in self.schedule.receipts if r.verdict in SWEEPS)

    def steps_of(self, verdict):
        return [r.step for r in self.schedule.receipts if r.verdict is verdict]


def runs_of_older_state(change, make=Run, t=20):
    """A run after ``t`` steps, and one like it that took up its state, made older by ``change``."""
    run, other = make().until(t), make().until(t)
    state = copy.deepcopy(run.schedule.state_dict())
    change(state)
    other.schedule.load_state_dict(state)
    return run, other


def whole_run_that_resumes(make: Callable[[], Run], at: Container[int]) -> Run:
    """A run of ``make``, to its end; one saved after any step in ``at`` and taken up anew ends the same."""
    whole, states = make(), {}
    while whole.t < whole.total:
        if whole.t in at:
            parts = (whole.model, whole.optimizer, whole.schedule)
            states[whole.t] = saved_and_loaded(copy.deepcopy([part.state_dict() for part in parts]))
        whole.step()
    receipts = receipts_state(whole.schedule.receipts)
    for t, (model, optimizer, schedule) in states.items():
        resumed = make()
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        resumed.schedule.load_state_dict(schedule)
        resumed.rates, resumed.t = whole.rates[:t], t
        resumed.end()
        assert resumed.rates == whole.rates
        assert_same(everything(resumed.model, resumed.optimizer), everything(whole.model, whole.optimizer))
        assert_same(receipts_state(resumed.schedule.receipts), receipts)
    return whole
