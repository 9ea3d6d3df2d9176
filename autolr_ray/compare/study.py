"""A study: which arms are compared, on what, at which batch sizes and seeds. Read once, then frozen."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from autolr_ray.compare.arms import AnyArm, AshaArm, GridArm, points_of, read_arm
from autolr_ray.tasks import check_task
from autolr_ray.tasks.named import code_fingerprint
from autolr_ray.train.compute import Compute
from autolr_ray.train.config import Config, explain
from autolr_ray.train.optimizers import AdamW, OptimizerSpec
from autolr_ray.train.schedules import OwnSpec, ScheduleSpec
from autolr_ray.train.spec import AccumulationSteps, PositiveInt, RunSpec, require_divisible

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$", max_length=60)]


_EVERY = "*"


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


class Resources(Config):
    """What the sweep may use.

    Attributes:
        device: "auto" trains on GPUs where the cluster has any.
        launcher: "train" makes every run a Ray Train ``TorchTrainer``; "trial" runs one-worker cells
            in Tune's own processes, with the same loop and the same result at a tenth of the start-up;
            "auto" does that for cells of one worker.
        max_concurrent: runs at the same time; None: as many as there is room for when the sweep starts. On a
            cluster that grows by itself, it grows for as many as this.
        gpus_per_worker: below 1, several small runs share a GPU.
        max_attempts: lives of a run that may end in an error before it is given up, over all sweeps into
            the same folder. Workers that a run of several loses, with a node perhaps, are replaced twice in
            each life, and count only then.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    launcher: Literal["auto", "train", "trial"] = "auto"
    max_concurrent: PositiveInt | None = None
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_attempts: PositiveInt = 3


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
        code: fingerprints of the code behind the study's ``package.module:attribute`` names, by the names
            that a run has of its own (see :func:`code_key`); set when a study is loaded.
    """

    name: Name
    task: str
    model: str | None = None
    data_dir: Path | None = None
    optimizer: OptimizerSpec = AdamW()
    batches: Annotated[tuple[Batch, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    arms: Annotated[dict[Name, AnyArm], Field(min_length=1)]
    candidate: str
    baseline: str
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.005
    note: str = ""
    code: dict[str, str] = Field(default_factory=dict)
    compute: Compute = Compute()
    loader_workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt | None = None
    resources: Resources = Resources()

    @field_validator("code", mode="before")
    @classmethod
    def _for_all(cls, code: Any) -> Any:
        # Results from before there was one for each: every run with a name of the user's own has that one.
        return ({_EVERY: code} if code else {}) if isinstance(code, str) else code

    @field_validator("arms", mode="before")
    @classmethod
    def _kinds(cls, arms: Any) -> Any:
        if not isinstance(arms, dict):
            raise ValueError("a mapping from names to arms is needed")
        return {name: read_arm(name, arm) for name, arm in arms.items()}

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
        for name, arm in self.arms.items():
            if isinstance(arm, AshaArm) and not isinstance(self.arms.get(arm.asha.of), GridArm):
                grids = [other for other, its in self.arms.items() if isinstance(its, GridArm)]
                raise ValueError(
                    f"arms.{name}.asha.of: {arm.asha.of!r} is not allowed; an arm with a grid is needed: "
                    f"{', '.join(grids) or 'the study has none'}"
                )
        try:
            self.cells()
        except ValidationError as error:  # an arm that no batch or optimizer goes with
            raise ValueError("; ".join(explain(error).splitlines())) from error
        if self.resources.launcher == "trial" and any(batch.workers > 1 for batch in self.batches):
            raise ValueError("resources.launcher: 'trial' is not allowed; a batch has several workers")
        return self

    def cells(self) -> list[Cell]:
        """Each arm at each point, batch size and seed, untuned arms first; several may share a run."""
        cells = [
            Cell(arm=name, point=point, spec=self._spec(schedule, arm, batch, seed))
            for batch, (name, arm), seed in itertools.product(self.batches, self.arms.items(), self.seeds)
            for point, schedule in points_of(arm)
        ]
        return sorted(cells, key=lambda cell: (cell.spec.workers, cell.point != ""))

    def _spec(self, schedule: ScheduleSpec, arm: AnyArm, batch: Batch, seed: int) -> RunSpec:
        own_optimizer = None if isinstance(arm, AshaArm) else arm.optimizer
        spec = RunSpec(
            task=self.task, model=self.model, data_dir=self.data_dir, batch_size=batch.size,
            workers=batch.workers, accumulation_steps=batch.accumulation_steps, epochs=batch.epochs,
            optimizer=own_optimizer or self.optimizer, schedule=schedule, seed=seed, compute=self.compute,
            loader_workers=self.loader_workers, checkpoint_every=self.checkpoint_every,
        )  # fmt: skip
        # A worker takes the fingerprint of what its run names, and of no other arm's code.
        code = self.code.get(code_key(spec), self.code.get(_EVERY, "")) if spec.own_names else ""
        return spec.model_copy(update={"code": code}) if code else spec


def code_key(spec: RunSpec) -> str:
    """The names whose code decides a run's result, as one key; "" where there are none."""
    return " and ".join(spec.own_names)


class Cell(Config):
    """One run of a study: the arm and the grid point it stands for, and its spec."""

    arm: str
    point: str
    spec: RunSpec


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
        specs = [cell.spec for cell in loaded.cells()]
        for spec in specs:
            if isinstance(spec.schedule, OwnSpec):
                spec.schedule.function()
        own = {code_key(spec): spec.own_names for spec in specs if spec.own_names}
        loaded = loaded.model_copy(
            update={"code": {key: code_fingerprint(names) for key, names in own.items()}}
        )
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
