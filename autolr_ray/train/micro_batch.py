"""How many micro-batches a worker's share must be cut into to fit in its memory: found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# What an optimizer with two moments will need, and the copies that its step makes, in parameters.
_RESERVED = 3


def find_accumulation_steps(share: int, attempt: Callable[[int], None]) -> int:
    """Into how few equal parts ``share`` examples must be cut for ``attempt(part size)`` to find memory.

    Args:
        share: examples of one worker in one batch, >= 1.
        attempt: computes a part of that size; raises ``torch.OutOfMemoryError`` where it does not fit.

    Raises:
        ValueError: not even one example fits.
    """
    for parts in (n for n in range(1, share + 1) if share % n == 0):
        try:
            attempt(share // parts)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        return parts
    raise ValueError(
        "accumulation_steps: 'auto' is not allowed here; not even one example at a time fits in the device's "
        "memory"
    )


def rehearse(network: nn.Module, loss_of: Callable[[], torch.Tensor]) -> None:
    """One forward and backward pass with room set aside for the optimizer; leaves ``network`` as it was.

    Raises:
        torch.OutOfMemoryError: there is not enough memory.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    reserved = [torch.empty_like(p) for p in network.parameters() for _ in range(_RESERVED)]
    try:
        loss_of().backward()  # type: ignore[no-untyped-call]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    finally:
        del reserved
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
