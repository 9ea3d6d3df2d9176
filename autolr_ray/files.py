"""Writing files so that a reader, or a crash, never finds half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from autolr_ray.remote import Location, RemotePath


def write_atomically(path: Location, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a file so that a reader finds either the old content or all of the new.

    ``durable`` also waits until file and folder entry are on the disk. Missing folders are made.
    """
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, because os.replace is atomic only within one file system.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600; colleagues read these files
            if durable:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if durable:
        # Some network file systems cannot sync a folder; the content itself is already safe there.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def remove_tree(path: Location) -> None:
    """Delete a folder with all that is in it; no error where it is not there or cannot be deleted."""
    if isinstance(path, RemotePath):
        with suppress(OSError):
            path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)
