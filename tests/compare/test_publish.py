"""From finished cells to ledger and report: labels are the study's, and a report can be made again."""

import pytest
import yaml
from synthetic import study as synthetic_study

from autolr_ray.compare.ledger import read_ledger
from autolr_ray.compare.publish import publish
from autolr_ray.compare.rebuild import rebuild
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
    template = synthetic_study()[0]
    for cell in study.cells():
        changes = {
            "cell": cell.spec.cell, "study": "old", "arm": "old name", "point": "", "seed": cell.spec.seed,
            "batch_size": cell.spec.batch_size,
        }  # fmt: skip
        write_record(template.model_copy(update=changes), tmp_path / "cells")
    records, paths = publish(study, tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path, records, paths


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
    folder, _, paths = published
    before = paths.html.read_bytes()
    again = rebuild(folder / path, out=tmp_path / "again")
    assert "margin 20" in (tmp_path / "again" / "summary.md").read_text()
    assert again.paths.html.read_bytes() == before


@pytest.mark.parametrize(
    "twin",
    [
        {"schedule": {"kind": "linear_warmup", "peak_lr": 0.1}},
        {"schedule": {"kind": "auto_warmup", "rule": "robust"}},
    ],
)
def test_two_names_for_one_run_are_refused(twin):
    with pytest.raises(ValueError, match=r"arms: .* is the same run as"):
        Study.model_validate({**STUDY, "arms": {**STUDY["arms"], "twin": twin}})
