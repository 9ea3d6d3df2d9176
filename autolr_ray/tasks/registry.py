"""Tasks by name: a packaged data set with a model, or an object of the user's own."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

from torch.nn import functional as F

from autolr_ray.tasks.datasets import DATA_SETS, TASKS
from autolr_ray.tasks.models import LOSSES, build_model, check_model
from autolr_ray.tasks.named import named_object
from autolr_ray.tasks.task import Task


def get_task(task: str, model: str | None = None) -> Task:
    """The task of that name; loads no data and builds no model.

    >>> get_task("fashion_mnist_subset").name
    'fashion_mnist_subset/cnn'

    Args:
        task: one of ``TASKS``, or ``"package.module:attribute"``, which names a :class:`Task` or a function
            without arguments that returns one. The module is looked for where Python looks, then in the
            current directory.
        model: one of ``MODELS``; None is the data set's usual one. Must be None for a task of one's own.

    Raises:
        ValueError: a name is not known, or what it names is no task.
    """
    if ":" in task:
        if model is not None:
            raise ValueError(
                f"model: {model!r} is not allowed; the task {task!r} brings its own model, leave it out"
            )
        return _user_task(task)
    if task not in DATA_SETS:
        raise ValueError(
            f"task: {task!r} is not allowed; expected one of {', '.join(TASKS)}, or your own as "
            "'package.module:attribute'"
        )
    data_set = DATA_SETS[task]
    model = data_set.default_model if model is None else model
    check_model(model)
    return Task(
        name=f"{task}/{model}",
        data=data_set.load,
        model=partial(
            build_model,
            model,
            classes=data_set.classes,
            channels=data_set.channels,
            image_size=data_set.image_size,
        ),
        loss=LOSSES.get(model, F.cross_entropy),
        transform=data_set.transform,
        augment=data_set.augment,
    )


def check_task(task: str, model: str | None, data_dir: Path | None) -> None:
    """Find out before a sweep starts whether ``get_task`` and its data will work; reads no image.

    Of a packaged task, the files in ``data_dir`` are looked for, by name; of a user's own, the module is
    imported and its data are left alone.

    Raises:
        ValueError: a name is not known, or ``data_dir`` does not hold what the task needs.
    """
    get_task(task, model)
    if task in DATA_SETS:
        DATA_SETS[task].check(data_dir)


def _user_task(name: str) -> Task:
    found = named_object(
        "task", name, "a Task or a function without arguments that returns one",
        lambda value: isinstance(value, Task) or callable(value),
    )  # fmt: skip
    if isinstance(found, Task):
        return found
    attribute = name.partition(":")[2]
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"task: {name!r} is not allowed; {attribute}() cannot be called without arguments ({error})"
        ) from error
    made = found()
    if isinstance(made, Task):
        return made
    raise ValueError(
        f"task: {name!r} is not allowed; {attribute}() returned a value of type {type(made).__name__}, "
        "expected a Task"
    )
