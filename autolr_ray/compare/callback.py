"""Between Tune and the console: what its trials do becomes lines for the person who waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from autolr_ray.compare.progress import Progress, clock, describe, say
from autolr_ray.compare.study import Cell

_HEARTBEAT_SECONDS = 20.0
_PATIENCE_SECONDS = 60.0


class ProgressCallback(tune.Callback):  # type: ignore[misc]
    """Tells ``Progress`` and the console what Tune's trials do. Never raises: a line is not worth a sweep.

    Args:
        progress: counts.
        cells: the cells by their hash; a trial's is ``config["run"]["cell"]``.
        waiting: said when no run has begun for a minute; why that may be.
        on_finished: called after each run that has ended, well or not.
    """

    def __init__(
        self,
        progress: Progress,
        cells: dict[str, Cell],
        *,
        waiting: str = "no run has begun yet",
        on_finished: Callable[[], None] = lambda: None,
    ) -> None:
        self._progress, self._cells, self._on_finished = progress, cells, on_finished
        self._waiting = waiting
        self._started: dict[str, float] = {}
        self._latest: dict[str, str] = {}
        self._began = self._spoke = time.monotonic()
        self.settled: set[str] = set()
        """Cells that ended, well or not; the others of an ended sweep were interrupted."""

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune pickles its callbacks beside the results, for a restore that is never asked for here.
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Start the clock of a trial."""
        self._started.setdefault(trial.trial_id, time.monotonic())
        with _harmless():
            self._progress.reach(self._cell(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: object
    ) -> None:
        """Remember how far a trial is."""
        with _harmless():
            if "validation_accuracy" in result:
                cell = self._cell(trial)
                accuracy = float(result["validation_accuracy"])
                self._progress.reach(cell, int(result["epoch"]), accuracy)
                self._latest[trial.trial_id] = (
                    f"{describe(cell)}: epoch {result['epoch']}/{cell.spec.epochs}, validation {accuracy:.3f}"
                )

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Give a sign of life: to others in the file, here where nothing has been printed for a while."""
        with _harmless():
            self._progress.publish()
        with _harmless():
            quiet = time.monotonic() - self._spoke
            if self._latest and quiet > _HEARTBEAT_SECONDS:
                self._say("      running  " + "; ".join(self._latest.values()))
            elif quiet > _PATIENCE_SECONDS:
                since = clock(time.monotonic() - min(self._started.values(), default=self._began))
                self._say(
                    f"      {len(self._started)} starting for {since}; `ray status` shows what is free"
                    if self._started
                    else f"      {self._waiting} (waiting for {since})"
                )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Print the finished run and the time left."""
        with _harmless():
            cell = self._cell(trial)
            self.settled.add(cell.spec.cell)
            seconds = time.monotonic() - self._started.pop(trial.trial_id, time.monotonic())
            latest = self._latest.pop(trial.trial_id, "").rpartition(", ")[2]
            self._progress.finish(cell, seconds)
            self._report(cell, "  ".join(part for part in (latest, clock(seconds)) if part))
            self._on_finished()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Print that a run failed, for good."""
        with _harmless():
            cell = self._cell(trial)
            self.settled.add(cell.spec.cell)
            self._started.pop(trial.trial_id, None)
            self._latest.pop(trial.trial_id, None)
            self._progress.drop(cell)
            self._report(cell, "FAILED")
            self._on_finished()

    def _cell(self, trial: Trial) -> Cell:
        return self._cells[trial.config["run"]["cell"]]

    def _report(self, cell: Cell, outcome: str) -> None:
        self._say(self._progress.line(cell, outcome))

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        say(line)


@contextmanager
def _harmless() -> Iterator[None]:
    """What goes wrong in here must not end a sweep: it is said, if even that is possible."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            say(f"      (progress: {type(error).__name__}: {error})")
