"""One run without a study: what ``autolr-ray train`` does."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from pydantic import ValidationError

from autolr_ray.files import remove_tree, write_atomically
from autolr_ray.plain import clock
from autolr_ray.tasks import check_task
from autolr_ray.train.config import explain
from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.schedules import AutoWarmupSpec, ConstantSpec, LinearWarmupSpec, RangeTestSpec
from autolr_ray.train.spec import RunSpec
from autolr_ray.train.turn import Turn

if TYPE_CHECKING:
    from autolr_ray.train.trainer import RunRequest

STUDY = "train"
_SCHEDULES = {
    kind.model_fields["kind"].default: kind
    for kind in (AutoWarmupSpec, LinearWarmupSpec, RangeTestSpec, ConstantSpec)
}
# Optimizers that scale their own steps, with what their authors advise.
_USUAL = {
    "prodigy": {"kind": "linear_warmup", "peak_lr": 1.0, "warmup_fraction": 0.0},
    "schedule_free_adamw": {"kind": "constant"},
}


class RunFailed(RuntimeError):
    """A run ended with an error; the message says which, and where its traceback lies."""


def read_spec(file: Path | None, given: Mapping[str, Any], schedule: Mapping[str, Any]) -> RunSpec:
    """The run that a YAML file and the options beside it describe, checked as far as is possible before it.

    Args:
        file: fields of :class:`RunSpec`, or None.
        given: fields that win over the file's; None stands for not given. ``optimizer`` and ``precision``
            are names.
        schedule: fields of the schedule, likewise.

    Raises:
        ValueError: a line for each problem, naming field, value and what is allowed.
    """
    content = _yaml(file) if file is not None else {}
    named = {key: value for key, value in given.items() if value is not None}
    if "optimizer" in named and _name(content.get("optimizer"), "name") == named["optimizer"]:
        del named["optimizer"]  # the file has it, with its settings
    elif "optimizer" in named:
        named["optimizer"] = {"name": named["optimizer"]}
    if "precision" in named:
        named["compute"] = {**_mapping(content.get("compute")), "precision": named.pop("precision")}
    content |= named
    content |= _schedule(
        content.get("schedule", _USUAL.get(_name(content.get("optimizer"), "name"))), schedule
    )
    if isinstance(content.get("data_dir"), (str, Path)):
        # The workers' current directory is not this one.
        content["data_dir"] = str(Path(content["data_dir"]).expanduser().absolute())
    lacking = [field for field in ("task", "batch_size", "epochs") if field not in content]
    if lacking:
        raise ValueError(f"{lacking[0]}: is missing; a run needs task, batch_size and epochs")
    where = f"{file}: " if file is not None else ""
    try:
        spec = RunSpec.model_validate(content)
        check_task(spec.task, spec.model, spec.data_dir)
    except ValidationError as error:
        raise ValueError("\n".join(f"{where}{line}" for line in explain(error).splitlines())) from error
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    return spec


def _yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"spec: {file} cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"spec: {file} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ValueError(f"spec: {file}: a mapping of fields is needed, this is {type(content).__name__}")
    return content


def _schedule(filed: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule's part of the content; empty where neither file nor options speak of one."""
    named = {key: value for key, value in given.items() if value is not None}
    if not named:
        return {"schedule": {"kind": "auto_warmup", **filed}} if isinstance(filed, dict) else {}
    usual = _name(filed, "kind") or "auto_warmup"
    kind = named.get("kind", usual)
    if kind in _SCHEDULES:
        allowed = [name for name in _SCHEDULES[kind].model_fields if name != "kind"]
        for name in named:
            if name not in ("kind", *allowed):
                raise ValueError(
                    f"{name}: {named[name]!r} is not allowed with the schedule {kind}; "
                    f"it has {', '.join(allowed)}"
                )
    # Settings of another kind of schedule would not fit this one.
    return {"schedule": {**(_mapping(filed) if kind == usual else {}), "kind": kind, **named}}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: Any, key: str) -> Any:
    return _mapping(value).get(key)


def make_request(spec: RunSpec, folder: Path, *, device: str) -> RunRequest:
    """The run with its places in ``folder``: ``runs``, ``cells`` and ``tensorboard``.

    Raises:
        ValueError: ``folder`` cannot be written to, or ``device`` is "gpu" and there is none.
    """
    from autolr_ray.train.trainer import RunRequest

    if "://" in str(folder) or str(folder).startswith(("s3:/", "gs:/")):
        raise ValueError(f"results: {folder} is not allowed; a folder that every node has mounted is needed")
    folder = folder.expanduser().resolve()
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        probe = folder / "cells" / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"results: {folder} cannot be written to ({error.strerror or error})") from error
    if device == "gpu" and spec.workers == 1 and not torch.cuda.is_available():
        raise ValueError("device: 'gpu' is not allowed; torch finds no GPU here")
    use_gpu = device == "gpu" or (device == "auto" and spec.workers == 1 and torch.cuda.is_available())
    return RunRequest(
        spec=spec, study=STUDY, arm=spec.schedule.kind, runs_dir=folder / "runs",
        record_dir=folder / "cells", log_dir=folder / "tensorboard", use_gpu=use_gpu,
    )  # fmt: skip


def finished(request: RunRequest) -> RunRecord | None:
    """The run's record, if it has been finished before."""
    path = request.record_dir / f"{request.spec.cell}.json"
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def train(request: RunRequest, *, say: Callable[[str], None]) -> RunRecord:
    """Train, or go on where the run was cut off; a line for each epoch and for the end of the warmup.

    Several workers need a Ray that is initialised.

    Raises:
        RunFailed: the run ended with an error.
        KeyboardInterrupt: it was interrupted; what it has saved is kept.
    """
    from autolr_ray.train.trainer import run_in_process

    progress = _Lines(request.spec, say)
    place = request.runs_dir / request.name
    if place.is_dir() and any(place.iterdir()):
        say(f"{request.name}: was cut off, goes on from its newest checkpoint")
    try:
        if request.spec.workers == 1:
            record = run_in_process(request, on_report=progress.row, on_turn=progress.turn)
        else:
            record = _on_ray(request, progress)
    except Exception as error:  # whatever a task of the user's own may raise
        path = request.record_dir.parent / "errors" / f"{request.spec.cell}.txt"
        write_atomically(path, traceback.format_exc().encode())
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise RunFailed(f"{request.name}: failed: {reason} (traceback: {path})") from error
    remove_tree(place)  # checkpoints of a finished run are of no more use
    return record


def _on_ray(request: RunRequest, progress: _Lines) -> RunRecord:
    """Several workers: Ray's controller sends each report over a queue, a thread here says it."""
    from ray.util.queue import Queue

    from autolr_ray.train.reports import SendReports
    from autolr_ray.train.trainer import build_trainer

    queue = Queue(actor_options={"num_cpus": 0})
    listener = threading.Thread(target=_listen, args=(queue, progress), daemon=True)
    listener.start()
    try:
        build_trainer(request, callbacks=[SendReports(queue)]).fit()
    except SystemExit:  # Ray's way to end after Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        queue.put(None)
        listener.join(timeout=10)
    record = finished(request)
    if record is None:
        raise RuntimeError("it ended without leaving a record")
    return record


def _listen(queue: Any, progress: _Lines) -> None:
    while (metrics := queue.get()) is not None:
        turn = metrics.pop("turn", None)
        progress.row(EpochRow.model_validate(metrics))
        if turn is not None:
            progress.turn(Turn.model_validate(turn))


class _Lines:
    """A run's epochs as lines, with the time left."""

    def __init__(self, spec: RunSpec, say: Callable[[str], None]) -> None:
        self._epochs, self._say = spec.epochs, say
        self._began, self._done = time.monotonic(), 0

    def row(self, row: EpochRow) -> None:
        """An epoch is over."""
        self._done += 1
        left = (time.monotonic() - self._began) / self._done * (self._epochs - row.epoch)
        width = len(str(self._epochs))
        self._say(
            f"epoch {row.epoch:{width}d}/{self._epochs}  train loss {row.train_loss:.4g}  validation "
            f"{row.validation_accuracy:.4f}  lr {row.lr:.3g}"
            + (f"  |  {clock(left)} left" if row.epoch < self._epochs else "")
        )

    def turn(self, turn: Turn) -> None:
        """The learning rate has turned."""
        self._say(f"      {turn}")


def summary(record: RunRecord) -> str:
    """A finished run in one line."""
    took = clock(record.device_seconds / max(1, record.workers) / record.device_share)
    again = f", restarts {record.restarts}" if record.restarts else ""
    return (
        f"validation {record.validation_accuracy:.4f}, test {record.test_accuracy:.4f}, peak learning rate "
        f"{record.peak_lr:.3g}, warmup of {max(0, record.switch_step)} of {record.total_steps} steps, "
        f"{took}{again}"
    )
