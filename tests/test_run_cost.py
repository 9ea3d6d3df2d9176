"""What a run of AutoWarmup costs: how the runs take turns, the sums, and what is committed."""

import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from autolr_ray.compare import study

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "experiments" / "benchmarks"
COMMITTED = ROOT / "experiments" / "results" / "train" / "run_cost.jsonl"
NAME = "mnist1d_mlp_adamw_b128_short"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module that other processes can import, too."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("run_cost")
    finally:
        sys.path.remove(str(BENCHMARKS))


def grid_run(script: ModuleType, folder: Path) -> study.Cell:
    """One of the grid's in the smallest cell."""
    (cell,) = (cell for cell in script.CELLS if cell.name == NAME)
    return next(x for x in script.study_of(cell, [40], folder).cells() if x.arm == "linear_warmup")


def alive(pid: int) -> bool:
    """Whether the process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_pair_of_runs_ends_and_both_are_charged() -> None:
    options = ["--json", "--control", "--seconds", "0", "--only", NAME]
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run_cost.py"), *options],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    cell, last = (json.loads(line) for line in found.stdout.splitlines())
    assert (cell["cell"], cell["steps"], cell["pairs"], last["cells"]) == (NAME, 56, 2, 1)
    assert cell["grid_run_seconds"] > 0.0
    assert min(cell["ratio"], cell["wall_ratio"], cell["ratio_se"]) > 0.0
    assert last["cost_share"] == pytest.approx(cell["ratio"] * cell["run_share"])


def test_a_run_that_fails_ends_the_comparison(script: ModuleType, tmp_path: Path) -> None:
    cell = grid_run(script, tmp_path)
    failing = cell.model_copy(update={"spec": cell.spec.model_copy(update={"workers": 2})})
    with script.runners(tmp_path) as pair:
        pids = [runner.process.pid for runner in pair]
        with pytest.raises(ChildProcessError, match="a run failed"):
            script.in_turns([(pair[0], cell), (pair[1], failing)])
    assert not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_stopped_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import run_cost

if __name__ == "__main__":
    (cell,) = (cell for cell in run_cost.CELLS if cell.name == {NAME!r})
    one = next(x for x in run_cost.study_of(cell, [40], Path({str(tmp_path)!r})).cells())
    with run_cost.runners(Path({str(tmp_path)!r})) as pair:
        for runner in pair:
            runner.ask(one)
            runner.answer()
            runner.pause()
        print(*(runner.process.pid for runner in pair), flush=True)
        time.sleep(300)
"""
    )
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        process.kill()
    until = time.monotonic() + 30.0
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_sums_of_two_cells(script: ModuleType) -> None:
    small = {"ratio": 1.5, "ratio_se": 0.1, "wall_ratio": 1.2, "grid_run_seconds": 2.0, "run_share": 0.1}
    large = {"ratio": 1.0, "ratio_se": 0.01, "wall_ratio": 1.0, "grid_run_seconds": 40.0, "run_share": 0.05}
    found = script.total([small, large])
    grids = 2.0 / 0.1 + 40.0 / 0.05
    assert found["cost_share"] == pytest.approx((3.0 + 40.0) / grids)
    assert found["cost_share_se"] == pytest.approx(math.hypot(0.2, 0.4) / grids)
    assert found["mean_cost_share"] == pytest.approx((0.15 + 0.05) / 2)
    assert found["ratio"] == pytest.approx(1.25)


def test_what_is_committed_is_of_every_cell_and_its_last_line_follows(script: ModuleType) -> None:
    *rows, last = map(json.loads, COMMITTED.read_text().splitlines())
    assert [row["cell"] for row in rows] == [cell.name for cell in script.CELLS]
    again = script.total(rows)
    for key in ("cells", "ratio", "wall_ratio", "mean_cost_share", "cost_share", "cost_share_se"):
        assert last[key] == pytest.approx(again[key])
