"""Checkpoints in a folder: written whole while training goes on, the newest few kept, damage survived."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from autolr_ray.files import write_atomically
from autolr_ray.remote import Location, RemotePath
from autolr_ray.schedule.packed import Packed, pack

State = dict[str, Any]
_NAME = re.compile(r"checkpoint-(\d+)\.pt")


class CheckpointFolder:
    """States of one run by optimizer step, in files ``checkpoint-<step>.pt``.

    A file appears in one move when it is whole. The newest ``keep`` stay.

    Args:
        folder: made at the first save.
        keep: >= 1.
    """

    def __init__(self, folder: Location, *, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def paths(self) -> list[Location]:
        """Files of saved states, newest first."""
        if not self.folder.is_dir():
            return []
        found = {path: _NAME.fullmatch(path.name) for path in self.folder.iterdir()}
        steps = {path: int(match[1]) for path, match in found.items() if match is not None}
        return sorted(steps, key=lambda path: steps[path], reverse=True)

    def save(self, state: State | Packed, step: int) -> None:
        """Write the state after ``step`` optimizer steps; returns when it is on the disk.

        Raises:
            OSError: it cannot be written; what was saved before is untouched.
        """
        path = self.folder / f"checkpoint-{step:09d}.pt"
        try:
            save_state(state, path)
        except OSError as error:
            newest = next((p.name for p in self.paths()), "none")
            raise OSError(
                error.errno,
                f"checkpoint: {path} cannot be written ({error.strerror or error}); the newest whole one is "
                f"{newest}; start the run again when the storage can be written to, it goes on from there",
            ) from error
        for old in self.paths()[self._keep :]:
            old.unlink(missing_ok=True)

    def newest(self) -> State | None:
        """The newest state that can be read; None where none was saved.

        Warns of each file that cannot be read.

        Raises:
            ValueError: there are files, and none can be read.
        """
        paths = self.paths()
        for path in paths:
            state = read_or_warn(path)
            if state is not None:
                return state
        if paths:
            raise ValueError(
                f"checkpoint: none of the {len(paths)} files in {self.folder} can be read; delete them to "
                "start the run anew"
            )
        return None

    def clear(self) -> None:
        """Delete all saved states."""
        for path in self.paths():
            path.unlink(missing_ok=True)


class Background:
    """One task at a time in a thread; its error is raised where it is waited for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """A task is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], None]) -> None:
        """Wait for the task before, then start this one."""
        self.wait()

        def run() -> None:
            try:
                task()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="autolr-checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Until the task is done; what it raised is left for :meth:`wait`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until the task is done; raises what it raised, once."""
        self.settle()
        error, self._error = self._error, None
        if error is not None:
            raise error


def on_host(state: State) -> Packed:
    """A copy with all tensors on the host, in a few blocks, which later steps do not change."""
    return pack(state, on_host=True)


def save_state(state: State | Packed, path: Location, *, durable: bool = True) -> None:
    """Write ``state`` whole or not at all; ``durable``: return when it is on the disk."""
    buffer = io.BytesIO()
    torch.save(state.state_dict() if isinstance(state, Packed) else state, buffer)
    write_atomically(path, buffer.getbuffer(), durable=durable)


def load_state(path: Location) -> State:
    """The state at ``path``, tensors on the host; plain data only, no code is run."""
    source = io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path
    state: State = torch.load(source, map_location="cpu", weights_only=True)
    # Each tensor gets a memory of its own: else the whole block would stay for the sake of any.
    return Packed.of(state).nested(apart=True) if Packed.is_state(state) else state


def read_or_warn(path: Location) -> State | None:
    """The state at ``path``, or None and a warning where the file is damaged."""
    try:
        return load_state(path)
    except Exception as error:  # torch has no common base for what a damaged file can raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"checkpoint: {path} is damaged and is passed over ({reason})", stacklevel=3)
        return None
