"""What a sweep tells the person who waits for it: one line a finished run, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ray import tune
from ray.tune.experiment import Trial

from autolr_ray.compare.study import Cell

_HEARTBEAT_SECONDS = 20.0


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class Progress:
    """Counts finished runs and estimates the time left.

    The estimate takes the mean time of this sweep's finished runs of the same number of workers (of any,
    before the first), the runs that go on at once, and the epochs that each has.

    Args:
        cells: every run of the study.
        finished: cells that need not run.
    """

    def __init__(self, cells: list[Cell], finished: set[str]) -> None:
        self.total = len(cells)
        self.done = sum(cell.spec.cell in finished for cell in cells)
        self._left = {cell.spec.cell: cell for cell in cells if cell.spec.cell not in finished}
        self._times: dict[int, list[float]] = {}
        self._concurrency: dict[int, int] = {}

    def expect(self, workers: int, concurrency: int) -> None:
        """Runs of ``workers`` workers will go on ``concurrency`` at once."""
        self._concurrency[workers] = concurrency

    def finish(self, cell: Cell, seconds: float) -> None:
        """One run is done and took ``seconds`` of wall time."""
        self.done += 1
        self._left.pop(cell.spec.cell, None)
        self._times.setdefault(cell.spec.workers, []).append(seconds / cell.spec.epochs)

    def drop(self, cell: Cell) -> None:
        """One run failed and will not be tried again."""
        self._left.pop(cell.spec.cell, None)

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


def clock(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> clock(None), clock(42.3), clock(312), clock(7500)
    ('?', '42 s', '5 min 12 s', '2 h 05 min')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe(cell: Cell) -> str:
    """Arm, point, batch size and seed in one short line."""
    parts = [cell.arm, cell.point, f"batch {cell.spec.batch_size}", f"seed {cell.spec.seed}"]
    return " ".join(part for part in parts if part)


class ProgressCallback(tune.Callback):  # type: ignore[misc]
    """Tells ``Progress`` and the console what Tune's trials do.

    Args:
        progress: counts.
        cells: the cells by their hash.
        on_finished: called after each finished run.
    """

    def __init__(
        self, progress: Progress, cells: dict[str, Cell], on_finished: Callable[[], None] = lambda: None
    ) -> None:
        self._progress, self._cells, self._on_finished = progress, cells, on_finished
        self._started: dict[str, float] = {}
        self._latest: dict[str, str] = {}
        self._spoke = time.monotonic()

    def _cell(self, trial: Trial) -> Cell:
        return self._cells[trial.config["cell"]]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Start the clock of a trial."""
        self._started.setdefault(trial.trial_id, time.monotonic())

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, object], **info: object
    ) -> None:
        """Remember how far a trial is."""
        if "validation_accuracy" in result:
            cell = self._cell(trial)
            accuracy = float(str(result["validation_accuracy"]))
            self._latest[trial.trial_id] = (
                f"{describe(cell)}: epoch {result['epoch']}/{cell.spec.epochs}, validation {accuracy:.3f}"
            )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Give a sign of life where nothing has been printed for a while."""
        if time.monotonic() - self._spoke > _HEARTBEAT_SECONDS and self._latest:
            self._say("      running  " + "; ".join(self._latest.values()))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Print the finished run and the time left."""
        cell = self._cell(trial)
        seconds = time.monotonic() - self._started.get(trial.trial_id, time.monotonic())
        latest = self._latest.pop(trial.trial_id, "").rpartition(", ")[2]
        self._progress.finish(cell, seconds)
        self._report(cell, f"{latest}  {clock(seconds)}")
        self._on_finished()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Print that a run failed."""
        cell = self._cell(trial)
        self._latest.pop(trial.trial_id, None)
        self._progress.drop(cell)
        self._report(cell, "FAILED")

    def _report(self, cell: Cell, outcome: str) -> None:
        p = self._progress
        width = len(str(p.total))
        left = f"{clock(p.eta_seconds)} left" if p.done < p.total else "done"
        self._say(f"[{p.done:{width}d}/{p.total}]  {describe(cell)}: {outcome}  |  {left}")

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        say(line)
        sys.stdout.flush()
