"""Those who look on: progress.json, status, the report made again, TensorBoard, a recorded run replayed."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from synthetic import run
from synthetic import study as synthetic_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autolr_ray.cli import main
from autolr_ray.compare import board as board_module
from autolr_ray.compare.board import EventFiles, served
from autolr_ray.compare.callback import ProgressCallback
from autolr_ray.compare.failures import FailureLog
from autolr_ray.compare.figures import _STYLE
from autolr_ray.compare.group import parameters
from autolr_ray.compare.ledger import write_ledger
from autolr_ray.compare.progress import Progress, SweepState, published, read_state, write_state
from autolr_ray.compare.status import as_plain, as_text, status_of
from autolr_ray.compare.study import Cell, Study, dump_study
from autolr_ray.train import LocalContext, RunRecord
from autolr_ray.train import run as train_run
from autolr_ray.train.record import EpochRow, write_record

STUDY = Study.model_validate(
    {
        "name": "mine",
        "task": "fashion_mnist_subset",
        "seeds": [0, 1],
        "batches": [{"size": 64, "epochs": 2}, {"size": 256, "epochs": 4}],
        "arms": {
            "auto": {},
            "tuned": {"grid": {"peak_lr": [0.1, 0.5], "warmup_fraction": [0.1], "extend": 0}},
        },
        "candidate": "auto",
        "baseline": "tuned",
        "margin": 0.02,
    }
)
CELLS = STUDY.cells()
AUTO, GRID = ([c for c in CELLS if c.arm == arm] for arm in ("auto", "tuned"))


def record_of(cell: Cell, number: int = 0) -> RunRecord:
    """A made-up record of this cell."""
    schedule = cell.spec.schedule
    peak = getattr(schedule, "peak_lr", 0.2)
    made = run(
        "auto_x" if cell.arm == "auto" else cell.arm, "", cell.spec.batch_size, cell.spec.seed, peak, 0.1
    )
    return made.model_copy(
        update={
            "cell": cell.spec.cell, "study": "mine", "arm": cell.arm, "point": cell.point,
            "finished_at": f"2026-01-02T03:00:{number:02d}+00:00",
        }
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study's results: five of its twelve runs have finished."""
    (tmp_path / "study.yaml").write_text(dump_study(STUDY))
    for number, cell in enumerate([*AUTO[:3], *GRID[:2]]):
        write_record(record_of(cell, number), tmp_path / "cells")
    return tmp_path


def state(**changes: Any) -> SweepState:
    values: dict[str, Any] = {
        "study": "mine", "updated_at": datetime.now(UTC), "host": "h", "pid": 7, "total": 12, "done": 5,
        "failed": (), "running": (), "eta_seconds": 90.0, "ended": False,
        "dashboard": "http://127.0.0.1:8265",
    }  # fmt: skip
    return SweepState.model_validate({**values, **changes})


# --- progress.json ---


def test_a_sweep_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by the callback that Tune calls; not at every call; and last of all at the end."""
    now = 1000.0
    monkeypatch.setattr("autolr_ray.compare.progress.time", SimpleNamespace(monotonic=lambda: now))
    progress = Progress(CELLS, {CELLS[-1].spec.cell}, study="mine", folder=tmp_path)
    callback = ProgressCallback(progress, {cell.spec.cell: cell for cell in CELLS})
    trials = [SimpleNamespace(trial_id=c.spec.cell, config={"run": parameters(c)}) for c in CELLS[:3]]
    with published(progress):
        begun = read_state(tmp_path)
        assert begun is not None
        assert (begun.total, begun.done, begun.running, begun.ended) == (12, 1, (), False)
        assert (begun.host, begun.eta_seconds) == (socket.gethostname(), None)
        first, second, third = trials
        for trial in trials:
            callback.on_trial_start(0, [], trial)  # type: ignore[arg-type]
        reached = {"epoch": 1, "validation_accuracy": 0.75}
        callback.on_trial_result(0, [], first, reached)  # type: ignore[arg-type]
        callback.on_trial_complete(0, [], second)  # type: ignore[arg-type]
        callback.on_trial_error(0, [], third)  # type: ignore[arg-type]
        callback.on_step_end(0, [])
        assert read_state(tmp_path) == begun  # too soon
        now += 5
        callback.on_step_end(0, [])
        later = read_state(tmp_path)
        assert later is not None
        assert (later.done, later.failed) == (2, (CELLS[2].spec.cell,))
        (going,) = later.running
        assert (going.cell, going.epoch, going.epochs) == (CELLS[0].spec.cell, 1, CELLS[0].spec.epochs)
        assert (going.arm, going.batch_size, going.validation_accuracy) == ("auto", 64, 0.75)
        assert later.eta_seconds is not None
        assert not later.stale
    ended = read_state(tmp_path)
    assert ended is not None
    assert (ended.ended, ended.running, ended.done) == (True, (), 2)


def test_a_disk_that_is_full_ends_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    progress = Progress(CELLS, set(), study="mine", folder=tmp_path / "file")
    callback = ProgressCallback(progress, {cell.spec.cell: cell for cell in CELLS})
    with published(progress):
        progress._next_write = 0.0
        for _ in range(5):
            callback.on_step_end(0, [])
    assert capsys.readouterr().out.count("progress:") == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"study": 3}', b"\xff\xfe"])
def test_a_missing_or_damaged_state_is_none(folder: Path, content: bytes | None) -> None:
    if content is not None:
        (folder / "progress.json").write_bytes(content)
    assert read_state(folder) is None
    assert "no sweep is running" in as_text(status_of(folder))


# --- status ---


def test_counts(folder: Path) -> None:
    going = {"arm": "auto", "point": "", "batch_size": 256, "seed": 1, "epoch": 1, "epochs": 4}
    left = AUTO[3].spec
    running = [{**going, "cell": left.cell, "validation_accuracy": 0.5}]
    write_state(state(running=running, failed=(GRID[2].spec.cell, GRID[0].spec.cell)), folder)
    status = status_of(folder)
    counts = {(c.batch_size, c.arm): (c.finished, c.running, c.pending, c.failed) for c in status.counts}
    expected = {
        (size, arm): [0, 0, 0, 0] for size in (64, 256) for arm in ("auto", "tuned")
    }  # finished, running, pending, failed
    done = {cell.spec.cell for cell in [*AUTO[:3], *GRID[:2]]}
    for cell in CELLS:
        # GRID[0] failed in the sweep, and has a record all the same: it is finished.
        kind = 0 if cell.spec.cell in done else 1 if cell is AUTO[3] else 3 if cell is GRID[2] else 2
        expected[cell.spec.batch_size, cell.arm][kind] += 1
    assert counts == {key: tuple(value) for key, value in expected.items()}
    text = as_text(status)
    assert text.splitlines()[0].startswith(
        f"mine ({folder}): 5 of 12 runs finished, 1 running, 5 pending, 1 fail"
    )
    assert "process 7 on h, 1 min 30 s left" in text or "process 7 on h, 1 min 29 s left" in text
    assert "dashboard: http://127.0.0.1:8265" in text
    assert "running: auto batch 256 seed 1: epoch 1/4, validation 50.0 %" in text
    newest = record_of(GRID[1], 4)
    assert f"newest: tuned {GRID[1].point} batch 64 seed" in text
    assert as_plain(status)["newest"]["cell"] == newest.cell
    # What nobody may choose by is not shown.
    assert "test_accuracy" not in json.dumps(as_plain(status))
    assert f"{100 * newest.test_accuracy:.1f} %" not in text.replace(
        f"{100 * newest.validation_accuracy:.1f} %", ""
    )


@pytest.mark.usefixtures("coarse")
def test_why_runs_have_failed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FailureLog(folder / "failures")
    log.add(GRID[2].spec.cell, 3, "ValueError: no such thing\n  (traceback: error.txt)")
    log.add(GRID[3].spec.cell, 1, "the worker died")
    log.add(AUTO[0].spec.cell, 1, "this one has finished since")
    text = as_text(status_of(folder))
    told = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert len(told) == 2
    name = f"failed: tuned {GRID[2].point} batch {GRID[2].spec.batch_size} seed {GRID[2].spec.seed}: "
    assert told[0].startswith(f"{name}ValueError: no such thing (traceback: error.txt); 3 attempts, given up")
    assert told[1].endswith("the worker died; 1 attempt, the next sweep tries it again")
    failures = as_plain(status_of(folder))["failures"]
    assert [(f["cell"], f["given_up"]) for f in failures] == [
        (GRID[2].spec.cell, True), (GRID[3].spec.cell, False),
    ]  # fmt: skip
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == failures
    # And what ``compare`` finds, on standard output alone.
    for cell in CELLS:
        write_record(record_of(cell), folder / "cells")
    monkeypatch.setattr("autolr_ray.compare.command.open_study", lambda results, study: folder)
    assert main(["compare", "--study", str(folder / "study.yaml"), "--json"]) == 0
    told_all = capsys.readouterr()
    found = json.loads(told_all.out)
    assert (found["finished"], found["failures"], found["overall"]["seeds"]) == (12, [], [0, 1])
    assert "nothing to run" in told_all.err


def test_a_sweep_without_a_sign_of_life(folder: Path) -> None:
    old = datetime.now(UTC) - timedelta(seconds=200)
    running = {
        "cell": AUTO[3].spec.cell,
        "arm": "auto",
        "point": "",
        "batch_size": 256,
        "seed": 1,
        "epoch": 1,
    }
    running |= {"epochs": 4, "validation_accuracy": None}
    write_state(state(updated_at=old, running=[running]), folder)
    status = status_of(folder)
    assert sum(count.running for count in status.counts) == 0
    assert "stale: process 7 on h has given no sign of life for 3 min 20 s" in as_text(status)
    assert status.alive
    # It was killed after its last run, before it could say that it had ended.
    for cell in CELLS:
        write_record(record_of(cell), folder / "cells")
    assert not status_of(folder).alive
    assert "stale" not in as_text(status_of(folder))


def test_the_status_command(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", str(folder), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["finished"], one["pending"], one["total"], one["sweep"]) == (5, 7, 12, None)
    # Without a path: every study in results.
    (folder / "at" / "results").mkdir(parents=True)
    for name in ("one", "two"):
        (folder / "at" / "results" / name).mkdir()
        (folder / "at" / "results" / name / "study.yaml").write_text(dump_study(STUDY))
    monkeypatch.chdir(folder / "at")
    assert main(["status"]) == 0
    assert capsys.readouterr().out.count("0 of 12 runs finished, 12 pending") == 2
    assert not (folder / "at" / "results" / "one" / "cells").exists()  # it only looks
    monkeypatch.chdir(folder)
    for bad in (["status"], ["status", str(folder / "nothing")], ["status", str(folder), "--watch", "0"]):
        assert main(bad) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_watching_until_the_sweep_has_ended(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(state(), folder)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        write_state(state(ended=len(waits) == 2), folder)

    monkeypatch.setattr("autolr_ray.compare.status.time.sleep", sleep)
    assert main(["status", str(folder), "--watch", "0.5", "--json"]) == 0
    assert waits == [0.5, 0.5]
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)[0]["sweep"]["ended"] for line in lines] == [False, False, True]


def test_a_study_that_cannot_be_read_is_said(folder: Path) -> None:
    (folder / "study.yaml").write_text("name: [")
    assert "study.yaml is passed over" in as_text(status_of(folder))
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "mine", "colour": "blue"}))
    status = status_of(folder)
    assert status.total is None
    assert any("colour: unknown key" in note for note in status.notes)
    assert sum(count.finished for count in status.counts) == 5


# --- report ---


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels, faster tests."""
    monkeypatch.setitem(_STYLE, "savefig.dpi", 40)


@pytest.mark.usefixtures("coarse")
def test_report_of_a_sweep_that_is_going_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "note: 5 of 12 cells finished" in told
    assert f"report: {folder / 'report.html'}" in told
    assert "margin 2" in (folder / "summary.md").read_text()
    assert not (folder / "ledger.parquet").exists()


@pytest.mark.usefixtures("coarse")
def test_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger.parquet"
    write_ledger(synthetic_study(batch_sizes=(128,), warmups=(0.05,)), ledger)
    assert main(["report", str(ledger), "--json", "--margin", "0.03", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["study"], found["candidate"], found["baseline"]) == (
        "synthetic",
        "auto_warmup",
        "linear_warmup",
    )
    (verdict,) = found["verdicts"]
    assert (verdict["batch_size"], verdict["verdict"], verdict["seeds"]) == (128, "equivalent", [0, 1, 2])
    low, mean, high = (verdict["difference"][name] for name in ("low", "mean", "high"))
    assert low < mean < high
    assert mean == pytest.approx(verdict["candidate_test"] - verdict["baseline_test"])
    assert {s["arm"] for s in found["summaries"]} == {"auto_warmup", "linear_warmup", "adamw_fixed"}
    assert {(other["arm"], other["batch_size"]) for other in found["others"]} == {("adamw_fixed", 128)}
    (tuning,) = found["tunings"]
    assert (tuning["arm"], len(tuning["points"])) == ("linear_warmup", 5)
    assert tuning["edge"] in ("inside", "lowest", "highest")
    assert tuning["chosen"] in {point["point"] for point in tuning["points"]}
    assert "test_accuracy" not in json.dumps(found["tunings"])
    assert (found["overall"], found["failures"]) == (None, [])  # one batch size, no folder of failures
    assert found["report"] == str(tmp_path / "out" / "report.html")
    assert Path(found["report"]).is_file()
    assert "report: " in told.err


@pytest.mark.usefixtures("coarse")
def test_what_a_report_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger.parquet"
    records = synthetic_study(batch_sizes=(128,), seeds=(0,), warmups=(0.05,), peaks=(0.01, 0.1))
    write_ledger([*records, run("a", "", 128, 0, 0.1, 0.1, study="other")], ledger)
    (tmp_path / "file.parquet").write_text("no")
    for arguments, phrase in (
        ([tmp_path / "none.parquet"], "none.parquet is not allowed"),
        ([tmp_path / "file.parquet"], "is not a Parquet file"),
        ([ledger], "choose one with --study: other, synthetic"),
        ([ledger, "--study", "third"], "study: 'third' is not allowed; here is other, synthetic"),
        ([ledger, "--study", "other", "--margin", "-1"], "margin"),
        ([ledger, "--study", "other", "--baseline", "b"], "baseline: 'b' is not allowed; the arms are"),
        ([ledger, "--study", "other", "--out", tmp_path / "file.parquet"], "out: "),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert phrase in line
    assert main(["report", str(ledger), "--study", "other", "--out", str(tmp_path / "out")]) == 0


# --- board ---


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files of one run hold."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def place(events: Path, cell: Cell) -> Path:
    (found,) = events.glob(f"**/*-{cell.spec.cell[:6]}")
    return found


def test_event_files_follow_a_sweep(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    events = tmp_path_factory.mktemp("events")
    files = EventFiles(folder, events)
    rows = [
        EpochRow(epoch=e, step=10 * e, lr=0.1, train_loss=1.0 / e, validation_accuracy=0.5, seconds=e)
        for e in (1, 2)
    ]
    trial = folder / "runs" / "tune-1" / f"name-{AUTO[3].spec.cell}"
    trial.mkdir(parents=True)
    (trial / "result.json").write_text(rows[0].model_dump_json() + '\n{"epoch": 2, "st')
    assert files.update() == 6
    (trial / "result.json").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    assert files.update() == 6
    for cell in CELLS:
        write_record(record_of(cell), folder / "cells")
    records = {cell.spec.cell: record_of(cell) for cell in CELLS}
    before = {cell.spec.cell for cell in CELLS if "result/test_accuracy" in scalars_or_none(events, cell)}
    assert before == {cell.spec.cell for cell in AUTO[:3]}  # of the grid, nobody may look yet
    assert files.update() == 12
    files.close()
    going = scalars(place(events, AUTO[3]))["epoch/train_loss"]
    # Two epochs while it ran, the others of its record when it was done, none twice.
    assert [step for step, _ in going[:2]] == [10, 20]
    assert len(going) == len(records[AUTO[3].spec.cell].epoch_rows)
    for cell in CELLS:
        found, record = scalars(place(events, cell)), records[cell.spec.cell]
        assert found["result/peak_lr"] == [(record.total_steps, pytest.approx(record.peak_lr))]
        assert len(found["step/lr"]) == len(record.trace.lr)
    shown = {cell.spec.cell for cell in CELLS if "result/test_accuracy" in scalars(place(events, cell))}
    chosen = {c.spec.cell for c in GRID if c.spec.schedule.peak_lr == 0.1}  # type: ignore[union-attr]
    assert shown == {c.spec.cell for c in AUTO} | chosen


def scalars_or_none(events: Path, cell: Cell) -> dict[str, Any]:
    found = list(events.glob(f"**/*-{cell.spec.cell[:6]}"))
    return scalars(found[0]) if found else {}


def ask(url: str, what: str, **content: Any) -> Any:
    """TensorBoard's own interface, as its page uses it."""
    request = urllib.request.Request(
        f"{url}data/plugin/hparams/{what}", data=json.dumps({"experimentName": "", **content}).encode(),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def finished(folder: Path) -> Path:
    """The whole study has finished."""
    for cell in CELLS:
        write_record(record_of(cell), folder / "cells")
    return folder


def test_hparams_page(finished: Path) -> None:
    """TensorBoard itself: a line a run, with the settings of all arms and the results."""
    with served(finished, port=0, bind_all=False) as url:
        assert url.startswith(("http://127.0.0.1:", "http://localhost:"))
        for _ in range(120):
            time.sleep(0.5)
            experiment = ask(url, "experiment", hparamsLimit=100, includeMetrics=True)
            columns = [{"hparam": info["name"]} for info in experiment["hparamInfos"]]
            columns += [{"metric": info["name"]} for info in experiment["metricInfos"]]
            groups = ask(
                url, "session_groups", allowedStatuses=["STATUS_SUCCESS", "STATUS_UNKNOWN"],
                colParams=columns, startIndex=0, sliceSize=100,
            )["sessionGroups"]  # fmt: skip
            tested = [g for g in groups if any("test" in m["name"]["tag"] for m in g["metricValues"])]
            if len(groups) == 12 and len(tested) == 8:
                break
    expected = {(c.arm, c.spec.batch_size, c.spec.seed, round(record_of(c).peak_lr, 9)) for c in CELLS}
    lines = [group["hparams"] for group in groups]
    assert {(h["arm"], h["batch_size"], h["seed"], round(h["peak_lr"], 9)) for h in lines} == expected
    for group in groups:
        metrics = {metric["name"]["tag"] for metric in group["metricValues"]}
        assert {"result/validation_accuracy", "result/device_seconds"} <= metrics
    assert len(tested) == 8


def test_a_port_that_is_taken(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["board", str(finished), "--port", str(port)]) == 2
    assert f"port: {port} cannot be used" in capsys.readouterr().err
    assert main(["board", str(finished / "nothing")]) == 2
    assert "is not allowed" in capsys.readouterr().err


def test_only_this_machine_unless_asked(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--bind-all`` alone opens the door; Ctrl-C closes it, and nothing is left behind."""
    from tensorboard import program

    asked: list[tuple[bool, str | None, str]] = []

    def launch(server: Any) -> str:
        asked.append((server.flags.bind_all, server.flags.host, server.flags.logdir))
        return "http://here/"

    monkeypatch.setattr(program.TensorBoard, "launch", launch)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(board_module, "_wait", interrupted)
    assert main(["board", str(finished)]) == 0
    assert main(["board", str(finished), "--bind-all"]) == 0
    assert [(everyone, host) for everyone, host, _ in asked] == [(False, "127.0.0.1"), (True, None)]
    assert not any(Path(logs).exists() for _, _, logs in asked)


# --- replay of a recorded run ---


def test_a_recorded_run_decides_again_as_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digits_run: RunRecord
) -> None:
    ledger = tmp_path / "ledger.parquet"
    write_ledger([digits_run, run("linear_warmup", "", 128, 0, 0.1, 0.1)], ledger)
    assert main(["replay", str(ledger), "--cell", digits_run.cell[:6], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == digits_run.verdict == "passed"
    assert found["switch_step"] == digits_run.switch_step
    assert found["peak_lr"] == pytest.approx(digits_run.peak_lr, rel=1e-9)
    assert [r["step"] for r in found["receipts"]] == [r.step for r in digits_run.receipts]
    assert any("no study.yaml" in note for note in found["notes"])
    for cell, phrase in (
        ("zz", "names 0 runs"),
        ("", "names 2 runs"),
        (run("linear_warmup", "", 128, 0, 0.1, 0.1).cell, "linear_warmup does not rise"),
    ):
        assert main(["replay", str(ledger), "--cell", cell]) == 2
        assert phrase in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nothing"), "--cell", "a"]) == 2


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A real run of a few seconds, of the original's warmup."""
    from autolr_ray.train import AutoWarmupSpec, RunSpec

    schedule = AutoWarmupSpec(warmup="exponential")
    spec = RunSpec(task="digits", model="mlp", batch_size=64, epochs=12, schedule=schedule)
    place = tmp_path_factory.mktemp("digits")
    return train_run(spec, LocalContext(place / "runs", place / "records"), arm="auto_warmup", study="s")
