"""The grid-edge guard: a tuned arm whose best point lies at the edge of its grid gets more points there.

A baseline that was not given the learning rate it needs is no baseline. Which cells are added is a function
of the study and of the finished runs: a sweep that was killed, and the report, find the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from autolr_ray.compare.arms import GridArm, point_name
from autolr_ray.compare.statistics import tune
from autolr_ray.compare.study import Cell, Study
from autolr_ray.compare.values import Edge
from autolr_ray.train.record import RunRecord
from autolr_ray.train.schedules import LinearWarmupSpec


def all_cells(study: Study, records: Sequence[RunRecord]) -> list[Cell]:
    """The study's cells and, after them, those that its grids need to grow by as far as is known now.

    At a batch size where every point of a grid is finished and the chosen peak learning rate is the lowest or
    the highest, the grid grows by one in that direction, by the ratio of the two peaks at that edge, with
    every warmup fraction and seed; at most ``grid.extend`` times.

    Args:
        study: the study.
        records: finished runs, of whatever study; only the cells count, not the labels.
    """
    cells = study.cells()
    known = {(cell.arm, cell.spec.cell) for cell in cells}
    finished = {record.cell: record for record in records}
    for name, arm in study.arms.items():
        if isinstance(arm, GridArm):
            for batch in study.batches:
                mine = [c for c in cells if c.arm == name and c.spec.batch_size == batch.size]
                for cell in _grown(name, arm, mine, finished):
                    if (name, cell.spec.cell) not in known:
                        known.add((name, cell.spec.cell))
                        cells.append(cell)
    return cells


def _grown(name: str, arm: GridArm, cells: list[Cell], finished: dict[str, RunRecord]) -> list[Cell]:
    """What one grid at one batch size grows by."""
    peaks = sorted(arm.grid.peak_lr)
    present, added = list(cells), []
    for _ in range(arm.grid.extend if len(peaks) > 1 else 0):
        if any(cell.spec.cell not in finished for cell in present):
            break
        labels = [
            finished[cell.spec.cell].model_copy(update={"arm": name, "point": cell.point}) for cell in present
        ]
        edge = tune(labels, name, cells[0].spec.batch_size).edge
        if edge is Edge.LOWEST:
            peak = _rounded(peaks[0] ** 2 / peaks[1])
            peaks.insert(0, peak)
        elif edge is Edge.HIGHEST:
            peak = _rounded(peaks[-1] ** 2 / peaks[-2])
            peaks.append(peak)
        else:
            break
        new = [_moved(cell, peak) for cell in cells if _linear(cell).peak_lr == arm.grid.peak_lr[0]]
        present += new
        added += new
    return added


def _moved(cell: Cell, peak_lr: float) -> Cell:
    """The same cell with another peak learning rate."""
    schedule = _linear(cell).model_copy(update={"peak_lr": peak_lr})
    spec = cell.spec.model_copy(update={"schedule": schedule})
    return cell.model_copy(update={"point": point_name(schedule), "spec": spec})


def _linear(cell: Cell) -> LinearWarmupSpec:
    """The schedule of a grid's cell."""
    assert isinstance(cell.spec.schedule, LinearWarmupSpec)
    return cell.spec.schedule


def _rounded(value: float) -> float:
    """Three digits are what people write, and what names a point."""
    return float(f"{value:.3g}")
