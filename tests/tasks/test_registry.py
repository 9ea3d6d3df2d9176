"""Tasks by name, a user's own tasks, and every message of the two."""

import inspect
import pickle
import subprocess
import sys

import pytest
import torch

from autolr_ray.tasks import MODELS, TASKS, Task, check_task, get_task

OWN = """
from torch import nn
from autolr_ray.tasks import Task

task = Task(name="mine", data=lambda data_dir: None, model=lambda: nn.Linear(2, 2))

def make():
    return task

def needs(argument):
    return task

def wrong():
    return 3

number = 3
"""


@pytest.fixture
def current(tmp_path, monkeypatch):
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_names():
    assert TASKS == ("fashion_mnist_subset", "digits", "fashion_mnist", "cifar10", "cifar100", "imagenet")
    assert MODELS == (
        "cnn",
        "cnn_bn",
        "mlp",
        "resnet18",
        "resnet50",
        "wide_resnet28_10",
        "efficientnet_b0",
        "vit_small",
    )


def test_import_is_cheap():
    code = (
        "import sys, autolr_ray.tasks as t; t.get_task('cifar10'); t.get_task('imagenet'); "
        "print([m for m in ('torchvision', 'timm', 'ray', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("fashion_mnist_subset", "cnn"),
        ("fashion_mnist", "cnn"),
        ("cifar10", "resnet18"),
        ("cifar100", "resnet18"),
        ("imagenet", "resnet50"),
    ],
)
def test_default_models(task, model):
    assert get_task(task).name == f"{task}/{model}"


@pytest.mark.parametrize(
    ("task", "classes"), [("fashion_mnist_subset", 10), ("cifar10", 10), ("cifar100", 100)]
)
def test_parts_fit_each_other(task, classes):
    made = get_task(task, "cnn_bn")
    assert made.name == f"{task}/cnn_bn"
    channels, size = (1, 28) if "fashion" in task else (3, 32)
    images = torch.randint(256, (4, channels, size, size), dtype=torch.uint8)
    if made.augment is not None:
        images = made.augment(images, torch.Generator())
    outputs = made.model()(made.transform(images))
    assert outputs.shape == (4, classes)
    assert made.loss(outputs, torch.tensor([0, 1, 2, classes - 1])).ndim == 0


def test_augmentation_of_colour_images_only():
    augmented = [name for name in TASKS if get_task(name).augment is not None]
    assert augmented == ["cifar10", "cifar100", "imagenet"]


def test_label_smoothing_for_efficientnet_only():
    outputs, targets = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    plain = get_task("cifar10", "resnet18").loss(outputs, targets)
    smooth = get_task("cifar10", "efficientnet_b0").loss(outputs, targets)
    logs = torch.log_softmax(outputs, dim=1)[0]
    assert plain.item() == pytest.approx(-logs[0].item())
    assert smooth.item() == pytest.approx(-(0.9 * logs[0] + 0.1 * logs.mean()).item())


@pytest.mark.parametrize("name", TASKS)
def test_can_be_sent_to_workers(name):
    assert pickle.loads(pickle.dumps(get_task(name))).name == get_task(name).name


def test_subset_needs_no_data_dir(tmp_path):
    check_task("fashion_mnist_subset", "mlp", None)
    check_task("fashion_mnist_subset", None, tmp_path)


@pytest.mark.parametrize("function", [get_task, lambda *names: check_task(*names, None)])
def test_unknown_names(function):
    with pytest.raises(
        ValueError, match=r"task: 'mnist' is not allowed; expected one of fashion_mnist_subset, .* own"
    ):
        function("mnist", None)
    with pytest.raises(ValueError, match="model: 'lenet' is not allowed; expected one of cnn, "):
        function("cifar10", "lenet")


@pytest.mark.parametrize("attribute", ["task", "make"])
def test_own_task_from_the_current_directory(current, attribute):
    (current / "my_study.py").write_text(OWN)
    found = get_task(f"my_study:{attribute}")
    assert isinstance(found, Task)
    assert found.name == "mine"
    check_task(f"my_study:{attribute}", None, None)


def test_own_task_in_a_package(current):
    (current / "my_package").mkdir()
    (current / "my_package" / "study.py").write_text(OWN)
    assert get_task("my_package.study:task").name == "mine"
    with pytest.raises(ValueError, match=r"no module 'my_package.other' was found"):
        get_task("my_package.other:task")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_study:absent", "module 'my_study' has no attribute 'absent'"),
        ("my_study:number", "'number' is a value of type int, expected a Task or a function"),
        ("my_study:needs", r"needs\(\) cannot be called without arguments .*'argument'"),
        ("my_study:wrong", r"wrong\(\) returned a value of type int, expected a Task"),
        ("my_study:", "expected the form 'package.module:attribute'"),
        (":task", "expected the form 'package.module:attribute'"),
        ("my_study:task:more", "expected the form 'package.module:attribute'"),
        ("my study:task", "expected the form 'package.module:attribute'"),
        ("nowhere_to_be_found:task", "no module 'nowhere_to_be_found' was found; the current directory"),
        ("nowhere.to.be_found:task", "no module 'nowhere' was found; .*PYTHONPATH"),
        ("my_study.part:task", "no module 'my_study.part' was found"),
        ("needs_more:task", "module 'needs_more' was found, but it imports 'not_installed_at_all'"),
    ],
)
def test_own_task_errors(current, spec, message):
    (current / "my_study.py").write_text(OWN)
    (current / "needs_more.py").write_text("import not_installed_at_all\n")
    for function in (get_task, lambda task: check_task(task, None, None)):
        with pytest.raises(ValueError, match=message) as caught:
            function(spec)
        assert f"task: {spec!r} is not allowed" in str(caught.value)


def test_own_task_brings_its_model(current):
    (current / "my_study.py").write_text(OWN)
    with pytest.raises(
        ValueError, match="model: 'cnn' is not allowed; the task 'my_study:task' brings its own"
    ):
        get_task("my_study:task", "cnn")


def test_errors_of_the_users_code_are_shown_as_they_are(current):
    (current / "broken_study.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        get_task("broken_study:task")


def test_signatures():
    assert str(inspect.signature(get_task)) == "(task: 'str', model: 'str | None' = None) -> 'Task'"
    assert str(inspect.signature(check_task)) == (
        "(task: 'str', model: 'str | None', data_dir: 'Path | None') -> 'None'"
    )
