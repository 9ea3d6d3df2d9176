"""From finished cells to ledger and report: labels are the study's, and a report can be made again."""

import threading
import time
from pathlib import Path

import pytest
import yaml
from synthetic import study as synthetic_study

from autolr_ray.compare import publish as publishing
from autolr_ray.compare.ledger import RunStore, read_ledger
from autolr_ray.compare.publish import publish
from autolr_ray.compare.publisher import Publisher
from autolr_ray.compare.rebuild import rebuild
from autolr_ray.compare.rows import rows_in_ledger
from autolr_ray.compare.study import Study
from autolr_ray.train.record import write_record

STUDY = {
    "name": "small",
    "task": "fashion_mnist_subset",
    "seeds": [0, 1, 2],
    "batches": [{"size": 64, "epochs": 1}],
    "arms": {"ours": {}, "grid": {"grid": {"peak_lr": [0.01, 0.1]}}},
    "candidate": "ours",
    "baseline": "grid",
    "margin": 0.2,
    "note": "drawn for a test",
}


@pytest.fixture
def published(tmp_path):
    """A study whose cells ran under other labels, published."""
    study = Study.model_validate(STUDY)
    keep_runs(study, tmp_path)
    done = publish(study, tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path, done.rows.records, Path(done.report)


def keep_runs(study, folder):
    """A finished run for each cell, under labels of an earlier form of the study."""
    template = synthetic_study()[0]
    for cell in study.cells():
        changes = {
            "cell": cell.spec.cell, "study": "old", "arm": "old name", "point": "", "seed": cell.spec.seed,
            "batch_size": cell.spec.batch_size,
        }  # fmt: skip
        write_record(template.model_copy(update=changes), folder / "cells")


def test_labels_are_those_of_the_study(published):
    folder, records, _ = published
    assert {record.study for record in records} == {"small"}
    assert {record.arm for record in records} == {"ours", "grid"}
    assert len({record.point for record in records if record.arm == "grid"}) == 2
    assert read_ledger(folder / "ledger.parquet") == sorted(records, key=read_ledger_order(folder))


def read_ledger_order(folder):
    """Where a record stands in the ledger."""
    order = {record.cell: i for i, record in enumerate(read_ledger(folder / "ledger.parquet"))}
    return lambda record: order[record.cell]


@pytest.mark.parametrize("path", ["ledger.parquet", "."])
def test_a_report_made_again_is_the_same(published, tmp_path, path):
    folder, _, report = published
    before = report.read_bytes()
    again = rebuild(folder / path, out=tmp_path / "again")
    assert "margin 20" in (tmp_path / "again" / "summary.md").read_text()
    assert again.paths.html.read_bytes() == before


def test_two_names_for_one_run_have_a_row_each(tmp_path):
    twin = {"schedule": {"kind": "linear_warmup", "peak_lr": 0.1}}
    study = Study.model_validate({**STUDY, "arms": {**STUDY["arms"], "twin": twin}})
    keep_runs(study, tmp_path)
    rows = publish(study, tmp_path).rows
    assert rows.expected == len(rows.records) == 3 * (1 + 2 + 1)
    twins = {r.cell for r in rows.records if r.arm == "twin"}
    assert {(r.arm, r.point) for r in rows.records if r.cell in twins} == {
        ("twin", ""), ("grid", "peak_lr=0.1 warmup=0.05"),
    }  # fmt: skip
    assert len(RunStore(tmp_path / "cells").finished()) == 3 * 3
    assert len(read_ledger(tmp_path / "ledger.parquet")) == 3 * 4


def test_runs_that_the_study_no_longer_asks_for_stay_in_the_ledger(published):
    folder, records, _ = published
    fewer = Study.model_validate({**STUDY, "seeds": [0, 1]})
    rows = publish(fewer, folder).rows
    assert len(rows.records) == len(records) * 2 // 3
    assert len(rows.others) == len(records) // 3
    ledger = read_ledger(folder / "ledger.parquet")
    assert {record.cell for record in ledger} == {record.cell for record in records}
    assert "seeds" in (folder / "report.html").read_text()
    kept = rows_in_ledger(fewer, ledger)
    assert {(r.arm, r.point, r.cell) for r in kept} == {(r.arm, r.point, r.cell) for r in rows.records}


def test_a_run_that_ends_while_the_ledger_is_written_is_in_it(published, monkeypatch):
    """Somebody else's sweep into the same folder: whoever writes last must not drop the other's rows."""
    folder, records, _ = published
    study = Study.model_validate({**STUDY, "seeds": [0, 1, 2, 3]})
    late = next(cell.spec for cell in study.cells() if cell.spec.seed == 3)
    original, calls = publishing.write_ledger, []

    def slow(rows, path):
        original(rows, path)
        if not calls:
            write_record(records[0].model_copy(update={"cell": late.cell, "seed": 3}), folder / "cells")
        calls.append(len(rows))

    monkeypatch.setattr(publishing, "write_ledger", slow)
    assert len(publish(study, folder).rows.records) == len(records) + 1
    assert calls == [len(records), len(records) + 1]
    assert len(read_ledger(folder / "ledger.parquet")) == len(records) + 1


def test_writings_in_the_background_share_a_thread_and_one_that_fails_is_dropped(published, monkeypatch):
    folder, _, _ = published
    threads, study = [], Study.model_validate(STUDY)

    def write(*arguments):
        threads.append(threading.get_ident())
        raise OSError("no space")

    monkeypatch.setattr(publishing, "publish", write)
    publisher = Publisher(study, folder, interval=0.0)
    deadline = time.monotonic() + 30
    while len(threads) < 3 and time.monotonic() < deadline:
        publisher.touch()
        time.sleep(0.01)
    publisher.close()
    assert len(threads) >= 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
