"""Where a run happens, seen from the loop: rank, device, report, save, restore.

The loop knows this small interface only. :class:`LocalContext` is a plain process;
``autolr_ray.train.ray_context`` has the form on Ray Train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from autolr_ray.remote import Location
from autolr_ray.train.checkpoints import Background, CheckpointFolder, State, on_host
from autolr_ray.train.record import EpochRow, RunRecord, write_record
from autolr_ray.train.turn import Turn


class RunContext(Protocol):
    """What the loop needs of its surroundings."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device, made to average gradients over the ranks."""

    def restore(self) -> State | None:
        """The newest saved state, tensors on the host; None at the start of a run."""

    def save(self, state: State) -> None:
        """Save the state in the middle of an epoch; every rank calls it, rank 0's counts."""

    def report(self, row: EpochRow, state: State) -> None:
        """Save the state and publish an epoch's row; every rank calls it, rank 0's counts."""

    def hold(self, row: EpochRow) -> None:
        """Keep an epoch's row, to be published with the next state that is saved; every rank calls it."""

    def poll(self) -> None:
        """After every step: publish what has been saved meanwhile. Returns at once."""

    def finish(self, record: RunRecord) -> None:
        """Keep the finished run's record for good; rank 0 calls it."""

    def close(self) -> None:
        """The run is over, well or not: wait for what is under way. Does not raise."""


class LocalContext:
    """A run in this process alone, its checkpoints in a folder.

    A state is copied to the host at once, then written while training goes on.

    Args:
        checkpoint_dir: made if absent; see :class:`CheckpointFolder`.
        record_dir: where the record goes, ``<cell>.json``.
        device: where to train; default: the GPU if there is one.
        keep_checkpoints: how many of the newest stay, >= 1.
        on_report: called with each epoch's row when its state is safe, in the loop's thread.
        on_turn: called after it where the warmup ended in that epoch.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        checkpoint_dir: Location,
        record_dir: Location,
        *,
        device: torch.device | None = None,
        keep_checkpoints: int = 2,
        on_report: Callable[[EpochRow], None] = lambda row: None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.checkpoints = CheckpointFolder(checkpoint_dir, keep=keep_checkpoints)
        self._record_dir = record_dir
        self._on_report, self._on_turn = on_report, on_turn
        self._writing = Background()
        # Those whose state is being written, and those whose state is not saved.
        self._rows: list[EpochRow] = []
        self._held: list[EpochRow] = []
        self._epochs = 0  # since the last that was reported
        self._turn: Turn | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the device."""
        return model.to(self.device)

    def restore(self) -> State | None:
        """The newest saved state that can be read, if there is one."""
        return self.checkpoints.newest()

    def save(self, state: State) -> None:
        """Begin to write the state; raises what the writing before it met."""
        self._publish()
        copied, step = on_host(state), state["step"]
        self._writing.start(lambda: self.checkpoints.save(copied, step))
        self._rows, self._held = self._held, []

    def report(self, row: EpochRow, state: State) -> None:
        """Begin to write the state; the row is published when it is safe."""
        self.hold(row)
        self.save(state)
        self._turn, self._epochs = Turn.within(row, state, self._epochs), 0

    def hold(self, row: EpochRow) -> None:
        """Keep the row until a state with it is safe."""
        self._held.append(row)
        self._epochs += 1

    def poll(self) -> None:
        """Publish the last row if its state has been written; raises what the writing met."""
        if not self._writing.busy:
            self._publish()

    def finish(self, record: RunRecord) -> None:
        """Write the record; the checkpoints have done their duty and go."""
        self._publish()
        write_record(record, self._record_dir)
        self.checkpoints.clear()

    def close(self) -> None:
        """Wait for the writing that is under way: the run may be started again at once."""
        self._writing.settle()

    def _publish(self) -> None:
        self._writing.wait()
        rows, turn, self._rows, self._turn = self._rows, self._turn, [], None
        for row in rows:
            self._on_report(row)
        if turn is not None:
            self._on_turn(turn)
