"""What a sweep costs beside a plain script that runs the same cells one after the other.

    OMP_NUM_THREADS=1 python experiments/benchmarks/sweep_overhead.py --json [--repeats 3] [--epochs 24]

Twelve small runs of one worker (Fashion-MNIST subset, CNN with BatchNorm, batch 256), from launch to exit:

- a process that imports PyTorch and this package once and runs them in a row;
- two such processes at once with six runs each: what two cores can do at best, without Ray, ledger, report;
- ``experiments/compare.py`` on a study of the same runs.

``--repeats`` times; reported are the times of the second and the third over the first's, and the medians.
All results must be equal bit for bit.

Two runs of two workers each, ``TorchTrainer`` inside Tune, are reported apart: seconds of wall time beyond
the training loop's own, per run.

One JSON line a repetition, ``{"pair", "sequential_seconds", "halves_seconds", "sweep_seconds", "ratio",
"best_ratio"}``, one for the runs of two workers, and a last one with the medians and the machine.
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
first, step = int(sys.argv[3]), int(sys.argv[4])
for cell in load_study(sys.argv[1]).cells()[first::step]:
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


def timed(folder: Path, *commands: list[str]) -> float:
    """Wall seconds of commands side by side, from launch to the last exit; what they say goes to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "HOME": str(folder)}
    with (folder / "said.txt").open("w") as said:
        began = time.perf_counter()
        running = [
            subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
            for command in commands
        ]
        statuses = [process.wait() for process in running]
        if any(statuses):
            raise SystemExit(f"sweep_overhead: a command failed:\n{(folder / 'said.txt').read_text()}")
        return time.perf_counter() - began


def swept(folder: Path, file: Path) -> float:
    """Wall seconds of a study's sweep into ``folder/swept``."""
    return timed(
        folder, [sys.executable, str(COMPARE), "--study", str(file), "--results", str(folder / "swept")]
    )


def content(records: list[RunRecord]) -> list[str]:
    """What the runs found, without the clock."""
    rows = [[row.model_copy(update={"seconds": 0.0}) for row in record.epoch_rows] for record in records]
    return [
        record.model_dump_json(exclude=_CLOCK) + repr(row) for record, row in zip(records, rows, strict=True)
    ]


def pair(folder: Path, epochs: int) -> dict[str, float]:
    """Seconds of the script, of its halves side by side and of the sweep; their results are compared."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study("overhead", epochs, 1, [0, 1, 2], PEAKS)))
    alone, parted = folder / "alone", folder / "parted"

    def script(out: Path, first: int, step: int) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(file), str(out), str(first), str(step)]

    sequential = timed(folder, script(alone, 0, 1))
    halves = timed(folder, script(parted, 0, 2), script(parted, 1, 2))
    sweep = swept(folder, file)
    places = (alone, parted, folder / "swept" / "overhead")
    one, *others = (content(RunStore(place / "cells").read_all()) for place in places)
    if len(one) != 12 or any(other != one for other in others):
        raise SystemExit("sweep_overhead: the results of script, halves and sweep differ")
    return {
        "sequential_seconds": sequential, "halves_seconds": halves, "sweep_seconds": sweep,
        "ratio": sweep / sequential, "best_ratio": halves / sequential,
    }  # fmt: skip


def two_workers(folder: Path, epochs: int) -> dict[str, float]:
    """A sweep of two nested runs of two workers: what it takes beyond their loops, per run."""
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump(study("two", epochs, 2, [0], [0.01])))
    wall = swept(folder, file)
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
    parser.add_argument("--epochs", type=int, default=24, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)

    def tell(row: dict[str, Any]) -> None:
        text = "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
        )
        print(json.dumps(row) if options.json else text, flush=True)

    rows = []
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            rows.append(pair(Path(folder), options.epochs))
        tell({"pair": number, **rows[-1]})
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        tell(two_workers(Path(folder), 8))
    tell(
        {
            "cells": 12, "epochs": options.epochs,
            "median_ratio": statistics.median(row["ratio"] for row in rows),
            "median_best_ratio": statistics.median(row["best_ratio"] for row in rows),
            "cpus": os.cpu_count() or 0, "machine": platform.machine(), "python": platform.python_version(),
        }
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
