"""Many runs: one Ray Tune sweep over the cells of a study that have no result yet."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.progress import Progress, ProgressCallback, clock, describe, say
from autolr_ray.compare.study import Cell, Study
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process

# The controller of a Ray Train run takes one report a poll; its default of 2 s would rule short epochs.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# A nested run's driver only waits: a sliver of the head node, so that its workers can have every CPU.
_DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
_WORKER_CPUS = 1


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell without a result, and why."""

    cell: Cell
    reason: str


def run_sweep(study: Study, folder: Path, *, address: str | None = None) -> list[Failure]:
    """Run every cell of the study that has no result in ``folder/cells``; the ones that failed.

    Args:
        study: the study.
        folder: results; Tune's and Train's own files go to ``folder/runs``. Must be reachable from every
            node of the cluster.
        address: the Ray cluster; None: the one this process is on, or a new local one.

    Raises:
        KeyboardInterrupt: the sweep was interrupted; finished cells are kept.
    """
    cells = study.cells()
    store = RunStore(folder / "cells")
    finished = store.finished()
    progress = Progress(cells, finished)
    pending = [cell for cell in cells if cell.spec.cell not in finished]
    say(f"{study.name}: {len(cells)} runs, {progress.done} of them finished before")
    if not pending:
        return []
    started_here = _connect(address)
    try:
        failures: list[Failure] = []
        for workers, group in groupby(pending, key=lambda cell: cell.spec.workers):
            failures += _run_group(study, list(group), workers, folder, progress)
        return failures
    finally:
        if started_here:
            ray.shutdown()


def _connect(address: str | None) -> bool:
    """Join the cluster or start a local one; whether it was this call that connected."""
    if ray.is_initialized():
        return False
    say("starting Ray ...")
    began = time.monotonic()
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    logging.getLogger("ray").setLevel(logging.WARNING)
    ray.init(
        address=address,
        runtime_env={"env_vars": {key: os.environ[key] for key in _ENVIRONMENT}},
        log_to_driver=False,
        logging_level=logging.WARNING,
        # What runs with this process's path must be found by the workers too (a user's own task).
        namespace="autolr_ray",
    )
    resources = ray.cluster_resources()
    found = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    dashboard = ray.get_runtime_context().gcs_address
    say(f"Ray is up after {clock(time.monotonic() - began)}: {found} ({dashboard})")
    return True


def _run_group(
    study: Study, cells: list[Cell], workers: int, folder: Path, progress: Progress
) -> list[Failure]:
    """Cells of the same size together: Tune then knows how many fit at once, and none waits for ever."""
    resources = ray.cluster_resources()
    use_gpu = study.resources.device == "gpu" or (
        study.resources.device == "auto" and resources.get("GPU", 0) > 0
    )
    nested = workers > 1 or study.resources.launcher == "train"
    concurrency = max_concurrent(resources, workers, use_gpu, study.resources.max_concurrent)
    progress.expect(workers, concurrency)
    requests = {
        cell.spec.cell: RunRequest(
            spec=cell.spec, study=study.name, arm=cell.arm, point=cell.point, runs_dir=folder / "runs",
            record_dir=folder / "cells", use_gpu=use_gpu,
        )
        for cell in cells
    }  # fmt: skip
    texts = {name: request.model_dump_json() for name, request in requests.items()}
    worker_resources = {"CPU": _WORKER_CPUS} | ({"GPU": 1} if use_gpu else {})
    search_path = [path for path in sys.path if path and os.path.isdir(path)]

    def trial(config: dict[str, Any]) -> None:
        sys.path.extend(path for path in search_path if path not in sys.path)
        request = RunRequest.model_validate_json(texts[config["cell"]])
        if nested:
            build_trainer(request, callbacks=[TuneReportCallback()]).fit()
        else:
            run_in_process(request, on_report=lambda row: tune.report(row.model_dump()))

    callback = ProgressCallback(progress, {cell.spec.cell: cell for cell in cells})
    results = tune.Tuner(
        tune.with_resources(trial, _DRIVER_RESOURCES if nested else worker_resources),
        param_space={"cell": tune.grid_search(list(requests))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrency,
            reuse_actors=not nested,
            trial_name_creator=lambda trial: requests[trial.config["cell"]].name,
            trial_dirname_creator=lambda trial: requests[trial.config["cell"]].name,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{workers}-workers-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str((folder / "runs").resolve()),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[callback],
            verbose=0,
        ),
    ).fit()
    done = RunStore(folder / "cells").finished()
    missing = [cell for cell in cells if cell.spec.cell not in done]
    if missing and not results.errors:
        raise KeyboardInterrupt
    reasons = {result.config["cell"]: _reason(result.error) for result in results if result.error}
    return [Failure(cell=cell, reason=reasons.get(cell.spec.cell, "it left no record")) for cell in missing]


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


def _reason(error: BaseException | None) -> str:
    """The last line of an error that says something: the cause, below Ray's own frames."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def failure_lines(failures: Iterable[Failure]) -> list[str]:
    """One line a failed cell."""
    return [f"FAILED  {describe(failure.cell)}: {failure.reason}" for failure in failures]
