"""What one finished run leaves behind: the row of the ledger from which every figure is made."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, ValidationError

from autolr_ray.files import write_atomically
from autolr_ray.remote import Location
from autolr_ray.schedule.switch import SWEEPS, Verdict

# How ``tuning`` begins in records that Tune's ASHA would have left, made from those of a grid's runs.
ASHA_TUNING = "ASHA over"
_SWEEPS = tuple(verdict.name.lower() for verdict in SWEEPS)
_RISES_ON = Verdict.RISES_ON.name.lower()


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class EpochRow(_Row):
    """One epoch. ``seconds`` is the device time of the run so far, per worker."""

    epoch: int
    step: int
    lr: float
    train_loss: float
    validation_accuracy: float
    seconds: float


class Trace(_Row):
    """Learning rate and training loss (mean over workers) of optimizer steps, thinned evenly to at
    most a thousand points; lists of equal length. A loss may be NaN or inf.
    """

    step: list[int]
    lr: list[float]
    loss: list[float]


class ReceiptRow(_Row):
    """One decision of the scheduler (see ``autolr_ray.schedule.Receipt``). ``strength`` is NaN, and
    ``rolled_back_to`` -1, in records from before they were kept.
    """

    step: int
    lr: float
    verdict: str
    reason: str
    strength: float = math.nan
    probability: float
    positives: int
    argmin_step: int
    argmin_lr: float
    rolled_back_to: int = -1


class Posterior(_Row):
    """The loss curve's Gaussian-process posterior when the warmup ended: lists of equal length, over
    the optimizer steps of the warmup. Empty lists where the schedule has none.
    """

    step: list[float]
    mean: list[float]
    sd: list[float]


class RunRecord(_Row):
    """One finished run.

    Accuracies are fractions in [0, 1]. ``cell`` is the hash of everything that decides the result.
    ``point`` tells a grid arm's points apart ("" where an arm has one). ``peak_lr`` is the learning
    rate from which the decay started; ``switch_step`` the optimizer step at which the warmup ended;
    ``rolled_back_to`` the step whose weights were put back (the last time, where that was more than once), or
    -1. ``device_seconds`` = seconds in the loop (training, evaluation, checkpoints; not ``startup_seconds``)
    times workers and times ``device_share``, the part of a GPU that each worker had reserved, with those of
    earlier lives up to the checkpoint that was resumed. ``tuning_seconds`` is the part of them that went into
    the choice of a learning rate (a range test, runs that were stopped early), ``tuning`` says in a few words
    what that was; 0 and "" for a run that is just a run.
    """

    cell: str
    study: str
    arm: str
    point: str
    batch_size: int
    seed: int
    task: str
    model: str
    optimizer: str
    schedule: str
    workers: int
    device: str
    epochs: int
    total_steps: int
    peak_lr: float
    warmup_fraction: float
    switch_step: int
    verdict: str
    rolled_back_to: int
    train_loss: float
    validation_accuracy: float
    test_accuracy: float
    device_seconds: float
    tuning_seconds: float = 0.0
    tuning: str = ""
    device_share: float = 1.0
    startup_seconds: float
    restarts: int
    finished_at: str
    versions: dict[str, str]
    epoch_rows: list[EpochRow]
    trace: Trace
    receipts: list[ReceiptRow]
    posterior: Posterior

    @property
    def derived(self) -> bool:
        """Whether this is no run's own record but one made from those of others, with their cost."""
        return self.tuning.startswith(ASHA_TUNING)

    @property
    def put_backs(self) -> list[tuple[int, int]]:
        """When weights were put back, and to which step's: pairs of optimizer steps, in their order.

        That of a sweep is not known of records from before each receipt had its own.
        """
        known = [(x.step, x.rolled_back_to) for x in self.receipts if x.rolled_back_to >= 0]
        if not known and 0 <= self.rolled_back_to < self.switch_step:
            return [(self.switch_step, self.rolled_back_to)]
        return known

    @property
    def sweep_steps(self) -> int:
        """Steps of the sweep before a linear warmup; 0 where there was none."""
        return next((x.step for x in self.receipts if x.verdict in _SWEEPS), 0)

    @property
    def rises(self) -> list[int]:
        """The steps at which a linear warmup was over and the learning rate went on rising."""
        return [x.step for x in self.receipts if x.verdict == _RISES_ON]


def write_record(record: RunRecord, folder: Location) -> Location:
    """Write ``folder/<cell>.json`` whole or not at all, and durably; its path.

    A record of the same cell that is there already stays: the first result counts, whoever was second.

    Raises:
        ValueError: it is no run's own record: under the cell of a run it would take its place.
    """
    if record.derived:
        raise ValueError(
            f"record: {record.arm!r} of cell {record.cell!r} is not allowed; it was made from other runs "
            f"({record.tuning}) and is charged with theirs, a run's own record is needed"
        )
    path = folder / f"{record.cell}.json"
    if read_record(path, record.cell) is None:
        write_atomically(path, record.model_dump_json().encode(), durable=True)
    return path


def read_record(path: Location, cell: str) -> RunRecord | None:
    """The run's own record of ``cell`` that ``path`` holds; None where it holds none, or cannot be read."""
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.cell == cell and not record.derived else None
