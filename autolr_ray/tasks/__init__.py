"""What is trained: data, model and loss under one name.

``get_task("fashion_mnist_subset", "cnn")`` gives a packaged task, ``get_task("package.module:attribute")``
a user's own; ``check_task`` says before a sweep starts whether the data are where they should be. Importing
this package costs torch alone: torchvision and timm are imported by the tasks and models that need them.
"""

from autolr_ray.tasks.datasets import TASKS
from autolr_ray.tasks.models import MODELS
from autolr_ray.tasks.registry import check_task, get_task
from autolr_ray.tasks.task import Splits, Task, TensorData, hold_out

__all__ = ["MODELS", "TASKS", "Splits", "Task", "TensorData", "check_task", "get_task", "hold_out"]
