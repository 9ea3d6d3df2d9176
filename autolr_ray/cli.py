"""The command line: ``autolr-ray compare`` and what ``experiments/compare.py`` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
        "--results", type=Path, default=Path("results"), help="results' folder (default: %(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, help="where the data set lies; overrides the study's")
    parser.add_argument("--address", help="Ray cluster to use (default: the one at hand, or a new local one)")
    parser.add_argument("--list", action="store_true", help="print the study's runs and stop")


def run_compare(options: argparse.Namespace) -> int:
    """Check everything, run the study, write ledger and report; the exit status."""
    from autolr_ray.compare.study import StudyError, dump_study, load_study

    try:
        study = load_study(options.study, data_dir=options.data_dir)
        cells = study.cells()
        if options.list:
            for cell in cells:
                spec = cell.spec
                print(
                    f"{spec.cell}  {cell.arm:20s} {cell.point:28s} batch {spec.batch_size}  seed {spec.seed}"
                )
            return EXIT_OK
        folder = _writable(options.results.resolve() / study.name)
    except StudyError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT

    print(f"{study.name}: {len(cells)} runs into {folder}; importing Ray and PyTorch ...", flush=True)
    from autolr_ray.compare.ledger import RunStore, write_ledger
    from autolr_ray.compare.report import console_table, write_report
    from autolr_ray.compare.sweep import failure_lines, run_sweep
    from autolr_ray.files import write_atomically

    write_atomically(folder / "study.yaml", dump_study(study).encode())
    interrupted = False
    failures = []
    try:
        failures = run_sweep(study, folder, address=options.address)
    except KeyboardInterrupt:
        interrupted = True
    wanted = {cell.spec.cell for cell in cells}
    records = [record for record in RunStore(folder / "cells").read_all() if record.cell in wanted]
    write_ledger(records, folder / "ledger.parquet")
    paths = write_report(
        records, folder, study_name=study.name, margin=study.margin, baseline_arm=study.baseline,
        candidate_arm=study.candidate, expected_cells=len(cells), data_note=study.note,
    )  # fmt: skip
    print()
    print(
        console_table(
            records, margin=study.margin, baseline_arm=study.baseline, candidate_arm=study.candidate,
            expected_cells=len(cells),
        )
    )  # fmt: skip
    print(f"\nreport: {paths.html}", flush=True)
    for line in failure_lines(failures):
        print(line, file=sys.stderr)
    if interrupted:
        print("interrupted: finished runs are kept; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if failures else EXIT_OK


def _writable(folder: Path) -> Path:
    """The folder, made; StudyError where it cannot be written to."""
    from autolr_ray.compare.study import StudyError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StudyError(f"results: {folder} cannot be written to ({error.strerror or error})") from error
    return folder


if __name__ == "__main__":
    sys.exit(main())
