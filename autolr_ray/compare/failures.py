"""Runs that failed: how often, and why, kept beside the results so that no sweep tries them for ever."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import tune
from ray.tune.experiment import Trial

from autolr_ray.compare.study import Cell
from autolr_ray.files import write_atomically
from autolr_ray.remote import Location


class FailedRun(BaseModel):
    """A run without a result. ``attempts`` counts lives that ended in an error, over all sweeps."""

    model_config = ConfigDict(frozen=True)

    cell: str
    attempts: int
    reason: str
    at: str


class FailureLog:
    """A folder with one file for each run that failed.

    Args:
        folder: made at the first failure; may be shared.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def read(self) -> dict[str, FailedRun]:
        """The failed runs by cell; a file that is none counts as no failure."""
        found = {}
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            with suppress(OSError, ValidationError):
                run = FailedRun.model_validate_json(path.read_bytes())
                found[run.cell] = run
        return found

    def add(self, cell: str, attempts: int, reason: str) -> FailedRun:
        """``attempts`` more of the cell have failed, the last for ``reason``."""
        before = self.read().get(cell)
        run = FailedRun(
            cell=cell,
            attempts=attempts + (before.attempts if before else 0),
            reason=reason,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_atomically(self._folder / f"{cell}.json", run.model_dump_json().encode(), durable=True)
        return run

    def forget(self, cells: Iterable[str]) -> None:
        """These have a result, or shall be tried as if for the first time."""
        for cell in cells:
            (self._folder / f"{cell}.json").unlink(missing_ok=True)


class FailureCallback(tune.Callback):  # type: ignore[misc]
    """Keeps what Tune has given up on in ``log``, at once: the sweep itself may be killed next."""

    def __init__(self, log: FailureLog, cells: dict[str, Cell]) -> None:
        self._log, self._cells = log, cells

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # As with the progress: Tune pickles its callbacks for a restore that is never asked for.
        return tune.Callback, ()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """A run has used up its attempts."""
        # What cannot be noted must not end the other runs; the sweep says at its end what has no result.
        with suppress(OSError):
            cell = self._cells[trial.config["run"]["cell"]].spec.cell
            self._log.add(cell, max(1, trial.num_failures), reason_of(trial))


def reason_of(trial: Any) -> str:
    """The last line of an error, which is the cause below Ray's own frames, and where all of it lies."""
    error = trial.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    traceback = trial.error_file
    return f"{reason} (traceback: {traceback})" if traceback and Path(traceback).is_file() else reason
