"""How often a verdict is wrong: Monte Carlo on whole studies whose true difference is known.

    python experiments/benchmarks/verdict_errors.py --json

A study has one candidate and a grid of four points, of which three are equally good and one is 2 points
worse. A seed moves all arms alike (standard deviation 0.3 points) and every run on its own; ``spread`` is the
standard deviation of the candidate's difference to a point, in margins (of 0.5 points). The grid's point is
chosen by mean validation accuracy, differences are paired by seed, and the verdict is that of
``autolr_ray.compare``. Noises:

- ``normal``: of every run.
- ``long_tail``: the candidate's runs have gamma noise of shape 4 (skewness 1), its long tail below.
- ``bad_seed``: as normal, but one run in ten of the candidate loses 5 times ``spread``; its mean counts that.
- ``discrete``: right answers on 2,000 test examples, binomial around 98.5%; ``spread`` is 0.77 then.
- ``luck``: as normal, but a run's luck is the same on validation and test data: the choice picks it up.

Errors are, at a true difference ``d``: better where d <= 0, worse where d >= 0, equivalent where abs(d) is
the margin or more. Rules: ``hull`` is the package's; beside it stand ``student`` and, with a fortieth of the
studies, ``bootstrap`` (BCa) and ``studentised`` (bootstrap of the t statistic; undecided at 3 seeds, where
one resample in nine has no spread). A tail of the baseline's would swap better and worse.

One JSON line a cell: ``{"rule", "noise", "spread", "seeds", "truth", "studies", "errors"}``, truth in
margins, errors as shares by verdict, and ``decided``, the shares of all verdicts in the first 500 studies.
The last line has each rule's highest error by noise and seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autolr_ray.compare.intervals import bootstrap_interval, decide, hull, t_interval
from autolr_ray.compare.values import Interval, Verdict

Array = NDArray[np.float64]

MARGIN = 0.005
EXAMPLES, LEVEL = 2000, 0.985
POINTS = np.array([0.0, 0.0, 0.0, -0.02])
NOISES = ("normal", "long_tail", "bad_seed", "discrete", "luck")
TRUTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Accuracies of many simulated studies: (studies, seeds), and (studies, points, seeds) for the grid."""

    candidate_test: Array
    grid_validation: Array
    grid_test: Array

    def differences(self) -> Array:
        """Candidate minus chosen point, (studies, seeds); the package's choice, for all studies at once."""
        chosen = self.grid_validation.mean(axis=2).argmax(axis=1)
        baseline: Array = self.grid_test[np.arange(len(chosen)), chosen]
        return self.candidate_test - baseline


def simulate(noise: str, spread: float, seeds: int, truth: float, studies: int) -> Studies:
    """Studies of one cell: ``truth`` and ``spread`` in margins. Seeded by the cell."""
    rng = np.random.default_rng(zlib.crc32(f"{noise} {spread} {seeds} {truth}".encode()))
    sd = spread * MARGIN / math.sqrt(2)
    shared = rng.normal(0.0, 0.003, (studies, 1, seeds))
    grid_shape = (studies, len(POINTS), seeds)
    luck = rng.normal(0.0, sd, grid_shape)
    validation = shared + POINTS[:, None] + (luck if noise == "luck" else rng.normal(0.0, sd, grid_shape))
    own = rng.normal(0.0, sd, (studies, seeds))
    if noise == "long_tail":
        own = sd * (4.0 - rng.gamma(4.0, 1.0, own.shape)) / 2.0
    elif noise == "bad_seed":
        own = own - 5.0 * spread * MARGIN * ((rng.random(own.shape) < 0.1) - 0.1)
    if noise == "discrete":
        right = rng.binomial(EXAMPLES, LEVEL + truth * MARGIN, own.shape)
        theirs = rng.binomial(EXAMPLES, LEVEL + POINTS[:, None] + np.zeros(grid_shape))
        return Studies(
            candidate_test=right / EXAMPLES, grid_validation=LEVEL + validation, grid_test=theirs / EXAMPLES
        )
    return Studies(
        candidate_test=0.9 + shared[:, 0] + truth * MARGIN + own,
        grid_validation=0.9 + validation,
        grid_test=0.9 + shared + POINTS[:, None] + luck,
    )


def wrong(truth: float) -> frozenset[Verdict]:
    """The verdicts that are errors at this true difference, in margins."""
    found = {Verdict.BETTER} if truth <= 0 else set()
    found |= {Verdict.WORSE} if truth >= 0 else set()
    return frozenset(found | ({Verdict.EQUIVALENT} if abs(truth) >= 1 else set()))


def studentised(values: Sequence[float], resamples: int = 999) -> Interval:
    """Bootstrap interval of the t statistic: a resample without spread counts as infinitely far off."""
    x = np.asarray(values)
    n, mean, error = len(x), float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    drawn = x[np.random.default_rng(0).integers(0, n, (resamples, n))]
    off, errors = drawn.mean(axis=1) - mean, drawn.std(axis=1, ddof=1) / math.sqrt(n)
    flat = errors < 1e-12
    t = np.where(flat, np.sign(off) * 1e9, off / np.where(flat, 1.0, errors))
    low, high = np.quantile(t, [0.025, 0.975])
    return Interval(mean=mean, low=mean - float(high) * error, high=mean - float(low) * error)


def both(values: Sequence[float]) -> Interval:
    """The package's interval. Where Student's contains all values it contains every bootstrap interval, as a
    resample's mean lies among them: no need to draw one.
    """
    student = t_interval(values)
    if student.low <= min(values) and max(values) <= student.high:
        return student
    return hull(student, bootstrap_interval(values))


RULES: dict[str, Callable[[Sequence[float]], Interval]] = {
    "hull": both,
    "student": t_interval,
    "bootstrap": bootstrap_interval,
    "studentised": studentised,
}


def error_rates(rule: str, differences: Array, truth: float) -> dict[str, float]:
    """Share of studies with each wrong verdict, by verdict."""
    errors = wrong(truth)
    rows = differences.tolist()
    if rule == "hull":
        # It contains Student's interval: an error of it is one of Student's, which is quick to ask.
        rows = [row for row in rows if decide(t_interval(row), MARGIN) in errors]
    said = verdicts(rule, rows)
    return {v.word: said.count(v) / len(differences) for v in Verdict if v in errors}


def verdicts(rule: str, rows: Sequence[Sequence[float]]) -> list[Verdict]:
    """The rule's verdict of each study's differences."""
    return [decide(RULES[rule](row), MARGIN) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=20_000, help="a cell (default: %(default)s)")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 5, 10])
    parser.add_argument("--spreads", nargs="+", type=float, default=[0.5, 2.0], help="in margins")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    highest: dict[str, dict[str, dict[str, float]]] = {}
    for rule in options.rules:
        studies = options.studies if rule in ("hull", "student") else max(1, options.studies // 40)
        for noise in options.noises:
            for spread in [0.77] if noise == "discrete" else options.spreads:
                for seeds in options.seeds:
                    top = highest.setdefault(rule, {}).setdefault(f"{noise} {seeds}", {})
                    for truth in TRUTHS:
                        differences = simulate(noise, spread, seeds, truth, studies).differences()
                        errors = error_rates(rule, differences, truth)
                        row = {
                            "rule": rule, "noise": noise, "spread": spread, "seeds": seeds, "truth": truth,
                            "studies": studies, "errors": errors,
                        }  # fmt: skip
                        said = verdicts(rule, differences[:500].tolist())
                        row["decided"] = {v.word: said.count(v) / len(said) for v in Verdict}
                        for word, share in errors.items():
                            top[word] = max(top.get(word, 0.0), share)
                        shares = ", ".join(f"{word} {share:.2%}" for word, share in errors.items())
                        text = (
                            f"{rule:<11} {noise:<9} sd {spread:<4g} {seeds:>2} seeds  d {truth:+g}: {shares}"
                        )
                        print(json.dumps(row) if options.json else text, flush=True)
    summary = {"margin": MARGIN, "highest_errors": highest}
    print(json.dumps({"summary": summary}) if options.json else f"\nhighest: {highest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
