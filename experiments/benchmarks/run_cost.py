"""What a run of AutoWarmup costs beside one run of the grid, and so the share of the grid's cost.

    OMP_NUM_THREADS=1 python experiments/benchmarks/run_cost.py --json [--only TEXT ...] [--seconds 20]
        [--shares FILE] [--seed 40] [--control] [--known FILE ...]

In each cell of ``quality.py`` a run of AutoWarmup and one of the grid's with the same seed take turns, each
in a process of its own: one is stopped for 25 ms, then the other, until both have ended. So the load of the
machine, which changes within seconds and is more than AutoWarmup adds, meets both. They share a processor
(where no GPU does the work), keep the memory that they once had, whose pages else cost one process a fifth
more than the other, and change arms from pair to pair. ``--seconds``: pairs are repeated for that long, an
even number, two at least. ``--control``: the grid's run against itself, to see what the comparison is worth:
its ratios are 1 but for noise. ``--known``: files with rows from before; their cells are not measured again,
so that a run that was cut off goes on.

One JSON line a cell, ``{"cell", "steps", "pairs", "ratio", "ratio_se", "wall_ratio", "grid_run_seconds",
"run_share"}``: over the pairs together, AutoWarmup's processor time over the grid run's (checkpoints and
evaluation included) and its standard error between the pairs, the same of the time each had the turn, and
the mean processor time of the grid's run. The last line has the means over the cells and ``cost_share``: the
processor time of one run of AutoWarmup in each cell over that of the cell's whole grid, as large as it grew,
``run_share`` being one over its points (from ``--shares``, what ``quality.py`` printed; a tenth for cells
that are not in it); ``cost_share_se`` follows from the cells' standard errors.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from quality import CELLS, Cell, published, study_of

from autolr_ray.compare import study
from autolr_ray.train import LocalContext, run

SHARES = Path(__file__).resolve().parents[1] / "results" / "quality" / "quality.jsonl"
_CANDIDATE, _BASELINE = "auto_warmup", "linear_warmup"
_TURN = 0.025  # seconds
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
# For glibc: memory of tensors is kept for the next ones rather than given back page by page.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# [0] processor seconds, [1] seconds of turns.
Spent = tuple[float, float]


def _serve(requests: Connection, folder: Path) -> None:
    """A process that runs the cells it is sent; it answers with processor seconds and optimizer steps."""
    if sys.platform == "linux":  # one that is stopped would stay for ever where its parent was killed
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity") and not torch.cuda.is_available():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    while (cell := requests.recv()) is not None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            began = time.process_time()
            with redirect_stdout(sys.stderr):
                record = run(cell.spec, LocalContext(Path(place) / "run", Path(place) / "cells"))
            requests.send((time.process_time() - began, record.total_steps))


@dataclass
class Runner:
    """A process that runs cells, and the way to talk to it."""

    process: BaseProcess
    answers: Connection

    def ask(self, cell: study.Cell | None) -> None:
        """Start a run; None ends the process."""
        self.answers.send(cell)

    def pause(self) -> None:
        """Stop where it is."""
        os.kill(self.process.pid or 0, signal.SIGSTOP)

    def go_on(self) -> None:
        """After :meth:`pause`."""
        os.kill(self.process.pid or 0, signal.SIGCONT)

    def answer(self) -> tuple[float, int]:
        """Processor seconds and optimizer steps of the run that was asked for; waits for its end."""
        try:
            found: tuple[float, int] = self.answers.recv()
        except EOFError:
            raise ChildProcessError("a run failed; its process printed why") from None
        return found


@contextmanager
def runners(folder: Path, number: int = 2) -> Iterator[list[Runner]]:
    """So many processes that run cells, ended at the end."""
    fresh = multiprocessing.get_context("spawn")  # a forked torch has threads that are not there
    started = []
    for _ in range(number):
        ours, theirs = fresh.Pipe()
        process = fresh.Process(target=_serve, args=(theirs, folder), daemon=True)
        process.start()
        theirs.close()
        started.append(Runner(process, ours))
    try:
        yield started
    finally:
        for runner in started:
            runner.process.kill()
            runner.process.join()


def in_turns(pair: Sequence[tuple[Runner, study.Cell]]) -> tuple[list[Spent], int]:
    """What each of the runs spent, and their optimizer steps, which are the same."""
    running = []
    for number, (runner, cell) in enumerate(pair):
        runner.pause()
        runner.ask(cell)
        running.append(number)
    spent, turns, steps = [0.0] * len(pair), [0.0] * len(pair), set()
    while running:
        number = running.pop(0)
        runner = pair[number][0]
        began = time.perf_counter()
        runner.go_on()
        ended = runner.answers.poll(_TURN)
        if not ended:
            runner.pause()
            running.append(number)
        turns[number] += time.perf_counter() - began
        if ended:
            spent[number], found = runner.answer()
            steps.add(found)
    (all_steps,) = steps
    return list(zip(spent, turns, strict=True)), all_steps


def row(
    cell: Cell, seed: int, seconds: float, share: float, folder: Path, *, control: bool
) -> dict[str, Any]:
    """The pairs of one cell."""
    runs = study_of(cell, [seed], folder).cells()
    points = [x for x in runs if x.arm == _BASELINE]
    baseline = points[len(points) // 2]  # none of its edges, where runs diverge
    ours = baseline if control else next(x for x in runs if x.arm == _CANDIDATE)
    ours_spent: list[Spent] = []
    baseline_spent: list[Spent] = []
    with runners(folder) as pair:
        for runner in pair:  # data and code are loaded
            short = baseline.spec.model_copy(update={"epochs": 1})
            runner.ask(baseline.model_copy(update={"spec": short}))
            runner.answer()
        began = time.perf_counter()
        while not ours_spent or len(ours_spent) % 2 or time.perf_counter() - began < seconds:
            (a, b), steps = in_turns([(pair[0], ours), (pair[1], baseline)])
            ours_spent.append(a)
            baseline_spent.append(b)
            pair.reverse()
    ratio, wall_ratio = (
        math.fsum(x[i] for x in ours_spent) / math.fsum(x[i] for x in baseline_spent) for i in (0, 1)
    )
    grid_run_seconds = statistics.fmean(x[0] for x in baseline_spent)
    # Of a ratio of sums, to first order.
    left = [(a[0] - ratio * b[0]) / grid_run_seconds for a, b in zip(ours_spent, baseline_spent, strict=True)]
    return {
        "cell": cell.name, "steps": steps, "pairs": len(left), "ratio": ratio,
        "ratio_se": statistics.stdev(left) / math.sqrt(len(left)), "wall_ratio": wall_ratio,
        "grid_run_seconds": grid_run_seconds, "run_share": share,
    }  # fmt: skip


def rows_of(path: str) -> list[dict[str, Any]]:
    """The cells' rows of a file that this script printed; for argparse."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if "ratio_se" in row]
    except (OSError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{path} has no rows of this script ({error})") from None


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All cells together."""
    ours = math.fsum(r["ratio"] * r["grid_run_seconds"] for r in rows)
    grids = math.fsum(r["grid_run_seconds"] / r["run_share"] for r in rows)
    return {
        "cells": len(rows), "ratio": statistics.fmean(r["ratio"] for r in rows),
        "wall_ratio": statistics.fmean(r["wall_ratio"] for r in rows),
        "mean_cost_share": statistics.fmean(r["ratio"] * r["run_share"] for r in rows),
        "cost_share": ours / grids,
        "cost_share_se": math.hypot(*(r["ratio_se"] * r["grid_run_seconds"] for r in rows)) / grids,
        "cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose name holds one of these")
    parser.add_argument("--seconds", type=float, default=20.0, help="(default: %(default)s)")
    parser.add_argument(
        "--shares", type=published, default=str(SHARES), metavar="FILE", help="(default: the committed one)"
    )
    parser.add_argument("--seed", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--control", action="store_true", help="the grid's run against itself")
    parser.add_argument(
        "--known", type=rows_of, nargs="+", default=[], metavar="FILE", help="measured before (default: none)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    known = {row["cell"]: row for rows in options.known for row in rows}
    rows = []
    os.environ |= _KEEP_MEMORY  # of the processes to come
    with tempfile.TemporaryDirectory() as folder:
        for cell in CELLS:
            if any(text in cell.name for text in options.only):
                share = options.shares[cell.name]["run_share"] if cell.name in options.shares else 0.1
                rows.append(
                    known.get(cell.name)
                    or row(cell, options.seed, options.seconds, share, Path(folder), control=options.control)
                )
                print(json.dumps(rows[-1]) if options.json else rows[-1], flush=True)
    if not rows:
        parser.error(f"--only: no cell's name holds any of {options.only}; quality.py --list names them")
    last = total(rows)
    print(json.dumps(last) if options.json else last, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
