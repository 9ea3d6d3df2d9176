"""One run from the command line: its spec, what is refused, its lines, its end, interruptions and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import train_helpers as helpers
import yaml
from train_helpers import result

from autolr_ray.cli import main
from autolr_ray.tasks import Task
from autolr_ray.train import RunRecord, RunSpec
from autolr_ray.train.single import read_spec

BASE = {"task": "train_helpers:mlp", "batch_size": 8, "epochs": 8}
# As ``train_helpers.AUTO``: these runs turn.
OPTIONS = [
    *("--task", "train_helpers:mlp", "--batch-size", "8", "--epochs", "8"),
    *("--warmup", "exponential", "--max-lr", "10", "--max-warmup-fraction", "0.8", "--device", "cpu"),
]


def train(*arguments: object) -> int:
    return main(["train", *OPTIONS, *map(str, arguments)])


def read(options: dict[str, Any], schedule: dict[str, Any], file: Path | None = None) -> RunSpec:
    return read_spec(file, {**BASE, **options} if file is None else options, schedule)


# --- the spec ---


def test_options_and_file_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    linear = {"kind": "linear_warmup", "peak_lr": 0.02, "warmup_fraction": 0.1}
    lamb = {"name": "lamb", "weight_decay": 0.5}
    whole = {**BASE, "seed": 3, "optimizer": lamb, "compute": {"channels_last": True}, "schedule": linear}
    file.write_text(yaml.safe_dump(whole))
    assert read({}, {}, file) == RunSpec.model_validate(whole)
    # An option wins over the file; the settings beside what it names stay.
    changed = read({"optimizer": "lamb", "precision": "bfloat16", "seed": 4}, {"peak_lr": 0.1}, file)
    assert changed == RunSpec.model_validate(
        {
            **whole,
            "seed": 4,
            "compute": {"channels_last": True, "precision": "bfloat16"},
            "schedule": {**linear, "peak_lr": 0.1},
        }
    )
    # What another kind of schedule or optimizer was set to goes.
    other = read({"optimizer": "adamw"}, {"kind": "auto_warmup", "rule": "paper"}, file)
    assert (other.optimizer.name, other.schedule.kind) == ("adamw", "auto_warmup")
    assert read({"seed": None}, {"rule": None}) == RunSpec.model_validate(BASE)


def test_optimizers_that_scale_their_own_steps_have_schedules_of_their_own() -> None:
    free = read({"optimizer": "schedule_free_adamw"}, {})
    assert (free.schedule.kind, free.schedule.lr) == ("constant", 0.0025)
    assert read({"optimizer": "schedule_free_adamw"}, {"lr": 0.01}).schedule.lr == 0.01
    alone = read({"optimizer": "prodigy"}, {}).schedule
    assert (alone.kind, alone.peak_lr, alone.warmup_fraction) == ("linear_warmup", 1.0, 0.0)
    changed = read({"optimizer": "prodigy"}, {"kind": "linear_warmup", "decay": "linear"}).schedule
    assert (changed.peak_lr, changed.decay) == (1.0, "linear")
    assert read({"optimizer": "prodigy"}, {"kind": "constant", "lr": 1.0}).schedule.kind == "constant"
    probe = read({}, {"kind": "lr_range_test", "steps": 40, "max_lr": 3.0}).schedule
    assert (probe.kind, probe.steps, probe.max_lr) == ("lr_range_test", 40, 3.0)


@pytest.mark.parametrize("optimizer", ["prodigy", "schedule_free_adamw"])
def test_they_train_from_their_names_alone(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--task", "train_helpers:mlp", "--batch-size", "8", "--epochs", "1", "--device", "cpu"]
    assert main(["train", *small, "--optimizer", optimizer, "--results", str(tmp_path)]) == 0
    (path,) = (tmp_path / "cells").glob("*.json")
    assert RunRecord.model_validate_json(path.read_bytes()).optimizer == optimizer


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        ({"batch_size": 0}, {}, "batch_size: Input should be greater than or equal to 1 (given: 0)"),
        ({"workers": 3}, {}, "batch_size: 8 is not allowed; it must be divisible by workers"),
        ({"task": None}, {}, "task: is missing"),
        ({"task": "nope"}, {}, "task: 'nope' is not allowed; expected one of fashion_mnist_subset"),
        ({"model": "cnn"}, {}, "model: 'cnn' is not allowed"),
        ({}, {"peak_lr": 0.1}, "peak_lr: 0.1 is not allowed with the schedule auto_warmup; it has rule, "),
        (
            {},
            {"kind": "linear_warmup", "rule": "paper"},
            "rule: 'paper' is not allowed with the schedule lin",
        ),
        (
            {},
            {"kind": "constant", "peak_lr": 0.1},
            "peak_lr: 0.1 is not allowed with the schedule constant; it",
        ),
        (
            {"optimizer": "prodigy"},
            {"kind": "auto_warmup"},
            "'auto_warmup' is not allowed with the optimizer",
        ),
        ({}, {"min_lr": 2.0}, "min_lr: 2 is not allowed; it must be below max_lr (1)"),
    ],
)
def test_what_is_refused(options: dict[str, Any], schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_spec(None, {**BASE, **options}, schedule)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("- 1", "a mapping of fields is needed, this is list"),
        ("task: [", "is not YAML"),
        (None, "cannot be read (No such file"),
        ("batchsize: 3", "run.yaml: batchsize: unknown key"),
    ],
)
def test_a_file_that_is_no_run(
    tmp_path: Path, content: str | None, phrase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    assert train("--spec", tmp_path / "run.yaml", "--results", tmp_path / "results") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert phrase in told.err
    assert not (tmp_path / "results").exists()


def test_places_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "s3://bucket/x"):
        assert train("--results", place) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("results: ")


# --- the run ---


def test_lines_record_and_the_second_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--results", tmp_path) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    (path,) = (tmp_path / "cells").glob("*.json")
    record = RunRecord.model_validate_json(path.read_bytes())
    assert record.verdict == "passed"
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 8
    for line, row in zip(epochs, record.epoch_rows, strict=True):
        assert line.startswith(f"epoch {row.epoch}/8  train loss {row.train_loss:.4g}  validation ")
        assert line.endswith(" left") == (row.epoch < 8)
    # When it turned, why, and after the line of that epoch.
    turned = next(i for i, line in enumerate(lines) if "the learning rate turned" in line)
    said = f"after step {record.switch_step}, down from {record.peak_lr:.3g}: the loss has passed its minimum"
    assert said in lines[turned]
    before = -(-record.switch_step // helpers.STEPS_PER_EPOCH)
    assert lines[turned - 1].startswith(f"epoch {before}/8")
    assert f"test {record.test_accuracy:.4f}" in lines[-2]
    assert lines[-1] == f"record: {path}"
    assert list((tmp_path / "runs").iterdir()) == []
    # Again: nothing is trained, and a program gets the record.
    assert train("--results", tmp_path, "--json") == 0
    told = capsys.readouterr()
    # JSON that every reader takes: a strength that is NaN is null.
    assert json.loads(told.out) == json.loads(path.read_text(), parse_constant=lambda name: None)
    assert "NaN" not in told.out
    assert "finished before" in told.err
    assert "epoch" not in told.err


calls = 0


def _fails_once(inputs: Any) -> Any:
    """The third epoch's end (validation) is where the first life ends."""
    global calls
    if len(inputs) > 8:
        calls += 1
        if calls == 3:
            raise FAILURE
    return helpers.scale(inputs)


FAILURE: BaseException = KeyboardInterrupt()
fragile = Task(
    name="mlp", data=helpers.tensors, model=helpers.network, transform=_fails_once, augment=helpers.jitter
)


@pytest.mark.parametrize(("failure", "status"), [(KeyboardInterrupt(), 130), (ArithmeticError("bad day"), 1)])
def test_an_interrupted_or_failed_run_goes_on(
    failure: BaseException,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "FAILURE", failure)
    monkeypatch.setattr(module, "calls", 0)
    again = ["--task", f"{__name__}:fragile", "--results", tmp_path]
    assert train(*again) == status
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    if status == 1:
        found = re.fullmatch(r"\S+: failed: bad day \(traceback: (.*)\)", line)
        assert found
        assert "ArithmeticError: bad day" in Path(found[1]).read_text()
    else:
        assert "the same command goes on" in line
    assert train(*again) == 0
    told = capsys.readouterr()
    assert "goes on from its newest checkpoint" in told.out
    assert "epoch 2/8" not in told.out
    assert "epoch 3/8" in told.out
    assert train("--results", tmp_path / "undisturbed") == 0
    records = [
        RunRecord.model_validate_json(next(folder.glob("cells/*.json")).read_bytes())
        for folder in (tmp_path, tmp_path / "undisturbed")
    ]
    assert [record.restarts for record in records] == [1, 0]
    first, second = (result(record.model_copy(update={"cell": ""})) for record in records)
    assert first == second


TASK = """
import time
from train_helpers import *

def slowly(inputs):
    time.sleep(0.02)
    return scale(inputs)

slow = Task(name="mlp", data=tensors, model=network, transform=slowly, augment=jitter)
"""


def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    """The real command in a process of its own, ended by SIGKILL in the middle of an epoch."""
    (tmp_path / "slow_task.py").write_text(TASK)
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-m", "autolr_ray", "train", *OPTIONS, "--task", "slow_task:slow"]
    process = subprocess.Popen(
        [*command, "--results", "out"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    # The rest here, to save the time of another process.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.syspath_prepend(str(tmp_path))
        assert train("--task", "slow_task:slow", "--results", "out") == 0
    (path,) = (tmp_path / "out" / "cells").glob("*.json")
    record = RunRecord.model_validate_json(path.read_bytes())
    assert (record.restarts, len(record.epoch_rows)) == (1, 8)
