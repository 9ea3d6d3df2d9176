"""A study: which arms are compared, on what, at which batch sizes and seeds. Read once, then frozen."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from autolr_ray.tasks import check_task
from autolr_ray.train.compute import Compute
from autolr_ray.train.config import Config, explain
from autolr_ray.train.optimizers import AdamW, OptimizerSpec
from autolr_ray.train.schedules import AutoWarmupSpec, LinearWarmupSpec, ScheduleSpec
from autolr_ray.train.spec import AccumulationSteps, PositiveInt, RunSpec, require_divisible

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=60)]


class StudyError(ValueError):
    """What is wrong with a study, one line a problem, ready to be shown."""


class Batch(Config):
    """One batch size of a study.

    Attributes:
        size: global batch size.
        epochs: budget at this batch size.
        workers: processes that share each batch.
        accumulation_steps: micro-batches in a row of each worker, or "auto".
    """

    size: PositiveInt
    epochs: PositiveInt
    workers: PositiveInt = 1
    accumulation_steps: AccumulationSteps = 1

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_divisible("size", self.size, self.workers, self.accumulation_steps)
        return self


class Grid(Config):
    """The points of a tuned arm: every peak learning rate with every warmup fraction.

    ``extend``: how often, at each batch size, the grid may grow by itself where its best point is its lowest
    or its highest peak learning rate (see :mod:`autolr_ray.compare.extend`).
    """

    peak_lr: Annotated[tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...], Field(min_length=1)]
    warmup_fraction: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.05,)
    extend: Annotated[int, Field(ge=0, le=10)] = 3

    @field_validator("peak_lr", "warmup_fraction")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} is not allowed; each value may occur once")
        return values


class Arm(Config):
    """One schedule, AutoWarmup where none is named: one run for each batch size and seed, no tuning."""

    schedule: ScheduleSpec = AutoWarmupSpec()
    optimizer: OptimizerSpec | None = None


class GridArm(Config):
    """Linear warmup over a grid: the point of highest validation accuracy speaks for the arm."""

    grid: Grid
    decay: Literal["cosine", "constant-then-cosine"] = "cosine"
    optimizer: OptimizerSpec | None = None


class Resources(Config):
    """What the sweep may use.

    Attributes:
        device: "auto" trains on GPUs where the cluster has any.
        launcher: "train" makes every run a Ray Train ``TorchTrainer``; "trial" runs one-worker cells
            in Tune's own processes, with the same loop and the same result at a tenth of the start-up;
            "auto" does that for cells of one worker.
        max_concurrent: runs at the same time; None: as many as the cluster has room for.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    launcher: Literal["auto", "train", "trial"] = "auto"
    max_concurrent: PositiveInt | None = None


class Study(Config):
    """A comparison, whole. See ``experiments/studies`` for examples.

    Attributes:
        name: the results' folder.
        task, model, data_dir: see :class:`RunSpec`.
        optimizer: of every arm that names none.
        batches: batch sizes with their budgets.
        seeds: the same for every arm: differences are paired.
        arms: by name; "grid" makes an arm a tuned one.
        candidate, baseline: the arms that the verdict is about.
        compute: see :class:`Compute`; of every run.
        checkpoint_every: optimizer steps between checkpoints inside an epoch, beside that at its end.
        margin: how large a difference in accuracy (a fraction) still counts as equivalent.
        note: a line on the data for the report.
    """

    name: Name
    task: str
    model: str | None = None
    data_dir: Path | None = None
    optimizer: OptimizerSpec = AdamW()
    batches: Annotated[tuple[Batch, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    arms: Annotated[dict[Name, Arm | GridArm], Field(min_length=1)]
    candidate: str
    baseline: str
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.005
    note: str = ""
    compute: Compute = Compute()
    loader_workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt | None = None
    resources: Resources = Resources()

    @field_validator("arms", mode="before")
    @classmethod
    def _kinds(cls, arms: Any) -> Any:
        """Say which kind each arm is by its keys, so that an error speaks of that kind alone."""
        if not isinstance(arms, dict):
            raise ValueError("a mapping from names to arms is needed")
        return {name: _arm(name, arm) for name, arm in arms.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("candidate", "baseline"):
            name = getattr(self, field)
            if name not in self.arms:
                raise ValueError(f"{field}: unknown arm {name!r}; allowed: {', '.join(self.arms)}")
        if self.candidate == self.baseline:
            raise ValueError(f"baseline: {self.baseline!r} is not allowed; it is the candidate as well")
        for field, values in (("seeds", self.seeds), ("batches", [batch.size for batch in self.batches])):
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: {list(values)} is not allowed; each may occur once")
        names: dict[str, str] = {}
        for cell in self.cells():
            name = f"{cell.arm} {cell.point}".strip()
            if names.setdefault(cell.spec.cell, name) != name:
                raise ValueError(
                    f"arms: {name!r} is not allowed; it is the same run as {names[cell.spec.cell]!r}"
                )
        if self.resources.launcher == "trial" and any(batch.workers > 1 for batch in self.batches):
            raise ValueError("resources.launcher: 'trial' is not allowed; a batch has several workers")
        return self

    def cells(self) -> list[Cell]:
        """Every run of the study, untuned arms first: each arm at each point, batch size and seed."""
        cells = [
            Cell(
                arm=name, point=point, spec=self._spec(schedule, arm.optimizer or self.optimizer, batch, seed)
            )
            for batch, (name, arm), seed in itertools.product(self.batches, self.arms.items(), self.seeds)
            for point, schedule in _points(arm)
        ]
        return sorted(cells, key=lambda cell: (cell.spec.workers, cell.point != ""))

    def _spec(self, schedule: ScheduleSpec, optimizer: OptimizerSpec, batch: Batch, seed: int) -> RunSpec:
        return RunSpec(
            task=self.task, model=self.model, data_dir=self.data_dir, batch_size=batch.size,
            workers=batch.workers, accumulation_steps=batch.accumulation_steps, epochs=batch.epochs,
            optimizer=optimizer, schedule=schedule, seed=seed, compute=self.compute,
            loader_workers=self.loader_workers, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip


class Cell(Config):
    """One run of a study: the arm and the grid point it stands for, and its spec."""

    arm: str
    point: str
    spec: RunSpec


def _arm(name: Any, arm: Any) -> Any:
    if isinstance(arm, Config):
        return arm
    if not isinstance(arm, dict):
        raise ValueError(f"{name}: {arm!r} is not allowed; a mapping is needed, {{}} for AutoWarmup as it is")
    schedule = arm.get("schedule")
    if isinstance(schedule, dict):
        arm = {**arm, "schedule": {"kind": "auto_warmup", **schedule}}
    kind: type[Config] = GridArm if "grid" in arm else Arm
    try:
        return kind.model_validate(arm)
    except ValidationError as error:
        raise ValueError(f"{name}: " + "; ".join(explain(error).splitlines())) from error


def _points(arm: Arm | GridArm) -> list[tuple[str, ScheduleSpec]]:
    if not isinstance(arm, GridArm):
        return [("", arm.schedule)]
    schedules = [
        LinearWarmupSpec(peak_lr=peak_lr, warmup_fraction=fraction, decay=arm.decay)
        for peak_lr, fraction in itertools.product(arm.grid.peak_lr, arm.grid.warmup_fraction)
    ]
    return [(point_name(schedule), schedule) for schedule in schedules]


def point_name(schedule: LinearWarmupSpec) -> str:
    """What a grid's point is called in tables and run names."""
    return f"peak_lr={schedule.peak_lr:g} warmup={schedule.warmup_fraction:g}"


def load_study(study: str | Path, *, data_dir: Path | None = None) -> Study:
    """Read and check a study; nothing has been started or written when it fails.

    Args:
        study: a YAML file, or the name of a shipped study.
        data_dir: takes the place of the study's own, if given.

    Raises:
        StudyError: the file cannot be read, a key or a value is not allowed, the task does not exist or
            its data are not there. The message names file, field, value and what is allowed.
    """
    path = find_study(study)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path}: a mapping of keys is needed, this is {type(content).__name__}")
    if data_dir is not None:
        content["data_dir"] = str(data_dir)
    if isinstance(content.get("data_dir"), str):
        # The workers' current directory is not this one.
        content["data_dir"] = str(Path(content["data_dir"]).expanduser().absolute())
    try:
        loaded = Study.model_validate(content)
        check_task(loaded.task, loaded.model, loaded.data_dir)
    except ValidationError as error:
        raise StudyError("\n".join(f"{path}: {line}" for line in explain(error).splitlines())) from error
    except ValueError as error:
        raise StudyError(f"{path}: {error}") from error
    return loaded


def find_study(study: str | Path) -> Path:
    """The file of that path, or the shipped study of that name; StudyError where there is neither."""
    path = Path(study).expanduser()
    if path.is_file():
        return path
    shipped = shipped_studies()
    if str(study) in shipped:
        return shipped[str(study)]
    raise StudyError(
        f"study: {str(study)!r} is neither a file nor a shipped study; shipped: {', '.join(sorted(shipped))}"
    )


def shipped_studies() -> dict[str, Path]:
    """Studies that come with the package, by name: installed beside this module, or in a checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "studies", here.parents[2] / "experiments" / "studies"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def dump_study(study: Study) -> str:
    """The study as YAML, every default spelled out."""
    text = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return re.sub(r"\n(?=[a-z_]+:)", "\n", text)
