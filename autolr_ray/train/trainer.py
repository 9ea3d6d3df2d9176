"""One run = one Ray Train ``TorchTrainer``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from autolr_ray.train.config import Config
from autolr_ray.train.context import LocalContext
from autolr_ray.train.loop import run
from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.spec import RunSpec


class RunRequest(Config):
    """A run with its labels and places: what travels from the sweep to the workers.

    Attributes:
        spec: the run.
        study, arm, point: labels.
        runs_dir: checkpoints go to ``runs_dir/<name>``; reachable from every node.
        record_dir: the finished record goes to ``record_dir/<cell>.json``; likewise.
        use_gpu: one GPU for each worker.
    """

    spec: RunSpec
    study: str = ""
    arm: str = ""
    point: str = ""
    runs_dir: Path
    record_dir: Path
    use_gpu: bool = False
    launched_at: float | None = None

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
    run(
        request.spec, RayTrainContext(request.record_dir), study=request.study, arm=request.arm,
        point=request.point, launched_at=request.launched_at,
    )  # fmt: skip


def build_trainer(
    request: RunRequest, *, callbacks: list[UserCallback] | None = None, max_failures: int = 2
) -> TorchTrainer:
    """The trainer of this run; ``fit()`` starts it, or continues it where one of its name was cut off."""
    request = request.model_copy(update={"launched_at": request.launched_at or time.time()})
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"request": request.model_dump_json()},
        scaling_config=ScalingConfig(num_workers=request.spec.workers, use_gpu=request.use_gpu),
        run_config=RunConfig(
            name=request.name,
            storage_path=str(request.runs_dir),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks or [],
        ),
    )


def run_in_process(request: RunRequest, *, on_report: Callable[[EpochRow], None]) -> RunRecord:
    """The same run in this process alone, one worker: no trainer, the same loop, the same result."""
    context = LocalContext(
        request.runs_dir / request.name,
        request.record_dir,
        device=torch.device("cuda" if request.use_gpu else "cpu"),
        on_report=on_report,
    )
    return run(
        request.spec, context, study=request.study, arm=request.arm, point=request.point,
        launched_at=request.launched_at or time.time(),
    )  # fmt: skip
