"""Decays as functions of progress."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autolr_ray.schedule import DECAYS, constant_then_cosine, cosine
from autolr_ray.schedule.decay import get_decay

share = st.floats(0.0, 1.0)


@pytest.mark.parametrize("name", DECAYS)
@given(start=share, a=share, b=share)
def test_property_falls_from_one_at_start_to_exactly_zero(name, start, a, b):
    decay = DECAYS[name]
    early, late = sorted((a, b))
    assert 0.0 <= decay(late, start) <= decay(early, start) + 1e-15 <= 1.0 + 1e-15
    assert decay(1.0, start) == 0.0
    if start < 1.0:
        assert decay(start, start) == 1.0
        assert decay(start / 2, start) == 1.0


@given(start=st.floats(0.0, 0.95), along=st.floats(0.0, 0.999))
def test_property_cosine_closed_form(start, along):
    progress = start + along * (1.0 - start)
    expected = math.cos(math.pi * along / 2.0) ** 2  # (1 + cos) / 2
    assert cosine(progress, start) == pytest.approx(expected, abs=1e-9)


@given(progress=share, start=share)
def test_property_constant_then_cosine_is_a_late_cosine(progress, start):
    factor = constant_then_cosine(progress, start)
    if progress <= 0.8:
        assert factor == 1.0
    if start <= 0.8:
        assert factor == cosine(progress, 0.8)
    else:
        assert factor == cosine(progress, start)
    assert constant_then_cosine(progress, start, cosine_fraction=1.0) == cosine(progress, start)


def test_constant_then_cosine_lasts_the_last_fifth():
    assert constant_then_cosine(0.8, 0.1) == 1.0
    assert constant_then_cosine(0.81, 0.1) < 1.0
    assert constant_then_cosine(0.9, 0.1) == pytest.approx(0.5)
    assert constant_then_cosine(0.75, 0.1, cosine_fraction=0.5) == pytest.approx(0.5)


def test_get_decay():
    assert get_decay("cosine") is cosine
    assert get_decay("constant-then-cosine") is constant_then_cosine

    def own(progress, start):
        return 1.0 - progress

    assert get_decay(own) is own
    with pytest.raises(
        ValueError, match="decay: unknown 'step'; allowed: cosine, linear, constant-then-cosine, or a fun"
    ):
        get_decay("step")
