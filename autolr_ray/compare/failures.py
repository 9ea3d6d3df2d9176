"""Runs that failed: how often, and why, kept beside the results so that no sweep tries them for ever."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from autolr_ray.compare.study import Cell, Study
from autolr_ray.compare.values import FailureRow
from autolr_ray.files import write_atomically
from autolr_ray.remote import Location


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell without a result, and why."""

    cell: Cell
    reason: str


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


def failure_rows(
    study: Study, cells: Iterable[Cell], finished: set[str], log: FailureLog
) -> list[FailureRow]:
    """Of the study's runs without a result, those that have failed, for the report."""
    failed, most = log.read(), study.resources.max_attempts
    return [
        FailureRow(
            cell=cell.spec.cell, arm=cell.arm, point=cell.point, batch_size=cell.spec.batch_size,
            seed=cell.spec.seed, attempts=run.attempts, reason=run.reason, given_up=run.attempts >= most,
        )
        for cell in cells
        if cell.spec.cell not in finished and (run := failed.get(cell.spec.cell)) is not None
    ]  # fmt: skip
