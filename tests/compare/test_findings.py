"""What the findings say in words: costs, runs to beat, the overall line, shared runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic import changed, run, study, swept

from autolr_ray.compare.findings import Findings
from autolr_ray.compare.report import console_table, write_report
from autolr_ray.compare.values import Verdict
from autolr_ray.train.record import RunRecord


def findings(records: list[RunRecord], margin: float = 0.005) -> Findings:
    return Findings(records, margin, None, None, None)


def test_the_sentence_says_what_was_tuning() -> None:
    records = study(batch_sizes=(64,), seeds=(0, 1, 2), rival=False, peaks=(0.01, 0.03), warmups=(0.1,))
    probe = {"device_seconds": 30.0, "tuning_seconds": 10.0, "tuning": "range test"}
    records = [
        changed(r, **probe) if r.arm == "auto_warmup" else changed(r, device_seconds=20.0) for r in records
    ]
    sentence = findings(records).sentence(64)
    assert "cost 1 run, 30 s (10 s of it tuning: range test) of device time per seed" in sentence
    assert sentence.endswith("instead of 2 runs, 40 s (20 s of it tuning: 1 other run of the grid).")


def test_the_grid_sentence() -> None:
    records = study(batch_sizes=(128,), seeds=(0, 1, 2), rival=False)

    def said(accuracy: float) -> str:
        return findings(
            [changed(r, validation_accuracy=accuracy) if r.arm == "auto_warmup" else r for r in records]
        ).tuning_sentence(128)

    assert said(0.99).startswith(
        "The linear_warmup grid of 10 needs more than 10 runs drawn at random "
        "(95 % over seeds: more than 10 to more than 10) until"
    )
    assert said(0.1).startswith("The linear_warmup grid of 10 needs 1 run drawn at random (")
    assert said(0.1).endswith("expected to beat one auto_warmup run in validation accuracy.")
    assert findings([r for r in records if r.arm != "linear_warmup"]).tuning_sentence(128) == ""


def shifted(gains: dict[int, float], seeds: tuple[int, ...] = (0, 1, 2)) -> list[RunRecord]:
    """Two untuned arms whose difference is nearly the same on every seed."""
    return [
        changed(
            run(arm, "" if arm == "auto" else "p", size, seed, 0.1, 0.1),
            test_accuracy=0.8 + 0.02 * seed + (gain + 0.0005 * seed if arm == "auto" else 0.0),
        )
        for size, gain in gains.items()
        for seed in seeds
        for arm in ("auto", "grid")
    ]


def test_the_overall_line() -> None:
    found = findings(shifted({64: 0.01, 512: -0.01}))
    assert [c.verdict for c in found.comparisons.values()] == [Verdict.BETTER, Verdict.WORSE]
    assert found.overall is not None
    assert found.overall.verdict is Verdict.EQUIVALENT
    assert found.overall.difference.mean == pytest.approx(0.0005)
    assert found.overall_sentence.startswith("Mean over the 2 batch sizes: +0.1 points [")
    assert "equivalent at margin 0.5 (3 seeds)" in found.overall_sentence
    assert "better at 1, worse at 1 of 2 batch sizes; over all +0.1 points [" in found.headline


def test_no_overall_line_where_a_batch_size_has_no_pair() -> None:
    records = shifted({64: 0.01, 512: -0.01})
    for some in (
        [r for r in records if r.batch_size == 64],
        [r for r in records if (r.batch_size, r.arm) != (512, "auto")],
        [],
    ):
        found = findings(some)
        assert found.overall is None
        assert found.overall_sentence == ""
        assert "over all" not in found.headline


def test_a_shared_run_is_shown_where_it_may_be(tmp_path: Path) -> None:
    """One run stands for an untuned arm and for a grid point that lost: its cell is not what is reported."""
    records = study(batch_sizes=(128,), seeds=(0, 1, 2), rival=False, warmups=(0.05,))
    shared = [
        r.model_copy(update={"arm": "fixed", "point": ""}) for r in records if r.point.startswith("lr=0.003 ")
    ]
    found = findings([*records, *shared])
    told = {(r.arm, r.point): found.is_reported(r) for r in found.runs}
    assert told["fixed", ""]
    assert not told["linear_warmup", "lr=0.003 warmup=0.05"]
    page = write_report([*records, *shared], tmp_path, study_name="shared").html.read_text()
    lost = page.count("<td>not shown</td>")
    assert lost == sum(r.arm == "linear_warmup" for r in records) - 3
    assert found.repeats == 0
    gone = [changed(r, cell=r.cell, test_accuracy=math.nan) for r in shared]
    assert "3 reported runs ended with a test accuracy" in " ".join(findings([*records, *gone]).notes)


def test_the_console_stays_narrow() -> None:
    records = [
        changed(r, tuning_seconds=5.0, tuning="a probe of many words that would not fit a table's column")
        for r in study(batch_sizes=(128, 512), seeds=(0, 1, 2), rival=False)
    ]
    rows = console_table(records).splitlines()[2:6]
    assert max(map(len, rows)) < 120


def test_the_protocol_says_where_the_levels_do_not_hold() -> None:
    text = " ".join(findings([]).protocol)
    for phrase in ("Student", "bootstrap", "2.5 %", "5 %", "long tail"):
        assert phrase in text


def test_a_sweep_that_put_weights_back_is_told(tmp_path: Path) -> None:
    """By default a run sweeps, goes back, warms up: what set the scale stands before the switch."""
    seeds = (0, 1, 2)
    grid = [r for r in study(batch_sizes=(64,), seeds=seeds, rival=False) if r.arm == "linear_warmup"]
    records = [*(swept(64, seed) for seed in seeds), *grid]
    told = findings(records).decisions
    first = [(receipt.verdict, back) for record, receipt, back in told if record.seed == 0]
    assert first == [("swept", 1), ("reached", -1)]
    sweep, turn = records[0].receipts
    on = turn.model_copy(update={"verdict": "rises_on", "step": (sweep.step + turn.step) // 2})
    told = findings([changed(records[0], receipts=[sweep, on, turn]), *records[1:]]).decisions
    first = [receipt.verdict for record, receipt, _ in told if record.seed == 0]
    assert first == ["swept", "rises_on", "reached"]
    page = write_report(records, tmp_path / "new", study_name="swept").html.read_text()
    assert '"sweep":' in page
    assert "<td>not kept</td>" not in page
    # Records from before each receipt had its own do not say where the sweep went back to.
    old = [
        changed(
            r, receipts=[x.model_copy(update={"rolled_back_to": -1}) for x in r.receipts], rolled_back_to=-1
        )
        for r in records
    ]
    assert [back for record, _, back in findings(old).decisions if record.seed == 0] == [-1, -1]
    assert "<td>not kept</td>" in write_report(old, tmp_path / "old", study_name="swept").html.read_text()


def test_records_of_two_kinds_of_device_are_told() -> None:
    records = study(batch_sizes=(64,), seeds=(0,), rival=False, peaks=(0.01, 0.03), warmups=(0.1,))
    mixed = [changed(r, device="NVIDIA X") if r.arm == "auto_warmup" else r for r in records]
    (note,) = [note for note in findings(mixed).notes if "device" in note]
    assert note.startswith("runs differ in device: NVIDIA X, cpu; their times cannot be compared")
    assert not any("device" in note for note in findings(records).notes)


def test_runs_stand_beside_the_share_of_device_time() -> None:
    records = study(batch_sizes=(64, 128), seeds=(0, 1, 2), rival=False)
    assert findings(records).headline.endswith(" % of the device time per seed (2 runs instead of 20).")


def test_a_sweep_that_saw_no_fall_is_shown_as_one() -> None:
    """Its verdict is another, its place in the run the same."""
    record = swept(64, 0)
    blind = [
        receipt.model_copy(update={"verdict": "not_seen"}) if receipt.verdict == "swept" else receipt
        for receipt in record.receipts
    ]
    other = record.model_copy(update={"receipts": blind})
    assert other.sweep_steps == record.sweep_steps > 0
    found = Findings([other], 0.01, None, "auto_warmup", None).decisions
    assert found[0][1].verdict == "not_seen"
