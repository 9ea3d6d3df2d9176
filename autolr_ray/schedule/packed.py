"""Copies of a nested state whose tensors lie one after the other in a few blocks of memory.

A network and its optimizer are hundreds of small tensors. Kept one by one each costs an allocation, on a GPU
a transfer, and in a checkpoint an entry, which takes longer to write than the numbers in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

# On the way from a GPU to the host tensors are gathered there, in pieces of at most this many bytes.
_GATHERED = 2**26


class _Place(NamedTuple):
    """Where a tensor was in the nested state, and is now: the next numbers of a block."""

    path: tuple[str | int, ...]
    block: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Packed:
    """Of nested dictionaries and lists: see :func:`pack`.

    Attributes:
        blocks: the numbers of all tensors of one type and device, a vector each.
        places: of the tensors, in the order of the numbers.
        rest: all else, nested as it was.
    """

    blocks: Sequence[torch.Tensor]
    places: Sequence[_Place]
    rest: Any

    def nested(self, *, apart: bool = False) -> Any:
        """What was packed; tensors are views of the blocks, or, ``apart``, have memory of their own."""
        nested = _copy(self.rest)
        for place, tensor in zip(self.places, self._views(), strict=True):
            at = nested
            for key in place.path[:-1]:
                at = at[key]
            at[place.path[-1]] = tensor.clone() if apart else tensor
        return nested

    def _views(self) -> Iterator[torch.Tensor]:
        first = [0] * len(self.blocks)
        for place in self.places:
            start = first[place.block]
            first[place.block] = end = start + math.prod(place.size)
            yield self.blocks[place.block][start:end].as_strided(place.size, place.stride)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(block.nbytes for block in self.blocks) + sum(t.nbytes for t in _tensors_in(self.rest))

    @cached_property
    def _layout(self) -> str:
        return json.dumps(self.places)

    def state_dict(self) -> dict[str, Any]:
        """A string, the blocks and the rest."""
        return {"blocks": list(self.blocks), "layout": self._layout, "rest": self.rest}

    @staticmethod
    def is_state(value: dict[str, Any]) -> bool:
        """Whether :meth:`state_dict` made it."""
        return value.keys() == {"blocks", "layout", "rest"}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Packed:
        """The inverse of :meth:`state_dict`."""
        places = [
            _Place(tuple(path), block, tuple(size), tuple(stride))
            for path, block, size, stride in json.loads(state["layout"])
        ]
        return cls(state["blocks"], places, state["rest"])


@torch.no_grad()
def pack(nested: Any, *, on_host: bool, wait: bool = True) -> Packed:
    """A copy of nested dictionaries and lists.

    Copied one by one, into the rest: sparse tensors, those with gaps or overlaps, subclasses of
    ``torch.Tensor``, and those in tuples or under keys that are neither strings nor integers. What is no
    tensor is handed on.

    Args:
        nested: dictionaries and lists in any depth.
        on_host: tensors on a GPU are copied to the host; else all stay on their devices.
        wait: until that is done; else they are copied to pinned memory and are there when what follows on the
            device's stream is.
    """
    kinds: dict[tuple[torch.dtype, torch.device], int] = {}
    groups: list[list[torch.Tensor]] = []
    places: list[_Place] = []

    def rest_of(value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
            rest = {}
            for key, item in value.items():
                found = item if type(item) in _PLAIN else rest_of(item, (*path, key))
                if found is not _TAKEN:
                    rest[key] = found
            return rest
        if isinstance(value, list):
            found = [x if type(x) in _PLAIN else rest_of(x, (*path, i)) for i, x in enumerate(value)]
            return [None if item is _TAKEN else item for item in found]
        if not isinstance(value, torch.Tensor) or not _is_dense(value):
            return _apart(value, on_host, wait)
        number = kinds.setdefault((value.dtype, value.device), len(kinds))
        if number == len(groups):
            groups.append([])
        groups[number].append(value.detach())
        places.append(_Place(path, number, value.shape, value.stride()))
        return _TAKEN

    rest = rest_of(nested, ())
    return Packed([_block(tensors, on_host, wait) for tensors in groups], places, rest)


_TAKEN = object()
_PLAIN = {int, float, str, bool, type(None)}


def _copy(value: Any) -> Any:
    """Of the containers, not of what is in them."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _is_dense(tensor: torch.Tensor) -> bool:
    """A plain tensor whose numbers lie together in memory, in whatever order."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.is_contiguous():
        return True
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return form is not None and tensor.is_contiguous(memory_format=form)


def _block(tensors: Sequence[torch.Tensor], on_host: bool, wait: bool) -> torch.Tensor:
    """A copy of the numbers of tensors of one type and device, in the order of their memory."""
    flat = [t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,)) for t in tensors]
    first = flat[0]
    if not on_host or first.device.type == "cpu":
        return torch.cat(flat)
    block = torch.empty(sum(map(len, flat)), dtype=first.dtype, pin_memory=first.is_cuda and not wait)
    done = 0
    for piece in _pieces(flat, _GATHERED // first.element_size()):
        gathered = torch.cat(piece) if len(piece) > 1 else piece[0]
        # In the order of the stream: the next step's kernels start after the copy, the host goes on at once.
        block[done : done + len(gathered)].copy_(gathered, non_blocking=not wait)
        done += len(gathered)
    return block


def _pieces(flat: Sequence[torch.Tensor], most: int) -> Iterator[list[torch.Tensor]]:
    """Neighbours that come to ``most`` numbers at most, larger ones by themselves."""
    piece: list[torch.Tensor] = []
    room = most
    for tensor in flat:
        if piece and len(tensor) > room:
            yield piece
            piece, room = [], most
        piece.append(tensor)
        room -= len(tensor)
    yield piece


def _apart(value: Any, on_host: bool, wait: bool) -> Any:
    """A copy with a memory for each tensor."""
    if isinstance(value, dict):
        return {key: _apart(item, on_host, wait) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, tuple) and next(_tensors_in(value), None) is not None):
        return type(value)(_apart(item, on_host, wait) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach()
    if not on_host or tensor.device.type == "cpu":
        return tensor.clone()
    kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda and not wait)
    return kept.copy_(tensor, non_blocking=not wait)
