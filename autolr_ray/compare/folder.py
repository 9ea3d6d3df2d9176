"""A study's results as those commands see them that only look: the runs, and the study where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.ledger import RunStore, read_ledger
from autolr_ray.compare.study import Cell, Study
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
        records: finished runs; of a study's folder, those of its cells alone.
        notes: what was found wrong with the files.
    """

    name: str
    folder: Path
    study: Study | None
    cells: tuple[Cell, ...]
    records: tuple[RunRecord, ...]
    notes: tuple[str, ...] = ()


def read_runs(path: Path) -> Runs:
    """Read a ledger's file, or a results folder: its ``cells``, or its ``ledger.parquet`` where it has none.

    Raises:
        ReadingError: ``path`` is neither.
    """
    path = path.expanduser()
    folder = path if path.is_dir() else path.parent
    cells, ledger = path / "cells", path / "ledger.parquet" if path.is_dir() else path
    if not cells.is_dir() and not ledger.is_file() and not (path / "study.yaml").is_file():
        raise ReadingError(
            f"path: {path} is not allowed; a ledger.parquet, or a study's results folder is needed"
        )
    study, notes = kept_study(folder)
    if not ledger.is_file() or cells.is_dir():
        found = RunStore(cells).read_all()
        wanted = tuple(all_cells(study, found)) if study else ()
        # A run is what its spec says; its labels are the study's, and may have changed since it ran.
        labels = {c.spec.cell: {"study": study.name, "arm": c.arm, "point": c.point} for c in wanted if study}
        records = [r.model_copy(update=labels[r.cell]) for r in found if r.cell in labels] if study else found
    else:
        try:
            records = read_ledger(ledger)
        except (OSError, ValueError) as error:
            raise ReadingError(str(error)) from error
        wanted = tuple(all_cells(study, records)) if study else ()
    name = study.name if study else folder.resolve().name
    return Runs(
        name=name, folder=folder, study=study, cells=wanted, records=tuple(records), notes=tuple(notes)
    )


def kept_study(folder: Path) -> tuple[Study | None, list[str]]:
    """The ``study.yaml`` of a results folder, and what is wrong with it, if anything."""
    path = folder / "study.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Study.model_validate(content), []
    except FileNotFoundError:
        return None, []
    except ValidationError as error:
        reason = "; ".join(explain(error).splitlines())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    return None, [f"{path} is passed over: {reason}"]
