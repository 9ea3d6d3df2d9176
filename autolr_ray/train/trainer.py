"""One run = one Ray Train ``TorchTrainer``."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from autolr_ray.remote import Location, Place, RemotePath
from autolr_ray.train.config import Config
from autolr_ray.train.context import LocalContext
from autolr_ray.train.loop import run
from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.spec import PositiveInt, RunSpec
from autolr_ray.train.turn import Turn


class RunRequest(Config):
    """A run with its labels and places: what travels from the sweep to the workers.

    Attributes:
        spec: the run.
        study, arm, point: labels.
        runs_dir: checkpoints go to ``runs_dir/<name>``; a folder that every node has mounted, or a URI such
            as ``s3://bucket/prefix``.
        record_dir: the finished record goes to ``record_dir/<cell>.json``; likewise.
        log_dir: TensorBoard files of a ``TorchTrainer`` run go to ``log_dir/<name>``; None: none (a sweep has
            Tune's).
        use_gpu: each worker has a GPU.
        gpus_per_worker: below 1, workers share GPUs; those of one run then talk through gloo.
        min_workers: an elastic run, on ``TorchTrainer`` alone: starts, and goes on when a node is lost, with
            as few as these; None: ``spec.workers``, always.
        keep_checkpoints: how many of the newest stay while the run lasts.
    """

    spec: RunSpec
    study: str = ""
    arm: str = ""
    point: str = ""
    runs_dir: Place
    record_dir: Place
    log_dir: Path | None = None
    use_gpu: bool = False
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_workers: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    launched_at: float | None = None

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.spec.workers:
            raise ValueError(
                f"min_workers: {self.min_workers} is not allowed; the run has {self.spec.workers} workers"
            )
        return self

    @property
    def worker_resources(self) -> dict[str, float]:
        """What Ray reserves for a worker."""
        return {"CPU": 1.0, **({"GPU": self.gpus_per_worker} if self.use_gpu else {})}

    @property
    def device_share(self) -> float:
        """The part of a device that a worker has reserved."""
        return self.gpus_per_worker if self.use_gpu else 1.0

    @property
    def name(self) -> str:
        """A name that says what the run is: arm, point, batch size, seed, cell."""
        point = self.point.replace(" ", "_").replace("=", "-")
        parts = [self.arm, point, f"b{self.spec.batch_size}", f"s{self.spec.seed}", self.spec.cell]
        return "-".join(part for part in parts if part)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """What each worker of the ``TorchTrainer`` runs."""
    from autolr_ray.train.ray_context import RayTrainContext

    request = RunRequest.model_validate_json(config["request"])
    context = RayTrainContext(request.record_dir, request.spec, log_dir=request.log_dir)
    run(
        request.spec, context, study=request.study, arm=request.arm, point=request.point,
        device_share=request.device_share,
        launched_at=request.launched_at, elastic=request.min_workers is not None,
    )  # fmt: skip


def build_trainer(
    request: RunRequest, *, callbacks: list[UserCallback] | None = None, max_failures: int = 2
) -> TorchTrainer:
    """The trainer of this run; ``fit()`` starts it, or continues it where one of its name was cut off."""
    request = request.model_copy(update={"launched_at": request.launched_at or time.time()})
    _set_aside_damage(request.runs_dir / request.name / "checkpoint_manager_snapshot.json")
    most = request.spec.workers
    workers = (request.min_workers, most) if (request.min_workers or most) < most else most
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"request": request.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=request.use_gpu, resources_per_worker=request.worker_resources
        ),
        # NCCL wants a GPU for each process of its own.
        torch_config=TorchConfig(backend="gloo" if request.gpus_per_worker < 1 else None),
        run_config=RunConfig(
            name=request.name,
            storage_path=str(request.runs_dir),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=request.keep_checkpoints),
            callbacks=callbacks or [],
        ),
    )


def _set_aside_damage(listing: Location) -> None:
    """Ray's list of a run's checkpoints is not written in one move; with half of one, no run would start."""
    try:
        json.loads(listing.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        if isinstance(listing, RemotePath):  # written in one piece there: not by a run that was cut off
            raise
        aside = listing.with_suffix(".damaged")
        listing.replace(aside)
        warnings.warn(
            f"checkpoint: Ray's list of checkpoints was cut off and is now {aside}; the folders beside it "
            "are looked through instead",
            stacklevel=3,
        )


def run_in_process(
    request: RunRequest,
    *,
    on_report: Callable[[EpochRow], None],
    on_turn: Callable[[Turn], None] = lambda turn: None,
) -> RunRecord:
    """The same run in this process alone, one worker: no trainer, the same loop, the same result."""
    context = LocalContext(
        request.runs_dir / request.name,
        request.record_dir,
        device=torch.device("cuda" if request.use_gpu else "cpu"),
        keep_checkpoints=request.keep_checkpoints,
        on_report=on_report,
        on_turn=on_turn,
    )
    return run(
        request.spec, context, study=request.study, arm=request.arm, point=request.point,
        device_share=request.device_share,
        launched_at=request.launched_at or time.time(),
    )  # fmt: skip
