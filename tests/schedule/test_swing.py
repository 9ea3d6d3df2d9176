"""Weights that swing about their average, or travel: what the gradients say of it."""

import copy
import gc
import math

import numpy as np
import pytest
import torch
from schedule_helpers import (
    OPTIMIZERS,
    Run,
    assert_same,
    backward_on_batch,
    runs_of_older_state,
    saved_and_loaded,
    small_net,
    whole_run_that_resumes,
)
from torch import nn

from autolr_ray.schedule import Verdict
from autolr_ray.schedule import swing as swing_module
from autolr_ray.schedule.swing import Swing


def walk(swing, weights, gradients, optimizer):
    """Let the optimizer's hooks see ``weights`` and ``gradients``, a step each; nothing is updated."""
    (parameter,) = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["lr"] = 0.0
    for weight, gradient in zip(weights, gradients, strict=True):
        parameter.data = torch.as_tensor(weight, dtype=parameter.dtype)
        parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype)
        optimizer.step()
    return swing.mean()


def watched(size=3, warmup=64, dtype=torch.float64):
    parameter = nn.Parameter(torch.zeros(size, dtype=dtype))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    swing = Swing(optimizer)
    swing.begin(warmup)
    return swing, optimizer


def products_of(weights, gradients, steps):
    average, products = weights[0].copy(), []
    for weight, gradient in zip(weights[1:], gradients[1:], strict=True):
        products.append(float((weight - average) @ gradient))
        average = average + (weight - average) / steps
    return products


def expected(weights, gradients, steps):
    return np.mean(products_of(weights, gradients, steps))


def some(n=30, size=3, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, size)), random.standard_normal((n, size))


# --- the mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [32, 64, 120])
def test_it_is_the_mean_product_of_gradients_and_ways_from_the_average(warmup):
    weights, gradients = some()
    swing, optimizer = watched(warmup=warmup)
    assert walk(swing, weights, gradients, watched(warmup=warmup)[1]) == math.inf  # another optimizer's
    assert walk(swing, weights, gradients, optimizer) == pytest.approx(
        expected(weights, gradients, warmup // 8)
    )


def test_a_restart_forgets_the_steps_and_keeps_the_average():
    weights, gradients = some()
    swing, optimizer = watched()
    walk(swing, weights[:12], gradients[:12], optimizer)
    swing.restart()
    assert swing.mean() == math.inf
    assert not swing.is_little(1.0, 0.0)
    after = walk(swing, weights[12:], gradients[12:], optimizer)
    whole, first = (expected(weights[:n], gradients[:n], 8) * (n - 1) for n in (30, 12))
    assert after == pytest.approx((whole - first) / 18)


def noisy_descent(lr, steps=4000, curvature=2.0, start=0.0):
    """SGD in a quadratic valley with gradient noise: the swing's mean over the last half."""
    random = np.random.default_rng(3)
    swing, optimizer = watched(size=1, warmup=8 * 400)
    w, costs = start, []
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(steps):
        if step == steps // 2:
            swing.restart()
        optimizer.param_groups[0]["lr"] = lr
        parameter.data.fill_(w)
        parameter.grad = torch.tensor([curvature * w + random.standard_normal()], dtype=torch.float64)
        optimizer.step()
        w = float(parameter.detach())
        costs.append(curvature * w * w / 2)
    return swing.mean(), np.mean(costs[steps // 2 :])


@pytest.mark.parametrize("lr", [0.05, 0.2, 0.6])
def test_in_a_valley_it_is_twice_what_the_swinging_costs(lr):
    swing, cost = noisy_descent(lr)
    assert swing == pytest.approx(2.0 * cost, rel=0.15)


def test_it_is_negative_on_the_way_down():
    assert noisy_descent(1e-5, start=50.0, steps=400)[0] < -1.0


# --- what is seen --------------------------------------------------------------------------------


def scale_into(scaler, model, gradient):
    """``gradient`` [all weights] as the weights' gradients, as the scaler would have made them."""
    scale = scaler.scale(torch.ones(()))
    for p, part in zip(
        model.parameters(), gradient.split([p.numel() for p in model.parameters()]), strict=True
    ):
        p.grad = scale * part.view_as(p)


def test_half_precision_weights_have_an_average_in_single():
    # A way of 2^-8 of the weight, an eighth of which bfloat16 would lose.
    swing, optimizer = watched(size=1, dtype=torch.bfloat16)
    weights = [[1.0], *[[1.0078125]] * 20]
    walk(swing, weights, [[1.0]] * 21, optimizer)
    assert swing.state_dict()["average"][0].dtype == torch.float32
    left = 0.0078125 * (1 - 1 / 8) ** 20
    assert swing.state_dict()["average"][0].item() == pytest.approx(1.0078125 - left, abs=1e-5)


def test_weights_without_gradients_and_with_sparse_ones_are_left_out():
    a, b, c = (nn.Parameter(torch.ones(4, 2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b, c]}], lr=0.0)
    swing = Swing(optimizer)
    swing.begin(64)
    for step in range(3):
        with torch.no_grad():
            for p in (a, b, c):
                p.fill_(1.0 + step)
        a.grad = torch.full((4, 2), 0.5)
        b.grad = torch.sparse_coo_tensor([[0], [0]], [9.0], (4, 2))
        optimizer.step()
    # Ways of 1 and of 2 - 1 / 8, in eight weights.
    assert swing.mean() == pytest.approx(8 * 0.5 * (1 + 1.875) / 2)


def test_a_gradient_scaler_leaves_fused_optimizers_their_scale_and_their_overflows():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1000)
    swing = Swing(optimizer)
    swing.begin(64)
    average, products = None, []
    for step in range(12):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 5)).square().mean()
        now = torch.cat([p.detach().flatten() for p in model.parameters()])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
        scale_into(scaler, model, gradient * (math.inf if step == 5 else 1.0))
        if average is None:
            average = now.clone()
        else:
            products.append(0.0 if step == 5 else float((now - average) @ gradient))
            average += (now - average) / 8
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert swing.mean() == pytest.approx(np.mean(products), rel=1e-4)


def test_a_step_that_is_being_compiled_is_not_seen(monkeypatch):
    swing, optimizer = watched()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert walk(swing, *some(), optimizer) == math.inf


def test_an_optimizer_by_name_only_is_not_watched():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.param_groups = inner.param_groups

    swing = Swing(Wrapper(watched()[1]))
    swing.begin(64)
    assert not swing.watches
    assert not swing.is_little(1.0, 0.0)


@pytest.mark.parametrize(("warmup", "watches"), [(0, False), (31, False), (32, True)])
def test_a_warmup_too_short_for_an_average_is_not_watched(warmup, watches):
    swing, optimizer = watched(warmup=warmup)
    assert swing.watches is watches
    assert math.isfinite(walk(swing, *some(), optimizer)) is watches


def test_at_the_end_it_lets_go():
    swing, optimizer = watched()
    walk(swing, *some(), optimizer)
    swing.end()
    assert not swing.watches
    assert not optimizer._optimizer_step_pre_hooks
    assert swing.state_dict()["average"] == {}


def test_an_optimizer_that_outlives_the_schedule_keeps_no_average():
    swing, optimizer = watched()
    walk(swing, *some(), optimizer)
    del swing
    gc.collect()
    optimizer.step()  # the hook has nothing to tell


# --- is it little? -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "fallen", "step", "little"),
    [
        (0.099, 1.0, 0.0, True),
        (0.101, 1.0, 0.0, False),
        (-5.0, 1.0, 0.0, True),
        (0.0, 1.0, 0.199, True),
        (0.0, 1.0, 0.201, False),  # less than five of the first steps is no fall
        (0.0, 0.0, 0.0, False),
        (-1.0, -1.0, 0.0, False),
        (0.0, -math.inf, 0.1, False),  # too few losses
        (0.0, math.nan, 0.1, False),
        (0.0, 1.0, math.nan, False),
    ],
)
def test_little_is_a_tenth_of_the_fall(product, fallen, step, little):
    swing, optimizer = watched(size=1, warmup=64)
    walk(swing, [[0.0], [1.0]], [[0.0], [product]], optimizer)
    assert swing.is_little(fallen, step) is little


@pytest.mark.parametrize(
    ("product", "fallen", "much"),
    [
        (0.34, 1.0, False),
        (0.36, 1.0, True),
        (-1.0, 1.0, False),
        (0.0, -math.inf, True),
        (0.5, math.nan, False),
    ],
)
def test_much_is_a_third_of_the_fall(product, fallen, much):
    swing, optimizer = watched(size=1, warmup=64)
    assert swing.is_much(fallen) is False  # nothing was seen
    walk(swing, [[0.0], [1.0]], [[0.0], [product]], optimizer)
    assert swing.is_much(fallen) is much


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_losses_in_other_units_change_nothing(factor):
    weights, gradients = some(seed=2)
    one, other = watched(), watched()
    mean = abs(walk(one[0], weights, gradients, one[1]))
    walk(other[0], weights, factor * gradients, other[1])
    for fallen in (5 * mean, 20 * mean):
        assert one[0].is_little(fallen, 0.0) == other[0].is_little(factor * fallen, 0.0)


# --- the floor -----------------------------------------------------------------------------------


def recent(weights, gradients, steps):
    mean = 0.0
    for product in products_of(weights, gradients, steps):
        mean += (product - mean) / max(steps / 4, 1.0)
    return mean


@pytest.mark.parametrize("warmup", [32, 64, 120])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_cost_is_half_of_the_recent_products_and_never_negative(warmup, sign):
    weights, gradients = some()
    products = sign * recent(weights, gradients, warmup // 8)
    swing, optimizer = watched(warmup=warmup)
    assert swing.cost() == 0.0
    walk(swing, weights, sign * gradients, optimizer)
    assert swing.cost() == pytest.approx(max(products / 2, 0.0))


def test_the_floor_is_the_loss_less_the_cost():
    swing, optimizer = watched(size=1)
    walk(swing, [[0.0], *[[1.0]] * 40], [[0.0], *[[2.0]] * 40], optimizer)
    losses = np.array([3.0, math.nan, math.inf, 1.0])
    cost = swing.cost()
    assert 0.0 < cost < 0.2
    assert swing.floor(losses, 10.0) == pytest.approx(losses - cost, nan_ok=True)
    # Of little that has fallen a quarter at most; where nothing has, nothing.
    assert swing.floor(losses, cost) == pytest.approx(losses - cost / 4, nan_ok=True)
    for fallen in (0.0, -1.0, -math.inf, math.nan):
        assert swing.floor(losses, fallen) == pytest.approx(losses, nan_ok=True)
    swing.restart()
    assert swing.cost() == cost
    swing.begin(64)
    assert swing.cost() == 0.0


def test_in_a_noisy_valley_the_floor_is_its_bottom():
    # Means over the steps: of the losses above the bottom, and of what is taken off.
    random, curvature, lr = np.random.default_rng(5), 2.0, 0.3
    swing, optimizer = watched(size=1, warmup=8 * 100)
    (parameter,) = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["lr"] = lr
    losses, floors, w = [], [], 0.0
    for _ in range(6000):
        parameter.data.fill_(w)
        parameter.grad = torch.tensor([curvature * w + random.standard_normal()], dtype=torch.float64)
        optimizer.step()
        losses.append(1.0 + curvature * w * w / 2)
        floors.append(float(swing.floor(np.array(losses[-1:]), math.inf)[0]))
        w = float(parameter.detach())
    above = np.mean(losses[1000:]) - 1.0
    assert above > 0.05
    # Steps at which the mean is below zero, which is taken for none, leave the floor a little low.
    assert np.mean(floors[1000:]) == pytest.approx(1.0, abs=0.15 * above)


# --- many tensors together ------------------------------------------------------------------------


def several():
    """Tensors of several sizes, memory orders and types; the optimizer's two groups."""
    torch.manual_seed(0)
    sizes = [(3, 2, 5, 5), (7,), (4, 4), (2, 3, 3, 3), (11,)]
    every = [nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in sizes]
    every[3] = nn.Parameter(every[3].detach().to(memory_format=torch.channels_last))
    every[4] = nn.Parameter(every[4].detach().float())
    optimizer = torch.optim.SGD([{"params": every[:2]}, {"params": every[2:]}], lr=0.1)
    swing = Swing(optimizer)
    swing.begin(64)
    return every, optimizer, swing


def train(every, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in every:
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
        optimizer.step()


@pytest.mark.parametrize(("together", "kept"), [(1, 5), (30, 4), (10**6, 2)])
def test_how_many_are_taken_together_does_not_count(together, kept, monkeypatch):
    monkeypatch.setattr(swing_module, "_TOGETHER", together)
    every, optimizer, swing = several()
    parts = [Swing(optimizer) for _ in every]
    for alone, p in zip(parts, every, strict=True):
        alone._buckets = lambda p=p: [{0: p}]
        alone.begin(64)
    train(every, optimizer, range(12))
    assert len(swing._average) == kept
    assert swing.mean() == pytest.approx(sum(alone.mean() for alone in parts), rel=1e-6)


@pytest.mark.parametrize("later", [1, 30, 10**6])
def test_a_state_does_not_know_how_many_were_taken_together(later, monkeypatch):
    monkeypatch.setattr(swing_module, "_TOGETHER", 30)
    every, optimizer, whole = several()
    train(every, optimizer, range(12))
    every, optimizer, half = several()
    train(every, optimizer, range(6))
    state = saved_and_loaded(half.state_dict())
    shapes = {i: tuple(piece.shape) for i, piece in state["average"].items()}
    assert shapes == {i: (p.numel(),) for i, p in enumerate(every)}
    # Earlier states have pieces of the parameters' shapes.
    state["average"] = {i: piece.view(every[i].shape) for i, piece in state["average"].items()}
    half.end()
    monkeypatch.setattr(swing_module, "_TOGETHER", later)
    again = Swing(optimizer)
    again.load_state_dict(state)
    train(every, optimizer, range(6, 12))
    assert again.mean() == pytest.approx(whole.mean(), rel=1e-6)
    monkeypatch.setattr(swing_module, "_TOGETHER", 30)
    expected = whole.state_dict()["average"]
    monkeypatch.setattr(swing_module, "_TOGETHER", later)
    assert_same(again.state_dict()["average"], expected)


def test_parameters_that_come_later_begin_an_average_of_their_own():
    every, optimizer, swing = several()
    train(every, optimizer, range(4))
    late = nn.Parameter(torch.randn(6))  # as the last one: into that one's bucket
    optimizer.add_param_group({"params": [late]})
    assert swing.state_dict()["average"].keys() == {0, 1, 2, 3}  # before a step has seen it
    train([*every, late], optimizer, range(4, 8))
    assert swing.state_dict()["average"].keys() == {0, 1, 2, 3, 4, 5}
    assert math.isfinite(swing.mean())


# --- its state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 13])
def test_split_it_is_the_whole(at):
    weights, gradients = some()
    whole, optimizer = watched()
    walk(whole, weights[:at], gradients[:at], optimizer)
    state = saved_and_loaded(whole.state_dict())
    again, other = watched()
    again.load_state_dict(state)
    assert len(other._optimizer_step_pre_hooks) == 1
    walk(again, weights[at:], gradients[at:], other)
    walk(whole, weights[at:], gradients[at:], optimizer)
    assert_same(again.state_dict(), whole.state_dict())
    assert again.mean() == whole.mean()


# --- AutoWarmup ----------------------------------------------------------------------------------


class Swinging(Run):
    """Gradients that point back to the average, or on: ``swings`` is the product."""

    def __init__(self, swings, total=300, **settings):
        super().__init__(total=total, **settings)
        self.swings = swings
        self.optimizer.register_step_pre_hook(self.steer)
        # Hooks run in the order of their making: before that of the schedule.

    def steer(self, *_):
        swing = self.schedule._course._swing
        average = swing.state_dict()["average"]
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        ways = [(p, p.detach() - average[i].view_as(p)) for i, p in enumerate(every) if i in average]
        squared = float(sum((way**2).sum() for _, way in ways))
        for p, way in ways:
            p.grad = way * (self.swings / squared) if squared > 0.0 else torch.zeros_like(p)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lamb"}))
def test_weights_that_hardly_swing_let_the_learning_rate_rise(name):
    # The fall from 2.3 to .5 lies behind them: the pace alone would end the warmup.
    run = Swinging(0.05, name=name).end()
    on = run.steps_of(Verdict.RISES_ON)
    warmup = int(0.2 * (300 - run.swept.step))
    quarter = round(warmup / 4)
    assert on[:2] == [run.swept.step + warmup, run.swept.step + warmup + quarter]
    assert run.schedule.peak_lr == pytest.approx(1.5 * run.swept.argmin_lr * 1.5 ** len(on))
    assert not Swinging(0.5, name=name).end().steps_of(Verdict.RISES_ON)


def test_a_loss_that_rises_ends_it_whatever_they_do():
    run = Swinging(-1.0)
    usual = run.loss
    run.loss = lambda: usual() + 0.01 * max(run.t - 45, 0)
    assert not run.end().steps_of(Verdict.RISES_ON)


def test_a_loss_that_rises_for_the_swinging_s_sake_ends_it_too(monkeypatch):
    # The floor is flat, and the swinging little, less than a tenth of 1.8; but more with each step.
    class More(Swinging):
        def loss(self):
            late = 0.008 * min(max(self.t - 55, 0), 10)
            self.swings = 2.0 * late
            return super().loss() + late

    assert not More(0.0).end().steps_of(Verdict.RISES_ON)
    monkeypatch.setattr("autolr_ray.schedule.swept_warmup._RISING", 1.0)
    assert More(0.0).end().steps_of(Verdict.RISES_ON)


def test_little_swinging_asks_for_no_more_than_lamb_s_own_peak():
    run = Swinging(0.0, name="lamb", explodes=math.inf).end()
    assert run.swept.verdict is Verdict.LAYERWISE
    assert not run.steps_of(Verdict.RISES_ON)


def test_swinging_that_is_much_ends_lamb_s_rises_though_the_floor_keeps_its_pace():
    class Later(Swinging):
        def steer(self, *_):
            self.swings = 1.0 if self.t >= since else 0.1  # of a fall of about 1
            super().steer()

    since = math.inf
    run = Later(0.0, total=600, name="lamb", explodes=math.inf, straight=250).end()
    every = run.steps_of(Verdict.RISES_ON)
    assert len(every) == 4  # to .044: the next would be above .05
    since = every[2] - round(0.2 * (600 - run.swept.step) / 8)
    run = Later(0.0, total=600, name="lamb", explodes=math.inf, straight=250).end()
    assert run.steps_of(Verdict.RISES_ON) == every[:2]


class Costly(Swinging):
    """The loss rises at the warmup's end by what the swinging then begins to cost, times ``share``."""

    def __init__(self, share, *, cost, since, total=300):
        super().__init__(0.0, total=total)
        self.share, self.cost, self.since = share, cost, since

    def loss(self):
        late = self.t >= self.since
        self.swings = 2.0 * self.cost if late else 0.0
        return super().loss() + (self.share * self.cost if late else 0.0)


def without_a_floor(monkeypatch):
    monkeypatch.setattr(Swing, "floor", lambda self, losses, fallen: losses)


def test_a_loss_that_rises_for_the_swinging_s_sake_has_not_passed_its_minimum(monkeypatch):
    # It has fallen by 1.8, a quarter of which is more than .4; three times that is not the swinging's.
    assert not Costly(1.0, cost=0.4, since=80).end().steps_of(Verdict.PASSED)
    assert Costly(3.0, cost=0.4, since=80).end().steps_of(Verdict.PASSED)
    assert not Costly(0.0, cost=0.4, since=80).end().steps_of(Verdict.PASSED)
    without_a_floor(monkeypatch)
    assert Costly(1.0, cost=0.4, since=80).end().steps_of(Verdict.PASSED)


@pytest.mark.parametrize("products", [dict.fromkeys(range(80, 110), 0.8), {80: 10.0}], ids=["ends", "one"])
def test_swinging_that_ends_is_no_rise_of_the_loss(products, monkeypatch):
    class Ends(Swinging):
        def loss(self):
            self.swings = products.get(self.t, 0.0)
            return super().loss()

    run = Ends(0.0).end()
    assert not run.steps_of(Verdict.PASSED)
    assert run.schedule._course._floor_pace.risen() > 0.1
    monkeypatch.setattr("autolr_ray.schedule.swept_warmup._OWN", 0.0)
    assert Ends(0.0).end().steps_of(Verdict.PASSED)


class Slowed(Swinging):
    """A loss that would fall in a straight line, but for swinging that costs more and more of it."""

    def __init__(self):
        super().__init__(0.0, straight=200)

    def loss(self):
        late = 0.8 * 1.8 / 200 * max(self.t - 40, 0)
        self.swings = 2.0 * late
        return super().loss() + late


def test_a_floor_that_keeps_its_pace_lets_the_learning_rate_rise(monkeypatch):
    on = Slowed().end().steps_of(Verdict.RISES_ON)
    assert len(on) >= 2
    without_a_floor(monkeypatch)
    assert len(Slowed().end().steps_of(Verdict.RISES_ON)) < len(on)


def test_short_runs_are_not_watched():
    run = Run(total=160)
    while not run.schedule._legs:
        run.step()
    assert not run.schedule._course._swing.watches


def test_when_losses_are_watched_no_longer_nothing_is():
    run = Swinging(0.5).until(149)
    assert run.schedule.phase == "decay"
    assert run.schedule._course._swing.watches
    run.end()
    assert run.schedule.receipts[-1].step == 150
    assert not run.schedule._course._swing.watches
    assert len(run.optimizer._optimizer_step_pre_hooks) == 1


def test_after_an_alarm_nothing_is_watched():
    run = Run(total=300, blows=range(110, 300)).until(140)
    assert run.schedule.rolled_back_to > 0
    assert not run.schedule._course._swing.watches


@pytest.mark.parametrize("blows", [(), range(110, 300)], ids=["reached", "passed"])
def test_split_training_is_the_whole_training(blows):
    # Gradients of the network's own, so that nothing but the schedule remembers.
    at = {*range(0, 190, 11), *range(64, 80)}
    whole = whole_run_that_resumes(lambda: Run(total=300, blows=blows), at)
    assert whole.steps_of(Verdict.RISES_ON)


def test_a_state_from_before_it_was_watched_goes_on():
    other = runs_of_older_state(lambda state: state.pop("swing"), lambda: Run(total=300), 40)[1]
    other.end()
    assert other.schedule.phase == "decay"
    assert not other.steps_of(Verdict.RISES_ON)


def test_nothing_is_watched_where_nothing_is_left_to_decide():
    run = Run(total=300, final_lr=0.5).until(60)
    assert not run.schedule._watching
    assert not run.schedule._course._swing.watches


def test_every_look_of_the_whole_run_is_one_of_the_resumed():
    # The look at a quarter before the warmup's end falls on no test here.
    whole_run_that_resumes(lambda: Run(total=620), {104, 105, 106})


def test_resumed_it_has_the_floor_that_the_whole_has():
    class Steered(Slowed):
        def loss(self):
            loss = super().loss()
            self.swings = 0.0144 * max(self.t - 39, 0)
            return loss

        def until(self, t):
            self.swings = 0.0144 * max(self.t - 40, 0)
            return super().until(t)

    whole = whole_run_that_resumes(Steered, {50, 65, 66, 75, 90, 110})
    assert whole.steps_of(Verdict.RISES_ON)


def test_a_state_from_before_the_floor_goes_on():
    def older(state):
        del state["fallen"], state["floor_pace"], state["swing"]["recent"]

    run = Run(total=300).until(60)
    state, other = copy.deepcopy(run.schedule.state_dict()), Run(total=300)
    older(state)
    other.schedule.load_state_dict(state)
    course = other.schedule._course
    assert course._swing.watches
    assert course._swing.cost() == course._fallen == 0.0
    assert_same(course._floor_pace.state_dict(), course._pace.state_dict())
    other.t, other.rates = 60, list(run.rates)
    assert other.end().schedule.phase == "decay"


def test_two_groups_in_real_training():
    model = small_net(batch_norm=True)
    groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[3].parameters()]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    swing = Swing(optimizer)
    swing.begin(64)
    average, products = None, []
    for step in range(40):
        backward_on_batch(model, step)
        now = torch.cat([p.detach().flatten() for p in model.parameters()])
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        if average is None:
            average = now.clone()
        else:
            products.append(float((now - average) @ gradient))
            average += (now - average) / 8
        optimizer.step()
    assert swing.mean() == pytest.approx(np.mean(products), rel=1e-4)
