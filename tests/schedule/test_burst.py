"""Burst: losses in a row, far above the minimum."""

import math

import numpy as np
import pytest

from autolr_ray.schedule.burst import Burst
from autolr_ray.schedule.smoother import Hyperparameters
from autolr_ray.schedule.switch import RECEIPT_POINTS, Evidence


def evidence(low=1.0, noise=0.0):
    mean = np.linspace(2.0, low, RECEIPT_POINTS)
    hyper = Hyperparameters(outputscale=1.0, noise=noise, mean=1.5)
    return Evidence(
        positive=False, improved=True, strength=0.0, probability=0.0, argmin=1.0, earliest=1.0, mean=mean,
        sd=np.zeros_like(mean), hyper=hyper,
    )  # fmt: skip


def counted(losses, *, level=2.0, step=0.0, noise=0.0, scale=1.0, shift=0.0, parts=1):
    burst = Burst()
    burst.look(scale * level + shift, scale * step, evidence_of(scale, shift, noise))
    for part in np.array_split(scale * np.array(losses) + shift, parts):
        burst.observe(part)
    return burst.strength


def evidence_of(scale, shift, noise):
    plain = evidence(noise=noise * scale**2)
    object.__setattr__(plain, "mean", scale * plain.mean + shift)
    return plain


@pytest.mark.parametrize(
    ("losses", "strength"),
    [
        ([1.2, 1.4, 1.5], 0.0),  # half of the drop from 2 to 1, no more
        ([1.6], 1 / 3),
        ([1.6, 1.4, 1.6, 1.6, 1.2], 2 / 3),  # in a row
        ([1.6, 9.0, 1.6, 1.0, 1.0], 1.0),  # once is enough
        ([math.nan, math.inf, 1.6], 1.0),
        ([1.6] * 6, 2.0),
        ([], 0.0),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (64.0, 0.0), (1.0, -8.0)])
def test_losses_in_a_row(losses, strength, parts, scale, shift):
    assert counted(losses, parts=parts, scale=scale, shift=shift) == pytest.approx(strength)


def test_ten_noise_sds_are_the_least_drop():
    assert counted([1.9] * 3, noise=0.15**2) == 1.0
    assert counted([1.9] * 3, noise=0.2**2) == 0.0


def test_a_posterior_through_all_losses_has_no_noise_but_the_first_ones_had():
    assert counted([1.9] * 3, step=0.3) == 1.0
    assert counted([1.9] * 3, step=0.4) == 0.0


def test_nothing_counts_before_there_is_a_minimum():
    burst = Burst()
    burst.observe(np.full(9, 100.0))
    assert burst.strength == 0.0


def test_saved_and_loaded_it_goes_on():
    burst, other = Burst(), Burst()
    burst.look(2.0, 0.0, evidence())
    burst.observe(np.array([1.6, 1.6]))
    other.load_state_dict(burst.state_dict())
    for each in (burst, other):
        each.observe(np.array([1.6]))
        assert each.strength == 1.0
        assert each.lowest_of_last == 1.6


@pytest.mark.parametrize(
    ("losses", "lowest"),
    [
        ([5.0], -math.inf),
        ([4.0, 6.0], 4.0),
        ([1.0, 6.0, 5.0], 5.0),
        ([math.inf, math.nan, 7.0], 7.0),
        ([math.nan, math.inf], math.inf),
    ],
)
def test_the_lowest_of_the_last_two(losses, lowest):
    burst = Burst()
    for loss in losses:
        burst.observe(np.array([loss]))
    assert burst.lowest_of_last == lowest
