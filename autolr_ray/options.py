"""What each command of the command line may be told: parsers and their help, nothing that takes time."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

import shtab

# Written out, because the modules that own these names import torch; a test compares.
OPTIMIZERS = ("adamp", "lamb", "adamw", "sgd_nesterov", "prodigy", "schedule_free_adamw")
PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("auto_warmup", "linear_warmup", "lr_range_test", "constant")
RULES = ("robust", "paper")
DECAYS = ("cosine", "linear", "constant-then-cosine")
WARMUPS = ("linear", "exponential")


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of its texts, and guesses what a mistyped name was meant to be."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Exit with status 2, usage and message."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
            message += "".join(f"; did you mean {name!r}?" for name in near)
        super().error(message)


def file_argument(parser: argparse._ActionsContainer, *names: str, **settings: Any) -> None:
    """An argument that shells complete with files and folders."""
    parser.add_argument(*names, **settings).complete = shtab.FILE  # type: ignore[attr-defined]


def folder_argument(parser: argparse._ActionsContainer, *names: str, **settings: Any) -> None:
    """An argument that shells complete with folders."""
    parser.add_argument(*names, **settings).complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _place(text: str) -> object:
    """A path, or object storage for a URI."""
    if "://" not in text:
        return Path(text)
    from autolr_ray.remote import location

    try:
        return location(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_train(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``train``."""
    parser.description = (
        "Train one model, with a learning rate that finds itself (or with the linear warmup that you name).\n"
        "Interrupted or killed, the same command goes on where it was; finished, it prints the result."
    )
    parser.epilog = """examples:
  autolr-ray train --task fashion_mnist_subset --batch-size 256 --epochs 4
  autolr-ray train --task my_task:task --batch-size 4096 --workers 4 --epochs 30 --optimizer lamb
  autolr-ray train --task fashion_mnist_subset --batch-size 256 --epochs 4 \\
      --schedule linear_warmup --peak-lr 0.01 --warmup-fraction 0.05
  autolr-ray train --task digits --batch-size 64 --epochs 6 --optimizer schedule_free_adamw --lr 0.005
  autolr-ray train --spec run.yaml --seed 3 --json > record.json"""
    run = parser.add_argument_group("the run")
    file_argument(
        run, "--spec", type=Path, metavar="FILE",
        help="a run in YAML: the fields of autolr_ray.train.RunSpec; options given beside it win",
    )  # fmt: skip
    run.add_argument("--task", help="a packaged task, or your own as package.module:attribute")
    run.add_argument("--model", help="a packaged model (default: the task's usual one)")
    folder_argument(run, "--data-dir", type=Path, metavar="DIR", help="where the task's data set lies")
    run.add_argument("--batch-size", type=int, metavar="N", help="global batch size, of all workers together")
    run.add_argument("--epochs", type=int, metavar="N", help="passes over the training part")
    run.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: adamw)")
    run.add_argument("--seed", type=int, metavar="N", help="(default: 0)")
    run.add_argument("--workers", type=int, metavar="N", help="processes that share each batch (default: 1)")
    run.add_argument(
        "--accumulation-steps", type=_number_or_auto, metavar="N",
        help="micro-batches in a row of each worker, or auto: as few as the GPU's memory allows (default: 1)",
    )  # fmt: skip
    run.add_argument("--precision", choices=PRECISIONS, help="(default: float32)")
    run.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS",
        help="checkpoints inside an epoch, too (default: at each epoch's end alone)",
    )  # fmt: skip
    schedule = parser.add_argument_group("its schedule")
    schedule.add_argument(
        "--schedule", choices=SCHEDULES,
        help="(default: auto_warmup; as their authors advise, constant with schedule_free_adamw, and with "
        "prodigy linear_warmup at peak 1 without a warmup)",
    )  # fmt: skip
    schedule.add_argument(
        "--decay", choices=DECAYS,
        help="after the warmup (default: cosine, after auto_warmup's linear warmup linear)",
    )  # fmt: skip
    schedule.add_argument(
        "--warmup", choices=WARMUPS,
        help="auto_warmup: a short sweep and a linear warmup, or one exponential rise (default: linear where "
        "it can be)",
    )  # fmt: skip
    schedule.add_argument("--rule", choices=RULES, help="auto_warmup: what ends the warmup (default: robust)")
    schedule.add_argument(
        "--min-lr", type=float, metavar="LR",
        help="auto_warmup, lr_range_test: where the rise starts (default: 1e-05, 1e-07)",
    )  # fmt: skip
    schedule.add_argument(
        "--max-lr", type=float, metavar="LR",
        help="auto_warmup, lr_range_test: where it ends at the latest (default: 1.0, 10.0)",
    )  # fmt: skip
    schedule.add_argument(
        "--max-warmup-fraction", type=float, metavar="SHARE",
        help="auto_warmup: longest warmup, a share of all steps (default: 0.5)",
    )  # fmt: skip
    schedule.add_argument("--peak-lr", type=float, metavar="LR", help="linear_warmup: needed there")
    schedule.add_argument("--lr", type=float, metavar="LR", help="constant (default: 0.0025)")
    schedule.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="lr_range_test: steps of the test before the run (default: 100)",
    )
    schedule.add_argument(
        "--warmup-fraction", type=float, metavar="SHARE",
        help="linear_warmup, lr_range_test: a share of all steps (default: 0.05)",
    )  # fmt: skip
    place = parser.add_argument_group("where and how")
    folder_argument(
        place, "--results", type=Path, default=Path("results/train"), metavar="DIR",
        help="records go to DIR/cells, checkpoints to DIR/runs (default: %(default)s)",
    )  # fmt: skip
    place.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto",
        help="auto: a GPU for each worker where there are any (default: %(default)s)",
    )  # fmt: skip
    place.add_argument(
        "--address", help="several workers: the Ray cluster (default: the one at hand, or a new local one)"
    )
    _add_json(place, "print the finished record as one JSON object; all else goes to standard error")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``report``."""
    parser.description = (
        "Write a report from finished runs: verdicts, tables and figures. Nothing is trained, and a sweep\n"
        "that is still going is not disturbed. What is missing is said."
    )
    parser.epilog = """examples:
  autolr-ray report results/my_study
  autolr-ray report results/my_study --margin 0.01 --out wider_margin
  autolr-ray report ledger.parquet --json | jq '.verdicts[] | [.batch_size, .verdict]'"""
    file_argument(
        parser, "path", type=_place, metavar="PATH", help="a study's results folder, or a ledger.parquet"
    )
    folder_argument(
        parser, "--out", type=Path, metavar="DIR", help="the report's folder (default: where the runs lie)"
    )
    parser.add_argument("--study", metavar="NAME", help="which study, where the ledger holds several")
    parser.add_argument("--baseline", metavar="ARM", help="(default: study.yaml's, else the largest grid)")
    parser.add_argument(
        "--candidate", metavar="ARM", help="(default: study.yaml's, else the first untuned arm)"
    )
    parser.add_argument(
        "--margin", type=float, metavar="SHARE",
        help="accuracy difference that counts as none (default: study.yaml's, else 0.005)",
    )  # fmt: skip
    _add_json(parser, "print verdicts, intervals, summaries and notes as one JSON object")


def add_status(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``status``."""
    parser.description = (
        "Say how far studies are: finished, pending and failed runs by batch size and arm, the newest\n"
        "result, and, while a sweep is alive, what is running and how long it will take."
    )
    parser.epilog = """examples:
  autolr-ray status
  autolr-ray status results/my_study --watch
  autolr-ray status results/my_study --json | jq '.[0].counts'"""
    folder_argument(
        parser, "paths", type=_place, nargs="*", metavar="PATH",
        help="studies' results folders (default: every study in results)",
    )  # fmt: skip
    parser.add_argument(
        "--watch", type=float, nargs="?", const=5.0, metavar="SECONDS",
        help="say it again every so many seconds (5 where none are named), until no sweep is alive",
    )  # fmt: skip
    _add_json(parser, "print a JSON array with one object a study; with --watch one array a line")


def add_board(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``board``."""
    parser.description = (
        "Start TensorBoard on a study: curves of every run, finished or going on, and an HPARAMS page with\n"
        "arm, batch size, seed and peak learning rate beside the results. Ctrl-C ends it."
    )
    parser.epilog = """examples:
  autolr-ray board results/my_study
  autolr-ray board results/my_study --port 6007

The test accuracy of a grid's points is shown for the chosen one alone, when all runs of the study are
finished, as in the report."""
    file_argument(
        parser, "path", type=_place, metavar="PATH", help="a study's results folder, or a ledger.parquet"
    )
    parser.add_argument("--port", type=int, default=6006, help="(default: %(default)s; 0: any that is free)")
    parser.add_argument(
        "--bind-all", action="store_true",
        help="let other machines in; TensorBoard asks nobody for a password (default: this machine alone)",
    )  # fmt: skip


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``replay``."""
    parser.description = (
        "Say what AutoWarmup would have decided on losses that were recorded while the learning rate rose\n"
        "exponentially from --min-lr to --max-lr: whether the warmup ends, where, at which learning rate, "
        "and why."
    )
    parser.epilog = """examples:
  autolr-ray replay losses.csv
  autolr-ray replay losses.npy --min-lr 1e-6 --max-lr 10 --plot why.png
  autolr-ray replay losses.csv --rule paper --steps-per-epoch 50
  autolr-ray replay results/my_study/ledger.parquet --cell 58e39a62b6dadc57 --rule paper"""
    file_argument(
        parser, "losses", type=_place, metavar="LOSSES",
        help=".csv or .tsv with a column loss (and step, lr), .npy, .npz, or .json with a list: one loss for "
        "each optimizer step; with --cell a ledger.parquet or a study's results, in object storage, too",
    )  # fmt: skip
    parser.add_argument(
        "--cell", metavar="HASH", help="replay this run of the ledger; the beginning of its hash will do"
    )
    parser.add_argument("--rule", choices=RULES, help="(default: the run's, else robust)")
    parser.add_argument(
        "--min-lr", type=float, metavar="LR", help="(default: what column lr says, else 1e-05)"
    )
    parser.add_argument("--max-lr", type=float, metavar="LR", help="(default: what column lr says, else 1.0)")
    parser.add_argument(
        "--warmup-steps", type=int, metavar="N",
        help="steps of the whole rise (default: the run's, else as many as there are losses)",
    )  # fmt: skip
    parser.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="needed by --rule paper (default: the run's)"
    )
    file_argument(parser, "--plot", type=Path, metavar="FILE", help="draw losses, posterior and tests")
    _add_json(parser, "print decision and tests as one JSON object")


def _add_json(parser: argparse._ActionsContainer, help_text: str) -> None:
    parser.add_argument("--json", action="store_true", help=help_text)


def positive(text: str) -> int:
    """An integer of at least 1."""
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed; an integer >= 1 is needed")


def _number_or_auto(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed; an integer >= 1 or 'auto' is needed")
