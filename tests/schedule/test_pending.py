"""The queue of losses between looks."""

import math

import numpy as np
import pytest
import torch
from schedule_helpers import assert_same

from autolr_ray.schedule.pending import PendingLosses, is_distributed


def queued(losses, capacity=8):
    pending = PendingLosses()
    for loss in losses:
        pending.add(loss, capacity=capacity)
    return pending


@pytest.mark.parametrize(
    "loss",
    [
        1.5,
        3,
        np.float32(1.5),
        np.float64(1.5),
        torch.tensor(1.5),
        torch.tensor([1.5]),
        torch.tensor([[1.5]]),
        torch.tensor(1.5, dtype=torch.float64),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor(1.5, dtype=torch.float16),
        torch.tensor(3),
        torch.tensor(1.5, requires_grad=True),
        math.nan,
        math.inf,
        torch.tensor(-math.inf),
    ],
    ids=repr,
)
def test_one_number_of_any_kind(loss):
    pending = queued([loss, 2.0])
    assert len(pending) == 2
    value = loss.item() if isinstance(loss, torch.Tensor) else loss
    np.testing.assert_array_equal(pending.drain(distributed=False), [value, 2.0])
    assert len(pending) == 0
    assert pending.drain(distributed=False).shape == (0,)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones(1, 3), torch.ones(0)])
def test_more_or_less_than_one_element_is_refused(loss):
    pending = queued([1.0])
    with pytest.raises(ValueError, match=r"loss: a tensor of shape .* one element is needed"):
        pending.add(loss, capacity=4)
    assert len(pending) == 1
    np.testing.assert_array_equal(pending.drain(distributed=False), [1.0])


@pytest.mark.parametrize("loss", [None, "1.0", True, [1.0], np.ones(1), 1j], ids=repr)
def test_other_types_are_refused(loss):
    pending = queued([1.0])
    with pytest.raises(TypeError, match=r"loss: .* a float or a 0-d tensor is needed"):
        pending.add(loss, capacity=4)
    assert len(pending) == 1


def test_doubles_keep_their_digits():
    value = 1.0 + 2.0**-50
    drained = queued([value, torch.tensor(value, dtype=torch.float64)]).drain(distributed=False)
    assert drained.dtype == np.float64
    assert drained.tolist() == [value, value]


def test_a_queued_loss_does_not_follow_its_tensor():
    loss = torch.tensor(1.0)
    pending = queued([loss])
    loss.fill_(9.0)
    assert pending.drain(distributed=False).tolist() == [1.0]


def on_device(values, capacity=8):
    """A queue in its device form, on the host."""
    pending = PendingLosses()
    for value in values:
        pending._add_on_device(torch.tensor(value), capacity)
        pending._count += 1
    return pending


def test_the_device_buffer_takes_every_kind_in_order():
    pending = queued([1.0, 2.0])
    pending._add_on_device(torch.tensor([3.0]), 8)
    pending._count += 1
    for loss in (4.0, torch.tensor(5.0), np.float32(6.0), torch.tensor([math.nan])):
        pending.add(loss, capacity=8)
    assert len(pending) == 7
    assert pending.tensor().dtype == torch.float64
    np.testing.assert_array_equal(pending.drain(distributed=False), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.nan])
    assert len(pending) == 0
    pending.add(7.0, capacity=8)
    assert pending.drain(distributed=False).tolist() == [7.0]


def test_refill_continues_either_form():
    for pending in (queued([1.0, math.nan]), on_device([1.0, math.nan])):
        other = PendingLosses()
        other.fill(pending.tensor().cpu().tolist())
        assert len(other) == 2
        other.add(3.0, capacity=8)
        np.testing.assert_array_equal(other.drain(distributed=False), [1.0, math.nan, 3.0])
        assert_same(pending.tensor(), torch.tensor([1.0, math.nan], dtype=torch.float64))


def test_is_distributed_in_one_process():
    assert is_distributed(None) is False
    assert is_distributed(False) is False
    with pytest.raises(RuntimeError, match="distributed: True is not allowed before"):
        is_distributed(True)


@pytest.mark.gpu
def test_losses_on_a_gpu_wait_there_without_synchronisation():
    losses = torch.arange(6.0, device="cuda")
    pending = PendingLosses()
    pending.add(-1.0, capacity=8)
    pending.add(losses[0], capacity=8)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses[1:].unbind():
            pending.add(loss, capacity=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.tensor().device.type == "cuda"
    assert pending.drain(distributed=False).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
