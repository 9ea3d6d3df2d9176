"""The contract's own parts: in-memory data and the held-out split."""

import pytest
import torch

from autolr_ray.tasks import TensorData, hold_out
from autolr_ray.tasks.task import argmax_correct


@pytest.mark.parametrize(("n", "fraction"), [(10, 0.1), (12_000, 0.1), (7, 0.5)])
def test_hold_out_covers_everything_once(n, fraction):
    train, held = hold_out(n, fraction)
    assert len(held) == round(n * fraction)
    assert torch.cat([train, held]).sort().values.tolist() == list(range(n))
    assert train.tolist() == sorted(train.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_hold_out_depends_on_its_arguments_alone():
    torch.manual_seed(1)
    first = hold_out(100)
    torch.manual_seed(2)
    again = hold_out(100)
    other = hold_out(100, seed=1)
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    # A change of these numbers changes the split of every study that was ever run.
    assert hold_out(20)[1].tolist() == [4, 5]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_refuses_fractions(fraction):
    with pytest.raises(ValueError, match=r"fraction: .* is not allowed"):
        hold_out(100, fraction)


def test_hold_out_refuses_too_few():
    with pytest.raises(ValueError, match="n: 3 examples are too few"):
        hold_out(3)


def test_tensor_data_takes_in_order():
    data = TensorData(inputs=torch.arange(10).view(5, 2), targets=torch.arange(5))
    inputs, targets = data.take(torch.tensor([3, 0]))
    assert inputs.tolist() == [[6, 7], [0, 1]]
    assert targets.tolist() == [3, 0]
    assert len(data.to("cpu")) == 5


def test_tensor_data_needs_a_target_for_each_input():
    with pytest.raises(ValueError, match="targets: 4 rows for 5 inputs"):
        TensorData(inputs=torch.zeros(5, 2), targets=torch.zeros(4))


def test_argmax_correct():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert argmax_correct(outputs, torch.tensor([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]
