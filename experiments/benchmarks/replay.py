"""Replay recorded loss curves through ``AutoWarmup`` and score where it switched.

    python experiments/benchmarks/replay.py --traces curves.npz --rule paper --json

The file has, for each curve NAME, ``NAME/losses`` [n], the loss of every step of a whole warmup,
``NAME/warmup_steps`` (n) and ``NAME/steps_per_epoch``; ``record_curves.py`` writes such files. Each curve is
fed to an ``AutoWarmup`` whose longest warmup is the curve, until the warmup ends. A switch is a verdict of
the test (PASSED, or DIVERGED for a loss that never fell): reaching the end of the curve is none, whatever
the learning rate would fall back to.

Scores (all curves, and those named ``real-*`` apart), for a curve of W losses y: y0 is the median of the
first 6; z is y clipped at 1.25 y0, non-finite at the clip; j is the argmin of z averaged over a centred
window of max(3, W // 24) made odd. Overshoot is (switch_step - j) / W; premature is a switch before
j - 0.02 W; missed is no switch.

Where the file has the decisions of the authors' code (``official_*``) or its replica (``replica_*``), a
curve's ``inside`` says whether the paper rule agrees: its switch step lies between the smallest and the
largest of all seeds (never counts as infinity) and its learning rate within a factor exp(0.25) of their
median. It is null where a seed has an error, and left out without such arrays.

With ``--rescaled`` each curve is replayed again with its losses x 1e-6, x 1e6 and + 100; ``rescaled_changed``
counts the replays whose switch step or learning rate (by more than 1 in 1e6) is another.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autolr_ray.schedule import RULES, AutoWarmup, Verdict

Array = NDArray[np.float64]
MIN_LR, MAX_LR = 1e-5, 1.0
_LN_LR_TOLERANCE = 0.25
_PREMATURE = 0.02
_ORIGINALS = ("official", "replica")


class TraceError(ValueError):
    """A file of curves that cannot be read; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What the original decided on a curve, one entry per seed.

    Attributes:
        switch_step: losses seen when it switched, inf where it never did, [seeds].
        lr_after: the learning rate it went to, NaN where it never switched, [seeds].
        any_error: whether some seed ended in an error.
    """

    switch_step: Array
    lr_after: Array
    any_error: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One recorded warmup; ``losses`` [n] float64, ``original`` None where the file has none."""

    name: str
    losses: Array
    steps_per_epoch: int
    original: Decisions | None = None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Where the rule switched.

    Attributes:
        switch_step: losses seen when it switched, or -1.
        lr_after: the learning rate it went to, or None.
        reason: the verdict in words.
    """

    switch_step: int
    lr_after: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """One curve's score: ``overshoot`` and ``lr_error`` (``|log10(LR / LR at j)|``) None where missed."""

    missed: bool
    premature: bool
    overshoot: float | None
    lr_error: float | None


def read_curves(path: Path) -> list[Curve]:
    """All curves of a file, by name; TraceError where it is missing or malformed."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise TraceError(f"{path}: not a .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: not a readable .npz file of curves ({error})") from error
    names = sorted(key.removesuffix("/losses") for key in arrays if key.endswith("/losses"))
    if not names:
        raise TraceError(f"{path}: no array is called NAME/losses; record_curves.py writes such files")
    try:
        return [_curve(name, arrays) for name in names]
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None


def _curve(name: str, arrays: Mapping[str, NDArray[Any]]) -> Curve:
    losses = arrays[f"{name}/losses"]
    if losses.ndim != 1 or not len(losses) or losses.dtype.kind not in "fiu":
        raise TraceError(
            f"{name}/losses: {losses.dtype} of shape {losses.shape} is not allowed; "
            "one dimension of at least one number is needed"
        )
    warmup_steps = _whole_number(f"{name}/warmup_steps", arrays)
    if warmup_steps != len(losses):
        raise TraceError(
            f"{name}/warmup_steps: {warmup_steps} is not allowed; "
            f"it must be the number of losses, {len(losses)}"
        )
    return Curve(
        name=name,
        losses=losses.astype(np.float64),
        steps_per_epoch=_whole_number(f"{name}/steps_per_epoch", arrays),
        original=_decisions(name, arrays),
    )


def _whole_number(key: str, arrays: Mapping[str, NDArray[Any]]) -> int:
    if key not in arrays:
        raise TraceError(f"{key}: missing")
    value = arrays[key]
    if value.shape != () or value.dtype.kind not in "iu" or value < 1:
        raise TraceError(f"{key}: {value!r} is not allowed; it must be one integer >= 1")
    return int(value)


def _decisions(name: str, arrays: Mapping[str, NDArray[Any]]) -> Decisions | None:
    sources = [f"{name}/{source}" for source in _ORIGINALS if f"{name}/{source}_switch_step" in arrays]
    columns: dict[str, list[NDArray[Any]]] = {"switch_step": [], "lr_after": [], "error": []}
    for source in sources:
        for column, found in columns.items():
            key = f"{source}_{column}"
            if key not in arrays or arrays[key].shape != arrays[f"{source}_switch_step"].shape:
                raise TraceError(f"{key}: missing, or not one entry per seed")
            found.append(arrays[key])
    if not sum(map(len, columns["error"])):
        return None
    steps = np.concatenate(columns["switch_step"]).astype(np.float64)
    return Decisions(
        switch_step=np.where(steps < 0, math.inf, steps),
        lr_after=np.concatenate(columns["lr_after"]).astype(np.float64),
        any_error=any((errors != "").any() for errors in columns["error"]),
    )


def replay(curve: Curve, rule: str) -> Replay:
    """Feed the curve to an ``AutoWarmup`` with this rule until its warmup ends."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = AutoWarmup(
        optimizer, 2 * len(curve.losses), steps_per_epoch=curve.steps_per_epoch, rule=rule,
        fallback="keep", min_lr=MIN_LR, max_lr=MAX_LR, max_warmup_fraction=0.5, distributed=False,
    )  # fmt: skip
    assert scheduler.warmup_steps == len(curve.losses)
    for loss in curve.losses.tolist():
        scheduler.step(loss)
        if scheduler.phase == "decay":
            break
    receipt = scheduler.receipts[-1]
    if receipt.verdict not in (Verdict.PASSED, Verdict.DIVERGED):
        return Replay(switch_step=-1, lr_after=None, reason=receipt.reason)
    return Replay(switch_step=receipt.step, lr_after=scheduler.peak_lr, reason=receipt.reason)


def changed_by_rescaling(curve: Curve, rule: str, result: Replay) -> int:
    """How many of three replays, losses x 1e-6, x 1e6 and + 100, decide otherwise than ``result``."""
    changed = 0
    for losses in (curve.losses * 1e-6, curve.losses * 1e6, curve.losses + 100.0):
        other = replay(dataclasses.replace(curve, losses=losses), rule)
        same_lr = other.lr_after == result.lr_after or (
            other.lr_after is not None
            and result.lr_after is not None
            and math.isclose(other.lr_after, result.lr_after, rel_tol=1e-6)
        )
        changed += not (same_lr and other.switch_step == result.switch_step)
    return changed


def inside(result: Replay, original: Decisions | None) -> bool | None:
    """Whether a decision lies in the original's range; None where that is unknown."""
    if original is None or original.any_error:
        return None
    step = math.inf if result.lr_after is None else float(result.switch_step)
    if not original.switch_step.min() <= step <= original.switch_step.max():
        return False
    if result.lr_after is None:
        return True
    return abs(math.log(result.lr_after / np.nanmedian(original.lr_after))) <= _LN_LR_TOLERANCE


def lowest_step(losses: Array) -> int | None:
    """The step of the smoothed curve's minimum; None where none of the first 6 losses is finite."""
    first = losses[:6][np.isfinite(losses[:6])]
    if not len(first):
        return None
    clip = 1.25 * float(np.median(first))
    clipped = np.minimum(np.where(np.isfinite(losses), losses, clip), clip)
    window = max(3, len(losses) // 24) | 1
    padded = np.pad(clipped, window // 2, mode="edge")
    return int(np.argmin(np.convolve(padded, np.full(window, 1.0 / window), mode="valid")))


def score(losses: Array, result: Replay) -> Score | None:
    """How good a decision was; None where the curve has no minimum to compare with."""
    lowest = lowest_step(losses)
    if lowest is None:
        return None
    if result.lr_after is None:
        return Score(missed=True, premature=False, overshoot=None, lr_error=None)
    total = len(losses)
    lowest_lr = MIN_LR * (MAX_LR / MIN_LR) ** (lowest / total)
    return Score(
        missed=False,
        premature=result.switch_step < lowest - _PREMATURE * total,
        overshoot=(result.switch_step - lowest) / total,
        lr_error=abs(math.log10(result.lr_after / lowest_lr)),
    )


def summarize(scores: Sequence[Score]) -> dict[str, float | int | None]:
    """Shares of missed and premature curves, median overshoot and mean LR error of the others."""
    overshoots = [s.overshoot for s in scores if s.overshoot is not None]
    errors = [s.lr_error for s in scores if s.lr_error is not None]
    return {
        "curves": len(scores),
        "missed_share": float(np.mean([s.missed for s in scores])) if scores else None,
        "premature_share": float(np.mean([s.premature for s in scores])) if scores else None,
        "median_overshoot": float(np.median(overshoots)) if overshoots else None,
        "mean_abs_log10_lr_ratio": float(np.mean(errors)) if errors else None,
    }


def run(
    curves: Sequence[Curve],
    rule: str,
    write: Callable[[dict[str, Any]], None] | None = None,
    *,
    rescaled: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Replay all curves: one row per curve, handed to ``write`` as it is made, and the summary."""
    rows: list[dict[str, Any]] = []
    scores: dict[str, Score] = {}
    judges = rule == "paper"
    for curve in curves:
        result = replay(curve, rule)
        row: dict[str, Any] = {
            "name": curve.name, "switch_step": result.switch_step, "lr_after": result.lr_after,
            "reason": result.reason,
        }  # fmt: skip
        if judges and curve.original is not None:
            row["inside"] = inside(result, curve.original)
        if rescaled:
            row["rescaled_changed"] = changed_by_rescaling(curve, rule, result)
        if (scored := score(curve.losses, result)) is not None:
            scores[curve.name] = scored
        rows.append(row)
        if write is not None:
            write(row)
    summary: dict[str, Any] = {
        "rule": rule,
        "all": summarize(list(scores.values())),
        "real": summarize([s for name, s in scores.items() if name.startswith("real-")]),
    }
    if rescaled:
        summary["rescaled"] = {
            "replays": 3 * len(rows),
            "changed": sum(row["rescaled_changed"] for row in rows),
        }
    judged = [row["inside"] for row in rows if row.get("inside") is not None]
    if judges:
        summary["inside"] = {
            "judged": len(judged),
            "inside": sum(judged),
            "share": sum(judged) / len(judged) if judged else None,
        }
    return rows, summary


def _as_text(row: Mapping[str, Any]) -> str:
    lr = "-" if row["lr_after"] is None else f"{row['lr_after']:.3g}"
    step = "never" if row["switch_step"] < 0 else row["switch_step"]
    known = {True: "inside", False: "OUTSIDE", None: ""}[row.get("inside")]
    return f"{row['name']:<48} {step:>8} {lr:>10}  {known}".rstrip()


def _summary_text(summary: Mapping[str, Any]) -> str:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        f"\nrule {summary['rule']}   curves   missed  premature  median overshoot  mean |log10 LR ratio|"
    ]
    for group in ("all", "real"):
        s = summary[group]
        lines.append(
            f"{group:>12} {s['curves']:>6} {number(s['missed_share'], '.1%'):>8} "
            f"{number(s['premature_share'], '.1%'):>10} {number(s['median_overshoot'], '.1%'):>17} "
            f"{number(s['mean_abs_log10_lr_ratio'], '.3f'):>22}"
        )
    if "inside" in summary and summary["inside"]["judged"]:
        found = summary["inside"]
        lines.append(f"inside the original's range: {found['inside']} of {found['judged']} judged curves")
    if "rescaled" in summary:
        found = summary["rescaled"]
        lines.append(f"rescaled or shifted losses: {found['changed']} of {found['replays']} replays changed")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 2 where the file is missing or malformed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True, help="the .npz file of curves")
    parser.add_argument("--rule", choices=sorted(RULES), required=True, help="the switch rule")
    parser.add_argument("--rescaled", action="store_true", help="replay x 1e-6, x 1e6 and + 100 as well")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, the summary last")
    options = parser.parse_args(arguments)
    try:
        curves = read_curves(options.traces)
    except TraceError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    form = json.dumps if options.json else _as_text
    if not options.json:
        print(f"{'curve':<48} {'switch':>8} {'LR after':>10}")
    _, summary = run(
        curves, options.rule, lambda row: print(form(row), flush=True), rescaled=options.rescaled
    )
    print(json.dumps({"summary": summary}) if options.json else _summary_text(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
