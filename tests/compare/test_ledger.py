"""The ledger and the run store give back what they were given, and nothing else."""

from __future__ import annotations

import json
import math
import random
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import changed, run, study, swept

from autolr_ray.compare.ledger import SCHEMA, RunStore, read_ledger, restore_runs, write_ledger
from autolr_ray.compare.rows import rows_of
from autolr_ray.compare.study import Study
from autolr_ray.files import write_atomically
from autolr_ray.train.record import Posterior, RunRecord, Trace

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


def content(record: RunRecord) -> str:
    """NaN equals NaN here, unlike in a comparison of floats."""
    return json.dumps(json.loads(record.model_dump_json()), sort_keys=True)


@pytest.fixture
def odd() -> RunRecord:
    """A run that diverged, with every float that is hard to carry and empty lists."""
    return changed(
        run("auto_warmup", "", 64, 3, 0.1, 0.1),
        train_loss=math.nan,
        test_accuracy=-0.0,
        peak_lr=5e-324,
        device_seconds=0.1 + 0.2,
        trace=Trace(step=[0, 1, 2], lr=[0.1, math.inf, 0.0], loss=[math.nan, math.inf, -math.inf]),
        posterior=Posterior(step=[], mean=[], sd=[]),
        epoch_rows=[],
        receipts=[],
        versions={},
        arm='näme "with" <odd> signs',
    )


def test_round_trip_is_exact(tmp_path: Path, odd: RunRecord) -> None:
    records = [*study(batch_sizes=(64, 128), seeds=(0, 1)), odd]
    write_ledger(records, tmp_path / "new" / "ledger.parquet")
    back = read_ledger(tmp_path / "new" / "ledger.parquet")
    assert sorted(map(content, back)) == sorted(map(content, records))
    assert math.copysign(1, next(r for r in back if r.cell == odd.cell).test_accuracy) == -1


def test_empty_ledger(tmp_path: Path) -> None:
    write_ledger([], tmp_path / "ledger.parquet")
    assert read_ledger(tmp_path / "ledger.parquet") == []


def test_order_of_the_records_does_not_matter(tmp_path: Path) -> None:
    records = study(batch_sizes=(64,), seeds=(1, 0))
    write_ledger(records, tmp_path / "a.parquet")
    write_ledger(random.Random(0).sample(records, len(records)), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.parquet", "b.parquet"]  # no temporary left


def test_nested_columns_can_be_read_without_this_package(tmp_path: Path, odd: RunRecord) -> None:
    write_ledger([odd], tmp_path / "ledger.parquet")
    table = pq.read_table(tmp_path / "ledger.parquet", columns=["trace"])
    assert table.column("trace").to_pylist()[0]["step"] == [0, 1, 2]


def test_the_schema_has_every_field_of_the_record(tmp_path: Path) -> None:
    write_ledger([], tmp_path / "ledger.parquet")
    assert pq.read_table(tmp_path / "ledger.parquet").column_names == list(RunRecord.model_fields)


def test_one_cell_twice_is_refused(tmp_path: Path, odd: RunRecord) -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        write_ledger([odd, odd], tmp_path / "ledger.parquet")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no ledger"):
        read_ledger(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_ledger(tmp_path / "text.parquet")
    write_ledger([], tmp_path / "ledger.parquet")
    table = pq.read_table(tmp_path / "ledger.parquet").drop_columns(["seed"])
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="seed"):
        read_ledger(tmp_path / "other.parquet")


def test_a_ledger_from_before_a_column_existed_is_read_with_its_default(
    tmp_path: Path, odd: RunRecord
) -> None:
    write_ledger([odd], tmp_path / "ledger.parquet")
    table = pq.read_table(tmp_path / "ledger.parquet").drop_columns(["tuning", "tuning_seconds"])
    pq.write_table(table, tmp_path / "old.parquet")
    (read,) = read_ledger(tmp_path / "old.parquet")
    assert (read.tuning, read.tuning_seconds) == ("", 0.0)


def test_receipts_from_before_they_said_what_was_put_back(tmp_path: Path) -> None:
    record = swept(64, 0)
    write_ledger([record], tmp_path / "ledger.parquet")
    (read,) = read_ledger(tmp_path / "ledger.parquet")
    assert content(read) == content(record)
    assert (read.put_backs, read.sweep_steps) == ([(record.receipts[0].step, 1)], record.receipts[0].step)
    table = pq.read_table(tmp_path / "ledger.parquet")
    rows = table.to_pylist()
    rows[0]["rolled_back_to"] = -1  # then of the last decision alone
    for receipt in rows[0]["receipts"]:
        del receipt["rolled_back_to"]
    fields = [field for field in SCHEMA if field.name != "receipts"]
    receipts = SCHEMA.field("receipts").type.value_type
    kept = pa.struct([field for field in receipts if field.name != "rolled_back_to"])
    schema = pa.schema([*fields, pa.field("receipts", pa.list_(kept))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "old.parquet")
    (old,) = read_ledger(tmp_path / "old.parquet")
    assert {x.rolled_back_to for x in old.receipts} == {-1}
    assert (old.put_backs, old.sweep_steps) == ([], read.sweep_steps)


def test_what_was_made_from_other_runs_is_not_kept_as_a_run(tmp_path: Path) -> None:
    """Under its winner's cell it would take that run's place, and all rows of it would bear ASHA's cost."""
    winner = run("grid", "p", 64, 0, 0.1, 0.1)
    made = winner.model_copy(update={"arm": "asha", "point": "", "tuning": "ASHA over 10 runs, 7 stopped"})
    store = RunStore(tmp_path)
    with pytest.raises(ValueError, match=r"'asha' of cell .* was made from other runs \(ASHA over 10"):
        store.write(made)
    assert store.names() == set()
    with pytest.raises(ValueError, match="no run of its own"):
        write_ledger([made, made.model_copy(update={"arm": "grid"})], tmp_path / "ledger.parquet")
    write_ledger([made, winner], tmp_path / "ledger.parquet")
    # One that an earlier version let in does not count, and gives way to the run itself.
    write_atomically(store.path(winner.cell), made.model_dump_json().encode())
    with pytest.warns(RuntimeWarning, match="made from other runs"):
        assert store.finished() == set()
    store.write(winner)
    assert content(store.read_all()[0]) == content(winner)


def test_a_ledger_gives_back_the_runs_of_its_study(tmp_path: Path) -> None:
    """Arms that share a run, and one that borrows them: the report's rows are the same afterwards."""
    fixed = {"schedule": {"kind": "linear_warmup", "peak_lr": 0.01, "warmup_fraction": 0.1}}
    grid = {"grid": {"peak_lr": [0.003, 0.01, 0.03], "warmup_fraction": [0.1]}}
    asha = {"asha": {"of": "grid"}}
    plan = Study.model_validate(
        {
            "name": "plan", "task": "fashion_mnist_subset", "seeds": [0, 1],
            "batches": [{"size": 64, "epochs": 4}],
            "arms": {"fixed": fixed, "grid": grid, "asha": asha}, "candidate": "fixed", "baseline": "grid",
        }
    )  # fmt: skip
    runs = {}
    for cell in plan.cells():
        made = run(cell.arm, cell.point, 64, cell.spec.seed, cell.spec.schedule.peak_lr, 0.1)
        runs[cell.spec.cell] = made.model_copy(update={"cell": cell.spec.cell})
    rows = rows_of(plan, list(runs.values())).records
    assert sum(record.derived for record in rows) == 2
    write_ledger(rows, tmp_path / "ledger.parquet")
    store = RunStore(tmp_path / "cells")
    assert restore_runs(read_ledger(tmp_path / "ledger.parquet"), store) == sorted(runs)
    again = rows_of(plan, store.read_all()).records
    assert sorted(map(content, again)) == sorted(map(content, rows))
    with pytest.raises(ValueError, match="no run's own record is in the ledger"):
        restore_runs([r for r in rows if r.derived], RunStore(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["fashion_mnist", "quick"])
def test_committed_ledgers_charge_every_run_with_its_own_cost(name: str) -> None:
    records = read_ledger(RESULTS / name / "ledger.parquet")
    told = {(r.arm, r.tuning.partition(" over")[0]) for r in records if r.tuning or r.tuning_seconds}
    assert told <= {("asha", "ASHA"), ("range_test", "LR range test")}


def test_store_round_trip(tmp_path: Path, odd: RunRecord) -> None:
    store = RunStore(tmp_path / "runs")
    assert store.read_all() == []
    assert store.finished() == set()
    records = [odd, run("auto_warmup", "", 64, 0, 0.1, 0.1)]
    for record in records:
        store.write(record)
    store.write(changed(odd, cell=odd.cell, restarts=9))  # again: the first stays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = store.read_all()
    assert [content(r) for r in back] == [content(r) for r in sorted(records, key=lambda r: r.cell)]
    assert store.finished() == {r.cell for r in records}
    assert sorted(p.name for p in store.folder.iterdir()) == sorted(f"{r.cell}.json" for r in records)
    assert store.path(odd.cell).is_file()


def test_damaged_and_foreign_files_are_reported_and_skipped(tmp_path: Path, odd: RunRecord) -> None:
    store = RunStore(tmp_path)
    store.write(odd)
    text = store.path(odd.cell).read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "foreign.json").write_text('{"some": "thing"}')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "copy.json").write_text(text)  # a record under another cell's name
    (tmp_path / "folder.json").mkdir()
    (tmp_path / ".other.json.x.tmp").write_text("a worker killed while it wrote")
    with pytest.warns(RuntimeWarning) as seen:
        assert store.finished() == {odd.cell}
    told = [str(w.message) for w in seen]
    for name in ("half", "empty", "foreign", "binary", "copy", "folder"):
        assert sum(f"{name}.json" in message for message in told) == 1
    assert len(told) == 6


@pytest.mark.parametrize("cell", ["", "../up", "a/b", ".hidden", "a\x00b", "a b"])
def test_a_cell_must_be_a_plain_name(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        RunStore(tmp_path).path(cell)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("autolr_ray.files.os.replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "file", b"new", durable=True)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
