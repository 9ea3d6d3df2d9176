"""Real sweeps on real Ray, in processes of their own: whole, repeated, killed, interrupted, failing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from autolr_ray.compare.failures import FailureLog
from autolr_ray.compare.ledger import RunStore, read_ledger
from autolr_ray.compare.progress import read_state
from autolr_ray.train.record import RunRecord

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "compare.py"
TASK = """
import os
import time

import torch
from neighbour import EXAMPLES  # beside this file, where the sweep was started
from torch import nn

from autolr_ray.tasks import Splits, Task, TensorData


def data(data_dir):
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(EXAMPLES, 8, generator=draw)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    parts = [slice(0, 256), slice(256, 288), slice(288, EXAMPLES)]
    return Splits(**{
        name: TensorData(inputs=x[part], targets=y[part])
        for name, part in zip(("train", "validation", "test"), parts)
    })


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def slowly(x):
    time.sleep(float(open("delay.txt").read()))  # a path relative to where the sweep was started
    return x


def failing(x):
    if len(x) == 24:
        with open("lives.txt", "a") as lives:
            lives.write(f"{os.getpid()}\\n")
        raise ArithmeticError("no batches of 24 today")
    return x


def dying(x):
    if not os.path.exists("killed.txt"):
        with open("killed.txt", "w") as killed:
            killed.write(str(os.getpid()))
        os.kill(os.getpid(), 9)
    return x


task = Task(name="toy", data=data, model=model, transform=slowly)
broken = Task(name="toy", data=data, model=model, transform=failing)
deadly = Task(name="toy", data=data, model=model, transform=dying)
"""
ARMS = """
import torch


def mine(parts):
    return torch.optim.SGD(parts.model.parameters(), lr=0.1), None
"""
STUDY: dict[str, Any] = {
    "name": "toy",
    "task": "toy_task:task",
    "seeds": [0, 1],
    "batches": [{"size": 16, "epochs": 6}, {"size": 64, "epochs": 4, "workers": 2}],
    "arms": {"auto": {}, "tuned": {"grid": {"peak_lr": [0.01], "warmup_fraction": [0.1]}}},
    "candidate": "auto",
    "baseline": "tuned",
}
# Two runs, one after the other: of one worker, and nested ones of two.
PLAIN = {"batches": STUDY["batches"][:1], "seeds": [0], "resources": {"max_concurrent": 1}}
NESTED = {**PLAIN, "batches": STUDY["batches"][1:]}


class Sweep:
    """One command, run as often as a test likes, in a place of its own: files, HOME and Ray."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "toy_task.py").write_text(TASK)
        (folder / "neighbour.py").write_text("EXAMPLES = 320\n")
        self.change(**changes)
        for name in ("first_arms", "second_arms"):
            (folder / f"{name}.py").write_text(f"{ARMS}\nNAME = {name!r}\n")
        self.delay(0.0)
        self.out = folder / "results" / "toy"
        self.process: subprocess.Popen[str] | None = None

    def delay(self, seconds: float) -> None:
        """How long each batch takes from now on."""
        (self.folder / "delay.new").write_text(str(seconds))
        os.replace(self.folder / "delay.new", self.folder / "delay.txt")

    def change(self, **changes: object) -> None:
        """Write the study anew."""
        (self.folder / "toy.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), "--study", "toy.yaml", "--results", "results", *options]
        with (self.folder / "out.txt").open("w") as out, (self.folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, "RAY_TMPDIR": str(self.folder), "HOME": str(self.folder)},
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        return self.process

    def finish(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=600)

    def run(self, *options: str) -> int:
        self.start(*options)
        return self.finish()

    @property
    def said(self) -> str:
        return (self.folder / "out.txt").read_text()

    @property
    def complained(self) -> str:
        return (self.folder / "err.txt").read_text()

    def ledger(self) -> list[RunRecord]:
        return read_ledger(self.out / "ledger.parquet")

    def cells(self) -> dict[str, int]:
        """Finished cells, and when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.out / "cells").glob("*.json")}

    def lives(self) -> int:
        """How many processes have met the error that the task raises."""
        return len((self.folder / "lives.txt").read_text().split())

    def checkpoints(self, arm: str) -> list[int]:
        """When the arm's checkpoints were written, the newest first."""
        found = (self.out / "runs").glob(f"{arm}-*/**/checkpoint*.pt")
        return sorted((path.stat().st_mtime_ns for path in found), reverse=True)

    def wait_for(self, happened: Callable[[], object]) -> None:
        assert self.process is not None
        deadline = time.monotonic() + 600
        while not happened():
            assert self.process.poll() is None, self.said + self.complained
            assert time.monotonic() < deadline, self.said + self.complained
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Ray's processes of this place, by its temporary directory: nobody else's."""
        mine = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    told = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
                    dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                except OSError:
                    continue
                if not dead and f"RAY_TMPDIR={self.folder}\0".encode() in told + b"\0":
                    mine.append(int(entry.name))
        return mine

    def clean(self) -> None:
        for _ in range(50):
            left = self.processes()
            if not left:
                return
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"processes are left: {self.processes()}")


@pytest.fixture(scope="session")
def place(ray_tmp: Path) -> Iterator[Callable[..., Sweep]]:
    made: list[Sweep] = []

    def make(**changes: object) -> Sweep:
        made.append(Sweep(ray_tmp / str(len(made)), **changes))
        return made[-1]

    yield make
    for sweep in made:
        sweep.clean()
        shutil.rmtree(sweep.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def whole(place: Callable[..., Sweep]) -> Sweep:
    """A sweep that nothing disturbed."""
    sweep = place()
    assert sweep.run() == 0, sweep.said + sweep.complained
    return sweep


def results(record: RunRecord) -> object:
    """Everything of a run but when, how long and how often."""
    own = record.model_dump(
        exclude={"device_seconds", "startup_seconds", "finished_at", "restarts", "versions"}
    )
    own["epoch_rows"] = [{**row, "seconds": 0.0} for row in own["epoch_rows"]]
    return repr(own)  # NaN is NaN


def same_results(sweep: Sweep, whole: Sweep) -> bool:
    expected = {record.cell: results(record) for record in whole.ledger()}
    return all(results(record) == expected[record.cell] for record in sweep.ledger())


def test_a_whole_sweep(whole: Sweep) -> None:
    records = whole.ledger()
    assert len(records) == 2 * 2 * 2
    assert {(r.arm, r.batch_size, r.seed, r.workers) for r in records} == {
        (arm, size, seed, workers)
        for arm in ("auto", "tuned")
        for size, workers in ((16, 1), (64, 2))
        for seed in (0, 1)
    }
    assert {r.restarts for r in records} == {0}
    assert len(whole.cells()) == 8
    for name in ("report.html", "summary.md", "summary.csv", "study.yaml", "figures/accuracy.png"):
        assert (whole.out / name).stat().st_size > 0
    assert "[8/8]" in whole.said
    assert f"report: {whole.out / 'report.html'}" in whole.said
    # TensorBoard finds the runs; checkpoints of finished runs are gone.
    assert len(list(whole.out.rglob("events.out.tfevents.*"))) == 8
    assert list(whole.out.rglob("checkpoint*")) == []


def test_tune_keeps_little_of_a_trial(whole: Sweep) -> None:
    """Its state of all trials is written again and again; the data set was once in each of them, twice."""
    states = list(whole.out.rglob("experiment_state-*.json"))
    assert states
    for state in states:
        for trial in (json.loads(entry[0]) for entry in json.loads(state.read_text())["trial_data"]):
            assert len(json.dumps(trial["trial_name_creator"])) < 500
            assert len(json.dumps(trial)) < 20_000


def test_others_are_told(whole: Sweep) -> None:
    """``progress.json`` of a sweep that has ended."""
    state = read_state(whole.out)
    assert state is not None
    assert (state.study, state.total, state.done, state.failed) == ("toy", 8, 8, ())
    assert (state.running, state.ended) == ((), True)


def test_a_quiet_console(whole: Sweep) -> None:
    assert whole.complained == ""
    assert len(whole.said.splitlines()) < 60
    for noise in ("WARNING", "Traceback", "INFO", "auth"):
        assert noise not in whole.said


def test_a_finished_sweep_runs_nothing_again(whole: Sweep) -> None:
    before, ledger = whole.cells(), (whole.out / "ledger.parquet").read_bytes()
    # One run was cut off between its result and the end of its checkpoints; another is not of this study.
    cut, other = (
        whole.out / "runs" / f"auto-b16-s0-{cell}" for cell in (whole.ledger()[0].cell, "0123456789abcdef")
    )
    for place in (cut, other):
        place.mkdir()
        (place / "checkpoint-000000060.pt").touch()
    assert whole.run() == 0
    assert not cut.exists()
    assert other.exists()
    shutil.rmtree(other)
    assert "all 8 runs are finished, nothing to run" in whole.said
    assert "starting Ray" not in whole.said
    assert whole.cells() == before
    assert (whole.out / "ledger.parquet").read_bytes() == ledger
    assert whole.complained == ""


def test_a_killed_driver_of_nested_runs(place: Callable[..., Sweep], whole: Sweep) -> None:
    sweep = place(**NESTED)
    process = sweep.start()
    sweep.wait_for(sweep.cells)
    sweep.delay(0.3)
    sweep.wait_for(lambda: sweep.checkpoints("tuned"))  # between two epochs of the second run
    sweep.wait_for(lambda: (state := read_state(sweep.out)) and any(run.epoch for run in state.running))
    state = read_state(sweep.out)
    assert state is not None
    assert (state.pid, state.done, state.ended) == (process.pid, 1, False)
    assert (state.running[0].arm, state.running[0].epochs) == ("tuned", 4)
    os.kill(process.pid, signal.SIGKILL)
    assert sweep.finish() == -signal.SIGKILL
    before = sweep.cells()
    assert len(before) == 1
    sweep.clean()
    sweep.delay(0.0)
    assert sweep.run() == 0, sweep.said + sweep.complained
    assert "2 runs, 1 of them finished before" in sweep.said
    assert len(sweep.cells()) == 2
    assert before.items() <= sweep.cells().items()
    assert same_results(sweep, whole)
    assert sorted(record.restarts for record in sweep.ledger()) == [0, 1]


def test_interrupted_then_killed_then_whole(place: Callable[..., Sweep], whole: Sweep) -> None:
    sweep = place(**PLAIN)
    process = sweep.start()
    sweep.wait_for(sweep.cells)
    sweep.delay(0.3)
    sweep.wait_for(lambda: sweep.checkpoints("tuned"))
    os.kill(process.pid, signal.SIGINT)
    assert sweep.finish() == 130, sweep.said + sweep.complained
    assert sweep.complained == "interrupted: finished runs are kept; the same command goes on from here\n"
    first, seen = sweep.cells(), sweep.checkpoints("tuned")
    assert len(first) == len(sweep.ledger()) == 1
    assert "1 of 2 cells finished" in sweep.said
    sweep.clean()

    process = sweep.start()
    sweep.wait_for(lambda: sweep.checkpoints("tuned") > seen)
    os.killpg(process.pid, signal.SIGKILL)
    assert sweep.finish() == -signal.SIGKILL
    assert sweep.cells() == first
    sweep.clean()

    sweep.delay(0.0)
    assert sweep.run() == 0, sweep.said + sweep.complained
    assert "2 runs, 1 of them finished before" in sweep.said
    assert len(sweep.cells()) == 2
    assert first.items() <= sweep.cells().items()
    assert same_results(sweep, whole)
    assert sorted(record.restarts for record in sweep.ledger()) == [0, 2]


def test_a_grid_grows_at_its_edge(place: Callable[..., Sweep]) -> None:
    grid = {"peak_lr": [1e-6, 2e-6], "warmup_fraction": [0.1], "extend": 1}  # neither is nearly enough
    sweep = place(**{**PLAIN, "arms": {"auto": {}, "tuned": {"grid": grid}}})
    assert sweep.run() == 0, sweep.said + sweep.complained
    assert "the best point lies at the edge of its grid: 1 runs more" in sweep.said
    assert "[4/4]" in sweep.said
    peaks = sorted(r.peak_lr for r in sweep.ledger() if r.arm == "tuned")
    assert peaks in ([5e-7, 1e-6, 2e-6], [1e-6, 2e-6, 4e-6])
    assert sweep.run() == 0
    assert "all 4 runs are finished, nothing to run" in sweep.said


def test_cells_that_fail_do_not_stop_the_others(place: Callable[..., Sweep]) -> None:
    small = [{"size": size, "epochs": 1} for size in (16, 24)]
    sweep = place(
        task="toy_task:broken", batches=[*small, {"size": 4096, "epochs": 1, "workers": 4096}], seeds=[0]
    )
    assert sweep.run() == 1
    assert {(r.arm, r.batch_size) for r in sweep.ledger()} == {("auto", 16), ("tuned", 16)}
    lines = sweep.complained.splitlines()  # nothing else is there, above all no traceback: it lies in a file
    assert len(lines) == 5
    assert all(line.startswith("FAILED  ") for line in lines[:4])
    assert "--retry-failed" in lines[4]
    told = [line for line in lines if "ArithmeticError: no batches of 24 today" in line]
    assert len(told) == 2
    for line in told:
        assert "in failing" in Path(line.rpartition("traceback: ")[2].rstrip(")")).read_text()
    assert sum("it needs 4096 CPUs, the cluster has" in line for line in lines) == 2
    assert "2 of 6 cells finished" in sweep.said
    state = read_state(sweep.out)
    assert state is not None
    assert (len(state.failed), state.done, state.ended) == (4, 2, True)
    assert (sweep.out / "report.html").exists()

    # They had their three attempts: the same command leaves them alone, unless told otherwise.
    log = FailureLog(sweep.out / "failures")
    assert [run.attempts for run in log.read().values()] == [3, 3]
    assert sweep.run() == 1
    assert sweep.complained.count("given up after 3 attempts: ArithmeticError") == 2
    assert [run.attempts for run in log.read().values()] == [3, 3]
    assert sweep.lives() == 6
    assert sweep.run("--retry-failed") == 1  # as if for the first time
    assert sweep.complained.count("ArithmeticError: no batches of 24 today") == 2
    assert "given up after" not in sweep.complained
    assert [run.attempts for run in log.read().values()] == [3, 3]
    assert sweep.lives() == 12
    (sweep.folder / "toy_task.py").write_text(TASK.replace("len(x) == 24", "len(x) == 25"))
    assert sweep.run() == 1  # other code, other cells: they run, and only what can never run is left
    assert {(r.arm, r.batch_size) for r in sweep.ledger()} >= {("auto", 24), ("tuned", 24)}


def test_a_run_of_several_workers_has_as_many_lives_as_it_says(place: Callable[..., Sweep]) -> None:
    two = {"size": 48, "epochs": 1, "workers": 2}
    arms = {"auto": {}, "tuned": {"grid": {"peak_lr": [0.01], "extend": 0}}}
    sweep = place(task="toy_task:broken", batches=[two], arms=arms, seeds=[0], resources={"max_attempts": 2})
    assert sweep.run() == 1
    log = FailureLog(sweep.out / "failures")
    assert [run.attempts for run in log.read().values()] == [2, 2]
    assert all("ArithmeticError: no batches of 24 today" in run.reason for run in log.read().values())
    assert (
        4 <= sweep.lives() <= 8
    )  # of two runs, two lives each, with two workers each that may both have written
    assert (sweep.out / "report.html").exists()


def test_a_worker_that_dies_is_no_error_of_the_run(place: Callable[..., Sweep]) -> None:
    sweep = place(**{**NESTED, "task": "toy_task:deadly", "resources": {"max_attempts": 1}})
    assert sweep.run() == 0, sweep.said + sweep.complained
    assert (sweep.folder / "killed.txt").exists()
    assert len(sweep.ledger()) == 2
    assert FailureLog(sweep.out / "failures").read() == {}


def test_own_task_and_own_arms_in_other_modules_then_a_seed_more(place: Callable[..., Sweep]) -> None:
    own = {name: {"own": f"{name}_arms:mine"} for name in ("first", "second")}
    changes = {**PLAIN, "arms": {**STUDY["arms"], **own}}
    sweep = place(**changes)
    assert sweep.run() == 0, sweep.said + sweep.complained
    first = sweep.cells()
    assert {r.arm for r in sweep.ledger()} == {"auto", "tuned", "first", "second"}
    sweep.change(**{**changes, "seeds": [0, 1]})
    assert sweep.run() == 0, sweep.said + sweep.complained
    assert "8 runs, 4 of them finished before" in sweep.said
    assert first.items() <= sweep.cells().items()  # not written again
    assert {(r.arm, r.seed) for r in sweep.ledger()} == {(a, s) for a in changes["arms"] for s in (0, 1)}


def test_two_sweeps_side_by_side_in_one_folder(place: Callable[..., Sweep]) -> None:
    """Both begin the same runs. Each record is written once; whoever is second stops, and nothing fails."""
    changes = {**PLAIN, "seeds": [0, 1], "resources": {"max_concurrent": 1, "max_attempts": 1}}
    one, two = place(**changes), place(**changes)
    (one.folder / "results").mkdir()
    (two.folder / "results").symlink_to(one.folder / "results")
    for sweep in (one, two):
        sweep.delay(0.05)
        sweep.start()
    one.wait_for(one.cells)
    first = one.cells()
    for sweep in (one, two):
        assert sweep.finish() == 0, sweep.said + sweep.complained
        assert sweep.complained == ""
    assert len(one.cells()) == len(one.ledger()) == 4
    assert first.items() <= one.cells().items()
    assert FailureLog(one.out / "failures").read() == {}
    assert list(one.out.rglob("checkpoint*")) == []


def test_no_cluster_at_the_address(place: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = place()
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:never")
    assert sweep.run() == 2
    (line,) = sweep.complained.splitlines()
    assert line.startswith("address: no Ray cluster can be used at 'nowhere:never'")
    assert RunStore(sweep.out / "cells").finished() == set()
