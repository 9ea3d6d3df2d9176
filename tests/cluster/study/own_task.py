"""A user's own task."""

import time

import torch
from torch import nn
from torch.nn import functional as F

from autolr_ray.tasks import Splits, Task, TensorData, hold_out


def data(data_dir):
    inputs = torch.randn(1200, 8, generator=torch.Generator().manual_seed(0))
    targets = (inputs.sum(dim=1) > 0).long()
    train, validation = hold_out(1000, fraction=0.1)
    return Splits(
        train=TensorData(inputs=inputs[train], targets=targets[train]),
        validation=TensorData(inputs=inputs[validation], targets=targets[validation]),
        test=TensorData(inputs=inputs[1000:], targets=targets[1000:]),
    )


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def slow_loss(outputs, targets):
    time.sleep(0.05)  # long enough to be interrupted, without work for the processor
    return F.cross_entropy(outputs, targets)


task = Task(name="own", data=data, model=model, loss=slow_loss)
