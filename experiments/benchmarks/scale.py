"""How many cells the driver, the ledger and the report carry: sweeps of runs that do next to nothing.

    OMP_NUM_THREADS=1 python experiments/benchmarks/scale.py --json [--cells 125 250 500 1000] [--nodes 20]

Each run takes two optimizer steps of a tiny network, so that what is measured is everything around a run:
Tune, the checkpoint and the record, progress, ledger and report. For each number of cells one whole
``experiments/compare.py``, from launch to exit, and then the same command again, with nothing left to run.

One JSON line each: ``{"cells", "nodes", "wall_seconds", "seconds_per_cell", "marginal_seconds_per_cell",
"driver_peak_megabytes", "again_seconds", "ledger_megabytes", "report_megabytes"}``; the driver's memory is
its own peak, without its workers. The marginal seconds are those of each cell more than in the line before,
so that what every sweep pays once does not hide what a cell costs. With ``--nodes`` one sweep more, of
``--node-cells`` runs, on a cluster of so many nodes of one CPU: Ray nodes with all the processes that a
machine would have, but on this machine. A last line fits ``seconds ~ cells ** exponent`` to the lines
without such nodes, and the same for memory and sizes: an exponent of at most 1 is linear growth at most.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
# A head that runs nothing and some nodes, until nobody listens any more.
NODES = """
import sys
from ray.cluster_utils import Cluster

memory = 80_000_000
cluster = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
for _ in range(int(sys.argv[1])):
    cluster.add_node(wait=False, num_cpus=1, object_store_memory=memory)
cluster.wait_for_nodes(timeout=300)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
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


@contextmanager
def cluster_of(nodes: int, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which a command finds a cluster of so many nodes; with 0 it starts its own Ray."""
    if not nodes:
        yield environment
        return
    # The nodes ask for a token as every cluster should; nobody else has this one.
    environment = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, "-c", NODES, str(nodes)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as cluster:  # fmt: skip
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        if not address:
            raise SystemExit(f"--nodes: a cluster of {nodes} nodes could not be started here")
        yield {**environment, "RAY_ADDRESS": address}


def measure(cells: int, folder: Path, nodes: int = 0) -> dict[str, Any]:
    """One sweep of ``cells`` runs in ``folder``, then the same command again."""
    (folder / "nothing_task.py").write_text(TASK)
    (folder / "study.yaml").write_text(yaml.safe_dump(study(cells)))
    command = [sys.executable, "-c", DRIVER, str(COMPARE), "--study", "study.yaml", "--results", "results"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder), "HOME": str(folder)}
    with cluster_of(nodes, own) as environment:

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
        "cells": cells, "nodes": nodes or 1, "wall_seconds": wall, "seconds_per_cell": wall / cells,
        "marginal_seconds_per_cell": None, "driver_peak_megabytes": peak, "again_seconds": again,
        "ledger_megabytes": (out / "ledger.parquet").stat().st_size / 1e6,
        "report_megabytes": (out / "report.html").stat().st_size / 1e6,
    }  # fmt: skip


def marginal(before: dict[str, Any], row: dict[str, Any]) -> float:
    """Seconds for each cell more.

    >>> marginal({"cells": 100, "wall_seconds": 20.0}, {"cells": 300, "wall_seconds": 30.0})
    0.05
    """
    return float((row["wall_seconds"] - before["wall_seconds"]) / (row["cells"] - before["cells"]))


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
    parser.add_argument(
        "--nodes", type=int, default=0, help="one sweep more on so many nodes (default: none)"
    )
    parser.add_argument("--node-cells", type=int, default=250, help="its runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    sweeps = [(cells, 0) for cells in sorted(set(options.cells))]
    if options.nodes:
        sweeps.append((options.node_cells, options.nodes))
    for cells, nodes in sweeps:
        with tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            row = measure(cells, Path(folder), nodes)
        if rows and not nodes:
            row["marginal_seconds_per_cell"] = marginal(rows[-1], row)
        rows.append(row)
        print(json.dumps(row) if options.json else row, flush=True)
    alone = rows[: len(set(options.cells))]
    if len(alone) > 1:
        names = (
            "wall_seconds", "driver_peak_megabytes", "again_seconds", "ledger_megabytes", "report_megabytes"
        )  # fmt: skip
        fitted = {"exponents": {name: exponent(alone, name) for name in names}, "cpus": os.cpu_count()}
        print(json.dumps(fitted) if options.json else fitted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
