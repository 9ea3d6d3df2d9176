"""What ``autolr-ray compare`` does once its study is read: run what is missing, then ledger and report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.failures import FailureLog
from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.study import Study, StudyError, dump_study
from autolr_ray.files import remove_tree, write_atomically
from autolr_ray.remote import Location, location

# Exit statuses, as in autolr_ray.cli.
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

GO_ON = "interrupted: finished runs are kept; the same command goes on from here"


def compare(
    study: Study,
    folder: Location,
    *,
    address: str | None,
    retry_failed: bool,
    max_concurrent: int | None = None,
    on_json: Callable[[str], None] | None = None,
) -> int:
    """Run what has no result yet, then write and print what there is; the exit status.

    Args:
        study, folder: what runs, and its place from :func:`open_study`.
        address: see :func:`~autolr_ray.compare.sweep.run_sweep`.
        retry_failed: forget earlier failures.
        max_concurrent: takes the place of the study's own in this sweep; ``study.yaml`` and what a run is
            known by do not change.
        on_json: gets the findings as one JSON object at the end.
    """
    store = RunStore(folder / "cells")
    found = store.read_all()
    wanted, finished = {cell.spec.cell for cell in all_cells(study, found)}, {record.cell for record in found}
    _clear_up(folder / "runs", finished)
    interrupted, failures = False, []
    if wanted <= finished:
        print(f"{study.name}: all {len(wanted)} runs are finished, nothing to run; writing the report again")
    else:
        print(f"{study.name}: {len(wanted)} runs into {folder}; importing Ray ...", flush=True)
        from autolr_ray.compare.cluster import ClusterError
        from autolr_ray.compare.publisher import Publisher
        from autolr_ray.compare.sweep import failure_lines, run_sweep

        if retry_failed:
            log = FailureLog(folder / "failures")
            log.forget(log.read())
        publisher = Publisher(study, folder)
        limited = _limited(study, max_concurrent)
        try:
            failures = failure_lines(run_sweep(limited, folder, address=address, on_finished=publisher.touch))
        except ClusterError as error:
            print(error, file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            interrupted = True
        finally:
            publisher.close()

    from autolr_ray.compare.publish import publish
    from autolr_ray.compare.report import console_table

    published = publish(study, folder, store)
    table = console_table(
        published.rows.records, margin=study.margin, baseline_arm=study.baseline,
        candidate_arm=study.candidate, expected_cells=published.rows.expected,
    )  # fmt: skip
    print(f"\n{table}\n\nreport: {published.report}", flush=True)
    if on_json is not None:
        from autolr_ray.compare.findings import Findings
        from autolr_ray.compare.rebuild import findings_json

        rows = published.rows
        said = Findings(rows.records, study.margin, study.baseline, study.candidate, rows.expected)
        on_json(findings_json(study.name, said, failures=published.failures, report=published.report))
    for line in failures:
        print(line, file=sys.stderr)
    if failures:
        print("with --retry-failed runs that were given up are tried again", file=sys.stderr)
    if interrupted:
        print(GO_ON, file=sys.stderr)
        return INTERRUPTED
    return FAILED if failures else OK


def _clear_up(runs: Location, finished: set[str]) -> None:
    """Delete the checkpoints of finished runs that were cut off just before they would have done it."""
    with suppress(OSError):
        for place in runs.iterdir():
            if place.name.rpartition("-")[2] in finished:
                remove_tree(place)


def _limited(study: Study, max_concurrent: int | None) -> Study:
    """The study with another ``resources.max_concurrent``; None: its own."""
    if max_concurrent is None:
        return study
    resources = study.resources.model_copy(update={"max_concurrent": max_concurrent})
    return study.model_copy(update={"resources": resources})


def listing(study: Study) -> list[str]:
    """A line for each run and label."""
    return [
        f"{spec.cell}  {cell.arm:20s} {cell.point:28s} batch {spec.batch_size}  seed {spec.seed}"
        for cell in study.cells()
        for spec in (cell.spec,)
    ]


def _keep_study(study: Study, folder: Location) -> None:
    """Write ``study.yaml`` beside the results; say so where an earlier one was different, and keep it too."""
    path, text = folder / "study.yaml", dump_study(study).encode()
    before = path.read_bytes() if path.is_file() else text
    if before != text:
        write_atomically(folder / "study.previous.yaml", before)
        print(
            f"{study.name}: the study has changed since its last run here (study.previous.yaml); runs that "
            "both have are not repeated, runs of the old one are left out of the report"
        )
    write_atomically(path, text)


def open_study(results: str, study: Study) -> Location:
    """The study's place in ``results``, tried out, with ``study.yaml`` in it.

    Raises:
        StudyError: it is no place, or cannot be written to.
    """
    try:
        place = location(results)
        folder = (place.expanduser().resolve() if isinstance(place, Path) else place) / study.name
    except ValueError as error:
        raise StudyError(f"results: {error}") from error
    try:
        probe = folder / ".writable"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise StudyError(f"results: {folder} cannot be written to ({error.strerror or error})") from error
    _keep_study(study, folder)
    return folder
