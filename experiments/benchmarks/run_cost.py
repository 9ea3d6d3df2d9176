"""What a run of AutoWarmup costs beside one run of the grid, and so the share of the grid's cost.

    OMP_NUM_THREADS=1 python experiments/benchmarks/run_cost.py --json [--only TEXT ...] [--seconds 20]
        [--shares FILE] [--seed 40]

In each cell of ``quality.py`` a run of AutoWarmup and one of the grid's with the same seed take turns in one
process, in both orders: the load of the machine, which decides the device time of runs made hours apart,
meets both. ``--seconds``: pairs are repeated for that long, two at least.

One JSON line a cell, ``{"cell", "steps", "pairs", "ratio", "wall_ratio", "grid_run_seconds", "run_share"}``:
the medians over the pairs of AutoWarmup's processor time over the grid run's (checkpoints and evaluation
included), of its device time over the grid run's, and of the grid run's processor time. The last line has
their means over the cells, and ``cost_share``: the processor time of one run of AutoWarmup in each cell over
that of the cell's whole grid, as large as it grew, ``run_share`` being one over its points (from
``--shares``, what ``quality.py`` printed; a tenth for cells that are not in it).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from quality import CELLS, Cell, published, study_of

from autolr_ray.compare import study
from autolr_ray.train import LocalContext, run

SHARES = Path(__file__).resolve().parents[1] / "results" / "quality" / "quality.jsonl"
_CANDIDATE, _BASELINE = "auto_warmup", "linear_warmup"


def cost(cell: study.Cell, folder: Path) -> tuple[float, float, int]:
    """Processor and device seconds of one run, and its optimizer steps."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        began = time.process_time()
        with redirect_stdout(sys.stderr):
            record = run(cell.spec, LocalContext(Path(place) / "run", Path(place) / "cells"))
        return time.process_time() - began, record.device_seconds, record.total_steps


def row(cell: Cell, seed: int, seconds: float, share: float, folder: Path) -> dict[str, Any]:
    """The pairs of one cell."""
    runs = study_of(cell, [seed], folder).cells()
    points = [x for x in runs if x.arm == _BASELINE]
    arms = {
        _CANDIDATE: next(x for x in runs if x.arm == _CANDIDATE),
        _BASELINE: points[len(points) // 2],  # none of its edges, where runs diverge
    }
    short = arms[_BASELINE].spec.model_copy(update={"epochs": 1})
    cost(arms[_BASELINE].model_copy(update={"spec": short}), folder)  # data and code are loaded
    pairs: list[dict[str, tuple[float, float, int]]] = []
    began = time.perf_counter()
    while len(pairs) < 2 or time.perf_counter() - began < seconds:
        order = (_CANDIDATE, _BASELINE) if len(pairs) % 2 else (_BASELINE, _CANDIDATE)
        pairs.append({arm: cost(arms[arm], folder) for arm in order})
    assert len({found[2] for pair in pairs for found in pair.values()}) == 1
    ratio, wall_ratio = (
        statistics.median(pair[_CANDIDATE][i] / pair[_BASELINE][i] for pair in pairs) for i in (0, 1)
    )
    return {
        "cell": cell.name, "steps": pairs[0][_CANDIDATE][2], "pairs": len(pairs), "ratio": ratio,
        "wall_ratio": wall_ratio, "grid_run_seconds": statistics.median(p[_BASELINE][0] for p in pairs),
        "run_share": share,
    }  # fmt: skip


def total(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All cells together."""
    ours = math.fsum(r["ratio"] * r["grid_run_seconds"] for r in rows)
    grids = math.fsum(r["grid_run_seconds"] / r["run_share"] for r in rows)
    return {
        "cells": len(rows), "ratio": statistics.fmean(r["ratio"] for r in rows),
        "wall_ratio": statistics.fmean(r["wall_ratio"] for r in rows),
        "mean_cost_share": statistics.fmean(r["ratio"] * r["run_share"] for r in rows),
        "cost_share": ours / grids, "cpus": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "torch": torch.__version__,
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
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in CELLS:
            if any(text in cell.name for text in options.only):
                share = options.shares[cell.name]["run_share"] if cell.name in options.shares else 0.1
                rows.append(row(cell, options.seed, options.seconds, share, Path(folder)))
                print(json.dumps(rows[-1]) if options.json else rows[-1], flush=True)
    if not rows:
        parser.error(f"--only: no cell's name holds any of {options.only}; quality.py --list names them")
    last = total(rows)
    print(json.dumps(last) if options.json else last, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
