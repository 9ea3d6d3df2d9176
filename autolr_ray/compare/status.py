"""How far studies are, from the files that their sweeps leave; nothing is disturbed."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autolr_ray.compare.folder import ReadingError, read_runs
from autolr_ray.compare.progress import SweepState, describe, read_state
from autolr_ray.compare.values import FailureRow
from autolr_ray.compare.wording import percent
from autolr_ray.plain import clock, strict_json
from autolr_ray.remote import Location
from autolr_ray.train.record import RunRecord

_RESULTS = Path("results")


@dataclass(frozen=True, kw_only=True)
class Count:
    """Runs of one arm at one batch size. ``failed`` ones failed in the last sweep; it may try them again."""

    batch_size: int
    arm: str
    finished: int
    running: int
    pending: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment.

    Attributes:
        name: the study's.
        folder: its results.
        total: its runs; None where no study.yaml says how many.
        counts: by batch size and arm.
        newest: the run that finished last.
        sweep: what the last sweep says of itself; None where nothing can be read.
        failures: runs without a result that have failed, and why.
        notes: what was found wrong with the files.
    """

    name: str
    folder: Location
    total: int | None
    counts: tuple[Count, ...]
    newest: RunRecord | None
    sweep: SweepState | None
    notes: tuple[str, ...]
    failures: tuple[FailureRow, ...] = ()

    @property
    def alive(self) -> bool:
        """A sweep has not ended, as far as is known."""
        # One that was killed just after its last run could not say so.
        complete = self.total is not None and self.sums()["finished"] == self.total
        return self.sweep is not None and not self.sweep.ended and not (self.sweep.stale and complete)

    def sums(self) -> Counter[str]:
        """Finished, running, pending and failed over all arms and batch sizes."""
        kinds = ("finished", "running", "pending", "failed")
        return Counter({kind: sum(getattr(count, kind) for count in self.counts) for kind in kinds})


def status_of(path: Location) -> Status:
    """What the files of a study say.

    Raises:
        ReadingError: ``path`` holds no results.
    """
    runs = read_runs(path, borrowed=False)
    sweep = read_state(runs.folder)
    done = {record.cell for record in runs.records}
    live = sweep if sweep is not None and not sweep.ended and not sweep.stale else None
    going = {run.cell for run in live.running} - done if live else set()
    failed = set(sweep.failed) - done if sweep else set()
    kinds: dict[tuple[int, str], Counter[str]] = {}
    known = [(cell.spec.cell, cell.spec.batch_size, cell.arm) for cell in runs.cells]
    for cell, size, arm in known or [(r.cell, r.batch_size, r.arm) for r in runs.records]:
        unfinished = "running" if cell in going else "failed" if cell in failed else "pending"
        kind = "finished" if cell in done else unfinished
        kinds.setdefault((size, arm), Counter())[kind] += 1
    counts = tuple(
        Count(
            batch_size=size, arm=arm, finished=kind["finished"], running=kind["running"],
            pending=kind["pending"], failed=kind["failed"],
        )
        for (size, arm), kind in sorted(kinds.items())
    )  # fmt: skip
    return Status(
        name=runs.name, folder=runs.folder, total=len(runs.cells) or None, counts=counts, sweep=sweep,
        newest=max(runs.records, key=lambda record: record.finished_at, default=None), notes=runs.notes,
        failures=runs.failures,
    )  # fmt: skip


def all_status(paths: Sequence[Location]) -> list[Status]:
    """The studies at ``paths``; without any, those in ``results``.

    Raises:
        ReadingError: one of the paths holds no results, or there are none in ``results``.
    """
    here = sorted(path.parent for path in _RESULTS.glob("*/study.yaml"))
    found: list[Location] = list(paths) or list(here)
    if not found:
        raise ReadingError(f"path: no study in {_RESULTS.resolve()}; name a results folder")
    return [status_of(path) for path in found]


def as_text(status: Status) -> str:
    """The status for people."""
    sums = status.sums()
    total = f" of {status.total}" if status.total is not None else ""
    parts = [f"{sums['finished']}{total} runs finished"]
    parts += [f"{sums[kind]} {kind}" for kind in ("running", "pending", "failed") if sums[kind]]
    lines = [
        f"{status.name} ({status.folder}): {', '.join(parts)}",
        *_sweep_lines(status.sweep if status.alive else None),
    ]
    if status.counts:
        rows: list[tuple[object, ...]] = [("batch", "arm", "finished", "running", "pending", "failed")]
        rows += [
            (f"{c.batch_size:,}", c.arm, c.finished, c.running, c.pending, c.failed) for c in status.counts
        ]
        width = max(len(str(row[1])) for row in rows)
        lines += ["", *(f"{r[0]:>9}  {r[1]:{width}}" + "".join(f"{n:>10}" for n in r[2:]) for r in rows)]
    if status.newest is not None:
        r = status.newest
        lines += ["", f"newest: {_named(r)}, validation {percent(r.validation_accuracy)}, {r.finished_at}"]
    if status.failures:
        lines += ["", *map(_failure_line, status.failures)]
    return "\n".join([*lines, *(f"note: {note}" for note in status.notes)])


def _named(run: RunRecord | FailureRow) -> str:
    return " ".join(
        part for part in (run.arm, run.point, f"batch {run.batch_size}", f"seed {run.seed}") if part
    )


def _failure_line(failure: FailureRow) -> str:
    often = f"{failure.attempts} attempt{'s' * (failure.attempts != 1)}"
    end = "given up (--retry-failed tries it again)" if failure.given_up else "the next sweep tries it again"
    return f"failed: {_named(failure)}: {' '.join(failure.reason.split())}; {often}, {end}"


def _sweep_lines(sweep: SweepState | None) -> list[str]:
    if sweep is None:
        return ["no sweep is running"]
    who = f"process {sweep.pid} on {sweep.host}"
    if sweep.stale:
        return [
            f"stale: {who} has given no sign of life for {clock(sweep.age_seconds)}; if it was killed, the "
            "same command goes on"
        ]
    left = None if sweep.eta_seconds is None else max(0.0, sweep.eta_seconds - sweep.age_seconds)
    time_left = "no run done yet" if left is None else f"{clock(left)} left"
    lines = [f"sweeping: {who}, {time_left}, seen {clock(sweep.age_seconds)} ago"]
    if sweep.dashboard:
        lines.append(f"dashboard: {sweep.dashboard}")
    for run in sweep.running:
        accuracy = run.validation_accuracy
        validation = f", validation {percent(accuracy)}" if accuracy is not None else ""
        lines.append(f"running: {describe(run)}: epoch {run.epoch}/{run.epochs}{validation}")
    return lines


def as_plain(status: Status) -> dict[str, Any]:
    """The status for programs. Of the newest run what may be seen before the end: no test accuracy."""
    newest = status.newest
    shown = ("cell", "arm", "point", "batch_size", "seed", "validation_accuracy", "peak_lr", "finished_at")
    sweep = status.sweep
    return {
        "name": status.name,
        "folder": str(status.folder),
        "total": status.total,
        **status.sums(),
        "counts": [vars(count) for count in status.counts],
        "newest": {field: getattr(newest, field) for field in shown} if newest is not None else None,
        "sweep": {**sweep.model_dump(mode="json"), "stale": sweep.stale} if sweep is not None else None,
        "failures": [dataclasses.asdict(failure) for failure in status.failures],
        "notes": list(status.notes),
    }


def watch(paths: Sequence[Location], *, every: float | None, as_json: bool) -> None:
    """Print the status once, or ``every`` so many seconds until no sweep is alive.

    Raises:
        ReadingError: see :func:`all_status`; ``every`` is no time.
    """
    if every is not None and not 0.1 <= every < 1e6:
        raise ReadingError(f"watch: {every:g} is not allowed; at least 0.1 seconds are needed")
    while True:
        found = all_status(paths)
        if as_json:
            text = strict_json([as_plain(status) for status in found], indent=2 if every is None else None)
        else:
            text = "\n\n".join(as_text(status) for status in found)
        clear = "\x1b[2J\x1b[H" if every is not None and not as_json and sys.stdout.isatty() else ""
        print(f"{clear}{text}", flush=True)
        if every is None or not any(status.alive for status in found):
            return
        time.sleep(every)
        if not as_json and not clear:
            print()
