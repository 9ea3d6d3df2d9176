"""The bench behind the claim: what it covers, and that what is committed follows from its ledger."""

# ruff: noqa: NPY002  # the legacy generator is what must be left alone

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
RESULTS = ROOT / "experiments" / "results" / "quality"
# What those grids chose, on other seeds.
TUNED = RESULTS.with_name("quality_tuned")


@pytest.fixture(scope="module")
def quality():
    """The script, as a module; the modules beside it are on its path as they are when it runs."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("quality", BENCHMARKS / "quality.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["quality"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module", params=[RESULTS, TUNED], ids=lambda folder: folder.name)
def again(quality, request, tmp_path_factory):
    """What is committed, and its ledger alone, reported anew."""
    folder = tmp_path_factory.mktemp("quality")
    (folder / "out").mkdir()
    (folder / "out" / "ledger.parquet").write_bytes((request.param / "ledger.parquet").read_bytes())
    last = _last(request.param)
    tuned = ["--tuned", str(RESULTS / "quality.jsonl")] if last["tuned"] else []
    arguments = ["--report-only", "--json", "--results", str(folder / "runs"), "--out", str(folder / "out")]
    tuned += [option for texts in last["apart"] for option in ("--apart", *texts)]
    assert quality.main([*arguments, *tuned, "--seeds", *map(str, last["base_seeds"])]) == 0
    return request.param, folder / "out"


def _asked(quality, records, name, folder):
    """A run of AutoWarmup that the bench asks for now; the ledger has others as well."""
    (cell,) = (cell for cell in quality.CELLS if cell.name == name)
    asked = {run.spec.cell for run in quality.study_of(cell, _last(RESULTS)["base_seeds"], folder).cells()}
    return next(r for r in records if r.study == name and r.arm == "auto_warmup" and r.cell in asked)


def _last(folder):
    return json.loads((folder / "quality.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("data", {"fashion", "digits", "mnist1d"}),
        ("network", {"cnn", "cnn_bn", "mlp", "resnet18", "vit"}),
        ("optimizer", {"adamw", "adamp", "lamb", "sgd_nesterov"}),
        ("batch_size", {128, 1024, 4096}),
        ("budget", {"short", "middle", "long"}),
    ],
)
def test_it_covers(quality, part, wanted):
    assert {getattr(cell, part) for cell in quality.CELLS} == wanted
    for value in wanted:
        assert sum(getattr(cell, part) == value for cell in quality.CELLS) >= 2


def test_every_cell_is_a_study_with_a_grid_of_ten_and_four_rivals(quality, tmp_path):
    for cell in quality.CELLS:
        study = quality.study_of(cell, [50], tmp_path)
        assert study.candidate == "auto_warmup"
        assert (
            study.arms["auto_warmup"].schedule.model_dump()
            == type(study.arms["auto_warmup"].schedule)().model_dump()
        )  # defaults, the same everywhere
        arms = [run.arm for run in study.cells()]
        assert arms.count("linear_warmup") == 10 * cell.repeats
        assert set(arms) == {
            "auto_warmup", "linear_warmup", "fixed_adamw", "range_test", "prodigy", "schedule_free",
        }  # fmt: skip


def test_with_a_tuned_point_it_is_the_whole_grid_and_more_seeds_are_asked_for(quality, tmp_path):
    rows = quality.published(str(RESULTS / "quality.jsonl"))
    assert set(rows) == {cell.name for cell in quality.CELLS}
    counts = set()
    for cell in quality.CELLS:
        study = quality.study_of(cell.tuned(rows[cell.name]["tuned_point"]), [5000, 5001], tmp_path)
        arms = {run.arm: run for run in study.cells()}
        assert set(arms) == {"auto_warmup", "linear_warmup"}
        assert arms["linear_warmup"].spec.schedule.peak_lr == rows[cell.name]["tuned_peak_lr"]
        assert arms["linear_warmup"].point == rows[cell.name]["tuned_point"]
        looked_at = quality.looked_at(cell.name)
        assert not set(study.seeds) & {*quality.BURNT, *looked_at, *rows[cell.name]["seeds"]}
        counts.add((cell.budget == "short", cell.repeats, len(study.seeds)))
    short = {(True, 1, 2), (True, 1, 4), (True, 1, 6), (True, 3, 24), (True, 3, 72)}
    assert counts == short | {(False, 1, 2), (False, 3, 6)}


def test_a_file_of_tuned_points_that_is_not_there_is_named(quality, tmp_path, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--tuned", str(tmp_path / "none.jsonl"), "--list"])
    assert f"--tuned: {tmp_path / 'none.jsonl'} is no file" in capsys.readouterr().err


def test_mnist1d_is_the_same_everywhere_and_leaves_other_randomness_alone(quality):
    splits = importlib.import_module("quality_mnist1d").splits
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    first, second = splits.__wrapped__(None), splits.__wrapped__(None)
    assert (random.random(), np.random.rand()) == expected
    assert [len(part) for part in (first.train, first.validation, first.test)] == [3600, 400, 1000]
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        torch.testing.assert_close(one.inputs, other.inputs, rtol=0, atol=0)
    assert set(first.train.targets.tolist()) == set(range(10))
    for name in ("mlp", "cnn", "cnn_bn"):
        task = getattr(importlib.import_module("quality_mnist1d"), f"mnist1d_{name}")
        assert task.model()(first.train.inputs[:4]).shape == (4, 10)


def test_what_is_committed_follows_from_its_ledger(again):
    committed, new = again
    for name in ("summary.md", "difference.png"):
        assert (new / name).read_bytes() == (committed / name).read_bytes(), name
    kept, made = (
        [json.loads(line) for line in (folder / "quality.jsonl").read_text().splitlines()] for folder in again
    )
    for lines in (kept, made):
        for name in ("cpus", "machine", "python"):
            del lines[-1][name]
    assert made == kept


def test_nothing_is_lost_when_it_is_written_again(again):
    committed, new = again
    assert (new / "ledger.parquet").read_bytes() == (committed / "ledger.parquet").read_bytes()


def test_the_verdict_is_on_seeds_that_nothing_was_chosen_on_and_nobody_looked_at(quality):
    whole, tuned = _last(RESULTS), _last(TUNED)
    assert not set(whole["seeds"]) & set(tuned["seeds"])
    assert whole["burnt_seeds"] == tuned["burnt_seeds"] == []
    assert tuned["looked_at_seeds"] == []
    assert whole["looked_at_cells"] == [
        cell.name for cell in quality.CELLS if cell.optimizer == "sgd_nesterov" or "digits_vit" in cell.name
    ]


def test_a_cell_that_lacks_a_run_is_open(quality, tmp_path):
    records = quality.read_ledger(RESULTS / "ledger.parquet")
    name = records[0].study
    ours = _asked(quality, records, name, tmp_path)
    (tmp_path / "out").mkdir()
    quality.write_ledger(
        [r for r in records if r.study == name and r is not ours], tmp_path / "out" / "ledger.parquet"
    )
    arguments = ["--report-only", "--results", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    before = (tmp_path / "out" / "ledger.parquet").read_bytes()
    assert quality.main([*arguments, "--seeds", *map(str, _last(RESULTS)["base_seeds"])]) == 0
    assert not (tmp_path / "out" / "summary.md").exists()  # there is nothing to say yet
    assert (tmp_path / "out" / "ledger.parquet").read_bytes() == before


def test_runs_of_a_cell_that_is_open_are_kept(quality, tmp_path):
    records = quality.read_ledger(RESULTS / "ledger.parquet")
    names = [row["cell"] for row in map(json.loads, (RESULTS / "quality.jsonl").open()) if "cell" in row]
    ours = _asked(quality, records, names[0], tmp_path)
    (tmp_path / "out").mkdir()
    quality.write_ledger([r for r in records if r is not ours], tmp_path / "out" / "ledger.parquet")
    before = (tmp_path / "out" / "ledger.parquet").read_bytes()
    arguments = ["--report-only", "--results", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert quality.main([*arguments, "--seeds", *map(str, _last(RESULTS)["base_seeds"])]) == 0
    assert names[0] in _last(tmp_path / "out")["open"]
    assert (tmp_path / "out" / "ledger.parquet").read_bytes() == before


def test_a_seed_that_had_a_part_in_a_choice_is_said(quality):
    rows = [json.loads(line) for line in (RESULTS / "quality.jsonl").read_text().splitlines()]
    cells = [row for row in rows if "cell" in row]
    fresh = [cell | {"seeds": [999]} for cell in cells]
    lines = quality.bench(fresh, [], [999])
    assert lines[-1]["burnt_seeds"] == lines[-1]["looked_at_seeds"] == []
    assert "fresh seeds" in quality.quality_page.page(fresh, lines)
    burnt = [*fresh[1:], fresh[0] | {"seeds": [*quality.BURNT[:2], 999]}]
    assert quality.bench(burnt, [], [999])[-1]["burnt_seeds"] == list(quality.BURNT[:2])
    assert "are no verdict" in quality.quality_page.page(burnt, quality.bench(burnt, [], [999]))
    looked_at = [*fresh[1:], fresh[0] | {"seeds": [quality.LOOKED_AT[0], 999]}]
    lines = quality.bench(looked_at, [], [999])
    assert lines[-1]["looked_at_seeds"] == list(quality.LOOKED_AT[:1])
    page = quality.quality_page.page(looked_at, lines)
    assert "before the rule was last changed" in page
    assert "fresh seeds" not in page


def test_seeds_are_looked_at_where_the_rule_changed_after_it(quality):
    rows = [json.loads(line) for line in (RESULTS / "quality.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "cell" in row]
    for seed, texts in {
        559: ["sgd_nesterov"],
        620: ["sgd_nesterov_b128_short"],
        759: ["mnist1d_cnn_sgd"],
        420: ["sgd_nesterov", "digits_vit"],
    }.items():
        known = [row["cell"] for row in rows if any(text in row["cell"] for text in texts)]
        cells = [row | {"seeds": [seed]} for row in rows]
        last = quality.bench(cells, [], [seed])[-1]
        assert last["looked_at_seeds"] == [seed]
        assert last["looked_at_cells"] == known
        others = [row for row in cells if row["cell"] not in known]
        assert quality.bench(others, [], [seed])[-1]["looked_at_seeds"] == []


def test_seeds_apart(quality, tmp_path, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--apart", "7", "sgd", "--apart", "sgd", "7", "--list"])
    assert "--apart: 'sgd' is not allowed; a seed comes first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quality.main(["--apart", "7", "--list"])
    assert "--apart: 7 alone is not allowed; after it come parts of names" in capsys.readouterr().err
    asked = {}
    study_of = quality.study_of

    def spy(cell, seeds, folder):
        asked[cell.name] = list(seeds)
        return study_of(cell, seeds, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "study_of", spy)
        places = ["--results", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
        apart = ["--apart", "6000", "sgd", "vit", "--apart", "7000", "digits_vit"]
        quality.main([*places, "--report-only", "--seeds", "5000", "5001", *apart])
    for name, (first, second) in asked.items():
        wanted = 7000 if "digits_vit" in name else 6000 if "sgd" in name or "vit" in name else 5000
        assert (first, second) == (wanted, wanted + 1), name
