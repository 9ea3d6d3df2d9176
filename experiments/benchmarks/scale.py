"""How many cells the driver, the ledger and the report carry: sweeps of runs that do next to nothing.

    OMP_NUM_THREADS=1 python experiments/benchmarks/scale.py --json [--cells 125 250 500 1000]

Each run takes two optimizer steps of a tiny network, so that what is measured is everything around a run:
Tune, the checkpoint and the record, progress, ledger and report. For each number of cells one whole
``experiments/compare.py``, from launch to exit, and then the same command again, with nothing left to run.

One JSON line each: ``{"cells", "wall_seconds", "seconds_per_cell", "driver_peak_megabytes",
"again_seconds", "ledger_megabytes", "report_megabytes"}``; the driver's memory is its own peak, without its
workers. A last line fits ``seconds ~ cells ** exponent``, and the same for memory and size: an exponent of at
most 1 is linear growth at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COMPARE = Path(__file__).resolve().parents[1] / "compare.py"
TASK = """
import torch
from torch import nn

from autolr_ray.tasks import Splits, Task, TensorData


def data(data_dir):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 4, generator=draw)
    targets = (inputs[:, 0] > 0).long()
    parts = {"train": slice(0, 64), "validation": slice(64, 72), "test": slice(72, 80)}
    return Splits(**{name: TensorData(inputs=inputs[p], targets=targets[p]) for name, p in parts.items()})


task = Task(name="nothing", data=data, model=lambda: nn.Linear(4, 2))
"""
# Runs the command in this process, and leaves its peak memory (ru_maxrss, in KiB on Linux) in a file.
DRIVER = """
import resource, runpy, sys

sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("peak.txt", "w") as file:
        file.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def study(cells: int) -> dict[str, Any]:
    """A study of that many runs: AutoWarmup and four points of a grid, a fifth of the seeds each."""
    return {
        "name": f"scale{cells}", "task": "nothing_task:task", "seeds": list(range(cells // 5)),
        "batches": [{"size": 32, "epochs": 1}],
        "arms": {
            "auto_warmup": {},
            "linear_warmup": {
                "grid": {"peak_lr": [0.001, 0.01, 0.1, 1.0], "warmup_fraction": [0.5], "extend": 0}
            },
        },
        "candidate": "auto_warmup", "baseline": "linear_warmup",
    }  # fmt: skip


def measure(cells: int, folder: Path) -> dict[str, Any]:
    """One sweep of ``cells`` runs in ``folder``, then the same command again."""
    (folder / "nothing_task.py").write_text(TASK)
    (folder / "study.yaml").write_text(yaml.safe_dump(study(cells)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "HOME": str(folder)}
    command = [sys.executable, "-c", DRIVER, str(COMPARE), "--study", "study.yaml", "--results", "results"]

    def run() -> float:
        began = time.perf_counter()
        with (folder / "said.txt").open("w") as said:
            subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said, check=True)
        return time.perf_counter() - began

    wall = run()
    peak = int((folder / "peak.txt").read_text()) / 1024
    again = run()
    out = folder / "results" / f"scale{cells}"
    return {
        "cells": cells, "wall_seconds": wall, "seconds_per_cell": wall / cells,
        "driver_peak_megabytes": peak, "again_seconds": again,
        "ledger_megabytes": (out / "ledger.parquet").stat().st_size / 1e6,
        "report_megabytes": (out / "report.html").stat().st_size / 1e6,
    }  # fmt: skip


def exponent(rows: list[dict[str, Any]], name: str) -> float:
    """The slope of log ``name`` against log cells."""
    cells, values = (np.log([float(row[key]) for row in rows]) for key in ("cells", name))
    return float(np.polyfit(cells, values, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[125, 250, 500, 1000], help="multiples of 5")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    rows = []
    for cells in options.cells:
        with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            rows.append(measure(cells, Path(folder)))
        print(json.dumps(rows[-1]) if options.json else rows[-1], flush=True)
    if len(rows) > 1:
        names = ("wall_seconds", "driver_peak_megabytes", "again_seconds", "report_megabytes")
        fitted = {"exponents": {name: exponent(rows, name) for name in names}, "cpus": os.cpu_count()}
        print(json.dumps(fitted) if options.json else fitted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
