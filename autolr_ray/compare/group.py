"""The runs of a sweep that have the same number of workers: one call of Ray Tune."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from autolr_ray.compare.attempt import attempt
from autolr_ray.compare.callback import ProgressCallback
from autolr_ray.compare.failure_callback import FailureCallback
from autolr_ray.compare.failures import Failure, FailureLog
from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.need import uses_gpu
from autolr_ray.compare.progress import Progress
from autolr_ray.compare.study import Cell, Study
from autolr_ray.remote import Location
from autolr_ray.train.schedules import LinearWarmupSpec
from autolr_ray.train.shared_data import SharedData
from autolr_ray.train.trainer import RunRequest

_HEAD = "node:__internal_head__"
# Of the runs by their cells. Tune pickles the function that names a trial into the state of every trial, over
# and over: this one goes by reference, a closure would take along all that it can reach.
_names: dict[str, str] = {}


def _name_of(trial: Trial) -> str:
    """What the run is called in Ray's dashboard and on the disk."""
    cell: str = trial.config["run"]["cell"]
    return _names.get(cell, cell)


class Group:
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
        self.study, self.cells = study.name, {cell.spec.cell: cell for cell in cells}
        self.workers, self.resources, self.data = workers, resources, data
        self.folder = folder.resolve() if isinstance(folder, Path) else folder
        self.max_attempts = study.resources.max_attempts
        self.use_gpu = uses_gpu(study.resources.device, resources)
        self.nested = workers > 1 or study.resources.launcher == "train"
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
        # What waits for room is what makes a cluster grow, and how far it can is seldom known: the limit
        # alone counts there, and without one what has joined by now.
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
        _names.update({name: request.name for name, request in self.requests.items()})
        tune.Tuner(
            tune.with_resources(self._trainable(), self._trial_resources()),
            # TensorBoard's HPARAMS page gets a column for each of these.
            param_space={"run": tune.grid_search([parameters(cell) for cell in self.cells.values()])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=self.concurrency,
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                # The time, because a name that is used again would overwrite what lies there.
                name=f"tune-{self.workers}-workers-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(self.folder / "runs"),
                failure_config=tune.FailureConfig(max_failures=self.max_attempts - 1),
                # First the note that a run has failed, then the report that shows it.
                callbacks=[FailureCallback(log, self.cells), callback],
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
            attempt(request, data, nested=nested)

        # What Ray's dashboard calls the actors; each takes one run after the other.
        trial.__name__ = f"{self.study}_runs"
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
            if there < self.workers * amount - 1e-6:  # floats, as below
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
