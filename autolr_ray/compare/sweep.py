"""Many runs: one Ray Tune sweep over the cells of a study that have no result yet."""

from __future__ import annotations

import os
import shutil
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
from autolr_ray.compare.cluster import cluster
from autolr_ray.compare.extend import all_cells
from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.progress import Progress, describe, say
from autolr_ray.compare.study import Cell, Study
from autolr_ray.train.schedules import LinearWarmupSpec
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process

_WORKER_CPUS = 1
_HEAD = "node:__internal_head__"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell without a result, and why."""

    cell: Cell
    reason: str


def run_sweep(
    study: Study,
    folder: Path,
    *,
    address: str | None = None,
    on_finished: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Run every cell of the study that has no result in ``folder/cells``; the ones that failed.

    Args:
        study: the study.
        folder: results; Tune's and Train's own files go to ``folder/runs``. Must be reachable from every
            node of the cluster.
        address: the Ray cluster; None: the one this process is on, or a new local one.
        on_finished: called after each finished run; must return soon and not raise.

    Raises:
        ClusterError: there is no Ray cluster at ``address``.
        KeyboardInterrupt: the sweep was interrupted; finished cells are kept.
    """
    store = RunStore(folder / "cells")
    found = store.read_all()
    cells, finished = all_cells(study, found), {record.cell for record in found}
    progress = Progress(cells, finished)
    pending = [cell for cell in cells if cell.spec.cell not in finished]
    say(f"{study.name}: {len(cells)} runs, {progress.done} of them finished before")
    if not pending:
        return []
    failures: list[Failure] = []
    largest = {"CPU": float(_WORKER_CPUS * max(cell.spec.workers for cell in pending))}
    with cluster(address, study.task, largest) as resources:
        while pending:
            for workers, group in groupby(pending, key=lambda cell: cell.spec.workers):
                sweep = _Group(study, list(group), workers, folder, resources)
                failures += sweep.run(progress, on_finished)
            known = {cell.spec.cell for cell in cells}
            cells = all_cells(study, store.read_all())
            pending = sorted(
                (cell for cell in cells if cell.spec.cell not in known), key=lambda cell: cell.spec.workers
            )
            if pending:
                say(f"{study.name}: the best point lies at the edge of its grid: {len(pending)} runs more")
                progress.add(pending)
    return failures


class _Group:
    """Cells of the same size together: Tune then knows how many fit at once, and none waits for ever."""

    def __init__(
        self, study: Study, cells: list[Cell], workers: int, folder: Path, resources: dict[str, float]
    ) -> None:
        self.cells = {cell.spec.cell: cell for cell in cells}
        self.workers, self.folder, self.resources = workers, folder.resolve(), resources
        device, launcher = study.resources.device, study.resources.launcher
        self.use_gpu = device == "gpu" or (device == "auto" and resources.get("GPU", 0) > 0)
        self.nested = workers > 1 or launcher == "train"
        self.concurrency = max_concurrent(resources, workers, self.use_gpu, study.resources.max_concurrent)
        self.requests = {
            name: RunRequest(
                spec=cell.spec, study=study.name, arm=cell.arm, point=cell.point,
                runs_dir=self.folder / "runs", record_dir=self.folder / "cells", use_gpu=self.use_gpu,
            )
            for name, cell in self.cells.items()
        }  # fmt: skip

    def run(self, progress: Progress, on_finished: Callable[[], None]) -> list[Failure]:
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
        results = tune.Tuner(
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
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[callback],
                verbose=0,
            ),
        ).fit()
        done = RunStore(self.folder / "cells").finished()
        missing = [cell for name, cell in self.cells.items() if name not in done]
        if any(cell.spec.cell not in callback.settled for cell in missing):
            raise KeyboardInterrupt
        reasons = {result.config["run"]["cell"]: _reason(result) for result in results if result.error}
        return [
            Failure(cell=cell, reason=reasons.get(cell.spec.cell, "it ended without leaving a record"))
            for cell in missing
        ]

    def _trainable(self) -> Callable[[dict[str, Any]], None]:
        """What Tune calls: one run, in this process or as a nested Ray Train run."""
        texts = {name: request.model_dump_json() for name, request in self.requests.items()}
        nested = self.nested
        # What this process can import (a user's own task), the workers can.
        search_path = [path or os.getcwd() for path in sys.path if os.path.isdir(path or os.getcwd())]

        def trial(config: dict[str, Any]) -> None:
            sys.path.extend(path for path in search_path if path not in sys.path)
            request = RunRequest.model_validate_json(texts[config["run"]["cell"]])
            if nested:
                build_trainer(request, callbacks=[TuneReportCallback()]).fit()
            else:
                run_in_process(request, on_report=lambda row: tune.report(row.model_dump()))
            if (request.record_dir / f"{request.spec.cell}.json").is_file():
                # Checkpoints of a finished run are of no more use, and fill disks.
                shutil.rmtree(request.runs_dir / request.name, ignore_errors=True)

        return trial

    def _worker_resources(self) -> dict[str, float]:
        return {"CPU": _WORKER_CPUS, **({"GPU": 1} if self.use_gpu else {})}

    def _trial_resources(self) -> dict[str, float]:
        if not self.nested:
            return self._worker_resources()
        # A nested run's driver only waits: a sliver of the head node, so that its workers can have every CPU.
        return {_HEAD: 0.001} if _HEAD in self.resources else {"CPU": 0.01}

    def _need(self) -> str:
        return " and ".join(
            f"{self.workers * amount:g} {kind}s" for kind, amount in self._worker_resources().items()
        )

    def _lacking(self) -> str:
        """Why the cells can never run on this cluster; "" where they can, or where nobody knows."""
        if not self.resources.get("CPU"):
            return ""  # a cluster whose workers are still to come
        for kind, amount in self._worker_resources().items():
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


def max_concurrent(resources: dict[str, float], workers: int, use_gpu: bool, limit: int | None = None) -> int:
    """How many runs of ``workers`` workers fit into the cluster at once, at least 1.

    >>> max_concurrent({"CPU": 8.0}, workers=2, use_gpu=False)
    4
    >>> max_concurrent({"CPU": 64.0, "GPU": 4.0}, workers=2, use_gpu=True, limit=1)
    1
    """
    room = resources.get("CPU", 0.0) // (workers * _WORKER_CPUS)
    if use_gpu:
        room = min(room, resources.get("GPU", 0.0) // workers)
    return int(max(1, min(room, limit or room)))


def _reason(result: tune.Result) -> str:
    """The last line of an error, which is the cause below Ray's own frames, and where all of it lies."""
    error = result.error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    traceback = Path(result.path) / "error.txt"
    return f"{reason} (traceback: {traceback})" if traceback.is_file() else reason


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """One line a failed cell."""
    return [f"FAILED  {describe(failure.cell)}: {failure.reason}" for failure in failures]
