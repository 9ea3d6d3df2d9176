"""Where finished runs are kept: a folder of one file per cell while a sweep runs, then one Parquet file.

Both forms carry every field of :class:`RunRecord` exactly, NaN and infinities included, and both are
written so that a reader never sees half a file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from autolr_ray.files import write_atomically
from autolr_ray.remote import Location
from autolr_ray.train.record import RunRecord, write_record

_TEXT, _INTEGER, _NUMBER = pa.string(), pa.int64(), pa.float64()


def _struct(**fields: Any) -> Any:
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def _items(kind: Any) -> Any:
    return pa.list_(pa.field("item", kind, nullable=False))


_COLUMNS = {
    "cell": _TEXT,
    "study": _TEXT,
    "arm": _TEXT,
    "point": _TEXT,
    "batch_size": _INTEGER,
    "seed": _INTEGER,
    "task": _TEXT,
    "model": _TEXT,
    "optimizer": _TEXT,
    "schedule": _TEXT,
    "workers": _INTEGER,
    "device": _TEXT,
    "epochs": _INTEGER,
    "total_steps": _INTEGER,
    "peak_lr": _NUMBER,
    "warmup_fraction": _NUMBER,
    "switch_step": _INTEGER,
    "verdict": _TEXT,
    "rolled_back_to": _INTEGER,
    "train_loss": _NUMBER,
    "validation_accuracy": _NUMBER,
    "test_accuracy": _NUMBER,
    "device_seconds": _NUMBER,
    "tuning_seconds": _NUMBER,
    "tuning": _TEXT,
    "device_share": _NUMBER,
    "startup_seconds": _NUMBER,
    "restarts": _INTEGER,
    "finished_at": _TEXT,
    "versions": pa.map_(_TEXT, _TEXT),
    "epoch_rows": _items(
        _struct(
            epoch=_INTEGER,
            step=_INTEGER,
            lr=_NUMBER,
            train_loss=_NUMBER,
            validation_accuracy=_NUMBER,
            seconds=_NUMBER,
        )
    ),
    "trace": _struct(step=_items(_INTEGER), lr=_items(_NUMBER), loss=_items(_NUMBER)),
    "receipts": _items(
        _struct(
            step=_INTEGER,
            lr=_NUMBER,
            verdict=_TEXT,
            reason=_TEXT,
            strength=_NUMBER,
            probability=_NUMBER,
            positives=_INTEGER,
            argmin_step=_INTEGER,
            argmin_lr=_NUMBER,
            rolled_back_to=_INTEGER,
        )
    ),
    "posterior": _struct(step=_items(_NUMBER), mean=_items(_NUMBER), sd=_items(_NUMBER)),
}

SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()],
    metadata={"autolr_ray.ledger": "1"},
)

_SAFE_CELL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_ledger(records: Sequence[RunRecord], path: Location) -> None:
    """Write all runs to one Parquet file, replacing it in one move.

    Rows are sorted by study, arm, point, batch size, seed and cell, so that the same runs in any order
    give the same file. An empty ledger is a valid file of zero rows.

    Raises:
        ValueError: two records carry the same cell, arm and point; or a cell has a row that was made from
            other runs (ASHA's), and none that is its own run's.
    """
    ordered = sorted(records, key=lambda r: (r.study, r.arm, r.point, r.batch_size, r.seed, r.cell))
    seen: set[tuple[str, str, str]] = set()
    for record in ordered:
        key = (record.cell, record.arm, record.point)
        if key in seen:
            raise ValueError(
                f"records: cell {record.cell!r} occurs twice as {record.arm!r} {record.point!r}; a ledger "
                "holds one row for each"
            )
        seen.add(key)
    own = {record.cell for record in ordered if not record.derived}
    for record in ordered:
        if record.cell not in own:
            raise ValueError(
                f"records: cell {record.cell!r} has no run of its own; {record.arm!r} was made from other "
                f"runs ({record.tuning}) and is charged with theirs"
            )
    table = pa.Table.from_pylist([_row(record) for record in ordered], schema=SCHEMA)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_ledger(path: Location) -> list[RunRecord]:
    """Read the runs that :func:`write_ledger` wrote, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a ledger, or one that another version wrote.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no ledger at {path}")
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    # A column that a record has a value for without it came later: ledgers from before may lack it.
    needed = {name for name in _COLUMNS if RunRecord.model_fields[name].is_required()}
    if odd := sorted((needed - set(table.column_names)) | (set(table.column_names) - set(_COLUMNS))):
        raise ValueError(f"{path} is not a ledger of this version: columns {', '.join(odd)} differ")
    rows = table.to_pylist()
    return [RunRecord.model_validate({**row, "versions": dict(row["versions"])}) for row in rows]


def restore_runs(ledger: Sequence[RunRecord], store: RunStore) -> list[str]:
    """Bring a ledger's runs back to where a sweep looks for them; the cells, sorted.

    Rows that were made from others' runs (ASHA's) are no runs and are passed over: they are worked out anew.
    What is in ``store`` already stays.

    Raises:
        ValueError: of a cell there is nothing but such rows; nothing has been written then.
    """
    runs: dict[str, RunRecord] = {}
    for record in ledger:
        if not record.derived:
            runs.setdefault(record.cell, record)
    if lost := sorted({record.cell for record in ledger} - runs.keys()):
        raise ValueError(
            f"records: {', '.join(lost)}: no run's own record is in the ledger, only what was made from "
            "other runs, with their cost"
        )
    for record in runs.values():
        store.write(record)
    return sorted(runs)


class RunStore:
    """A folder with one JSON file per finished cell, written by whichever worker ran it.

    The folder may be shared by many workers: each file is written once, in one move, and has reached
    the disk when :meth:`write` returns. A cell is finished exactly when its file can be read.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._read: dict[str, RunRecord] = {}
        self.unreadable: set[str] = set()
        """Names of files that were no record when they were last read."""

    def path(self, cell: str) -> Location:
        """The file of one cell.

        Raises:
            ValueError: ``cell`` is not a plain file name of letters, digits, dot, dash and underscore.
        """
        if not _SAFE_CELL.fullmatch(cell):
            raise ValueError(f"cell {cell!r} is not a plain name of letters, digits, '.', '-' and '_'")
        return self.folder / f"{cell}.json"

    def write(self, record: RunRecord) -> None:
        """Keep one finished run; where there is one of that cell already, that one stays."""
        self.path(record.cell)
        write_record(record, self.folder)

    def read_all(self) -> list[RunRecord]:
        """Every finished run, sorted by cell. A file that is none is skipped with a ``RuntimeWarning``.

        A record never changes once it is there, so that each is read once.
        """
        if not self.folder.is_dir():
            return []
        records = []
        self.unreadable.clear()
        paths: list[Location] = list(self.folder.glob("*.json"))
        for path in sorted(paths, key=lambda path: path.name):
            if path.stem in self._read:
                records.append(self._read[path.stem])
                continue
            try:
                record = RunRecord.model_validate_json(path.read_bytes())
            except FileNotFoundError:  # moved away between listing and reading
                continue
            except (OSError, ValidationError) as error:
                self.unreadable.add(path.stem)
                reason = str(error).splitlines()[0]
                _warn(f"{path} holds no readable run record and is skipped, its cell runs again ({reason})")
                continue
            if record.cell != path.stem:
                self.unreadable.add(path.stem)
                _warn(f"{path} holds the run of another cell, {record.cell!r}, and is skipped")
                continue
            if record.derived:
                self.unreadable.add(path.stem)
                _warn(
                    f"{path} holds what was made from other runs ({record.tuning}), no run of its own, and "
                    "is skipped, its cell runs again"
                )
                continue
            self._read[record.cell] = record
            records.append(record)
        return records

    def names(self) -> set[str]:
        """The cells that have a file, readable or not."""
        return {path.stem for path in self.folder.glob("*.json")} if self.folder.is_dir() else set()

    def finished(self) -> set[str]:
        """The cells that need not run again. Files are read, not listed: a damaged one does not count."""
        return {record.cell for record in self.read_all()}


def _row(record: RunRecord) -> dict[str, Any]:
    row = record.model_dump()
    # A map's order is part of a Parquet file; sorted, the same run always gives the same bytes.
    row["versions"] = sorted(record.versions.items())
    return row


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
