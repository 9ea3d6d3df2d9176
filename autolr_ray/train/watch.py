"""What a run shows of itself while it goes on: TensorBoard files, and metrics on Ray's dashboard."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.spec import RunSpec

RESULTS = ("validation_accuracy", "peak_lr", "switch_step", "device_seconds")
_SHOWN = ("train_loss", "validation_accuracy", "lr")


class TensorBoardLog:
    """Scalars of each epoch, of each optimizer step when the run is over, and its line on the HPARAMS page.

    A run that is taken up again writes a second file; TensorBoard shows both as one.

    Args:
        folder: the run's own; made if absent.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        # Its flush() leaves behind what its thread has not taken up yet; the thread flushes as often as this.
        # A file's name has the second in it: without more, one opened in the same second would replace it.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self._writer: Any = SummaryWriter(str(folder), flush_secs=5, filename_suffix=suffix)

    def row(self, row: EpochRow) -> None:
        """One epoch, over optimizer steps."""
        for name in _SHOWN:
            self._writer.add_scalar(f"epoch/{name}", getattr(row, name), row.step)
        self._writer.flush()

    def finish(self, record: RunRecord, spec: RunSpec) -> None:
        """The loss and learning rate of steps, and the settings beside the results; then all is closed."""
        self.trace(record)
        self.hparams(settings(spec))
        self.results(record, (*RESULTS, "test_accuracy"))
        self.close()

    def trace(self, record: RunRecord) -> None:
        """Loss and learning rate of steps, as far as the record has them."""
        for step, lr, loss in zip(record.trace.step, record.trace.lr, record.trace.loss, strict=True):
            self._writer.add_scalar("step/lr", lr, step)
            self._writer.add_scalar("step/train_loss", loss, step)
        self._writer.flush()

    def hparams(self, values: Mapping[str, bool | float | int | str]) -> None:
        """This run's line on the HPARAMS page; its columns of results are the run's scalars."""
        from tensorboardX.summary import hparams

        # Without the summary of an "experiment", which fixes the columns of all runs to those of whichever
        # run TensorBoard finds first: without any it takes the union.
        _, start, end = hparams(hparam_dict=dict(values), metric_dict={})
        self._writer.file_writer.add_summary(start)
        self._writer.file_writer.add_summary(end)
        self._writer.flush()

    def results(self, record: RunRecord, names: Iterable[str]) -> None:
        """Fields of the record as scalars ``result/...`` of its last step; none that is not a number."""
        for name in names:
            if math.isfinite(value := float(getattr(record, name))):
                self._writer.add_scalar(f"result/{name}", value, record.total_steps)
        self._writer.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._writer.close()


def settings(spec: RunSpec) -> dict[str, Any]:
    """The spec as flat names and plain values: ``optimizer.name``, ``schedule.peak_lr``."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            flat[prefix] = value if isinstance(value, (bool, int, float, str)) else str(value)

    walk("", spec.model_dump(mode="json"))
    return flat


class DashboardMetrics:
    """The newest epoch as gauges ``autolr_ray_*``, tagged ``run``, for the metrics of Ray's dashboard."""

    def __init__(self, name: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges: dict[str, Any] = {
            field: Gauge(f"autolr_ray_{field}", description=f"{field} of the newest epoch", tag_keys=("run",))
            for field in (*_SHOWN, "epoch")
        }
        self._tags = {"run": name}

    def row(self, row: EpochRow) -> None:
        """One epoch."""
        for field, gauge in self._gauges.items():
            gauge.set(float(getattr(row, field)), tags=self._tags)
