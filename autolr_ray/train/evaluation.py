"""Scoring a network: the mean over examples that ranks share, at the weights that are meant to be scored."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from autolr_ray.tasks.task import Batch

# As many as schedule-free's authors advise.
_ADAPTING_BATCHES = 50


@torch.no_grad()
def mean_score(
    network: nn.Module,
    batches: Iterable[Batch],
    outputs: Callable[[Tensor], Tensor],
    correct: Callable[[Tensor, Tensor], Tensor],
    *,
    world_size: int,
) -> float:
    """Mean of ``correct(outputs(inputs), targets)`` over the examples of every rank's ``batches``.

    Every rank calls it; it leaves ``network`` in eval mode.
    """
    device = next(network.parameters()).device
    if world_size > 1:
        # Without SyncBatchNorm each rank has running statistics of its own; rank 0's count.
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
    network.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for inputs, targets in batches:
        scores = correct(outputs(inputs), targets)
        sums += torch.stack([scores.sum(), torch.tensor(float(len(scores)), device=device)])
    if world_size > 1:
        dist.all_reduce(sums)
    total, count = sums.tolist()
    return float(total / count)


@contextlib.contextmanager
def scored_weights(
    optimizer: Optimizer,
    network: nn.Module,
    recent_inputs: Callable[[], Iterator[Tensor]],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> Iterator[None]:
    """Inside the block ``network`` holds the weights to score; after it, those to train on.

    They differ with schedule-free optimizers (Defazio et al. 2024), which score an average of the weights;
    BatchNorm has no statistics for that average, so that they are taken anew from ``recent_inputs()`` and
    those of training put back afterwards.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    set_mode(optimizer, "eval")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with autocast():
            update_bn(itertools.islice(recent_inputs(), _ADAPTING_BATCHES), network)
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        set_mode(optimizer, "train")


def set_mode(optimizer: Optimizer, mode: Literal["train", "eval"]) -> None:
    """Tell an optimizer that has modes which weights the model must hold; others need not know."""
    if callable(change := getattr(optimizer, mode, None)):
        change()
