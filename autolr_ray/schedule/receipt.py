"""A receipt of each decision: what was known, what was decided, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from autolr_ray.schedule.leg import Rise
from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.switch import RECEIPT_POINTS, Evidence, SwitchRule, Verdict

_VERDICTS = list(Verdict)
_SCALARS = 14
VECTOR_LENGTH = _SCALARS + 2 * RECEIPT_POINTS


@dataclass(frozen=True, kw_only=True, eq=False)
class Receipt:
    """One decision of :class:`AutoWarmup`.

    Attributes:
        step: optimizer steps done when it was made.
        lr: the learning rate of the last of them.
        verdict: what was decided; ``verdict.value`` says it in words.
        strength: what the test weighed, as a share of what makes it positive.
        probability: largest posterior probability of an earlier point being below the last.
        positives: positive tests in a row, this one counted.
        argmin_step: the step at which the posterior mean is lowest.
        argmin_lr: the learning rate of that step.
        earliest_step: the first step at which it may be as low (one-sd bands overlap).
        rolled_back_to: the step whose weights were put back, or -1.
        outputscale, noise, prior_mean: the posterior's hyperparameters.
        start_step: where the posterior begins.
        mean, sd: the posterior on even points of [start_step, step], [points] float64.
    """

    step: int
    lr: float
    verdict: Verdict
    strength: float = math.nan
    probability: float
    positives: int
    argmin_step: float
    argmin_lr: float
    rolled_back_to: int = -1
    earliest_step: float = math.nan
    start_step: int = 0
    outputscale: float
    noise: float
    prior_mean: float
    mean: Array
    sd: Array

    @classmethod
    def of(
        cls, rule: SwitchRule, rise: Rise, step: int, evidence: Evidence, verdict: Verdict, positives: int
    ) -> Receipt:
        """Of a test after ``step`` steps of ``rise``, all of whose losses ``rule`` has seen."""
        argmin_step = rule.step_of(evidence.argmin, step)
        return cls(
            step=step,
            lr=rise.lr(step - 1),
            verdict=verdict,
            strength=evidence.strength,
            probability=evidence.probability,
            positives=positives,
            argmin_step=argmin_step,
            argmin_lr=rise.lr(argmin_step),
            earliest_step=min(rule.step_of(evidence.earliest, step), argmin_step),
            outputscale=evidence.hyper.outputscale,
            noise=evidence.hyper.noise,
            prior_mean=evidence.hyper.mean,
            mean=evidence.mean,
            sd=evidence.sd,
        )

    @property
    def reason(self) -> str:
        """The verdict in words."""
        return self.verdict.value

    def went_back(self, step: int | None) -> Receipt:
        """It, with the step whose weights were put back; as it is where none were."""
        return self if step is None else replace(self, rolled_back_to=step)

    def to_vector(self) -> torch.Tensor:
        """[VECTOR_LENGTH] float64: what rank 0 sends to the others."""
        return torch.from_numpy(self._vector.copy())

    @cached_property
    def _vector(self) -> Array:
        scalars = [
            self.step, self.lr, _VERDICTS.index(self.verdict), self.probability, self.positives,
            self.argmin_step, self.argmin_lr, self.rolled_back_to, self.earliest_step,
            self.outputscale, self.noise, self.prior_mean, self.strength, self.start_step,
        ]  # fmt: skip
        return np.concatenate([scalars, self.mean, self.sd])

    @classmethod
    def from_vector(cls, vector: torch.Tensor, verdict: Verdict | None = None) -> Receipt:
        """The inverse of :meth:`to_vector`; with ``verdict`` for the one whose place it holds, if given."""
        values = vector.detach().cpu().numpy().astype(np.float64)
        (
            step, lr, place, probability, positives, argmin_step, argmin_lr, rolled_back_to,
            earliest, scale, noise, mean, strength, start,
        ) = values[:_SCALARS]  # fmt: skip
        return cls(
            step=int(step), lr=float(lr), verdict=verdict or _VERDICTS[int(place)],
            probability=float(probability), positives=int(positives), argmin_step=float(argmin_step),
            argmin_lr=float(argmin_lr), rolled_back_to=int(rolled_back_to), earliest_step=float(earliest),
            start_step=int(start), strength=float(strength),
            outputscale=float(scale), noise=float(noise), prior_mean=float(mean),
            mean=values[_SCALARS:-RECEIPT_POINTS].copy(), sd=values[-RECEIPT_POINTS:].copy(),
        )  # fmt: skip


def receipts_state(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Plain strings and one tensor, ``{"verdicts": names, "vectors": [receipts, VECTOR_LENGTH] float64}``.

    A tensor each would make a checkpoint of a small model several times as slow to write.
    """
    vectors = np.concatenate([np.empty(0), *(receipt._vector for receipt in receipts)])
    return {
        "verdicts": [receipt.verdict.name for receipt in receipts],
        "vectors": torch.from_numpy(vectors.reshape(-1, VECTOR_LENGTH)),
    }


def receipts_of(state: dict[str, Any] | list[dict[str, Any]]) -> list[Receipt]:
    """The inverse of :func:`receipts_state`; each verdict by its name, whatever its place in this version.

    States from before receipts shared a tensor have ``{"verdict": name, "vector": [VECTOR_LENGTH]}`` each.
    """
    if isinstance(state, list):
        names, vectors = [old["verdict"] for old in state], [old["vector"] for old in state]
    else:
        names, vectors = state["verdicts"], state["vectors"]
    return [Receipt.from_vector(vector, Verdict[name]) for name, vector in zip(names, vectors, strict=True)]
