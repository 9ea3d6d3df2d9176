"""What AutoWarmup would have decided on a loss curve that was recorded while the learning rate rose."""

from __future__ import annotations

import csv
import json
import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolr_ray.schedule.auto_warmup import AutoWarmup
from autolr_ray.schedule.divergence import DivergenceWarning
from autolr_ray.schedule.look_inside import receipt_row
from autolr_ray.schedule.smoother import Array
from autolr_ray.schedule.switch import Verdict

MIN_LR, MAX_LR = 1e-5, 1.0
# How far, as a factor, a recorded learning rate may lie off an exponential rise: rounding in a file.
_LR_TOLERANCE = 1.02
_TABLE = ("step", "lr", "strength", "probability", "positives", "argmin_step", "argmin_lr", "verdict")


class CurveError(ValueError):
    """A curve cannot be read, or cannot be replayed; the message is ready to be shown."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Recorded losses of a rise, in order.

    Attributes:
        losses: [n] float64, one a step; NaN and inf are allowed.
        steps: [n] optimizer steps that they belong to, from 0, rising.
        rates: [n] learning rates of these steps; None where they were not recorded.
        rule, warmup_steps, steps_per_epoch: of the run that was recorded; None where unknown.
        notes: what a reader of the result must know.
    """

    losses: Array
    steps: Array
    rates: Array | None = None
    rule: str | None = None
    warmup_steps: int | None = None
    steps_per_epoch: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A replay's decision.

    Attributes:
        scheduler: AutoWarmup after it, in steps of the losses that were kept: one in ``stride``.
        stride: optimizer steps from one kept loss to the next.
        notes: see :class:`Curve`.
    """

    scheduler: AutoWarmup
    stride: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Decision and tests in plain values; steps are those of the recorded run."""
        scheduler = self.scheduler
        last = scheduler.receipts[-1] if scheduler.receipts else None
        verdict = last.verdict if last else Verdict.RISING
        return {
            "verdict": verdict.name.lower(),
            "reason": verdict.value,
            "switch_step": self._step(scheduler.switch_step),
            "peak_lr": scheduler.peak_lr,
            "argmin_step": self._step(last.argmin_step) if last else None,
            "rule": scheduler.rule.name,
            "min_lr": scheduler.min_lr,
            "max_lr": scheduler.max_lr,
            "warmup_steps": self._step(scheduler.warmup_steps),
            "losses_used": scheduler.last_epoch,
            "notes": list(self.notes),
            "receipts": [
                receipt_row(receipt)
                | {"step": self._step(receipt.step), "argmin_step": self._step(receipt.argmin_step)}
                for receipt in scheduler.receipts
            ],
        }

    def as_text(self) -> str:
        """The same for people, the tests as a table."""
        plain = self.as_dict()
        step = plain["switch_step"]
        end = (
            f"after step {step} of at most {plain['warmup_steps']}; the learning rate falls from "
            f"{plain['peak_lr']:.3g}; lowest loss at step {plain['argmin_step']}"
            if step is not None
            else f"not within the {plain['losses_used']} losses; the rise has {plain['warmup_steps']} steps"
        )
        rise = f"{plain['min_lr']:g} to {plain['max_lr']:.3g}, rule {plain['rule']}"
        lines = [f"{plain['verdict']}: {plain['reason']}", f"warmup ends: {end}", f"rise: {rise}"]
        lines += [f"note: {note}" for note in self.notes]
        rows = [_TABLE, *(tuple(_short(row[name]) for name in _TABLE) for row in plain["receipts"])]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_TABLE))]
        lines += ["", *("  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) for row in rows)]
        return "\n".join(lines)

    def save_plot(self, path: Path) -> None:
        """Draw losses, posterior, learning rate and tests into a file.

        Raises:
            CurveError: it cannot be written, or matplotlib does not know its kind.
        """
        try:
            self.scheduler.plot().savefig(path.expanduser())
        except (OSError, ValueError) as error:
            raise CurveError(f"plot: {path} cannot be written ({error})") from error

    def _step(self, step: float | None) -> int | None:
        return None if step is None else round(step * self.stride)


def replay(
    curve: Curve,
    *,
    rule: str | None = None,
    min_lr: float | None = None,
    max_lr: float | None = None,
    warmup_steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> Replayed:
    """Feed the losses to an ``AutoWarmup`` until its warmup ends, or they do.

    Args:
        curve: what was recorded.
        rule, min_lr, max_lr, warmup_steps, steps_per_epoch: settings of AutoWarmup; ``warmup_steps`` is the
            length of the whole rise in optimizer steps. None: what the curve says of itself, else the usual;
            as many steps as the curve has.

    Raises:
        CurveError: a value is not allowed, or the recorded learning rates are no exponential rise.
    """
    for name, value in (("warmup_steps", warmup_steps), ("steps_per_epoch", steps_per_epoch)):
        if value is not None and value < 1:
            raise CurveError(f"{name}: {value} is not allowed; it must be an integer >= 1")
    count = len(curve.losses)
    stride = float(curve.steps[-1] - curve.steps[0]) / (count - 1) if count > 1 else 1.0
    whole = warmup_steps or curve.warmup_steps or round(count * stride)
    length = max(1, round(whole / stride))
    notes = list(curve.notes)
    if stride > 1.0:
        notes.append(
            f"one loss in {stride:.3g} steps was kept: it is replayed as a rise of {length} steps, and may "
            "turn elsewhere than the whole curve would; steps below are the recorded ones"
        )
    if count > length:
        notes.append(f"{count - length} losses beyond the rise of {length} steps are not used")
    if curve.rates is not None and (min_lr is None or max_lr is None):
        start, growth = _rise(curve.rates[:length])
        min_lr = min_lr if min_lr is not None else start
        max_lr = max_lr if max_lr is not None else start * math.exp(growth * length)
    epoch = steps_per_epoch or curve.steps_per_epoch
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        scheduler = AutoWarmup(
            optimizer, 2 * length, max_warmup_fraction=0.5, rule=rule or curve.rule or "robust",
            min_lr=MIN_LR if min_lr is None else min_lr, max_lr=MAX_LR if max_lr is None else max_lr,
            steps_per_epoch=None if epoch is None else max(1, round(epoch / stride)), distributed=False,
        )  # fmt: skip
    except ValueError as error:
        raise CurveError(str(error)) from error
    with warnings.catch_warnings():
        # The verdict says it.
        warnings.simplefilter("ignore", DivergenceWarning)
        for loss in curve.losses[:length].tolist():
            scheduler.step(loss)
            if scheduler.phase == "decay":
                break
    return Replayed(scheduler=scheduler, stride=stride, notes=tuple(notes))


def _rise(rates: Array) -> tuple[float, float]:
    """First learning rate and growth of its logarithm per loss; CurveError where it is no such rise."""
    if len(rates) < 2 or not (np.isfinite(rates) & (rates > 0)).all():
        raise CurveError("lr: at least two learning rates, all > 0, are needed; or leave the column out")
    logs = np.log(rates)
    growth = float(logs[-1] - logs[0]) / (len(rates) - 1)
    fitted = logs[0] + growth * np.arange(len(rates))
    if growth <= 0 or float(np.abs(logs - fitted).max()) > math.log(_LR_TOLERANCE):
        raise CurveError(
            "lr: the recorded learning rate does not rise exponentially from step to step, as AutoWarmup's "
            "does; cut the curve where the rise ends, or leave the column out and name --min-lr and --max-lr"
        )
    return float(rates[0]), growth


def read_curve(path: Path) -> Curve:
    """Losses from ``.csv``, ``.tsv``, ``.npy``, ``.npz`` or ``.json``.

    Tables have a column ``loss`` and may have ``step`` and ``lr``; ``.npz`` arrays of these names, or one
    array; ``.npy`` and ``.json`` are one list of numbers (null for NaN).

    Raises:
        CurveError: the file cannot be read as such.
    """
    path = path.expanduser()
    readers = {".csv": _table, ".tsv": _table, ".npy": _arrays, ".npz": _arrays, ".json": _json}
    if path.suffix.lower() not in readers:
        raise CurveError(f"losses: {path.name} is not allowed; a file {', '.join(readers)} is needed")
    try:
        columns = readers[path.suffix.lower()](path)
    except CurveError as error:
        raise CurveError(f"{path}: {error}") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CurveError(f"{path}: cannot be read ({reason})") from error
    losses = columns["loss"]
    if losses.ndim != 1 or not len(losses):
        raise CurveError(f"{path}: loss: shape {losses.shape} is not allowed; a list of numbers is needed")
    for name, column in columns.items():
        if column.shape != losses.shape:
            raise CurveError(f"{path}: {name}: shape {column.shape} is not allowed; loss has {losses.shape}")
    steps = columns.get("step", np.arange(len(losses), dtype=np.float64))
    if not (np.diff(steps) > 0).all() or not np.isfinite(steps).all():
        raise CurveError(f"{path}: step: is not allowed; it must rise from line to line")
    return Curve(losses=losses, steps=steps - steps[0], rates=columns.get("lr"))


def _table(path: Path) -> dict[str, Array]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        if "loss" not in names:
            raise CurveError(f"loss: no such column; here are {', '.join(names) or 'none'}")
        wanted = [name for name in ("loss", "step", "lr") if name in names]
        columns: dict[str, list[float]] = {name: [] for name in wanted}
        for row in rows:
            for name, values in columns.items():
                try:
                    values.append(float(row[name]))
                except (TypeError, ValueError):
                    raise CurveError(
                        f"{name}: {row[name]!r} in line {rows.line_num} is not allowed; a number is needed"
                    ) from None
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _arrays(path: Path) -> dict[str, Array]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"loss": _numbers("loss", loaded)}
    with loaded as file:
        found = {name: file[name] for name in file.files}
    if len(found) == 1:
        found = {"loss": next(iter(found.values()))}
    if "loss" not in found:
        raise CurveError(f"loss: no such array; here are {', '.join(found) or 'none'}")
    return {name: _numbers(name, found[name]) for name in ("loss", "step", "lr") if name in found}


def _json(path: Path) -> dict[str, Array]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list) or not all(
        value is None or (type(value) in (int, float)) for value in content
    ):
        raise CurveError("loss: a list of numbers is needed")
    return {"loss": np.array([math.nan if value is None else value for value in content], dtype=np.float64)}


def _numbers(name: str, values: Any) -> Array:
    if values.dtype.kind not in "fiu":
        raise CurveError(f"{name}: type {values.dtype} is not allowed; numbers are needed")
    return np.asarray(values, dtype=np.float64)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
