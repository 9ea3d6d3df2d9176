"""Optimizers that change each layer by a fixed share of its norm, and the learning rate they bear.

LAMB (You et al. 2020, arXiv 1904.00962, section 3) scales the update of every layer to ``lr`` times the norm
of the layer's weights. Its learning rate is then that share, whatever the network, the loss or the batch, and
a sweep of a few steps says little: the noise of a step is never averaged away, as it is in Adam's, and what
one step bears, many do not. What counts is how far a run's steps, that go every way, take the weights in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.optim import Optimizer

# How far that is, as a share of the weights' norm.
_WALK = 0.25
_TOLERANCE = 0.02

LAYERWISE_RISE = 0.25
"""A rise beyond that peak: by a quarter. There is no scale of the learning rate to tell by how much more."""
LAYERWISE_HIGHEST = 0.05
"""No rise goes above: the ten steps that a momentum of .9 adds up would change a layer by more than half of
its norm. Measured (``experiments/LOG.md``): beyond it every rise did harm, whatever the loss said."""


def layerwise_peak(steps: int) -> float:
    """The peak learning rate with which a run's steps come to a quarter of the weights' norm.

    Steps of ``lr`` each that are independent of each other come to the root of the sum of their squares;
    with a learning rate that rises from 0 to a peak and falls to 0, both linearly, to ``peak *
    sqrt(steps / 3)``. A quarter is this project's measurement (``experiments/LOG.md``, 60 to 2,016 steps).
    That the peak falls as the root of the number of steps is the square-root scaling with the batch size, at
    a given number of epochs, by which You et al. go from one batch size to the next (section 4).

    Args:
        steps: of warmup and decay, >= 1.

    >>> round(layerwise_peak(3600), 4)
    0.0072
    """
    return _WALK * math.sqrt(3.0 / steps)


@torch.no_grad()
def is_layerwise(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], optimizer: Optimizer
) -> bool | None:
    """Whether an optimizer step changed each layer by the learning rate times the layer's norm.

    Seen from the weights, so that any implementation counts. Adam's step is as long in every coordinate, not
    in every layer; SGD's follows the gradient.

    Args:
        before, after: weights by name, before and after the step; on any device.
        optimizer: with the learning rates that the step ran at, its parameters among ``after``.

    Returns:
        Whether, within 2%, all weights of two and more dimensions did; False without any such; None where
        none has changed, as when a gradient scaler left the step out.
    """
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    shares = []
    for name, weight in after.items():
        rate = rates.get(id(weight), 0.0)
        if weight.dim() < 2 or not rate > 0.0:
            continue
        old = before[name].to(weight.device).float()
        shares.append((weight.float() - old).norm() / (rate * old.norm()))
    if not shares:
        return False
    found = torch.stack([share.cpu() for share in shares])
    if not bool(found.any()):
        return None
    return bool(((found - 1.0).abs() <= _TOLERANCE).all())  # NaN is not
