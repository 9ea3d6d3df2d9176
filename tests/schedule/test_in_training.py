"""The scheduler among what people train with: AMP, accumulation, compiled steps, other schedulers."""

import copy

import pytest
import torch
from schedule_helpers import assert_same, everything
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, SequentialLR

from autolr_ray.schedule import AutoWarmup
from autolr_ray.schedule.rollback import SnapshotStore


def problem(seed=0):
    """A small network, a batch, and an optimizer with two groups at ratio 1 to 1/10."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    inputs = torch.randn(64, 8)
    targets = (inputs.sum(dim=1) > 0).long()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 0.01},
    ]
    return model, inputs, targets, torch.optim.AdamW(groups)


def loss_of(model, inputs, targets):
    """Cross entropy."""
    return nn.functional.cross_entropy(model(inputs), targets)


class Overflows(torch.amp.GradScaler):
    """A scaler on the CPU whose chosen steps overflow, as on a GPU in half precision."""

    def __init__(self, bad):
        super().__init__("cpu", init_scale=2.0**10, growth_interval=1000)
        self.bad, self.count = bad, 0

    def unscale_(self, optimizer):
        self.count += 1
        if self.count in self.bad:
            optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
        super().unscale_(optimizer)


def test_a_skipped_step_of_mixed_precision():
    """A step that the scaler skips counts as a step: its loss is seen, the weights stay."""
    model, inputs, targets, optimizer = problem()
    schedule = AutoWarmup(optimizer, 100, model=model, warmup="exponential")
    scaler = Overflows(bad={3})
    for step in range(1, 101):
        before = copy.deepcopy(model[0].weight.data)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, inputs, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        schedule.step(loss)
        assert torch.equal(before, model[0].weight.data) == (step == 3)
    assert schedule.get_last_lr() == [0.0, 0.0]
    assert schedule.switch_step is not None


def test_the_scaler_is_rolled_back_with_the_model():
    model, inputs, targets, optimizer = problem()
    scaler = Overflows(bad=set(range(30, 60)))
    schedule = AutoWarmup(optimizer, 100, model=model, scaler=scaler, warmup="exponential")
    scales = {0: scaler.get_scale()}
    for step in range(1, 100):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        # The loss falls, then blows up with the scale.
        schedule.step(loss.item() if step < 30 else 50.0)
        if schedule.switch_step is not None:
            break
        scales[step] = scaler.get_scale()
    assert schedule.rolled_back_to is not None
    assert scales[schedule.rolled_back_to] > min(scales.values())
    assert scaler.get_scale() == scales[schedule.rolled_back_to]


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_is_one_step_an_optimizer_step(accumulation):
    """Micro-batches with the mean of their losses give the whole batch's decisions."""
    results = []
    for parts in (1, accumulation):
        model, inputs, targets, _ = problem()
        del model[1]  # statistics over micro-batches are other statistics
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = AutoWarmup(optimizer, 200, model=model)
        for _ in range(200):
            optimizer.zero_grad()
            total = 0.0
            chunks = zip(inputs.double().chunk(parts), targets.chunk(parts), strict=True)
            for x, y in chunks:
                loss = loss_of(model, x, y) / parts
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step(total)
        results.append((schedule.switch_step, [r.verdict for r in schedule.receipts], schedule.peak_lr))
    assert results[0][:2] == results[1][:2]
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-9)


def test_groups_keep_their_ratio_through_a_whole_run():
    model, inputs, targets, optimizer = problem()
    schedule = AutoWarmup(optimizer, 60, model=model)
    for _ in range(60):
        high, low = schedule.get_last_lr()
        assert low == pytest.approx(high / 10)
        assert [group["lr"] for group in optimizer.param_groups] == [high, low]
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        optimizer.step()
        schedule.step(loss)


def test_a_compiled_step_follows_the_tensor_rate():
    """With a tensor learning rate a compiled optimizer step is compiled once and follows every change."""
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(4))
        optimizer = torch.optim.SGD([parameter], lr=torch.tensor(1.0))
        schedule = AutoWarmup(optimizer, 40, min_lr=1e-3)
        graphs = []

        def backend(graph, example, graphs=graphs):
            graphs.append(graph)
            return graph.forward

        step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for _ in range(40):
            optimizer.zero_grad()
            loss = (parameter**2).sum()
            loss.backward()
            step()
            schedule.step(loss)
        weights.append(parameter.detach().clone())
        if compiled:
            assert len(graphs) >= 1
            assert len(graphs) <= 2
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-6)


def test_schedulers_that_step_without_a_loss_are_refused():
    """The loss is what the schedule lives on: a step without one is an error, not a guess."""
    _, _, _, optimizer = problem()
    ours, other = AutoWarmup(optimizer, 10), ConstantLR(optimizer)
    chained = ChainedScheduler([ours, other])
    with pytest.raises(TypeError, match="loss"):
        chained.step()
    with pytest.raises(TypeError, match="loss"):
        SequentialLR(optimizer, [ours, other], milestones=[5])


def test_a_loop_in_the_style_of_lightning():
    """Configured in one place, stepped by a trainer that knows only the scheduler's public names."""
    model, inputs, targets, optimizer = problem()
    config = {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": AutoWarmup(optimizer, 50, model=model), "interval": "step"},
    }
    schedule = config["lr_scheduler"]["scheduler"]
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    assert schedule.optimizer is optimizer
    for number in range(50):
        assert schedule.last_epoch == number
        optimizer.zero_grad()
        loss = loss_of(model, inputs, targets)
        loss.backward()
        optimizer.step()
        schedule.step(loss)  # lr_scheduler_step(scheduler, metric) hands the metric over
        if number == 20:
            model_state, optimizer_state = model.state_dict(), optimizer.state_dict()
            schedule.load_state_dict(copy.deepcopy(schedule.state_dict()))
            optimizer.load_state_dict(optimizer_state)
            model.load_state_dict(model_state)
    assert schedule.get_last_lr() == [0.0, 0.0]


@pytest.mark.gpu
def test_no_synchronisation_between_tests():
    """On a GPU a step between two looks must not wait for the device."""
    parameter = nn.Parameter(torch.zeros(1, device="cuda"))
    schedule = AutoWarmup(torch.optim.SGD([parameter], lr=1.0), 12_800)
    loss = torch.ones((), device="cuda")
    for step in range(1, 301):
        looks = step % 100 == 0
        torch.cuda.set_sync_debug_mode("default" if looks else "error")
        try:
            schedule.step(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(schedule.receipts) == 3


def train_on_gpu(graphed):
    """40 steps of AdamW on a GPU, eager or as a replayed graph; the rates, the weights, where it turned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).cuda()
    inputs = torch.randn(64, 8, device="cuda")
    targets = (inputs.sum(dim=1) > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1.0, device="cuda"), capturable=True)
    schedule = AutoWarmup(optimizer, 80, model=model)

    def train():
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model, inputs, targets)
        loss.backward()
        optimizer.step()
        return loss

    start = {name: value.clone() for name, value in model.state_dict().items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    model.load_state_dict(start)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    if graphed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static_loss = train()
    rates = []
    for step in range(80):
        rates.append(schedule.get_last_lr()[0])
        if graphed:
            graph.replay()
        loss = static_loss if graphed else train()
        # The loss is made to blow up half-way through the warmup.
        schedule.step(loss.detach() + (100.0 if 20 <= step < 40 else 0.0))
    return rates, [parameter.detach().cpu() for parameter in model.parameters()], schedule


@pytest.mark.gpu
def test_a_replayed_graph_follows_the_rate_and_the_rollback():
    """A graph holds on to the tensors it was captured with: rate and weights are changed in place."""
    rates, weights, schedule = train_on_gpu(graphed=False)
    graph_rates, graph_weights, graph_schedule = train_on_gpu(graphed=True)
    assert schedule.rolled_back_to is not None
    assert graph_schedule.rolled_back_to == schedule.rolled_back_to
    assert graph_rates == pytest.approx(rates, rel=1e-4)
    for a, b in zip(weights, graph_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize("fused", [False, True])
def test_snapshots_on_a_gpu_do_not_wait_and_come_back_whole(place, fused):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 2)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    inputs = torch.randn(64, 64, device="cuda")
    targets = (inputs.sum(dim=1) > 0).long()

    def train():
        optimizer.zero_grad()
        loss_of(model, inputs, targets).backward()
        optimizer.step()

    train()
    store = SnapshotStore(model, optimizer, place=place)
    store.take(1, 0.0)  # the first may allocate pinned memory
    train()
    kept = everything(model, optimizer)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        store.take(2, 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for _ in range(3):
        train()
    assert store.restore(2.0) == 2
    assert_same(everything(model, optimizer), kept)
    held = store._snapshots[2]["model"].values()
    assert {value.device.type for value in held} == {"cpu" if place == "host" else "cuda"}
    assert all(value.is_pinned() for value in held if value.device.type == "cpu")
