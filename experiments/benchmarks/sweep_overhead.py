"""What a sweep costs beside a plain script that runs the same cells one after the other.

    OMP_NUM_THREADS=1 python experiments/benchmarks/sweep_overhead.py --json [--repeats 3] [--epochs 8]

Twelve small runs of one worker (Fashion-MNIST subset, CNN with BatchNorm, batch 256): a process that imports
PyTorch and this package once and runs them in a row, then ``experiments/compare.py`` on a study of the same
runs, both from launch to exit, the sweep with Ray's start, ledger and report. They alternate, ``--repeats``
times; reported are the ratio of each pair and the median. Both results must be equal bit for bit.

Two runs of two workers each, ``TorchTrainer`` inside Tune, are reported apart: seconds of wall time beyond
the training loop's own, per run.

One JSON line a pair, ``{"pair", "sequential_seconds", "sweep_seconds", "ratio"}``, one for the runs of two
workers, and a last one with the medians and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from autolr_ray.compare.ledger import RunStore
from autolr_ray.train.record import RunRecord

COMPARE = Path(__file__).resolve().parents[1] / "compare.py"
PEAKS = [0.003, 0.01, 0.03]
SCRIPT = """
import sys
from pathlib import Path

import torch

from autolr_ray.compare.study import load_study
from autolr_ray.train import LocalContext, run

torch.set_num_threads(1)
folder = Path(sys.argv[2])
for cell in load_study(sys.argv[1]).cells():
    context = LocalContext(folder / "runs" / cell.spec.cell, folder / "cells")
    run(cell.spec, context, arm=cell.arm, point=cell.point)
"""
# What a run leaves that depends on when and where it ran.
_CLOCK = {"device_seconds", "startup_seconds", "finished_at", "restarts", "versions", "study", "epoch_rows"}


def study(name: str, epochs: int, workers: int, seeds: list[int], peaks: list[float]) -> dict[str, Any]:
    """A study of one batch size: AutoWarmup and a grid."""
    return {
        "name": name, "task": "fashion_mnist_subset", "model": "cnn_bn", "seeds": seeds,
        "batches": [{"size": 256, "epochs": epochs, "workers": workers}],
        "arms": {
            "auto_warmup": {},
            "linear_warmup": {"grid": {"peak_lr": peaks, "warmup_fraction": [0.1], "extend": 0}},
        },
        "candidate": "auto_warmup", "baseline": "linear_warmup",
    }  # fmt: skip


def timed(command: list[str], folder: Path) -> float:
    """Wall seconds of a command from launch to exit; what it says goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "HOME": str(folder)}
    with (folder / "said.txt").open("w") as said:
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said, check=True)
        return time.perf_counter() - began


def content(records: list[RunRecord]) -> list[str]:
    """What the runs found, without the clock."""
    rows = [[row.model_copy(update={"seconds": 0.0}) for row in record.epoch_rows] for record in records]
    return [
        record.model_dump_json(exclude=_CLOCK) + repr(row) for record, row in zip(records, rows, strict=True)
    ]


def pair(folder: Path, epochs: int) -> tuple[float, float]:
    """Seconds of the script and of the sweep; their results are compared."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study("overhead", epochs, 1, [0, 1, 2], PEAKS)))
    alone = folder / "alone"
    sequential = timed([sys.executable, "-c", SCRIPT, str(file), str(alone)], folder)
    sweep = timed(
        [sys.executable, str(COMPARE), "--study", str(file), "--results", str(folder / "swept")], folder
    )
    one, other = (RunStore(place / "cells").read_all() for place in (alone, folder / "swept" / "overhead"))
    if len(one) != 12 or content(one) != content(other):
        raise SystemExit("sweep_overhead: the sweep's results are not the script's")
    return sequential, sweep


def two_workers(folder: Path, epochs: int) -> dict[str, float]:
    """A sweep of two nested runs of two workers: what it takes beyond their loops, per run."""
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(study("two", epochs, 2, [0], [0.01])))
    wall = timed(
        [sys.executable, str(COMPARE), "--study", str(file), "--results", str(folder / "swept")], folder
    )
    records = RunStore(folder / "swept" / "two" / "cells").read_all()
    loops = sum(record.device_seconds / record.workers for record in records)
    startups = sum(record.startup_seconds for record in records)
    return {
        "runs": len(records), "wall_seconds": wall, "loop_seconds": loops,
        "beyond_the_loop_seconds_per_run": (wall - loops) / len(records),
        "startup_seconds_per_run": startups / len(records),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="pairs (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)

    def tell(row: dict[str, Any]) -> None:
        text = "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
        )
        print(json.dumps(row) if options.json else text, flush=True)

    ratios = []
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            sequential, sweep = pair(Path(folder), options.epochs)
        ratios.append(sweep / sequential)
        tell({"pair": number, "sequential_seconds": sequential, "sweep_seconds": sweep, "ratio": ratios[-1]})
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        tell(two_workers(Path(folder), 8))
    tell(
        {
            "cells": 12, "epochs": options.epochs, "median_ratio": statistics.median(ratios),
            "cpus": os.cpu_count() or 0, "machine": platform.machine(), "python": platform.python_version(),
        }
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
