"""A study's results as those commands see them that only look: the runs, and the study where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from autolr_ray.compare.asha import expected_asha_records
from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.failures import FailureLog, failure_rows
from autolr_ray.compare.ledger import RunStore, read_ledger
from autolr_ray.compare.rows import rows_in_ledger, rows_of
from autolr_ray.compare.study import Cell, Study
from autolr_ray.compare.values import FailureRow
from autolr_ray.remote import Location
from autolr_ray.train.config import explain
from autolr_ray.train.record import RunRecord


class ReadingError(ValueError):
    """There is nothing to read at a path, or not what was asked for; the message is ready to be shown."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What lies at a path.

    Attributes:
        name: the study's, or the folder's.
        folder: where the runs lie.
        study: what a sweep left beside them; None where there is none, or none that can be read.
        cells: every run of the study, those included that its grids have grown by; empty without a study.
        records: the study's rows; without a study, every run that lies there.
        expected: how many there will be; None without a study.
        failures: runs of the study that failed, as far as the folder tells.
        notes: what was found wrong with the files.
    """

    name: str
    folder: Location
    study: Study | None
    cells: tuple[Cell, ...]
    records: tuple[RunRecord, ...]
    expected: int | None = None
    failures: tuple[FailureRow, ...] = ()
    notes: tuple[str, ...] = ()


def read_runs(path: Location, *, borrowed: bool = True) -> Runs:
    """Read a ledger's file, or a results folder: its ``cells``, or its ``ledger.parquet`` where it has none.

    Args:
        path: in a folder or in object storage.
        borrowed: see :func:`rows_of`.

    Raises:
        ReadingError: ``path`` is neither.
    """
    path = path.expanduser() if isinstance(path, Path) else path
    folder = path if path.is_dir() else path.parent
    cells, ledger = path / "cells", path / "ledger.parquet" if path.is_dir() else path
    if not cells.is_dir() and not ledger.is_file() and not (path / "study.yaml").is_file():
        raise ReadingError(
            f"path: {path} is not allowed; a ledger.parquet, or a study's results folder is needed"
        )
    study, notes = kept_study(folder)
    if not ledger.is_file() or cells.is_dir():
        found = RunStore(cells).read_all()
        # A run is what its spec says; its labels are the study's, and may have changed since it ran.
        records = rows_of(study, found, borrowed=borrowed).records if study else found
    else:
        try:
            found = read_ledger(ledger)
        except (OSError, ValueError) as error:
            raise ReadingError(str(error)) from error
        records = rows_in_ledger(study, found) if study else found
    wanted = tuple(all_cells(study, found)) if study else ()
    failures = (
        failure_rows(study, wanted, {r.cell for r in records}, FailureLog(folder / "failures"))
        if study
        else []
    )
    return Runs(
        name=study.name if study else folder.name, folder=folder, study=study, cells=wanted,
        records=tuple(records), notes=tuple(notes), failures=tuple(failures),
        expected=len(wanted) + borrowed * expected_asha_records(study) if study else None,
    )  # fmt: skip


def kept_study(folder: Location) -> tuple[Study | None, list[str]]:
    """The ``study.yaml`` of a results folder, and what is wrong with it, if anything."""
    path = folder / "study.yaml"
    try:
        content = yaml.safe_load(path.read_bytes().decode())
        return Study.model_validate(content), []
    except FileNotFoundError:
        return None, []
    except ValidationError as error:
        reason = "; ".join(explain(error).splitlines())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    return None, [f"{path} is passed over: {reason}"]
