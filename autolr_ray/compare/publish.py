"""From a folder of finished cells to ledger and report: at the end, and now and then while a sweep runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.ledger import RunStore, write_ledger
from autolr_ray.compare.report import ReportPaths, write_report
from autolr_ray.compare.study import Study
from autolr_ray.train.record import RunRecord


def publish(study: Study, folder: Path) -> tuple[list[RunRecord], ReportPaths]:
    """Write ``folder/ledger.parquet`` and the report from the study's cells in ``folder/cells``."""
    found = RunStore(folder / "cells").read_all()
    cells = all_cells(study, found)
    # A run is what its spec says; its labels are the study's, and may have changed since it ran.
    labels = {c.spec.cell: {"study": study.name, "arm": c.arm, "point": c.point} for c in cells}
    records = [r.model_copy(update=labels[r.cell]) for r in found if r.cell in labels]
    write_ledger(records, folder / "ledger.parquet")
    paths = write_report(
        records, folder, study_name=study.name, margin=study.margin, baseline_arm=study.baseline,
        candidate_arm=study.candidate, expected_cells=len(cells), data_note=study.note,
    )  # fmt: skip
    return records, paths


class Publisher:
    """Publishes in the background while a sweep runs, so that it can be watched.

    At most one writing at a time, and none within ``interval`` seconds, or twenty times what the last one
    took, of the one before: drawing must not hold up the runs. What goes wrong is dropped: the end of the
    sweep writes again, and speaks up.
    """

    def __init__(self, study: Study, folder: Path, *, interval: float = 15.0) -> None:
        self._study, self._folder, self._interval = study, folder, interval
        self._next = time.monotonic() + interval
        self._thread: threading.Thread | None = None

    def touch(self) -> None:
        """A run has finished: publish if it is time. Returns at once."""
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._write, name="autolr-publish", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for a writing that is under way."""
        if self._thread is not None:
            self._thread.join()

    def _write(self) -> None:
        began = time.monotonic()
        with suppress(Exception):
            publish(self._study, self._folder)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(self._interval, 20 * took)
