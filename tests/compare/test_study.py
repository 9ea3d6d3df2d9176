"""A study is checked whole before anything starts: bad ones are refused by name, good ones become cells."""

from __future__ import annotations

import copy
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from autolr_ray.compare.study import Study, StudyError, dump_study, find_study, load_study, shipped_studies
from autolr_ray.tasks.datasets import IDX_FILES
from autolr_ray.tasks.named import code_fingerprint

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "name": "mine",
    "task": "fashion_mnist_subset",
    "model": "mlp",
    "seeds": [0, 1, 2],
    "batches": [{"size": 64, "epochs": 2}, {"size": 256, "epochs": 4, "workers": 2, "accumulation_steps": 2}],
    "arms": {
        "auto": {},
        "paper": {"schedule": {"kind": "auto_warmup", "rule": "paper"}},
        "fixed": {"schedule": {"kind": "linear_warmup", "peak_lr": 0.001}, "optimizer": {"name": "lamb"}},
        "tuned": {"grid": {"peak_lr": [0.001, 0.01], "warmup_fraction": [0.05, 0.1, 0.2]}},
    },
    "candidate": "auto",
    "baseline": "tuned",
}


def write(folder: Path, content: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def changed(*place: str | int, to: object) -> dict[str, Any]:
    """The good study with one value replaced."""
    study = copy.deepcopy(GOOD)
    inner: Any = study
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    return study


BAD = {
    "candidate": (changed("candidate", to="ato"), "candidate: unknown arm 'ato'; allowed: auto, paper"),
    "baseline": (changed("baseline", to="grid"), "baseline: unknown arm 'grid'; allowed: auto, paper"),
    "same arm twice": (changed("baseline", to="auto"), "baseline: 'auto' is not allowed"),
    "task": (changed("task", to="fashion"), "task: 'fashion' is not allowed; expected one of fashion_mnist"),
    "no such module": (
        {**changed("task", to="no_such_module:task"), "model": None},
        "no module 'no_such_module' was found",
    ),
    "model": (changed("model", to="resnet"), "model: 'resnet' is not allowed; expected one of cnn, cnn_bn"),
    "optimizer": (changed("optimizer", to={"name": "adam"}), "optimizer: Input tag 'adam'"),
    "optimizer's setting": (changed("optimizer", to={"name": "adamw", "lr": 1}), "optimizer.lr: unknown key"),
    "arm's optimizer": (changed("arms", "auto", "optimizer", to={"name": "adam"}), "arms: auto: optimizer"),
    "key": (changed("seed", to=[0]), "seed: unknown key"),
    "batch key": (changed("batches", 0, "epoch", to=3), "batches.0.epoch: unknown key"),
    "arm key": (changed("arms", "auto", "settings", to={}), "arms: auto: settings: unknown key"),
    "schedule key": (
        changed("arms", "paper", "schedule", "rul", to="paper"),
        "arms: paper: schedule.rul: unknown key",
    ),
    "schedule kind": (
        changed("arms", "paper", "schedule", "kind", to="auto"),
        "arms: paper: schedule: Input tag 'auto'",
    ),
    "schedule of a grid": (changed("arms", "tuned", "schedule", to={}), "arms: tuned: schedule"),
    "grid key": (changed("arms", "tuned", "grid", "lr", to=[1]), "arms: tuned: grid.lr: unknown key"),
    "resources key": (changed("resources", to={"gpus": 1}), "resources.gpus: unknown key"),
    "workers": (changed("batches", 1, "size", to=250), "batches.1: size: 250 is not allowed"),
    "no epochs": (changed("batches", 0, "epochs", to=0), "batches.0.epochs"),
    "no batch": (changed("batches", to=[]), "batches: "),
    "no seed": (changed("seeds", to=[]), "seeds: "),
    "no arm": (changed("arms", to={}), "arms: "),
    "arms as a list": (changed("arms", to=["auto"]), "arms: a mapping from names to arms"),
    "arm is text": (changed("arms", "auto", to="yes"), "arms: auto: 'yes' is not allowed"),
    "empty grid": (changed("arms", "tuned", "grid", "peak_lr", to=[]), "arms: tuned: grid.peak_lr"),
    "grid value twice": (
        changed("arms", "tuned", "grid", "peak_lr", to=[0.1, 0.1]),
        "grid.peak_lr: [0.1, 0.1] is not allowed",
    ),
    "negative peak": (changed("arms", "tuned", "grid", "peak_lr", to=[-1.0]), "(given: -1.0)"),
    "rates that do not rise": (
        changed("arms", "paper", "schedule", "min_lr", to=2.0),
        "min_lr: 2 is not allowed; it must be below max_lr",
    ),
    "seeds": (changed("seeds", to=[0, 1, 0]), "seeds: [0, 1, 0] is not allowed; each may occur once"),
    "batch twice": (changed("batches", 1, "size", to=64), "batches: [64, 64] is not allowed"),
    "margin": (changed("margin", to=0), "margin: "),
    "name": (changed("name", to="../mine"), "name: "),
    "launcher": (
        changed("resources", to={"launcher": "trial"}),
        "resources.launcher: 'trial' is not allowed",
    ),
    "data_dir": (
        {**changed("task", to="cifar10"), "data_dir": "/nowhere"},
        "data_dir: '/nowhere' is not allowed; cifar10 needs a folder",
    ),
    "not YAML": ("name: [", "is not YAML"),
    "not a mapping": ("- name", "a mapping of keys is needed, this is list"),
    "empty": ("", "a mapping of keys is needed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_study_is_refused_by_file_field_and_value(tmp_path: Path, name: str) -> None:
    content, phrase = BAD[name]
    path = write(tmp_path, content)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert phrase in line
    assert "Value error" not in line


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    content = {**changed("seeds", to=[0, -1]), "margin": 2, "colour": "red"}
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 3


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"'nothing' is neither a file nor a shipped study; shipped: .*quick"
    ):
        load_study("nothing")
    with pytest.raises(StudyError, match="is neither a file nor"):
        load_study(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(binary)


def test_cells_are_paired_and_counted(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    cells = study.cells()
    assert len(cells) == 2 * 3 * (1 + 1 + 1 + 6)
    assert len({cell.spec.cell for cell in cells}) == len(cells)
    # Every arm has, at every point, each batch size with each seed, and the batch size's budget.
    runs = Counter((cell.arm, cell.point, cell.spec.batch_size, cell.spec.seed) for cell in cells)
    assert set(runs.values()) == {1}
    pairs = {(64, 2, 1, 1), (256, 4, 2, 2)}
    for arm in {(cell.arm, cell.point) for cell in cells}:
        own = [cell.spec for cell in cells if (cell.arm, cell.point) == arm]
        budgets = {(s.batch_size, s.epochs, s.workers, s.accumulation_steps) for s in own}
        assert budgets == pairs
        assert {(s.batch_size, s.seed) for s in own} == {(b, s) for b in (64, 256) for s in (0, 1, 2)}
    optimizers = {cell.arm: cell.spec.optimizer.name for cell in cells}
    assert optimizers == {"auto": "adamw", "paper": "adamw", "fixed": "lamb", "tuned": "adamw"}
    # Runs that use the same processes follow each other, untuned arms first.
    order = [(cell.spec.workers, cell.point != "") for cell in cells]
    assert order == sorted(order)


def test_a_cell_is_what_decides_its_result(tmp_path: Path) -> None:
    cells = {cell.spec.cell for cell in load_study(write(tmp_path, GOOD)).cells()}
    same = {"name": "other", "note": "n", "margin": 0.1, "loader_workers": 3, "data_dir": str(tmp_path)}
    for field, value in same.items():
        again = load_study(write(tmp_path, changed(field, to=value))).cells()
        assert {cell.spec.cell for cell in again} == cells, field
    reordered = {key: GOOD[key] for key in reversed(GOOD)}
    assert {cell.spec.cell for cell in load_study(write(tmp_path, reordered)).cells()} == cells
    for place, value in {
        ("model",): "cnn",
        ("optimizer",): {"name": "adamp"},
        ("batches", 0, "epochs"): 3,
    }.items():
        other = load_study(write(tmp_path, changed(*place, to=value))).cells()
        assert {cell.spec.cell for cell in other} != cells, place


def test_cells_keep_their_hash() -> None:
    """A change here throws away everybody's finished runs: it needs a reason and a line in the log."""
    first = Study.model_validate(GOOD).cells()[0].spec
    assert first.cell == "658d4c6eb8c91006"  # LOG.md: an eleventh look


def test_a_dumped_study_is_the_study(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, {**GOOD, "note": "ä: 'quoted'", "data_dir": str(tmp_path)}))
    text = dump_study(study)
    again = load_study(write(tmp_path, text))
    assert again == study
    assert dump_study(again) == text
    assert [cell.spec.cell for cell in again.cells()] == [cell.spec.cell for cell in study.cells()]


def test_data_dir_is_made_absolute_and_the_option_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    path = write(tmp_path, {**GOOD, "data_dir": "images"})
    assert load_study(path).data_dir == tmp_path / "images"
    assert load_study(path, data_dir=Path("other")).data_dir == tmp_path / "other"
    assert load_study(path, data_dir=Path("~/data")).data_dir == tmp_path / "me" / "data"


def test_arms_may_share_a_run(tmp_path: Path) -> None:
    fixed = {"schedule": {"kind": "linear_warmup", "peak_lr": 0.01}}
    study = load_study(write(tmp_path, changed("arms", to={**GOOD["arms"], "same": fixed})))
    shared = [cell for cell in study.cells() if cell.arm == "same"]
    points = {cell.spec.cell: cell.point for cell in study.cells() if cell.arm == "tuned"}
    assert {points[cell.spec.cell] for cell in shared} == {"peak_lr=0.01 warmup=0.05"}


ARMS = """
import torch

def mine(parts):
    return parts.make_optimizer(), None
"""


def test_an_arm_of_ones_own_and_its_code_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "arms_of_mine.py"
    module.write_text(ARMS)
    arms = {**GOOD["arms"], "mine": {"own": "arms_of_mine:mine", "settings": {"lr": 0.1}}}
    path = write(tmp_path, changed("arms", to=arms))
    first = load_study(path)
    (own, *_) = [cell.spec for cell in first.cells() if cell.arm == "mine"]
    assert own.schedule.model_dump() == {"kind": "own", "arm": "arms_of_mine:mine", "settings": {"lr": 0.1}}
    module.write_text(ARMS + "# a comment\n")
    assert load_study(path) == first
    module.write_text(ARMS.replace("None", "object()"))
    second = load_study(path)
    moved = {a.arm for a, b in zip(first.cells(), second.cells(), strict=True) if a.spec.cell != b.spec.cell}
    assert moved == {"mine"}  # the other arms' runs have none of this code


TASK = """
from autolr_ray.tasks import Task, get_task

known = get_task("fashion_mnist_subset", "mlp")
task = Task(name="mine", data=known.data, model=known.model)
"""


def test_every_run_has_the_fingerprint_of_its_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker works it out from those: a fingerprint over other arms' modules would be refused."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {"task_of_mine": TASK, "first_arms": ARMS, "second_arms": ARMS + "more = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    own = {name: {"own": f"{name}_arms:mine"} for name in ("first", "second")}
    content = {**GOOD, "task": "task_of_mine:task", "model": None}
    whole = load_study(write(tmp_path, {**content, "arms": {**GOOD["arms"], **own}}))
    alone = load_study(write(tmp_path, content))
    for study in (whole, alone):
        for cell in study.cells():
            assert cell.spec.code == code_fingerprint(cell.spec.own_names) != ""
    # Other arms change nothing for those that have the task alone.
    assert {c.spec.cell for c in alone.cells()} < {c.spec.cell for c in whole.cells()}
    assert len({cell.spec.code for cell in whole.cells()}) == 3
    # Results from when all own runs of a study had one fingerprint are read as they were.
    (only,) = alone.code.values()
    before = Study.model_validate({**alone.model_dump(mode="json"), "code": only})
    assert before.cells() == alone.cells()


@pytest.mark.parametrize(
    ("arm", "phrase"),
    [
        ({"own": "arms_of_nobody:mine"}, "no module 'arms_of_nobody' was found"),
        (
            {"asha": {"of": "auto"}},
            "arms.new.asha.of: 'auto' is not allowed; an arm with a grid is needed: tuned",
        ),
        ({"asha": {"of": "tuned", "reduction_factor": 1}}, "greater than 1"),
        ({"optimizer": {"name": "prodigy"}}, "'auto_warmup' is not allowed with the optimizer 'prodigy'"),
        ({"schedule": {"kind": "lr_range_test", "min_lr": 2, "max_lr": 1}}, "it must be below max_lr"),
        (
            {"grid": {"peak_lr": [0.1]}, "optimizer": {"name": "schedule_free_adamw"}},
            "not allowed with the opt",
        ),
    ],
)
def test_an_arm_that_cannot_run_is_refused(tmp_path: Path, arm: dict, phrase: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path, changed("arms", to={**GOOD["arms"], "new": arm})))
    assert phrase in str(caught.value)
    assert "Value error" not in str(caught.value)


SHIPPED = {  # runs of each
    "quick": None,  # the lead's: counted by what it says itself
    "fashion_mnist": 3 * 3 * (1 + 1 + 3 + 5 * 2),  # the fixed setting is a point of the grid
    "fashion_mnist_resnet18": 3 * 3 * (1 + 4 * 2),
    "cifar10": 3 * 3 * (1 + 1 + 5 * 2),
    "cifar100": 3 * 3 * (1 + 1 + 5 * 2),
    "imagenet_resnet50": 2 * 3 * (1 + 1 + 3),
    "imagenet_efficientnet_b0": 2 * 3 * (1 + 1 + 3),
}
NEEDS_DATA = {
    "fashion_mnist_resnet18": "python -m autolr_ray.tasks.download fashion_mnist --data-dir DIR",
    "cifar10": "python -m autolr_ray.tasks.download cifar10 --data-dir DIR",
    "cifar100": "python -m autolr_ray.tasks.download cifar100 --data-dir DIR",
    "imagenet_resnet50": "train/CLASS/",
    "imagenet_efficientnet_b0": "train/CLASS/",
}


def data_dir(folder: Path) -> Path:
    """Where every packaged data set finds its files, by name; there is nothing in them."""
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        _touch(folder / "cifar-10-batches-py" / name)
    for name in ("train", "test", "meta"):
        _touch(folder / "cifar-100-python" / name)
    for name in IDX_FILES:
        _touch(folder / name)
    for part in ("train", "val"):
        _touch(folder / part / "n01440764" / "0.JPEG")
    return folder


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_every_shipped_study_is_listed_here() -> None:
    assert set(shipped_studies()) == set(SHIPPED)
    assert {path.parent for path in shipped_studies().values()} == {ROOT / "experiments" / "studies"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_is_found_by_name_and_is_sound(tmp_path: Path, name: str) -> None:
    assert find_study(name) == ROOT / "experiments" / "studies" / f"{name}.yaml"
    study = load_study(name, data_dir=data_dir(tmp_path) if name in NEEDS_DATA else None)
    assert study.name == name  # the results' folder is found by the study's name
    cells = study.cells()
    if SHIPPED[name] is not None:
        assert len({cell.spec.cell for cell in cells}) == SHIPPED[name]
    if name.startswith("imagenet"):
        optimizer = cells[0].spec.optimizer.model_dump()
        assert (
            optimizer.items() >= {"name": "adamp", "delta": 0.1, "wd_ratio": 0.1, "weight_decay": 0.1}.items()
        )
        assert {cell.spec.epochs for cell in cells} == {120}
        assert {cell.spec.batch_size for cell in cells} == {4096, 16384}
    for cell in cells:
        if cell.arm == "autowu_original":
            schedule = cell.spec.schedule.model_dump()
            assert (schedule["rule"], schedule["rollback"], schedule["fallback"]) == ("paper", False, "keep")


@pytest.mark.parametrize("name", NEEDS_DATA)
def test_a_shipped_study_without_data_says_how_to_get_them(name: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(name)
    (line,) = str(caught.value).splitlines()
    assert "data_dir: None is not allowed" in line
    assert NEEDS_DATA[name] in line


def test_a_file_goes_before_a_shipped_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_study("quick").name == "quick.yaml"
    Path("quick").write_text("name: mine")
    assert find_study("quick") == Path("quick")
    assert os.path.samefile(find_study(tmp_path / "quick"), "quick")
