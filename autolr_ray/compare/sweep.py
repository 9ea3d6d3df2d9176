"""Many runs: one Ray Tune sweep over the cells of a study that have no result yet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from autolr_ray.compare.callback import ProgressCallback
from autolr_ray.compare.cluster import cluster, is_ours
from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.failure_callback import FailureCallback
from autolr_ray.compare.failures import FailureLog, failure_rows
from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.progress import Progress, describe, published, say
from autolr_ray.compare.study import Cell, Study
from autolr_ray.files import remove_tree
from autolr_ray.remote import Location
from autolr_ray.train.schedules import LinearWarmupSpec
from autolr_ray.train.shared_data import SharedData, shared_splits, use_shared
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process

_HEAD = "node:__internal_head__"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell without a result, and why."""

    cell: Cell
    reason: str


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
    largest = {"CPU": float(max(cell.spec.workers for cell in pending))}
    names = sorted({name for cell in pending for name in cell.spec.own_names})
    with published(progress), cluster(address, names, largest) as resources:
        data = shared_splits(study.task, study.model, study.data_dir)
        while pending:
            for workers, group in groupby(pending, key=lambda cell: cell.spec.workers):
                sweep = _Group(study, list(group), workers, folder, resources, data, may_grow=not is_ours())
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


class _Group:
    """Cells of the same size together: Tune then knows how many fit at once, and none waits for ever."""

    def __init__(
        self,
        study: Study,
        cells: list[Cell],
        workers: int,
        folder: Location,
        resources: dict[str, float],
        data: SharedData | None,
        *,
        may_grow: bool = False,
    ) -> None:
        self.cells = {cell.spec.cell: cell for cell in cells}
        self.workers, self.resources, self.data = workers, resources, data
        self.folder = folder.resolve() if isinstance(folder, Path) else folder
        self.max_attempts = study.resources.max_attempts
        device, launcher = study.resources.device, study.resources.launcher
        self.use_gpu = device == "gpu" or (device == "auto" and resources.get("GPU", 0) > 0)
        self.nested = workers > 1 or launcher == "train"
        self.requests = {
            name: RunRequest(
                spec=cell.spec, study=study.name, arm=cell.arm, point=cell.point,
                runs_dir=self.folder / "runs", record_dir=self.folder / "cells", use_gpu=self.use_gpu,
                gpus_per_worker=study.resources.gpus_per_worker,
            )
            for name, cell in self.cells.items()
        }  # fmt: skip
        self.worker_resources = next(iter(self.requests.values())).worker_resources
        limit = study.resources.max_concurrent
        # What waits for room is what makes a cluster grow; Ray does not say how far it can.
        self.concurrency = (
            limit if limit and may_grow else max_concurrent(resources, workers, self.worker_resources, limit)
        )

    def run(
        self, progress: Progress, store: RunStore, log: FailureLog, on_finished: Callable[[], None]
    ) -> list[Failure]:
        """Run the cells; those that have no record afterwards."""
        progress.expect(self.workers, self.concurrency)
        if lacking := self._lacking():
            for cell in self.cells.values():
                progress.drop(cell)
            return [Failure(cell=cell, reason=lacking) for cell in self.cells.values()]
        callback = ProgressCallback(
            progress,
            self.cells,
            waiting=f"no run has begun yet: each needs {self._need()}; `ray status` shows what is free",
            on_finished=on_finished,
        )
        name = lambda trial: self.requests[trial.config["run"]["cell"]].name  # noqa: E731
        tune.Tuner(
            tune.with_resources(self._trainable(), self._trial_resources()),
            # TensorBoard's HPARAMS page gets a column for each of these.
            param_space={"run": tune.grid_search([parameters(cell) for cell in self.cells.values()])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=self.concurrency,
                reuse_actors=True,
                trial_name_creator=name,
                trial_dirname_creator=name,
            ),
            run_config=tune.RunConfig(
                # The time, because a name that is used again would overwrite what lies there.
                name=f"tune-{self.workers}-workers-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(self.folder / "runs"),
                failure_config=tune.FailureConfig(max_failures=self.max_attempts - 1),
                callbacks=[callback, FailureCallback(log, self.cells)],
                verbose=0,
            ),
        ).fit()
        done = store.finished()
        failed = log.read()
        log.forget(failed.keys() & self.cells.keys() & done)
        missing = [cell for name, cell in self.cells.items() if name not in done]
        if any(cell.spec.cell not in callback.settled for cell in missing):
            raise KeyboardInterrupt
        return [
            Failure(
                cell=cell,
                reason=failed[cell.spec.cell].reason if cell.spec.cell in failed else "it left no record",
            )
            for cell in missing
        ]

    def _trainable(self) -> Callable[[dict[str, Any]], None]:
        """What Tune calls: one run, in this process or as a nested Ray Train run."""
        texts = {name: request.model_dump_json() for name, request in self.requests.items()}
        nested = self.nested
        # What this process can import (a user's own task), the workers can.
        search_path = [path or os.getcwd() for path in sys.path if os.path.isdir(path or os.getcwd())]

        def trial(config: dict[str, Any], data: SharedData | None = None) -> None:
            sys.path.extend(path for path in search_path if path not in sys.path)
            request = RunRequest.model_validate_json(texts[config["run"]["cell"]])
            if nested:
                build_trainer(request, callbacks=[TuneReportCallback()]).fit()
            else:
                use_shared(request.spec, data)
                run_in_process(request, on_report=lambda row: tune.report(row.model_dump()))
            if (request.record_dir / f"{request.spec.cell}.json").is_file():
                # Checkpoints of a finished run are of no more use, and fill disks.
                remove_tree(request.runs_dir / request.name)

        # Put into Ray's object store once, for all runs of all nodes.
        return trial if nested else tune.with_parameters(trial, data=self.data)

    def _trial_resources(self) -> dict[str, float]:
        if not self.nested:
            return self.worker_resources
        # A nested run's driver only waits: a sliver of the head node, so that its workers can have every CPU.
        return {_HEAD: 0.001} if _HEAD in self.resources else {"CPU": 0.01}

    def _need(self) -> str:
        return " and ".join(
            f"{self.workers * amount:g} {kind}s" for kind, amount in self.worker_resources.items()
        )

    def _lacking(self) -> str:
        """Why the cells can never run on this cluster; "" where they can, or where nobody knows."""
        if not self.resources.get("CPU"):
            return ""  # a cluster whose workers are still to come
        for kind, amount in self.worker_resources.items():
            there = self.resources.get(kind, 0.0)
            if there < self.workers * amount:
                return f"it needs {self._need()}, the cluster has {there:g} {kind}s"
        return ""


def parameters(cell: Cell) -> dict[str, Any]:
    """The cell in plain values, for Tune's own files and TensorBoard."""
    spec, schedule = cell.spec, cell.spec.schedule
    plain: dict[str, Any] = {
        "cell": spec.cell,
        "arm": cell.arm,
        "batch_size": spec.batch_size,
        "epochs": spec.epochs,
        "seed": spec.seed,
    }
    if isinstance(schedule, LinearWarmupSpec):
        plain |= {"peak_lr": schedule.peak_lr, "warmup_fraction": schedule.warmup_fraction}
    return plain


def max_concurrent(
    resources: dict[str, float], workers: int, per_worker: dict[str, float], limit: int | None = None
) -> int:
    """How many runs of ``workers`` workers fit into the cluster at once, at least 1.

    >>> max_concurrent({"CPU": 8.0}, workers=2, per_worker={"CPU": 1.0})
    4
    >>> max_concurrent({"CPU": 64.0, "GPU": 1.0}, workers=1, per_worker={"CPU": 1.0, "GPU": 0.25})
    4
    >>> max_concurrent({"CPU": 64.0, "GPU": 4.0}, workers=2, per_worker={"CPU": 1.0, "GPU": 1.0}, limit=1)
    1
    """
    # A tenth of a GPU goes into one ten times, whatever floats say.
    room = min(int(resources.get(kind, 0.0) / (workers * need) + 1e-6) for kind, need in per_worker.items())
    return max(1, min(room, limit or room))


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """One line a failed cell."""
    return [f"FAILED  {describe(failure.cell)}: {failure.reason}" for failure in failures]
