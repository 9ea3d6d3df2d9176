"""From the workers of a Ray Train run to the process that started it: each epoch's metrics, over a queue."""

from __future__ import annotations

from typing import Any

from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue


class SendReports(UserCallback):  # type: ignore[misc]
    """Puts rank 0's metrics of each epoch into ``queue``; Ray calls it in its controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Called by Ray when all workers have reported."""
        if "epoch" in metrics[0]:  # there are checkpoints inside epochs, too
            self._queue.put(metrics[0])
