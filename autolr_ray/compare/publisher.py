"""The report of a sweep that still runs, so that it can be watched."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from autolr_ray.compare.ledger import RunStore
from autolr_ray.compare.study import Study
from autolr_ray.remote import Location


class Publisher:
    """Publishes in the background while a sweep runs, so that it can be watched.

    At most one writing at a time, and none within ``interval`` seconds, or twenty times what the last one
    took, of the one before: drawing must not hold up the runs. What goes wrong is dropped: the end of the
    sweep writes again, and speaks up.
    """

    def __init__(self, study: Study, folder: Location, *, interval: float = 60.0) -> None:
        self._study, self._folder, self._interval = study, folder, interval
        self._store = RunStore(folder / "cells")
        self._next = time.monotonic() + interval
        # One thread for all writings: each new one would keep memory of its own for what it drew.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="autolr-publish")
        self._writing: Future[None] | None = None

    def touch(self) -> None:
        """A run has finished: publish if it is time. Returns at once."""
        if time.monotonic() >= self._next and (self._writing is None or self._writing.done()):
            self._writing = self._executor.submit(self._write)

    def close(self) -> None:
        """Wait for a writing that is under way."""
        self._executor.shutdown(wait=True)

    def _write(self) -> None:
        # Not before it is needed: the first runs can start while nobody draws yet.
        from autolr_ray.compare.publish import publish

        began = time.monotonic()
        with suppress(Exception):
            publish(self._study, self._folder, self._store)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(self._interval, 20 * took)
