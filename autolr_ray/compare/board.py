"""TensorBoard on a study: event files made from records and from what running trials have reported.

Tune writes such files itself, but their HPARAMS page has the columns of one run only, no learning rate that
was found, and no result that comes after the last epoch.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autolr_ray.compare.folder import Runs, read_runs
from autolr_ray.compare.statistics import is_grid, reported_runs
from autolr_ray.remote import Location
from autolr_ray.train.record import EpochRow, RunRecord
from autolr_ray.train.watch import RESULTS, TensorBoardLog

_LOOK_EVERY_SECONDS = 10.0


class BoardError(RuntimeError):
    """TensorBoard cannot be started; the message is ready to be shown."""


class EventFiles:
    """Event files of a study's runs in a folder of their own, brought up to date by :meth:`update`.

    Args:
        path: a study's results folder, or a ledger.
        folder: where the files go, a folder a run.
    """

    def __init__(self, path: Location, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._open: dict[str, TensorBoardLog] = {}
        self._rows: dict[str, int] = {}
        self._finished: set[str] = set()
        self._tested: set[str] = set()
        self._closing = False

    def update(self) -> int:
        """Write what is new, until :meth:`stop`; how many runs there are now.

        Raises:
            ReadingError: there are no results at the path.
        """
        runs = read_runs(self._path, borrowed=False)
        visible = _may_be_seen(runs)
        for record in runs.records:
            if self._closing:
                break
            self._add(record, tested=record.cell in visible)
        for cell in runs.cells:
            name = cell.spec.cell
            if name not in self._finished and (rows := _reported_so_far(runs.folder, name)):
                if name not in self._open:
                    place = _place(cell.arm, cell.point, cell.spec.batch_size, cell.spec.seed, name)
                    self._open[name] = TensorBoardLog(self._folder / place)
                self._add_rows(name, rows)
        return len(self._finished) + len(self._open)

    def _add(self, record: RunRecord, *, tested: bool) -> None:
        """A finished run, or its test accuracy alone where that may be seen only now."""
        new, tested = record.cell not in self._finished, tested and record.cell not in self._tested
        if not new and not tested:
            return
        if record.cell not in self._open:
            place = _place(record.arm, record.point, record.batch_size, record.seed, record.cell)
            self._open[record.cell] = TensorBoardLog(self._folder / place)
        log = self._open[record.cell]
        if new:
            self._add_rows(record.cell, record.epoch_rows)
            log.trace(record)
            log.results(record, RESULTS)
            log.hparams(_columns(record))
            self._finished.add(record.cell)
        if tested:
            log.results(record, ("test_accuracy",))
            self._tested.add(record.cell)
        # Each open file has a thread.
        self._open.pop(record.cell).close()

    def stop(self) -> None:
        """Let an update in another thread end soon."""
        self._closing = True

    def close(self) -> None:
        """Close all files."""
        for log in self._open.values():
            log.close()

    def _add_rows(self, cell: str, rows: list[EpochRow]) -> None:
        """Rows of epochs that are not written yet; a run that was cut off may report one twice."""
        for row in rows:
            if row.epoch > self._rows.get(cell, 0):
                self._rows[cell] = row.epoch
                self._open[cell].row(row)


def _place(arm: str, point: str, batch_size: int, seed: int, cell: str) -> str:
    """A run's name on the board."""
    point = point.replace(" ", "_")
    return "/".join(part for part in (arm, point, f"batch_{batch_size}", f"seed_{seed}-{cell[:6]}") if part)


def _columns(record: RunRecord) -> dict[str, bool | float | int | str]:
    """What the HPARAMS page says of a run beside its results."""
    names = ("arm", "batch_size", "seed", "peak_lr", "warmup_fraction", "optimizer", "epochs", "workers")
    values = {name: getattr(record, name) for name in names}
    return {name: value for name, value in values.items() if value == value}  # without NaN


def _may_be_seen(runs: Runs) -> set[str]:
    """Runs whose test accuracy is nobody's choice any more: the report's, those of grids at the very end."""
    records = list(runs.records)
    complete = bool(runs.cells) and {c.spec.cell for c in runs.cells} <= {r.cell for r in records}
    return {
        record.cell
        for arm in {r.arm for r in records}
        if complete or not runs.cells or not is_grid(records, arm)
        for size in {r.batch_size for r in records if r.arm == arm}
        for record in reported_runs(records, arm, size)
    }


def _reported_so_far(folder: Location, cell: str) -> list[EpochRow]:
    """Epochs of an unfinished run, from what Tune keeps of the trial begun last; none in object storage."""
    if not isinstance(folder, Path):
        return []
    found = sorted(
        (folder / "runs").glob(f"tune-*/*{cell}/result.json"), key=lambda path: path.stat().st_mtime
    )
    rows = []
    for line in found[-1].read_text(encoding="utf-8").splitlines() if found else ():
        with suppress(ValueError, ValidationError):  # the last line may be half written
            content: dict[str, Any] = json.loads(line)
            rows.append(EpochRow.model_validate({name: content.get(name) for name in EpochRow.model_fields}))
    return rows


@contextmanager
def served(path: Location, *, port: int, bind_all: bool) -> Iterator[str]:
    """TensorBoard in this process while the block lasts; yields its address.

    Args:
        path: a study's results folder, or a ledger.
        port: 0 for any that is free.
        bind_all: let other machines in.

    Raises:
        ReadingError: there are no results at ``path``.
        BoardError: TensorBoard cannot start, on this port above all.
    """
    from tensorboard import program

    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="autolr_ray-board-") as folder:
        read_runs(path, borrowed=False)
        files = EventFiles(path, Path(folder))

        def keep_up() -> None:
            # While the server is up: a large study takes a while to write.
            wrong = ""
            while not ended.is_set():
                try:
                    files.update()
                except Exception as error:  # a file that is just being replaced, say; the next look is soon
                    said, wrong = wrong, f"board: {type(error).__name__}: {error}"
                    if said != wrong:
                        print(wrong, file=sys.stderr)
                ended.wait(_LOOK_EVERY_SECONDS)

        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        server = program.TensorBoard()
        where = ["--bind_all"] if bind_all else ["--host", "127.0.0.1"]
        server.configure(
            argv=["tensorboard", "--logdir", folder, "--port", str(port), *where, "--reload_interval", "5"]
        )
        try:
            with redirect_stderr(io.StringIO()):  # it advertises a flag
                url = server.launch()
        except (program.TensorBoardServerException, OSError) as error:
            raise BoardError(f"port: {port} cannot be used ({error})") from error
        thread = threading.Thread(target=keep_up, name="autolr-board", daemon=True)
        thread.start()
        try:
            yield url
        finally:
            ended.set()
            files.stop()
            thread.join()
            files.close()


def board(path: Location, *, port: int, bind_all: bool) -> None:
    """Serve until Ctrl-C; see :func:`served`."""
    with served(path, port=port, bind_all=bind_all) as url:
        print(f"TensorBoard: {url}  (HPARAMS: {url}#hparams; Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            _wait()


def _wait() -> None:
    threading.Event().wait()
