"""What runs may use: a GPU between several small ones, and no more than there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from autolr_ray.cli import main
from autolr_ray.compare.group import Group
from autolr_ray.compare.study import Study

STUDY = {
    "name": "sharing",
    "task": "fashion_mnist_subset",
    "seeds": [0, 1],
    "batches": [{"size": 64, "epochs": 1}, {"size": 128, "epochs": 1, "workers": 2}],
    "arms": {"auto": {}, "tuned": {"grid": {"peak_lr": [0.01, 0.1]}}},
    "candidate": "auto",
    "baseline": "tuned",
}


def group(workers: int, resources: dict[str, float], there: dict[str, float]) -> Group:
    study = Study.model_validate({**STUDY, "resources": resources})
    cells = [cell for cell in study.cells() if cell.spec.workers == workers]
    return Group(study, cells, workers, Path("results"), there, None)


ONE_GPU = {"CPU": 16.0, "GPU": 1.0}


@pytest.mark.parametrize(("share", "at_once"), [(1.0, 1), (0.5, 2), (0.25, 4), (0.1, 10)])
def test_runs_that_share_a_gpu_go_on_side_by_side(share: float, at_once: int) -> None:
    made = group(1, {"gpus_per_worker": share}, ONE_GPU)
    assert made.use_gpu
    assert made.concurrency == at_once
    assert made._trial_resources() == {"CPU": 1.0, "GPU": share}
    assert {request.gpus_per_worker for request in made.requests.values()} == {share}


def test_two_workers_of_a_run_can_share_a_gpu_and_one_run_cannot_have_more_than_there_is() -> None:
    shared = group(2, {"gpus_per_worker": 0.5}, ONE_GPU)
    assert (shared.concurrency, shared._lacking()) == (1, "")
    assert group(2, {}, ONE_GPU)._lacking() == "it needs 2 CPUs and 2 GPUs, the cluster has 1 GPUs"
    assert group(2, {"device": "cpu"}, ONE_GPU).concurrency == 8


def test_a_cluster_grows_for_as_many_runs_as_the_study_allows() -> None:
    study = Study.model_validate({**STUDY, "resources": {"max_concurrent": 8, "device": "gpu"}})
    cells = [cell for cell in study.cells() if cell.spec.workers == 1]
    small = {"CPU": 4.0, "GPU": 1.0}
    assert Group(study, cells, 1, Path("results"), small, None).concurrency == 1
    assert Group(study, cells, 1, Path("results"), small, None, may_grow=True).concurrency == 8
    assert group(1, {}, {"CPU": 16.0}).concurrency == 16


def test_how_many_at_once_is_no_part_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--max-concurrent`` rules one sweep: the runs and the study that is kept are the same with it."""
    seen: list[Study] = []

    def sweep(study: Study, *places: object, **more: object) -> list[object]:
        seen.append(study)
        return []

    monkeypatch.setattr("autolr_ray.compare.sweep.run_sweep", sweep)
    kept = []
    for more in ([], ["--max-concurrent", "8"]):
        assert main(["compare", "--study", "quick", "--results", str(tmp_path), *more]) == 0
        kept.append((tmp_path / "quick" / "study.yaml").read_text())
    assert kept[0] == kept[1]
    assert not (tmp_path / "quick" / "study.previous.yaml").exists()
    assert [study.resources.max_concurrent for study in seen] == [None, 8]
    assert seen[0].cells() == seen[1].cells()


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="gpus_per_worker"):
        Study.model_validate({**STUDY, "resources": {"gpus_per_worker": share}})
