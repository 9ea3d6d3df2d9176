"""The command line: ``autolr-ray COMMAND``, and what ``experiments/compare.py`` runs.

Parsers and dispatch; the work of each command is in the room that it belongs to, imported when it is called.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import shtab

from autolr_ray import __version__
from autolr_ray import options as describe
from autolr_ray.options import Parser, file_argument, folder_argument

if TYPE_CHECKING:
    from autolr_ray.train.record import RunRecord
    from autolr_ray.train.trainer import RunRequest

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
_EXIT_PIPE = 141  # what a shell reports of a program that nobody reads any more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    try:
        try:
            options = make_parser().parse_args(arguments)
            return int(_RUN[options.command](options))
        finally:
            sys.stdout.flush()  # here, where a reader that is gone can still be answered
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python will flush once more at its end: into nothing, instead of an error that nobody caused.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_PIPE


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="autolr-ray",
        description="Learning rates that set themselves, and the comparison with tuned ones, on Ray.",
        epilog="Each command explains itself: autolr-ray COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"autolr_ray {__version__}")
    shtab.add_argument_to(
        parser, ["--print-completion"], help="print what makes this shell complete the commands"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, what) in _COMMANDS.items():
        add(commands.add_parser(name, help=what))
    return parser


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``compare``."""
    parser.description = (
        "Run every cell of a study that has no result yet, then write RESULTS/STUDY_NAME/report.html.\n"
        "Interrupted or killed, the same command goes on where it was."
    )
    parser.epilog = """examples:
  autolr-ray compare --study quick
  autolr-ray compare --study my_study.yaml --results /mnt/results --address auto --max-concurrent 8
  autolr-ray compare --study my_study.yaml --list"""
    file_argument(
        parser, "--study", required=True, help="a study's YAML file, or the name of a shipped study"
    )
    folder_argument(
        parser,
        "--results",
        default="results",
        help="where results go: a folder, on a cluster one that every node has mounted, or object storage as "
        "s3://bucket/prefix (default: %(default)s)",
    )
    folder_argument(parser, "--data-dir", type=Path, help="where the data set lies; overrides the study's")
    parser.add_argument("--address", help="Ray cluster to use (default: the one at hand, or a new local one)")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try runs again that had been given up after errors"
    )
    parser.add_argument(
        "--max-concurrent", type=describe.positive, metavar="N",
        help="runs at the same time, and what a cluster grows for; overrides the study's "
        "resources.max_concurrent (default: as many as there is room for when the sweep starts)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the study's runs and stop")
    parser.add_argument(
        "--json", action="store_true",
        help="print verdicts, intervals, summaries, failures and notes as one JSON object at the end; all "
        "else goes to standard error",
    )  # fmt: skip


def run_compare(options: argparse.Namespace) -> int:
    """Check everything, run the study, write ledger and report; the exit status."""
    from autolr_ray.compare.command import GO_ON, compare, listing, open_study
    from autolr_ray.compare.study import StudyError, load_study

    try:
        study = load_study(options.study, data_dir=options.data_dir)
        if options.list:
            print("\n".join(listing(study)))
            return EXIT_OK
        folder = open_study(options.results, study)
    except StudyError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    with _results_on_stdout(options.json) as out:
        try:
            return compare(
                study, folder, address=options.address, retry_failed=options.retry_failed,
                max_concurrent=options.max_concurrent,
                on_json=(lambda text: print(text, file=out)) if options.json else None,
            )  # fmt: skip
        except KeyboardInterrupt:
            print(GO_ON, file=sys.stderr)
            return EXIT_INTERRUPTED


def run_train(options: argparse.Namespace) -> int:
    """One run; the exit status."""
    with _results_on_stdout(options.json) as out:
        from autolr_ray.train.single import RunFailed, finished, make_request, read_spec, summary

        named = ("task", "model", "data_dir", "batch_size", "epochs", "optimizer", "seed", "workers")
        more = ("accumulation_steps", "precision", "checkpoint_every")
        rise = ("rule", "warmup", "min_lr", "max_lr", "max_warmup_fraction")
        schedule = (*rise, "decay", "peak_lr", "warmup_fraction", "lr", "steps")
        try:
            spec = read_spec(
                options.spec,
                {name: getattr(options, name) for name in (*named, *more)},
                {"kind": options.schedule, **{name: getattr(options, name) for name in schedule}},
            )
            request = make_request(spec, options.results, device=options.device)
        except ValueError as error:
            print(error, file=sys.stderr)
            return EXIT_BAD_INPUT
        record = finished(request)
        if record is not None:
            print(f"{request.name}: finished before, on {record.finished_at}")
        else:
            try:
                record = _train(request, options.address, options.device)
            except RunFailed as error:
                print(error, file=sys.stderr)
                return EXIT_FAILED
            except KeyboardInterrupt:
                print("interrupted: the same command goes on from the newest checkpoint", file=sys.stderr)
                return EXIT_INTERRUPTED
        if record is None:
            return EXIT_BAD_INPUT
        print(f"{summary(record)}\nrecord: {request.record_dir / spec.cell}.json")
        if options.json:
            from autolr_ray.plain import strict_json

            print(strict_json(record.model_dump(mode="json")), file=out)
    return EXIT_OK


def _train(request: RunRequest, address: str | None, device: str) -> RunRecord | None:
    """Train in this process, or on Ray where there are several workers; None where Ray has no room."""
    from autolr_ray.train.single import train

    def say(line: str) -> None:
        print(line, flush=True)

    spec = request.spec
    if spec.workers == 1:
        say(f"{request.name}: {spec.epochs} epochs in this process")
        return train(request, say=say)
    from autolr_ray.compare.cluster import ClusterError, cluster

    try:
        with cluster(address, spec.own_names) as resources:
            use_gpu = device == "gpu" or (device == "auto" and resources.get("GPU", 0) > 0)
            kind = "GPU" if use_gpu else "CPU"
            if resources.get(kind, 0) < spec.workers:
                print(
                    f"workers: {spec.workers} is not allowed; each needs a {kind}, and Ray has "
                    f"{resources.get(kind, 0):g} of them",
                    file=sys.stderr,
                )
                return None
            say(f"{request.name}: {spec.epochs} epochs on {spec.workers} workers")
            return train(request.model_copy(update={"use_gpu": use_gpu}), say=say)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return None


def run_report(options: argparse.Namespace) -> int:
    """A report from what is there; the exit status."""
    with _results_on_stdout(options.json) as out:
        from autolr_ray.compare.folder import ReadingError
        from autolr_ray.compare.rebuild import rebuild

        try:
            rebuilt = rebuild(
                options.path, out=options.out, study=options.study, baseline=options.baseline,
                candidate=options.candidate, margin=options.margin,
            )  # fmt: skip
        except ReadingError as error:
            print(error, file=sys.stderr)
            return EXIT_BAD_INPUT
        print(f"{rebuilt.table}\n\nreport: {rebuilt.paths.html}")
        if options.json:
            print(rebuilt.json(), file=out)
    return EXIT_OK


def run_status(options: argparse.Namespace) -> int:
    """How far studies are; the exit status."""
    from autolr_ray.compare.folder import ReadingError
    from autolr_ray.compare.status import watch

    try:
        watch(options.paths, every=options.watch, as_json=options.json)
    except ReadingError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def run_board(options: argparse.Namespace) -> int:
    """TensorBoard until Ctrl-C; the exit status."""
    from autolr_ray.compare.board import BoardError, board
    from autolr_ray.compare.folder import ReadingError

    try:
        board(options.path, port=options.port, bind_all=options.bind_all)
    except (ReadingError, BoardError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_OK


def run_replay(options: argparse.Namespace) -> int:
    """What AutoWarmup would have decided; the exit status."""
    from autolr_ray.schedule.replay import CurveError, read_curve, replay

    try:
        if options.cell is not None:
            from autolr_ray.compare.recorded import recorded_curve

            curve = recorded_curve(options.losses, options.cell)
        elif not isinstance(options.losses, Path):
            raise CurveError(
                f"losses: {options.losses} is not allowed without --cell; a file on this machine is needed"
            )
        else:
            curve = read_curve(options.losses)
        found = replay(
            curve, rule=options.rule, min_lr=options.min_lr, max_lr=options.max_lr,
            warmup_steps=options.warmup_steps, steps_per_epoch=options.steps_per_epoch,
        )  # fmt: skip
        if options.plot is not None:
            found.save_plot(options.plot)
    except CurveError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    if options.json:
        from autolr_ray.plain import strict_json

        print(strict_json(found.as_dict()))
    else:
        print(found.as_text())
    return EXIT_OK


@contextlib.contextmanager
def _results_on_stdout(as_json: bool) -> Iterator[TextIO]:
    """Standard output; with ``as_json`` all that is printed inside goes to standard error instead."""
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield out


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "compare": (add_compare, "run a study and write its report"),
    "train": (describe.add_train, "train one model"),
    "report": (describe.add_report, "write a report from finished runs"),
    "status": (describe.add_status, "say how far studies are"),
    "board": (describe.add_board, "start TensorBoard on a study"),
    "replay": (describe.add_replay, "what AutoWarmup would have decided on recorded losses"),
}
_RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "compare": run_compare,
    "train": run_train,
    "report": run_report,
    "status": run_status,
    "board": run_board,
    "replay": run_replay,
}


if __name__ == "__main__":
    sys.exit(main())
