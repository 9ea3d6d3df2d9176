"""The loop's surroundings on Ray: a worker of a Ray Train run."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context as _internal_context
from torch import nn

from autolr_ray.train.context import State, load_state, save_state
from autolr_ray.train.record import EpochRow, RunRecord, write_record

_FILE = "checkpoint.pt"


class RayTrainContext:
    """A worker inside ``TorchTrainer``'s ``train_loop_per_worker``.

    Args:
        record_dir: where rank 0 writes the record, reachable from every node.
    """

    def __init__(self, record_dir: Path) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._record_dir = record_dir
        # Ray logs a line for each report of each worker; the sweep prints its own progress.
        logging.getLogger(_internal_context.__name__).setLevel(logging.WARNING)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device, in ``DistributedDataParallel`` where there are several workers."""
        wrapped: nn.Module = ray.train.torch.prepare_model(model)
        return wrapped

    def restore(self) -> State | None:
        """The run's newest checkpoint that was reported whole."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder) / _FILE)

    def report(self, row: EpochRow, state: State) -> None:
        """Report the row; rank 0 hands the state over as checkpoint."""
        metrics = row.model_dump()
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(state, Path(folder) / _FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def finish(self, record: RunRecord) -> None:
        """Write the record where the sweep finds it."""
        write_record(record, self._record_dir)
