"""Weights as they were near the loss minimum, and putting them back.

Steps beyond the minimum ran at learning rates that were too high; the weights they left behind need
not recover. Snapshots hold the model's parameters and buffers and the optimizer's state.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

PLACES = ("host", "device")
CAPACITY = 5
_NOT_STATE = ("params", "lr", "initial_lr")


class HasState(Protocol):
    """What can be snapshot besides model and optimizer: a gradient scaler, say."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Put a state back."""


class SnapshotStore:
    """At most five snapshots, spread over the steps at which the loss may have been lowest.

    The estimate of the minimum moves as losses come in, back as well as forward along a flat bottom. Kept
    are the newest, the one nearest the minimum, the last one before the earliest step that may be the
    minimum, and of those between as many as there is room for, evenly; older ones go.

    Args:
        model: whose ``state_dict`` tensors are kept.
        optimizer: whose per-parameter state and group values (except ``lr``) are kept.
        scaler: whose ``state_dict`` is kept; None: none.
        place: "host": tensors on a GPU are copied to pinned memory without waiting for the copy;
            "device": they are cloned where they are.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, *, scaler: HasState | None = None, place: str = "host"
    ) -> None:
        self._model = _bare(model)
        self._optimizer = optimizer
        self._scaler = scaler
        self._on_host = place == "host"
        self._snapshots: dict[int, dict[str, Any]] = {}

    @property
    def steps(self) -> list[int]:
        """The optimizer steps that have a snapshot, ascending."""
        return sorted(self._snapshots)

    def take(self, step: int, argmin_step: float, earliest_step: float | None = None) -> None:
        """Keep the present state as that after ``step`` optimizer steps, drop what is not needed.

        Args:
            step: later than any before.
            argmin_step: where the loss is lowest, as far as is known now.
            earliest_step: the first step that may be as low, <= ``argmin_step``; default: the same.
        """
        earliest = argmin_step if earliest_step is None else min(earliest_step, argmin_step)
        before = [s for s in self.steps if s <= earliest]
        kept = [*before[-1:], *(s for s in self.steps if s > earliest), step]
        nearest = min(kept, key=lambda s: (abs(s - argmin_step), s))
        while len(kept) > CAPACITY:
            # The one whose neighbours are closest to each other is missed least.
            spans = {s: kept[i + 2] - kept[i] for i, s in enumerate(kept[1:-1]) if s != nearest}
            kept.remove(min(spans, key=lambda s: (spans[s], s)))
        self._snapshots = {s: kept_state for s, kept_state in self._snapshots.items() if s in kept}
        self._snapshots[step] = self._copy()

    def restore(self, argmin_step: float, *, optimizer: dict[str, Any] | None = None) -> int | None:
        """Put back the snapshot nearest ``argmin_step`` in place; its step, or None without one.

        Args:
            argmin_step: where the loss is lowest.
            optimizer: the state that the optimizer gets instead, from :meth:`optimizer_state`.
        """
        if not self._snapshots:
            return None
        step = min(self.steps, key=lambda s: (abs(s - argmin_step), s))
        self._put_back(self._snapshots[step] | (optimizer or {}))
        return step

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the snapshot after ``step``, named as in :meth:`present`."""
        kept: dict[str, torch.Tensor] = self._snapshots[step]["model"]
        return kept

    def present(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers now, themselves."""
        return _tensors(self._model)

    def clear(self) -> None:
        """Free the memory."""
        self._snapshots = {}

    @property
    def nbytes(self) -> int:
        """Memory that the snapshots take."""
        return sum(_nbytes(snapshot) for snapshot in self._snapshots.values())

    def _keep(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not self._on_host or value.device.type == "cpu":
            return value.detach().clone()
        # In the order of the stream: the next step's kernels start after the copy, the host goes on at once.
        kept = torch.empty_like(value, device="cpu", pin_memory=value.device.type == "cuda")
        return kept.copy_(value.detach(), non_blocking=True)

    @torch.no_grad()
    def _copy(self) -> dict[str, Any]:
        return {
            "model": {name: self._keep(value) for name, value in _tensors(self._model).items()},
            **self.optimizer_state(),
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
        }

    @torch.no_grad()
    def optimizer_state(self) -> dict[str, Any]:
        """A copy of the optimizer's per-parameter state and group values, for :meth:`restore`."""
        return {
            "optimizer": [
                {key: self._keep(value) for key, value in self._optimizer.state.get(parameter, {}).items()}
                for group in self._optimizer.param_groups
                for parameter in group["params"]
            ],
            "groups": [
                {key: self._keep(value) for key, value in group.items() if key not in _NOT_STATE}
                for group in self._optimizer.param_groups
            ],
        }

    @torch.no_grad()
    def _put_back(self, snapshot: dict[str, Any]) -> None:
        # In place: DDP buckets, fused optimizers and CUDA graphs hold on to these very tensors.
        for name, tensor in _tensors(self._model).items():
            tensor.copy_(snapshot["model"][name])
        states = iter(snapshot["optimizer"])
        for group, kept in zip(self._optimizer.param_groups, snapshot["groups"], strict=True):
            _drop_new(group, {*kept, *_NOT_STATE})
            _update(group, kept)
            for parameter in group["params"]:
                state = self._optimizer.state[parameter]
                kept_state = next(states)
                _drop_new(state, set(kept_state))
                _update(state, kept_state, like=parameter)
        if self._scaler is not None and snapshot["scaler"] is not None:
            self._scaler.load_state_dict(snapshot["scaler"])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors; as large as the snapshots."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies may still be under way
        return {"snapshots": dict(self._snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; ValueError, and nothing changed, where it is of another model."""
        present = {name: tensor.shape for name, tensor in _tensors(self._model).items()}
        for snapshot in state["snapshots"].values():
            kept = {name: tensor.shape for name, tensor in snapshot["model"].items()}
            if kept != present:
                other = sorted(name for name in kept | present if kept.get(name) != present.get(name))
                raise ValueError(
                    f"state_dict: its snapshots are of another model; {len(other)} tensors differ, "
                    f"the first is {other[0]!r}"
                )
        self._snapshots = {int(step): snapshot for step, snapshot in state["snapshots"].items()}


def _bare(model: nn.Module) -> nn.Module:
    """The user's own module under PyTorch's wrappers: with the same names on any number of workers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, those that a checkpoint leaves out included."""
    return dict(model.named_parameters()) | {f"buffer:{name}": b for name, b in model.named_buffers()}


def _drop_new(target: dict[str, Any], known: set[str]) -> None:
    """What the optimizer added after the snapshot, at its first step, goes again."""
    for key in [key for key in target if key not in known]:
        del target[key]


def _update(target: dict[str, Any], kept: dict[str, Any], like: torch.Tensor | None = None) -> None:
    for key, value in kept.items():
        present = target.get(key)
        if isinstance(value, torch.Tensor) and isinstance(present, torch.Tensor):
            present.copy_(value)
        elif isinstance(value, torch.Tensor):
            # 0-d counters stay on the host, as torch's optimizers keep them.
            device = torch.device("cpu") if like is None or value.dim() == 0 else like.device
            target[key] = value.to(device, copy=True)
        else:
            target[key] = value


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_nbytes(part) for part in parts)
