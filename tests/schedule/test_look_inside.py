"""What people see of a run: the thinned losses, the plot, the receipts as a table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autolr_ray.schedule import AutoWarmup, Verdict
from autolr_ray.schedule.trace import LossTrace


def optimizer():
    """An optimizer over one number."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def valley(t, total):
    """Falls from 2 to 0.5 at a quarter of the run, then rises steeply."""
    x = t / total
    return 0.5 + 6.0 * max(0.0, 0.25 - x) + 30.0 * max(0.0, x - 0.3) + 0.02 * math.sin(7.0 * t)


def run(steps, total=400):
    """A schedule that has seen ``steps`` losses."""
    schedule = AutoWarmup(optimizer(), total)
    for t in range(steps):
        schedule.step(valley(t, total))
    return schedule


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=12))
def test_trace_is_bounded_even_and_exact(blocks):
    trace, seen = LossTrace(), 0
    for block in blocks:
        trace.update(np.arange(seen, seen + block, dtype=np.float64))
        seen += block
    steps, losses = trace.points()
    assert len(steps) <= 1024
    assert (steps == losses).all()
    assert len(steps) == math.ceil(seen / trace.stride)


def test_trace_split_is_whole():
    whole, split = LossTrace(), LossTrace()
    losses = np.random.default_rng(0).normal(size=5000)
    whole.update(losses)
    for first in range(0, 5000, 7):
        other = LossTrace()
        other.load_state_dict(split.state_dict())
        other.update(losses[first : first + 7])
        split = other
    assert split.stride == whole.stride
    assert (split.points()[1] == whole.points()[1]).all()


def test_frame_has_a_row_for_each_test():
    schedule = run(400)
    frame = schedule.receipts_frame()
    assert len(frame) == len(schedule.receipts) > 10
    assert frame["step"].tolist() == [receipt.step for receipt in schedule.receipts]
    assert frame["verdict"].iloc[-1] == "passed"
    assert set(frame["verdict"][:-1]) == {"rising"}
    assert frame["reason"].iloc[-1] == Verdict.PASSED.value
    assert frame["argmin_lr"].iloc[-1] == schedule.peak_lr


@pytest.mark.parametrize("steps", [0, 5, 60, 400])
def test_plot_draws_at_any_time(steps, tmp_path):
    schedule = run(steps)
    figure = schedule.plot()
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    losses, rates, tests = figure.axes
    seen = schedule.switch_step or schedule._last_look
    assert len(losses.lines[0].get_xdata()) == seen
    assert len(tests.lines[0].get_xdata()) == len(schedule.receipts)
    shown = rates.lines[0].get_ydata()
    assert len(shown) == (400 if schedule.switch_step else steps + 1)
    assert shown[0] == pytest.approx(1e-5)


@pytest.mark.filterwarnings("ignore::autolr_ray.schedule.DivergenceWarning")
def test_plot_with_losses_that_are_not_finite(tmp_path):
    schedule = AutoWarmup(optimizer(), 100)
    for _ in range(60):
        schedule.step(math.nan)
    schedule.plot().savefig(tmp_path / "plot.png")
    assert schedule.receipts[-1].verdict is Verdict.DIVERGED


def test_rates_as_decided_are_those_that_were_set():
    schedule = AutoWarmup(optimizer(), 400)
    seen = []
    for t in range(400):
        seen.append(schedule.get_last_lr()[0])
        schedule.step(valley(t, 400))
    assert schedule.switch_step is not None
    assert [schedule.lr_at(t) for t in range(400)] == seen
    assert schedule.lr_at(400) == 0.0
