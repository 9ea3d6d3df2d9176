"""Where a run happens, seen from the loop: rank, device, report, save, restore.

The loop knows this small interface only. :class:`LocalContext` is a plain process;
``autolr_ray.train.ray_context`` has the form on Ray Train.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from autolr_ray.files import write_atomically
from autolr_ray.train.record import EpochRow, RunRecord, write_record

State = dict[str, Any]


class RunContext(Protocol):
    """What the loop needs of its surroundings."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device, made to average gradients over the ranks."""

    def restore(self) -> State | None:
        """The newest saved state, tensors on the host; None at the start of a run."""

    def report(self, row: EpochRow, state: State) -> None:
        """Publish an epoch's row and save the state; every rank calls it, rank 0's counts."""

    def finish(self, record: RunRecord) -> None:
        """Keep the finished run's record for good; rank 0 calls it."""


class LocalContext:
    """A run in this process alone, its checkpoint in a folder.

    Args:
        checkpoint_dir: made if absent; holds ``checkpoint.pt``.
        record_dir: where the record goes, ``<cell>.json``.
        device: where to train; default: the GPU if there is one.
        on_report: called with each epoch's row.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        checkpoint_dir: Path,
        record_dir: Path,
        *,
        device: torch.device | None = None,
        on_report: Callable[[EpochRow], None] = lambda row: None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._path = checkpoint_dir / "checkpoint.pt"
        self._record_dir = record_dir
        self._on_report = on_report

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device."""
        return model.to(self.device)

    def restore(self) -> State | None:
        """The saved state, if there is one."""
        return load_state(self._path) if self._path.exists() else None

    def report(self, row: EpochRow, state: State) -> None:
        """Save the state, then publish the row."""
        save_state(state, self._path)
        self._on_report(row)

    def finish(self, record: RunRecord) -> None:
        """Write the record; the checkpoint has done its duty and goes."""
        write_record(record, self._record_dir)
        self._path.unlink(missing_ok=True)


def save_state(state: State, path: Path) -> None:
    """Write ``state`` whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer(), durable=True)


def load_state(path: Path) -> State:
    """The state at ``path``, tensors on the host; plain data only, no code is run."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
