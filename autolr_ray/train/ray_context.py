"""The loop's surroundings on Ray: a worker of a Ray Train run."""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode
from ray.train.v2._internal.execution import context as _internal_context
from torch import nn

from autolr_ray.remote import Location
from autolr_ray.train.checkpoints import State, read_or_warn, save_state
from autolr_ray.train.record import EpochRow, RunRecord, write_record
from autolr_ray.train.spec import RunSpec
from autolr_ray.train.turn import Turn
from autolr_ray.train.watch import DashboardMetrics, TensorBoardLog

_FILE = "checkpoint.pt"


class RayTrainContext:
    """A worker inside ``TorchTrainer``'s ``train_loop_per_worker``.

    Args:
        record_dir: where rank 0 writes the record, reachable from every node.
        spec: the run.
        log_dir: where rank 0 writes TensorBoard files, reachable from every node; None: none.
    """

    def __init__(self, record_dir: Location, spec: RunSpec, *, log_dir: Path | None = None) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._record_dir = record_dir
        self._spec = spec
        name = context.get_experiment_name()
        self._metrics = DashboardMetrics(name) if self.rank == 0 else None
        self._log = TensorBoardLog(log_dir / name) if self.rank == 0 and log_dir is not None else None
        self._held: list[EpochRow] = []
        self._epochs = 0  # since the last that was reported with its state
        self._not_carried: tuple[str, OSError] | None = None  # the name of the checkpoint, and why
        # Ray logs a line for each report of each worker; the sweep prints its own progress.
        logging.getLogger(_internal_context.__name__).setLevel(logging.WARNING)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device, in ``DistributedDataParallel`` where there are several workers."""
        wrapped: nn.Module = ray.train.torch.prepare_model(model)
        return wrapped

    def restore(self) -> State | None:
        """The newest checkpoint that can be read; a damaged one is passed over with a warning.

        Looked for among those that Ray knows, then among the folders in the run's storage: Ray's own list may
        have been lost.

        Raises:
            ValueError: there are checkpoints, and none can be read.
        """
        newest = ray.train.get_checkpoint()
        known = [] if newest is None else [found.checkpoint for found in _reported()]
        tried: set[str] = set()
        for checkpoint in (newest, *reversed(known), *_in_storage()):
            if checkpoint is None or checkpoint.path in tried:
                continue
            tried.add(checkpoint.path)
            if (state := _read(checkpoint)) is not None:
                return state
        if tried:
            raise ValueError(
                f"checkpoint: none of {', '.join(sorted(tried))} can be read; delete the run's folder to "
                "start it anew"
            )
        return None

    def save(self, state: State) -> None:
        """Report rank 0's state as checkpoint, without metrics but the step."""
        self._report_held()
        self._report({"step": state["step"]}, state)

    def report(self, row: EpochRow, state: State) -> None:
        """Report the row, with the turn where the warmup ended in it; rank 0 hands over the state, too."""
        turn, self._epochs = Turn.within(row, state, self._epochs + 1), 0
        self._report_held()
        self._report(row.model_dump() | ({"turn": turn.model_dump()} if turn else {}), state)
        self._show(row)

    def hold(self, row: EpochRow) -> None:
        """Keep the row; it is reported right before the next state."""
        self._held.append(row)
        self._epochs += 1

    def _report_held(self) -> None:
        for row in self._held:
            ray.train.report(row.model_dump())
            self._show(row)
        self._held = []

    def _show(self, row: EpochRow) -> None:
        if self._metrics is not None:
            self._metrics.row(row)
        if self._log is not None:
            self._log.row(row)

    def _report(self, metrics: dict[str, Any], state: State) -> None:
        if self.rank != 0:
            ray.train.report(metrics)
            return
        # Written here at once, carried to the storage while training goes on, then deleted.
        folder = tempfile.mkdtemp(prefix="autolr_ray-")
        save_state(state, Path(folder) / _FILE, durable=False)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=True,
        )

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Carry the checkpoint to the storage, in Ray's thread; what cannot be carried leaves nothing there.

        Ray may try it again. Those that follow a failed one are not begun: this life of the run is about to
        end, perhaps in the midst of one.

        Raises:
            OSError: it, or one before, cannot be written; it ends this life of the run.
        """
        if self._not_carried is not None and self._not_carried[0] != name:
            raise self._not_carried[1]
        storage = ray.train.get_context().get_storage()
        try:
            carried = storage.persist_current_checkpoint(checkpoint, name)
        except OSError as error:
            path = storage.build_checkpoint_path_from_name(name)
            with suppress(OSError):
                storage.storage_filesystem.delete_dir(path)
            newest = ray.train.get_checkpoint()
            # With the cause's own words: by them Ray tells what to try again.
            clear = OSError(
                f"checkpoint: {path} cannot be written ({error}); the newest whole one is "
                f"{newest.path if newest else 'none'}; start the run again when the storage can be written "
                "to, it goes on from there"
            )
            self._not_carried = (name, clear)
            raise clear from error
        self._not_carried = None
        return carried

    def poll(self) -> None:
        """Nothing to do: Ray publishes."""

    def close(self) -> None:
        """Nothing to do: Ray waits for its uploads when the loop returns."""

    def finish(self, record: RunRecord) -> None:
        """Write the record where the sweep finds it."""
        write_record(record, self._record_dir)
        if self._log is not None:
            self._log.finish(record, self._spec)


def _read(checkpoint: ray.train.Checkpoint) -> State | None:
    with checkpoint.as_directory() as folder:
        return read_or_warn(Path(folder) / _FILE)


def _reported() -> list[Any]:
    found: list[Any] = ray.train.get_all_reported_checkpoints()
    return found


def _in_storage() -> list[ray.train.Checkpoint]:
    """What lies in the run's folder, newest first by name, which begins with the time."""
    storage = ray.train.get_context().get_storage()
    selector = pyarrow.fs.FileSelector(storage.experiment_fs_path, allow_not_found=True)
    folders = [
        info.path
        for info in storage.storage_filesystem.get_file_info(selector)
        if info.type is pyarrow.fs.FileType.Directory and info.base_name.startswith("checkpoint_")
    ]
    return [ray.train.Checkpoint(path, storage.storage_filesystem) for path in sorted(folders, reverse=True)]
