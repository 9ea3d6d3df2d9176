"""A sweep that is killed with SIGKILL at random moments and started again: what is lost, what is double.

    OMP_NUM_THREADS=1 python experiments/benchmarks/kill_sweep.py --json [--kills 5] [--seed 0]

A small study (scikit-learn's digits, an MLP; runs of one worker, and of two on Ray Train; a grid that grows
at its edge) runs once without disturbance, then anew, killed ``--kills`` times with its whole process group,
each time started again with the same command, and at last let finish. Each kill has a stage of its own: the
sweep's runs are divided evenly among the kills, a number is drawn in each part, and the kill comes when so
many runs have finished and a random time has passed, at most what one and a half runs take in the mean.
Compared are the ledgers (every field but the clock's, bit for bit), the rows' keys, and the summary table
without its times.

One JSON line a kill, ``{"kill", "stage", "after_seconds", "finished", "grown"}`` (runs that had a result by
then, and whether the grid had begun to grow), and at last one with what was lost, doubled or different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from autolr_ray.compare.ledger import read_ledger
from autolr_ray.compare.study import load_study
from autolr_ray.train.record import RunRecord

COMPARE = Path(__file__).resolve().parents[1] / "compare.py"
STUDY = {
    "name": "killed", "task": "digits", "model": "mlp", "seeds": [0],
    "batches": [{"size": 64, "epochs": 12}, {"size": 256, "epochs": 6, "workers": 2}],
    "arms": {
        "auto_warmup": {},
        # Neither is enough: it grows by one at the upper edge, for both batch sizes.
        "linear_warmup": {"grid": {"peak_lr": [1.0e-5, 3.0e-5], "warmup_fraction": [0.1], "extend": 1}},
    },
    "candidate": "auto_warmup", "baseline": "linear_warmup",
}  # fmt: skip
_CLOCK = {
    *("device_seconds", "tuning_seconds", "startup_seconds", "finished_at", "restarts", "versions"),
    "epoch_rows",
}


class Sweep:
    """The command, in a folder and with a Ray of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
        self.out = folder / "results" / "killed"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or go on."""
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.folder), "HOME": str(self.folder),
        }  # fmt: skip
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, str(COMPARE), "--study", "study.yaml", "--results", "results"],
                cwd=self.folder, env=environment, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to the driver's process group and then to all that is left of its Ray."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while left := self._processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        mine = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                    told = (entry / "environ").read_bytes() + b"\0"
                    if not zombie and f"RAY_TMPDIR={self.folder}\0".encode() in told:
                        mine.append(int(entry.name))
        return mine

    def rows(self) -> list[tuple[tuple[Any, ...], str]]:
        """Each row's key and its content without the clock."""
        return [(_key(record), _content(record)) for record in read_ledger(self.out / "ledger.parquet")]

    def finished(self) -> int:
        """How many runs have a result."""
        return len(list((self.out / "cells").glob("*.json")))

    def summary(self) -> str:
        """The summary's tables without times."""
        text = (self.out / "summary.md").read_text()
        return re.sub(r"[\d.,]+ s\b|\d+ %(?= of the device)", "-", text)


def _key(record: RunRecord) -> tuple[Any, ...]:
    return record.arm, record.point, record.batch_size, record.seed, record.cell


def _content(record: RunRecord) -> str:
    rows = [row.model_copy(update={"seconds": 0.0}) for row in record.epoch_rows]
    return record.model_dump_json(exclude=_CLOCK) + repr(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)

    def tell(row: dict[str, Any]) -> None:
        print(json.dumps(row) if options.json else row, flush=True)

    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp", ignore_cleanup_errors=True) as place:
        whole = Sweep(Path(place) / "w")
        began = time.monotonic()
        if whole.start().wait() != 0:
            raise SystemExit(
                f"kill_sweep: the undisturbed sweep failed:\n{(whole.folder / 'said.txt').read_text()}"
            )
        took = time.monotonic() - began
        killed = Sweep(Path(place) / "k")
        runs, first = len(whole.rows()), len(load_study(whole.folder / "study.yaml").cells())
        edges = [number * runs // options.kills for number in range(options.kills + 1)]
        stages = [draw.randrange(low, max(high, low + 1)) for low, high in pairwise(edges)]
        for number, stage in enumerate(stages):
            began, process = time.monotonic(), killed.start()
            while killed.finished() < stage and process.poll() is None:
                time.sleep(0.05)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.uniform(0.0, 1.5 * took / runs))
            killed.kill(process)
            finished = killed.finished()
            tell(
                {
                    "kill": number, "stage": stage, "after_seconds": round(time.monotonic() - began, 1),
                    "finished": finished, "grown": finished >= first,
                }
            )  # fmt: skip
        status = killed.start().wait()
        expected, found = dict(whole.rows()), killed.rows()
        keys = Counter(key for key, _ in found)
        result = {
            "undisturbed_seconds": round(took, 1), "rows": len(found), "exit_status": status,
            "lost": len(expected.keys() - keys.keys()),
            "doubled": sum(count - 1 for count in keys.values()),
            "different": sum(expected.get(key) != content for key, content in found),
            "summary_equal": whole.summary() == killed.summary(),
        }  # fmt: skip
    tell(result)
    bad = result["lost"] or result["doubled"] or result["different"] or status or not result["summary_equal"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
