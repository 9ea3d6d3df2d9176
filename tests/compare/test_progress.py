"""What a sweep says while it runs: counts, time left, one line a finished run; and it never ends a sweep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autolr_ray.compare import callback as callback_module
from autolr_ray.compare.callback import ProgressCallback
from autolr_ray.compare.group import max_concurrent, parameters
from autolr_ray.compare.progress import Progress, clock, describe
from autolr_ray.compare.study import Cell, Study

STUDY = Study.model_validate(
    {
        "name": "mine",
        "task": "fashion_mnist_subset",
        "seeds": [0, 1],
        "batches": [{"size": 64, "epochs": 2}, {"size": 256, "epochs": 4, "workers": 2}],
        "arms": {"auto": {}, "tuned": {"grid": {"peak_lr": [0.5], "warmup_fraction": [0.1]}}},
        "candidate": "auto",
        "baseline": "tuned",
    }
)
CELLS = STUDY.cells()  # 4 of one worker and 2 epochs, 4 of two workers and 4 epochs


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(callback_module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def trial(cell: Cell) -> Any:
    return SimpleNamespace(trial_id=cell.spec.cell, config={"run": parameters(cell)})


def watch(progress: Progress, **options: Any) -> ProgressCallback:
    return ProgressCallback(progress, {cell.spec.cell: cell for cell in CELLS}, **options)


def test_time_left() -> None:
    progress = Progress(CELLS, set())
    progress.expect(1, 2)
    progress.expect(2, 1)
    assert progress.eta_seconds is None
    progress.finish(CELLS[0], 6.0)  # 3 s an epoch
    # 3 more of 2 epochs, two at once; 4 of 4 epochs, one at a time, at the only pace that is known.
    assert progress.eta_seconds == pytest.approx(3 * 2 * 3 / 2 + 4 * 4 * 3)
    progress.finish(CELLS[1], 10.0)  # 4 s an epoch on average
    assert progress.eta_seconds == pytest.approx(2 * 2 * 4 / 2 + 4 * 4 * 4)
    progress.finish(CELLS[4], 40.0)  # two workers: 10 s an epoch, which now counts for its like
    assert progress.eta_seconds == pytest.approx(2 * 2 * 4 / 2 + 3 * 4 * 10)
    progress.drop(CELLS[5])
    assert progress.eta_seconds == pytest.approx(2 * 2 * 4 / 2 + 2 * 4 * 10)


def test_counting_starts_at_what_is_there() -> None:
    here = {CELLS[0].spec.cell, CELLS[7].spec.cell, "another study's"}
    progress = Progress(CELLS, here)
    assert (progress.done, progress.total) == (2, 8)
    for cell in CELLS[1:7]:
        progress.finish(cell, 1.0)
    assert (progress.done, progress.eta_seconds) == (8, 0.0)
    assert progress.line(CELLS[6], "ok").endswith("|  done")


def test_clock() -> None:
    texts = [clock(s) for s in (None, 0, 59.4, 59.6, 3599.4, 3600, 86_400)]
    assert texts == ["?", "0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "24 h 00 min"]


def test_lines(passing: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(CELLS, set())
    finished: list[int] = []
    callback = watch(progress, on_finished=lambda: finished.append(progress.done))
    first, second = trial(CELLS[0]), trial(CELLS[-1])
    callback.on_trial_start(0, [], first)
    passing.now += 30
    callback.on_trial_result(0, [], first, {"validation_accuracy": 0.81234, "epoch": 1})
    callback.on_step_end(0, [])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.strip() == "running  auto batch 64 seed 0: epoch 1/2, validation 0.812"
    callback.on_step_end(0, [])  # said a moment ago
    assert capsys.readouterr().out == ""
    passing.now += 3
    callback.on_trial_complete(0, [], first)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("[1/8]  auto batch 64 seed 0: validation 0.812  33 s  |  ")
    assert line.endswith(" left")
    callback.on_trial_start(0, [], second)
    callback.on_trial_error(0, [], second)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("[1/8]  tuned peak_lr=0.5 warmup=0.1 batch 256 seed 1: FAILED  |  ")
    assert finished == [1, 1]  # the report shows failures, too
    assert callback.settled == {CELLS[0].spec.cell, CELLS[-1].spec.cell}


def test_waiting_is_explained(passing: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    callback = watch(Progress(CELLS, set()), waiting="no GPU is free")
    passing.now += 30
    callback.on_step_end(0, [])
    assert capsys.readouterr().out == ""
    passing.now += 40
    callback.on_step_end(0, [])
    assert "no GPU is free (waiting for 1 min 10 s)" in capsys.readouterr().out
    callback.on_trial_start(0, [], trial(CELLS[0]))
    passing.now += 70
    callback.on_step_end(0, [])
    assert "1 starting for 1 min 10 s" in capsys.readouterr().out


def test_it_never_raises(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError("disk full")

    callback = watch(Progress(CELLS, set()), on_finished=fails)
    unknown: Any = SimpleNamespace(trial_id="x", config={"run": {"cell": "of nobody"}})
    known = trial(CELLS[0])
    for broken in ({}, {"validation_accuracy": None}, {"validation_accuracy": 0.1}):
        callback.on_trial_result(0, [], known, broken)
    for one in (unknown, known):
        callback.on_trial_complete(0, [], one)
        callback.on_trial_error(0, [], one)
    assert "disk full" in capsys.readouterr().out

    def broken_pipe(line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(callback_module, "say", broken_pipe)
    callback.on_trial_complete(0, [], trial(CELLS[1]))


def test_cells_in_words_and_in_plain_values() -> None:
    assert describe(CELLS[-1]) == "tuned peak_lr=0.5 warmup=0.1 batch 256 seed 1"
    plain = parameters(CELLS[-1])
    assert plain.pop("cell") == CELLS[-1].spec.cell
    budget = {"batch_size": 256, "epochs": 4, "seed": 1}
    assert plain == {"arm": "tuned", "peak_lr": 0.5, "warmup_fraction": 0.1, **budget}
    assert parameters(CELLS[0]).keys() == {"cell", "arm", "batch_size", "epochs", "seed"}


def test_how_many_run_at_once() -> None:
    cpu, gpu = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}
    assert max_concurrent({"CPU": 2.0}, workers=4, per_worker=cpu) == 1
    assert max_concurrent({"CPU": 9.0}, workers=2, per_worker=cpu, limit=3) == 3
    assert max_concurrent({"CPU": 64.0, "GPU": 8.0}, workers=2, per_worker=gpu) == 4
    assert max_concurrent({}, workers=1, per_worker=gpu, limit=5) == 1
