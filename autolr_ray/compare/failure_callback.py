"""From Tune to the list of failures: a run that has used up its attempts is noted at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from autolr_ray.compare.failures import FailureLog
from autolr_ray.compare.study import Cell


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
