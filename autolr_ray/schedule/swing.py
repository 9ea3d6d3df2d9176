"""Do the weights still travel, or do they swing to and fro about where they are?

At a learning rate that is too low, the gradient points on along the way that the weights have come from
their own running average: the average lies uphill. At one that is high for the directions in which the loss
curves most, the weights swing about their average, and the gradient points back to it. In a quadratic valley
``g . d``, with ``g`` the gradient and ``d`` the weights minus their average, is on the mean twice what the
swinging costs: ``d . H d`` for a cost of ``d . H d / 2``. That cost vanishes as the learning rate decays; a
loss that is high for its sake says nothing against the learning rate. The rest is the valley's floor: whether
it falls is what a schedule has to know.

Related tests ask whether training has come to rest, from products of successive gradients (Chee and Toulis
2018, arXiv 1710.06382) or of gradients and weights (Yaida 2018, arXiv 1810.00004), to lower a learning rate.
Here the question is whether it may go up, and the answer a share of what training has gained.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from autolr_ray.schedule.smoother import Array

# A tenth of the fall so far: swinging costs half as much (``experiments/LOG.md``).
_LITTLE = 0.1
# From here on the learning rate is at the scale that the loss's curvature sets.
_MUCH = 0.35
# Of the largest steps between losses before any learning: less than so many is no fall to take a share of.
_FALLEN = 5.0
# The weights' average forgets as fast as in an eighth of the warmup. In fewer than four steps it is none.
_MEMORY, _FEWEST = 8, 4
# What swinging costs now: a mean that forgets four times as fast, and of the fall so far a quarter at most:
# a loss that runs away is to be seen.
_RECENT, _MOST = 4, 0.25
# Weights are taken together, of tensors that come to so many numbers: what fits in a processor's cache, with
# what is made of it; on a GPU, where each piece costs its kernels' launches, 64 MB.
_TOGETHER, _TOGETHER_ON_GPU = 2**17, 2**24


class Swing:
    """The mean of ``gradient . (weights - average)`` over the optimizer's last steps, in units of the loss.

    It looks at weights and gradients just before each optimizer step, with a hook and without waiting for a
    device. It needs one copy of the weights, in float32 where they are of less. Gradients count as the
    optimizer gets them: clipped, where they are clipped. Steps in a CUDA graph or a compiled step, sharded
    tensors and sparse gradients are not seen; where no step was, nothing is said.

    Args:
        optimizer: whose steps to watch.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._hook: Any = None
        self._steps = 0
        self._average: dict[int, torch.Tensor] = {}
        self._total: torch.Tensor | None = None
        self._count = 0
        self._recent: torch.Tensor | None = None

    @property
    def watches(self) -> bool:
        """Whether it looks at the steps to come."""
        return self._hook is not None

    def begin(self, warmup: int) -> None:
        """Forget all, and watch until the end, unless a warmup of so many steps is too short for that."""
        self.end()
        self._steps = warmup // _MEMORY
        if self._steps >= _FEWEST:
            self._attach()

    def end(self) -> None:
        """Watch no longer; the memory is free."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._average, self._recent = None, {}, None
        self.restart()

    def restart(self) -> None:
        """Count steps from the next on; the average stays."""
        self._total, self._count = None, 0

    def is_little(self, fallen: float, step: float) -> bool:
        """Whether the weights swing so little that a higher learning rate would cost hardly anything.

        Args:
            fallen: how far the loss has come down since the start.
            step: the largest between losses before any learning; less than five times that is no fall.
        """
        return fallen > 0.0 and fallen >= _FALLEN * step and self.mean() < _LITTLE * fallen

    def is_much(self, fallen: float) -> bool:
        """Whether the weights swing rather than travel: by a third of the fall, and were seen to.

        Args:
            fallen: how far the loss has come down since the start.
        """
        return self._count > 0 and self.mean() >= _MUCH * fallen

    def mean(self) -> float:
        """Since the restart; inf where no step was seen. Waits for the device."""
        if self._total is None or not self._count:
            return float("inf")
        return float(self._total) / self._count

    def cost(self) -> float:
        """What the swinging adds to the loss now, >= 0; 0 where no step was seen. Waits for the device."""
        return max(float(self._recent) / 2.0, 0.0) if self._recent is not None else 0.0

    def floor(self, losses: Array, fallen: float) -> Array:
        """Losses [k] of the steps just taken, less what swinging costs.

        Args:
            losses: those that are not finite stay as they are.
            fallen: how far the floor has come down since the start, NaN if that is unknown; a quarter of it
                is taken off at most.
        """
        return losses - min(self.cost(), _MOST * max(0.0, fallen))

    def _attach(self) -> None:
        this = weakref.ref(self)

        def before_step(optimizer: Optimizer, *_: Any) -> None:
            swing = this()
            if swing is not None:
                swing.observe()

        try:
            self._hook = self._optimizer.register_step_pre_hook(before_step)
        except AttributeError:  # a wrapper that is an Optimizer by name only
            self._hook = None

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the weights and gradients as they are now; the hook does, before each optimizer step."""
        if torch.compiler.is_compiling():
            return
        # Without CUDA in use nothing is captured; whether there is any takes longer to ask, at each step.
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if in_use and torch.cuda.is_current_stream_capturing():
            return
        product = None
        for bucket in self._buckets():
            weights, average = _flat(bucket.values()), self._average_of(bucket)
            if average is None:
                self._average[min(bucket)] = weights.clone()
                continue
            away = weights - average
            average.add_(away, alpha=1.0 / self._steps)
            gradients = [_gradient(p) for p in bucket.values()]
            if any(gradient is not None for gradient in gradients):
                known = (
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(bucket.values(), gradients, strict=True)
                )
                part = torch.dot(away, _flat(known))
                product = part if product is None else product + part.to(product.device)
        if product is None:
            return
        # Fused optimizers take gradients as they are, and a scale to divide them by.
        scale = getattr(self._optimizer, "grad_scale", None)
        if scale is not None:
            product = product / scale.to(product.device)
        # One that is not finite is of a step that is left out, or that the losses tell of.
        product = torch.nan_to_num(product.to(torch.float64), nan=0.0, posinf=0.0, neginf=0.0)
        self._total = product if self._total is None else self._total + product
        self._count += 1
        before = torch.zeros_like(product) if self._recent is None else self._recent
        self._recent = before + (product - before) / max(self._steps / _RECENT, 1.0)

    def _buckets(self) -> list[dict[int, nn.Parameter]]:
        """Parameters that an average makes sense of, by their place: those that are taken together."""
        every = [p for group in self._optimizer.param_groups for p in group["params"]]
        buckets: list[dict[int, nn.Parameter]] = []
        kind, room = None, 0
        for i, p in enumerate(every):
            if not p.is_floating_point() or hasattr(p, "to_local"):
                continue
            if (p.device, p.dtype) != kind or p.numel() > room:
                kind, room = (p.device, p.dtype), _TOGETHER if p.is_cpu else _TOGETHER_ON_GPU
                buckets.append({})
            buckets[-1][i] = p
            room -= p.numel()
        return buckets

    def _average_of(self, bucket: dict[int, nn.Parameter]) -> torch.Tensor | None:
        """Flat; None before there is one, and where parameters have come to it since."""
        average = self._average.get(min(bucket))
        fits = average is not None and average.numel() == sum(p.numel() for p in bucket.values())
        return average if fits else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors: with the average, as large as the weights, by the parameters' places."""
        average: dict[int, torch.Tensor] = {}
        for bucket in self._buckets():
            if (flat := self._average_of(bucket)) is not None:
                pieces = torch.split(flat, [p.numel() for p in bucket.values()])
                average |= dict(zip(bucket, pieces, strict=True))
        return {
            "watches": self.watches, "steps": self._steps, "average": average,
            "total": self._total, "count": self._count, "recent": self._recent,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.end()
        self._steps, self._count = int(state["steps"]), int(state["count"])
        average = state["average"]
        for bucket in self._buckets():
            if bucket.keys() <= average.keys():
                pieces = (average[i].to(p.device) for i, p in bucket.items())
                self._average[min(bucket)] = _flat(pieces).clone()
        # The latter unknown to states from before it was there.
        total, recent = state["total"], state.get("recent")
        # Where the weights are, which need not be where they were.
        device = next((average.device for average in self._average.values()), None)
        self._total = None if total is None else total.to(device, copy=True)
        self._recent = None if recent is None else recent.to(device, copy=True)
        if state["watches"]:
            self._attach()


def _flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Their numbers in a vector [n], float32 or wider, which may be the memory of a single one."""
    pieces = [tensor.detach().flatten() for tensor in tensors]
    flat = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def _gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """Its gradient, if it has a dense one."""
    gradient = parameter.grad
    return None if gradient is None or gradient.is_sparse else gradient
