"""From a folder of finished cells to ledger and report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.failures import FailureLog, failure_rows
from autolr_ray.compare.ledger import RunStore, write_ledger
from autolr_ray.compare.report import write_report
from autolr_ray.compare.rows import Rows, rows_of
from autolr_ray.compare.study import Study
from autolr_ray.compare.values import FailureRow
from autolr_ray.files import write_atomically
from autolr_ray.remote import Location, RemotePath


def publish(study: Study, folder: Location, store: RunStore | None = None) -> Published:
    """Write ``folder/ledger.parquet`` and the report from the finished runs in ``folder/cells``.

    The ledger holds every run that lies there; the report is about those that the study asks for. Somebody
    else may add runs to the same folder meanwhile: if so, it is all written again.

    Args:
        study: the study.
        folder: its results.
        store: of ``folder/cells``, where there is one already: it has read most of them.
    """
    store = store or RunStore(folder / "cells")
    while True:
        found = store.read_all()
        rows = rows_of(study, found)
        write_ledger([*rows.records, *rows.others], folder / "ledger.parquet")
        failures = failure_rows(
            study, all_cells(study, rows.records), {record.cell for record in rows.records},
            FailureLog(folder / "failures"),
        )  # fmt: skip
        report = _write_report(study, rows, failures, folder)
        if store.names() <= {record.cell for record in found} | store.unreadable:
            return Published(rows=rows, failures=tuple(failures), report=report)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written: the rows and the failures it is about, and where the report's page lies."""

    rows: Rows
    failures: tuple[FailureRow, ...]
    report: str


def _write_report(study: Study, rows: Rows, failures: Sequence[FailureRow], folder: Location) -> str:
    """The report's files, in object storage by way of a folder here; where the page lies."""
    with ExitStack() as stack:
        here = folder
        if isinstance(here, RemotePath):
            here = Path(stack.enter_context(TemporaryDirectory(prefix="autolr_ray-report-")))
        paths = write_report(
            rows.records, here, study_name=study.name, margin=study.margin, baseline_arm=study.baseline,
            candidate_arm=study.candidate, expected_cells=rows.expected, data_note=study.note,
            failures=failures,
        )  # fmt: skip
        if isinstance(folder, RemotePath):
            for path in (*paths.figures, paths.csv, paths.markdown, paths.html):
                write_atomically(folder / str(path.relative_to(here)), path.read_bytes())
        return str(folder / paths.html.name)
