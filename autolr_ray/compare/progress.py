"""What a sweep tells of itself: a line a finished run to who waits for it, ``progress.json`` to others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from autolr_ray.compare.study import Cell
from autolr_ray.files import write_atomically
from autolr_ray.plain import clock as clock
from autolr_ray.remote import Location

_FILE = "progress.json"
_INTERVAL_SECONDS = 3.0
STALE_SECONDS = 60.0


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class RunningRun(BaseModel):
    """A run that is going on, and how far it is: ``epoch`` 0 and no accuracy before its first report."""

    model_config = ConfigDict(frozen=True)

    cell: str
    arm: str
    point: str
    batch_size: int
    seed: int
    epoch: int
    epochs: int
    validation_accuracy: float | None


class SweepState(BaseModel):
    """A sweep at one moment.

    Attributes:
        study: its name.
        updated_at: when this was written, ISO 8601 with its zone.
        host, pid: the process that sweeps.
        total, done: runs of the study, and those finished.
        failed: hashes of the cells that failed in this sweep, for good.
        running: what goes on.
        eta_seconds: time left; None before the first run of this sweep is done.
        dashboard: address of Ray's dashboard, if there is one.
        ended: the sweep is over, well or not.
    """

    model_config = ConfigDict(frozen=True)

    study: str
    updated_at: datetime
    host: str
    pid: int
    total: int
    done: int
    failed: tuple[str, ...]
    running: tuple[RunningRun, ...]
    eta_seconds: float | None
    dashboard: str | None
    ended: bool

    @property
    def age_seconds(self) -> float:
        """Time since it was written."""
        return max(0.0, (datetime.now(UTC) - self.updated_at).total_seconds())

    @property
    def stale(self) -> bool:
        """Not ended, and no sign of life for a minute: it was killed, or its storage is cut off."""
        return not self.ended and self.age_seconds > STALE_SECONDS


def write_state(state: SweepState, folder: Location) -> None:
    """Write ``folder/progress.json``, whole or not at all."""
    write_atomically(folder / _FILE, state.model_dump_json(indent=1).encode())


def read_state(folder: Location) -> SweepState | None:
    """The state that the last sweep in ``folder`` left; None where there is none that can be read."""
    try:
        return SweepState.model_validate_json((folder / _FILE).read_bytes())
    except (OSError, ValidationError):
        return None


class Progress:
    """Counts finished runs and estimates the time left.

    The estimate takes the mean time of this sweep's finished runs of the same number of workers (of any,
    before the first), the runs that go on at once, and the epochs that each has.

    Args:
        cells: every run of the study.
        finished: cells that need not run.
        study: its name.
        folder: where :meth:`publish` writes; None: nowhere.
    """

    def __init__(
        self, cells: list[Cell], finished: set[str], *, study: str = "", folder: Location | None = None
    ) -> None:
        self.total = len(cells)
        self.done = sum(cell.spec.cell in finished for cell in cells)
        self._left = {cell.spec.cell: cell for cell in cells if cell.spec.cell not in finished}
        self._times: dict[int, list[float]] = {}
        self._concurrency: dict[int, int] = {}
        self._running: dict[str, RunningRun] = {}
        self._failed: list[str] = []
        self._study, self._folder = study, folder
        self._next_write = 0.0

    def add(self, cells: list[Cell]) -> None:
        """More runs than were known at the start."""
        self.total += len(cells)
        self._left |= {cell.spec.cell: cell for cell in cells}

    def expect(self, workers: int, concurrency: int) -> None:
        """Runs of ``workers`` workers will go on ``concurrency`` at once."""
        self._concurrency[workers] = concurrency

    def reach(self, cell: Cell, epoch: int = 0, validation_accuracy: float | None = None) -> None:
        """A run has begun, or has done ``epoch`` epochs."""
        self._running[cell.spec.cell] = RunningRun(
            cell=cell.spec.cell, arm=cell.arm, point=cell.point, batch_size=cell.spec.batch_size,
            seed=cell.spec.seed, epoch=epoch, epochs=cell.spec.epochs,
            validation_accuracy=validation_accuracy,
        )  # fmt: skip

    def finish(self, cell: Cell, seconds: float) -> None:
        """One run is done and took ``seconds`` of wall time."""
        self.done += 1
        self._left.pop(cell.spec.cell, None)
        self._running.pop(cell.spec.cell, None)
        self._times.setdefault(cell.spec.workers, []).append(seconds / cell.spec.epochs)

    def drop(self, cell: Cell) -> None:
        """One run failed and will not be tried again."""
        self._left.pop(cell.spec.cell, None)
        self._running.pop(cell.spec.cell, None)
        self._failed.append(cell.spec.cell)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left; None before the first run is done."""
        known = [second for times in self._times.values() for second in times]
        if not known:
            return None
        left = 0.0
        for cell in self._left.values():
            times = self._times.get(cell.spec.workers, known)
            left += sum(times) / len(times) * cell.spec.epochs / self._concurrency.get(cell.spec.workers, 1)
        return left

    def line(self, cell: Cell, outcome: str) -> str:
        """How a run ended, how many are done and the time left, in one line."""
        width = len(str(self.total))
        if not self._left:
            left = "done" if self.done == self.total else f"{self.total - self.done} without result"
        else:
            left = f"{clock(self.eta_seconds)} left"
        return f"[{self.done:{width}d}/{self.total}]  {describe(cell)}: {outcome}  |  {left}"

    def publish(self, *, ended: bool = False) -> None:
        """Write ``progress.json``, at most once every few seconds; at the end, when asked.

        Raises:
            OSError: it cannot be written; the next try is some seconds away.
        """
        if self._folder is None or (not ended and time.monotonic() < self._next_write):
            return
        self._next_write = time.monotonic() + _INTERVAL_SECONDS
        state = SweepState(
            study=self._study, updated_at=datetime.now(UTC), host=socket.gethostname(), pid=os.getpid(),
            total=self.total, done=self.done, failed=tuple(self._failed),
            running=() if ended else tuple(self._running.values()), eta_seconds=self.eta_seconds,
            dashboard=None if ended else _dashboard(), ended=ended,
        )  # fmt: skip
        write_state(state, self._folder)


@contextmanager
def published(progress: Progress) -> Iterator[None]:
    """Around a sweep: ``progress.json`` says when it begins and, however it does, that it has ended."""
    with suppress(OSError):  # a sweep can do without
        progress.publish()
    try:
        yield
    finally:
        with suppress(OSError):
            progress.publish(ended=True)


def _dashboard() -> str | None:
    """Where Ray's dashboard is; None where there is none, or no Ray."""
    try:
        from ray._private.worker import get_dashboard_url

        url = get_dashboard_url()
    except Exception:  # a private function of Ray: without it, nobody is told
        return None
    return f"http://{url}" if url else None


def describe(cell: Cell | RunningRun) -> str:
    """Arm, point, batch size and seed in one short line."""
    size, seed = (
        (cell.spec.batch_size, cell.spec.seed) if isinstance(cell, Cell) else (cell.batch_size, cell.seed)
    )
    parts = [cell.arm, cell.point, f"batch {size}", f"seed {seed}"]
    return " ".join(part for part in parts if part)
