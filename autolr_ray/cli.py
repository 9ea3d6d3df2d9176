"""The command line: ``autolr-ray compare`` and what ``experiments/compare.py`` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autolr_ray.compare.study import Cell, Study
    from autolr_ray.remote import Location

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="autolr-ray", description="Compare automatic learning rates with tuned ones, on Ray."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_compare(commands.add_parser("compare", help="run a study and write its report"))
    return int(run_compare(parser.parse_args(arguments)))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``compare``."""
    parser.description = (
        "Run every cell of a study that has no result yet, then write RESULTS/STUDY_NAME/report.html. "
        "Interrupted or killed, the same command goes on where it was."
    )
    parser.add_argument("--study", required=True, help="a study's YAML file, or the name of a shipped study")
    parser.add_argument(
        "--results",
        default="results",
        help="where results go: a folder, on a cluster one that every node has mounted, or object storage as "
        "s3://bucket/prefix (default: %(default)s)",
    )
    parser.add_argument("--data-dir", type=Path, help="where the data set lies; overrides the study's")
    parser.add_argument("--address", help="Ray cluster to use (default: the one at hand, or a new local one)")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try runs again that had been given up after errors"
    )
    parser.add_argument("--list", action="store_true", help="print the study's runs and stop")


def run_compare(options: argparse.Namespace) -> int:
    """Check everything, run the study, write ledger and report; the exit status."""
    from autolr_ray.compare.study import StudyError, load_study

    try:
        study = load_study(options.study, data_dir=options.data_dir)
        if options.list:
            print("\n".join(_line(cell) for cell in study.cells()))
            return EXIT_OK
        folder = _writable(options.results, study.name)
    except StudyError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        return _compare(study, folder, options.address, options.retry_failed)
    except KeyboardInterrupt:
        print(_GO_ON, file=sys.stderr)
        return EXIT_INTERRUPTED


_GO_ON = "interrupted: finished runs are kept; the same command goes on from here"


def _compare(study: Study, folder: Location, address: str | None, retry_failed: bool) -> int:
    """Run what has no result yet, then write and print what there is; the exit status."""
    from autolr_ray.compare.extend import all_cells
    from autolr_ray.compare.ledger import RunStore

    _keep_study(study, folder)
    store = RunStore(folder / "cells")
    found = store.read_all()
    wanted = {cell.spec.cell for cell in all_cells(study, found)}
    interrupted, failures = False, []
    if wanted <= {record.cell for record in found}:
        print(f"{study.name}: all {len(wanted)} runs are finished, nothing to run; writing the report again")
    else:
        print(f"{study.name}: {len(wanted)} runs into {folder}; importing Ray and PyTorch ...", flush=True)
        from autolr_ray.compare.cluster import ClusterError
        from autolr_ray.compare.failures import FailureLog
        from autolr_ray.compare.publish import Publisher
        from autolr_ray.compare.sweep import failure_lines, run_sweep

        if retry_failed:
            log = FailureLog(folder / "failures")
            log.forget(log.read())
        publisher = Publisher(study, folder)
        try:
            failures = failure_lines(run_sweep(study, folder, address=address, on_finished=publisher.touch))
        except ClusterError as error:
            print(error, file=sys.stderr)
            return EXIT_BAD_INPUT
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
    for line in failures:
        print(line, file=sys.stderr)
    if failures:
        print("with --retry-failed runs that were given up are tried again", file=sys.stderr)
    if interrupted:
        print(_GO_ON, file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if failures else EXIT_OK


def _line(cell: Cell) -> str:
    spec = cell.spec
    return f"{spec.cell}  {cell.arm:20s} {cell.point:28s} batch {spec.batch_size}  seed {spec.seed}"


def _keep_study(study: Study, folder: Location) -> None:
    """Write ``study.yaml`` beside the results; say so where an earlier one was different, and keep it too."""
    from autolr_ray.compare.study import dump_study
    from autolr_ray.files import write_atomically

    path, text = folder / "study.yaml", dump_study(study).encode()
    before = path.read_bytes() if path.is_file() else text
    if before != text:
        write_atomically(folder / "study.previous.yaml", before)
        print(
            f"{study.name}: the study has changed since its last run here (study.previous.yaml); runs that "
            "both have are not repeated, runs of the old one are left out of the report"
        )
    write_atomically(path, text)


def _writable(results: str, name: str) -> Location:
    """The study's place in ``results``, tried out; StudyError where it cannot be written to."""
    from autolr_ray.compare.study import StudyError
    from autolr_ray.files import write_atomically
    from autolr_ray.remote import location

    try:
        place = location(results)
        folder = (place.expanduser().resolve() if isinstance(place, Path) else place) / name
    except ValueError as error:
        raise StudyError(f"results: {error}") from error
    try:
        probe = folder / ".writable"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise StudyError(f"results: {folder} cannot be written to ({error.strerror or error})") from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
