"""One life of a run in Tune's processes: whose error counts, and what follows where another was faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from synthetic import run

from autolr_ray.compare import attempt as module
from autolr_ray.compare.attempt import attempt, died
from autolr_ray.train import RunRecord, RunSpec
from autolr_ray.train.record import EpochRow, write_record
from autolr_ray.train.trainer import RunRequest


class Life:
    """A run that does what a test says, and what Tune and the dashboard were told of it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        spec = RunSpec(task="fashion_mnist_subset", batch_size=64, epochs=4)
        self.request = RunRequest(
            spec=spec, arm="auto", runs_dir=folder / "runs", record_dir=folder / "cells"
        )
        self.record = run("auto", "", 64, 0, 0.1, 0.1).model_copy(update={"cell": spec.cell})
        self.checkpoints = folder / "runs" / self.request.name
        self.checkpoints.mkdir(parents=True)
        self.told: list[int] = []
        self.begun = 0
        self.does: Callable[[Callable[[EpochRow], None]], object] = lambda on_report: None
        patch.setattr(module.tune, "report", lambda row: self.told.append(row["epoch"]))
        patch.setattr(module, "DashboardMetrics", lambda name: self)
        patch.setattr(module, "use_shared", lambda spec, data: None)
        patch.setattr(module, "run_in_process", self._run)
        patch.setattr(module, "build_trainer", self._build)
        patch.setattr(module, "TuneReportCallback", lambda: None)
        patch.setattr(module, "_REPORT_SECONDS", 0.0)

    def row(self, row: EpochRow) -> None:
        """As the dashboard's gauges."""

    def finish(self) -> RunRecord:
        write_record(self.record, self.request.record_dir)
        return self.record

    def _run(self, request: RunRequest, *, on_report: Callable[[EpochRow], None]) -> None:
        self.begun += 1
        self.does(on_report)

    def _build(self, request: RunRequest, *, callbacks: list[Any], max_failures: int) -> Life:
        assert max_failures == 0  # Ray would count deaths and errors alike
        return self

    def fit(self) -> None:
        self.begun += 1
        self.does(lambda row: None)


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    return Life(tmp_path, monkeypatch)


@pytest.mark.parametrize("nested", [False, True])
def test_a_run_that_somebody_else_has_finished_does_not_begin(life: Life, nested: bool) -> None:
    life.finish()
    attempt(life.request, None, nested=nested)
    assert (life.begun, life.told) == (0, [4])
    assert not life.checkpoints.exists()


def test_a_run_that_somebody_else_finishes_meanwhile_stops(life: Life) -> None:
    def does(on_report: Callable[[EpochRow], None]) -> None:
        for row in life.record.epoch_rows:
            on_report(row)
            assert row.epoch < 3, "it went on"
            if row.epoch == 2:
                life.finish()

    life.does = does
    attempt(life.request, None, nested=False)
    assert life.told == [1, 2, 4]


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_counts_only_without_a_record(life: Life, nested: bool) -> None:
    """The other sweep removes the run's folder when it is done: a checkpoint of this one finds no place."""

    def without(on_report: object) -> None:
        raise OSError("no such folder")

    life.does = without
    with pytest.raises(OSError, match="no such folder"):
        attempt(life.request, None, nested=nested)
    assert (life.begun, life.told, life.checkpoints.exists()) == (1, [], True)

    def too_late(on_report: object) -> None:
        life.finish()
        raise OSError("no such folder")

    life.does = too_late
    attempt(life.request, None, nested=nested)
    assert life.told == [4]
    assert not life.checkpoints.exists()


def lost(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("lost", dict(enumerate(failures)))


def test_deaths_of_workers_are_told_from_errors() -> None:
    broken_pipe = RuntimeError("connection closed by peer")
    assert died(lost(broken_pipe, ActorDiedError()))
    assert died(lost(WorkerHealthCheckFailedError("worker", failure=ActorDiedError()), broken_pipe))
    assert not died(lost(broken_pipe, ValueError("the task's own")))


@pytest.mark.parametrize(
    ("failures", "begun"),
    [
        ([ActorDiedError(), ActorDiedError()], 3),  # replaced twice, then it is done
        ([ActorDiedError()] * 3, 3),  # once more counts
        ([ValueError("the task's own")], 1),
        ([ActorDiedError(), ValueError("the task's own")], 2),
    ],
)
def test_a_life_outlasts_two_deaths_and_no_error(life: Life, failures: list[Exception], begun: int) -> None:
    waiting = list(failures)

    def does(on_report: object) -> None:
        if waiting:
            raise lost(waiting.pop(0))
        life.finish()

    life.does = does
    if len(failures) == 2 and failures[-1].__class__ is ActorDiedError:
        attempt(life.request, None, nested=True)
        assert not life.checkpoints.exists()
    else:
        with pytest.raises(WorkerGroupError):
            attempt(life.request, None, nested=True)
    assert life.begun == begun
