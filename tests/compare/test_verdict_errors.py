"""The verdicts keep their levels on simulated studies whose truth is known, and say where they do not."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from synthetic import run

from autolr_ray.compare.statistics import compare
from autolr_ray.compare.values import Verdict
from autolr_ray.compare.wording import PROTOCOL
from autolr_ray.train.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "experiments" / "results" / "compare" / "verdict_errors.jsonl"
LEVELS = {"better": 0.025, "worse": 0.025, "equivalent": 0.05}
STUDIES = 2000


def load() -> ModuleType:
    """The benchmark as a module: what it measures at length is tested here in short."""
    path = ROOT / "experiments" / "benchmarks" / "verdict_errors.py"
    spec = importlib.util.spec_from_file_location("verdict_errors_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


errors = load()


def rates(rule: str, noise: str, seeds: int, truth: float, spread: float, studies: int) -> dict[str, float]:
    drawn = errors.simulate(noise, spread, seeds, truth, studies)
    found: dict[str, float] = errors.error_rates(rule, drawn.differences(), truth)
    return found


def above(level: float, studies: int) -> float:
    """What a share at its level exceeds by chance in less than one of a thousand simulations."""
    return level + 3.1 * math.sqrt(level * (1 - level) / studies)


@pytest.mark.parametrize("truth", [-2.0, -1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", ["normal", "discrete"])
def test_the_levels_hold(noise: str, seeds: int, truth: float) -> None:
    for spread in (0.5, 2.0) if noise == "normal" else (0.77,):
        for word, share in rates("hull", noise, seeds, truth, spread, STUDIES).items():
            assert share <= above(LEVELS[word], STUDIES), f"{word} at spread {spread}"


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_bootstrap_alone_would_not_hold_them(seeds: int) -> None:
    """The test above has the power to reject a rule that is too sure of itself."""
    for word, share in rates("bootstrap", "normal", seeds, 0.0, 2.0, 400).items():
        assert share > above(LEVELS[word], 400), word


def test_a_sure_difference_is_found() -> None:
    """The rule is no rule that decides nothing."""
    for seeds, least in ((3, 0.2), (5, 0.75), (10, 0.95)):
        equal = errors.simulate("normal", 0.5, seeds, 0.0, 100).differences()
        apart = errors.simulate("normal", 0.5, seeds, 2.0, 100).differences()
        for rows, verdict in ((equal, Verdict.EQUIVALENT), (apart, Verdict.BETTER)):
            said = [errors.decide(errors.both(row), errors.MARGIN) for row in rows.tolist()]
            assert said.count(verdict) / len(said) >= least, (seeds, verdict)


@pytest.mark.parametrize("noise", errors.NOISES)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_simulation_takes_the_way_of_the_records(noise: str, seeds: int) -> None:
    """Choice, pairing and verdict of whole studies as records are those of the simulation's arrays."""
    drawn = errors.simulate(noise, 0.77, seeds, 1.0, 6)
    for i, row in enumerate(drawn.differences().tolist()):
        found = compare(records_of(drawn, i), "auto", "grid", 64, margin=errors.MARGIN)
        assert found is not None
        assert found.paired.differences == tuple(row)
        quick = errors.both(row)
        assert (quick.low, quick.high) == pytest.approx(
            (found.difference.low, found.difference.high), abs=1e-15
        )
        assert found.verdict is errors.decide(quick, errors.MARGIN)


TEMPLATE = run("auto", "", 64, 0, 0.1, 0.1)


def records_of(drawn: object, study: int) -> list[RunRecord]:
    """One simulated study as the runs that it stands for."""
    ours = drawn.candidate_test[study]  # type: ignore[attr-defined]
    validation, test = drawn.grid_validation[study], drawn.grid_test[study]  # type: ignore[attr-defined]
    records = []
    for seed in range(len(ours)):
        numbers = [("auto", "", 0.1, 0.5, ours[seed])]
        numbers += [
            ("grid", f"p{p}", 0.1 * (p + 1), validation[p, seed], test[p, seed]) for p in range(len(test))
        ]
        records += [
            TEMPLATE.model_copy(
                update={
                    "cell": f"{arm}{point}{seed}", "arm": arm, "point": point, "seed": seed, "peak_lr": lr,
                    "validation_accuracy": float(v), "test_accuracy": float(t),
                }
            )
            for arm, point, lr, v, t in numbers
        ]  # fmt: skip
    return records


def test_the_choice_is_made_by_validation() -> None:
    drawn = errors.simulate("normal", 2.0, 3, 0.0, 200)
    chosen = drawn.grid_validation.mean(axis=2).argmax(axis=1)
    assert set(chosen) == {0, 1, 2}  # the three equal points, never the one that is two points worse
    blind = errors.Studies(
        candidate_test=drawn.candidate_test,
        grid_validation=np.zeros_like(drawn.grid_validation),
        grid_test=drawn.grid_test,
    )
    assert (blind.differences() != drawn.differences()).any()


@pytest.fixture(scope="module")
def highest() -> dict[str, dict[str, dict[str, float]]]:
    """The measured errors: rule -> "noise seeds" -> verdict -> highest share."""
    last = MEASURED.read_text(encoding="utf-8").splitlines()[-1]
    found: dict[str, dict[str, dict[str, float]]] = json.loads(last)["summary"]["highest_errors"]
    return found


def test_the_committed_measurement_keeps_the_levels(highest: dict[str, dict[str, dict[str, float]]]) -> None:
    for noise in ("normal", "discrete"):
        for seeds in (3, 5, 10):
            for word, share in highest["hull"][f"{noise} {seeds}"].items():
                assert share <= above(LEVELS[word], 20_000)


def test_the_protocol_says_what_was_measured(highest: dict[str, dict[str, dict[str, float]]]) -> None:
    text = " ".join(PROTOCOL)
    hull = highest["hull"]
    bad = [hull[f"bad_seed {seeds}"] for seeds in (3, 5, 10)]
    first, second, third = (f"{100 * found['better']:.0f} %" for found in bad)
    assert f"called better in {first}, {second} and {third} of studies" in text
    assert all(abs(found["equivalent"] - found["better"]) < 0.01 for found in bad)
    lucky = [hull[f"luck {seeds}"] for seeds in (3, 5, 10)]
    worse = [found["worse"] for found in lucky]
    assert f"called worse in {100 * min(worse):.0f} % to {100 * max(worse):.0f} % of studies" in text
    assert max(found["better"] for found in lucky) < 0.01


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_bad_seeds_break_the_levels_as_the_protocol_says(
    seeds: int, highest: dict[str, dict[str, dict[str, float]]]
) -> None:
    """The claim is not hidden behind a file: the simulation shows it again."""
    share = rates("hull", "bad_seed", seeds, 0.0, 2.0, STUDIES)["better"]
    measured = highest["hull"][f"bad_seed {seeds}"]["better"]
    assert share > above(LEVELS["better"], STUDIES)
    assert share <= above(measured, STUDIES)
