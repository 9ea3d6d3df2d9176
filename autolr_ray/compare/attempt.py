"""One life of a run in one of Tune's processes: trained, or found finished by somebody else meanwhile."""

from __future__ import annotations

import math
import time

from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.tune.integration.ray_train import TuneReportCallback

from autolr_ray.files import remove_tree
from autolr_ray.train.record import EpochRow, RunRecord, read_record
from autolr_ray.train.shared_data import SharedData, use_shared
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process
from autolr_ray.train.watch import DashboardMetrics

# Between two reports of a run that is no TorchTrainer: its loop stands still while the sweep's process takes
# one in.
_REPORT_SECONDS = 5.0
# How often a life of a run of several workers goes on after some of them died, a node with them perhaps.
_DEATHS = 2


def attempt(request: RunRequest, data: SharedData | None, *, nested: bool) -> None:
    """Train until the run's record is there; an error of the run's own ends this life.

    Two sweeps may share a folder and begin the same run: whose record comes second stays out, so that a run
    whose record has appeared is over, however far it is here, and its checkpoints are of no more use.

    Args:
        request: the run.
        data: its data, where they are shared between processes.
        nested: as a ``TorchTrainer``; else in this process.
    """
    record = _record(request)
    elsewhere = record is not None
    if not elsewhere:
        try:
            if nested:
                _fit(request)
            else:
                use_shared(request.spec, data)
                run_in_process(request, on_report=_Reporter(request))
        except Exception:  # also what follows where the other sweep has removed the run's folder
            elsewhere = (record := _record(request)) is not None
            if not elsewhere:
                raise
        else:
            record = _record(request)
    if elsewhere and record is not None:
        tune.report(record.epoch_rows[-1].model_dump())
    if record is not None:
        # Checkpoints of a finished run are of no more use, and fill disks.
        remove_tree(request.runs_dir / request.name)


def _record(request: RunRequest) -> RunRecord | None:
    return read_record(request.record_dir / f"{request.spec.cell}.json", request.spec.cell)


def _fit(request: RunRequest) -> None:
    """The nested run. Ray Train counts errors and deaths alike, so that here none is left to it."""
    for deaths_left in reversed(range(1 + _DEATHS)):
        try:
            build_trainer(request, callbacks=[TuneReportCallback()], max_failures=0).fit()
        except WorkerGroupError as error:
            if not (deaths_left and died(error)):
                raise
        else:
            return


def died(error: TrainingFailedError) -> bool:
    """Whether workers were lost. What the others say then, of broken connections, follows from that."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return any(_is_death(failure) for failure in failures)


def _is_death(failure: BaseException) -> bool:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    lost = isinstance(failure, (RayError, WorkerHealthCheckTimeoutError))
    return lost and not isinstance(failure, RayTaskError)


class _Elsewhere(Exception):
    """The run's record has appeared: another sweep in the same folder was faster."""


class _Reporter:
    """Tells Tune of an epoch, and waits until it has heard: the first, the last, and some between."""

    def __init__(self, request: RunRequest) -> None:
        self._last, self._due = request.spec.epochs, -math.inf
        self._record = request.record_dir / f"{request.spec.cell}.json"
        self._metrics = DashboardMetrics(request.name)

    def __call__(self, row: EpochRow) -> None:
        self._metrics.row(row)
        now = time.monotonic()
        if row.epoch == self._last or now >= self._due:
            self._due = now + _REPORT_SECONDS
            if row.epoch != self._last and self._record.is_file():
                raise _Elsewhere(f"{self._record} is there already")
            tune.report(row.model_dump())
