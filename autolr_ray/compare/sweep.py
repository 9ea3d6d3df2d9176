"""Many runs: one Ray Tune sweep over the cells of a study that have no result yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby

from autolr_ray.compare.cluster import cluster, is_ours
from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.failures import Failure, FailureLog, failure_rows
from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.need import Need
from autolr_ray.compare.progress import Progress, describe, published, say
from autolr_ray.compare.study import Cell, Study
from autolr_ray.remote import Location
from autolr_ray.train.shared_data import shared_splits


def run_sweep(
    study: Study,
    folder: Location,
    *,
    address: str | None = None,
    on_finished: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Run every cell of the study that has no result in ``folder/cells``; the ones that failed.

    Args:
        study: the study.
        folder: results; Tune's and Train's own files go to ``folder/runs``. A folder that every node of the
            cluster has mounted, or object storage.
        address: the Ray cluster; None: the one this process is on, or a new local one.
        on_finished: called after each finished run; must return soon and not raise.

    Raises:
        ClusterError: there is no Ray cluster at ``address``.
        KeyboardInterrupt: the sweep was interrupted; finished cells are kept.
    """
    store, log = RunStore(folder / "cells"), FailureLog(folder / "failures")
    found = store.read_all()
    cells, finished = runs_of(all_cells(study, found)), {record.cell for record in found}
    progress = Progress(cells, finished, study=study.name, folder=folder)
    say(f"{study.name}: {len(cells)} runs, {progress.done} of them finished before")
    failures = given_up(study, cells, finished, log)
    for failure in failures:
        progress.drop(failure.cell)
    given = {failure.cell.spec.cell for failure in failures}
    pending = [cell for cell in cells if cell.spec.cell not in finished | given]
    if not pending:
        return failures
    largest = Need(
        workers=max(cell.spec.workers for cell in pending),
        device=study.resources.device, gpus_per_worker=study.resources.gpus_per_worker,
    )  # fmt: skip
    names = sorted({name for cell in pending for name in cell.spec.own_names})

    def alive() -> None:  # for who looks at the study while its machines are still to come
        with suppress(OSError):
            progress.publish()

    with published(progress), cluster(address, names, largest, on_wait=alive) as resources:
        # Imports Tune, which takes a second: whoever has no Ray to run on hears of that first.
        from autolr_ray.compare.group import Group

        data = shared_splits(study.task, study.model, study.data_dir)
        while pending:
            for workers, group in groupby(pending, key=lambda cell: cell.spec.workers):
                sweep = Group(study, list(group), workers, folder, resources, data, may_grow=not is_ours())
                failures += sweep.run(progress, store, log, on_finished)
            known = {cell.spec.cell for cell in cells}
            cells = runs_of(all_cells(study, store.read_all()))
            pending = sorted(
                (cell for cell in cells if cell.spec.cell not in known), key=lambda cell: cell.spec.workers
            )
            if pending:
                say(f"{study.name}: the best point lies at the edge of its grid: {len(pending)} runs more")
                progress.add(pending)
    return failures


def runs_of(cells: Iterable[Cell]) -> list[Cell]:
    """One cell for each run: the first of those that share it."""
    runs: dict[str, Cell] = {}
    for cell in cells:
        runs.setdefault(cell.spec.cell, cell)
    return list(runs.values())


def given_up(study: Study, cells: Iterable[Cell], finished: set[str], log: FailureLog) -> list[Failure]:
    """The cells without a result that have failed as often as the study allows."""
    by_cell = {cell.spec.cell: cell for cell in cells}
    return [
        Failure(cell=by_cell[row.cell], reason=f"given up after {row.attempts} attempts: {row.reason}")
        for row in failure_rows(study, by_cell.values(), finished, log)
        if row.given_up
    ]


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """One line a failed cell."""
    return [f"FAILED  {describe(failure.cell)}: {failure.reason}" for failure in failures]
