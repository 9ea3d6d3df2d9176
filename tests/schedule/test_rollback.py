"""Snapshots: which are kept, which is put back, and that it is put back bit for bit and in place."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_helpers import (
    OPTIMIZERS,
    assert_same,
    backward_on_batch,
    everything,
    saved_and_loaded,
    small_net,
)
from torch import nn

from autolr_ray.schedule import AutoWarmup
from autolr_ray.schedule.rollback import SnapshotStore


def trained(name="adamw", batch_norm=True, steps=0):
    model = small_net(batch_norm)
    optimizer = OPTIMIZERS[name](model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for step in range(steps):
        backward_on_batch(model, step)
        optimizer.step()
    return model, optimizer


def go_on(model, optimizer, steps, first=100):
    for step in range(first, first + steps):
        backward_on_batch(model, step)
        optimizer.step()


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [1, 3])
def test_everything_is_put_back_and_training_repeats_itself(name, batch_norm, before):
    model, optimizer = trained(name, batch_norm, steps=before)
    store = SnapshotStore(model, optimizer)
    store.take(before, 0.0)
    kept = everything(model, optimizer)
    go_on(model, optimizer, 4)
    after = everything(model, optimizer)
    assert any(not torch.equal(kept[key], after[key]) for key in kept if key.startswith("model."))
    assert store.restore(before) == before
    assert_same(everything(model, optimizer), kept)
    go_on(model, optimizer, 4)
    assert_same(everything(model, optimizer), after)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch_norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_snapshot_from_before_the_optimizers_first_step(name, batch_norm):
    """Mixed precision skips first steps: the optimizer has no state yet, nor the counter in its group."""
    model, optimizer = trained(name, batch_norm)
    store = SnapshotStore(model, optimizer)
    store.take(1, 0.0)
    kept = everything(model, optimizer)
    go_on(model, optimizer, 3)
    after = everything(model, optimizer)
    store.restore(1)
    assert_same(everything(model, optimizer), kept)
    go_on(model, optimizer, 3)
    assert_same(everything(model, optimizer), after)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tensors_stay_where_they_are(name):
    model, optimizer = trained(name, steps=2)
    store = SnapshotStore(model, optimizer)
    store.take(2, 0.0)
    go_on(model, optimizer, 1)

    def pointers():
        tensors = [*model.parameters(), *model.buffers()]
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return [tensor.data_ptr() for tensor in tensors]

    before = pointers()
    store.restore(2)
    assert pointers() == before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_that_is_gone_comes_back(name):
    model, optimizer = trained(name, steps=2)
    store = SnapshotStore(model, optimizer)
    store.take(2, 0.0)
    kept = everything(model, optimizer)
    for _ in range(2):
        optimizer.state.clear()
        store.restore(2)
        assert_same(everything(model, optimizer), kept)
        go_on(model, optimizer, 1)  # must not reach into the snapshot


def test_learning_rates_are_left_alone_and_other_group_values_are_not():
    model, optimizer = trained("sgd_momentum", steps=1)
    store = SnapshotStore(model, optimizer)
    store.take(1, 0.0)
    optimizer.param_groups[0].update(lr=0.5, initial_lr=0.7, momentum=0.1)
    store.restore(1)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["momentum"]) == (0.5, 0.7, 0.9)


def test_buffers_that_checkpoints_leave_out_and_frozen_and_tied_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model.register_buffer("counter", torch.zeros(3), persistent=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    store = SnapshotStore(model, optimizer)
    store.take(1, 0.0)
    kept = everything(model, optimizer)
    with torch.no_grad():
        model.counter.add_(1.0)
        model[0].bias.add_(1.0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    store.restore(1)
    assert_same(everything(model, optimizer), kept)
    assert model[1].weight is model[0].weight


def test_a_snapshot_is_a_copy_and_can_be_put_back_twice():
    model, optimizer = trained(steps=2)
    store = SnapshotStore(model, optimizer)
    store.take(2, 0.0)
    kept = everything(model, optimizer)
    for _ in range(2):
        go_on(model, optimizer, 2)
        store.restore(2)
        assert_same(everything(model, optimizer), kept)


def filled(takes):
    """A store over a one-number model whose value tells the step."""
    model = nn.Linear(1, 1, bias=False)
    store = SnapshotStore(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for step, argmin in takes:
        nn.init.constant_(model.weight, float(step))
        store.take(step, argmin)
    return store, model


def test_while_the_loss_falls_only_the_newest_two_are_left():
    takes = [(step, step - 1.0) for step in range(1, 9)]
    store, _ = filled(takes)
    assert store.steps == [7, 8]


def test_both_sides_of_a_minimum_that_is_passed_are_kept():
    store, _ = filled([(5, 4.0), (10, 9.0), (15, 12.0), (20, 12.0), (25, 12.5), (30, 12.0)])
    assert store.steps == [10, 15, 20, 25, 30]


@pytest.mark.parametrize(("argmin", "expected"), [(20.0, [10, 14, 20, 25, 40]), (12.5, [10, 12, 20, 25, 40])])
def test_room_is_made_evenly_never_at_the_minimum_nor_the_ends(argmin, expected):
    """Six for five places: 12 has the closest neighbours, 10 and 14; where it is the nearest, 14 has."""
    store, _ = filled([])
    for step in (10, 12, 14, 20, 25):
        store.take(step, step - 0.5, 10.0)
    store.take(40, argmin, 10.0)
    assert store.steps == expected


def test_steps_that_may_be_the_minimum_are_covered():
    """Along a flat bottom the estimate goes back: a snapshot near it must be there still."""
    store, _ = filled([])
    for step in range(5, 105, 5):
        store.take(step, step - 1.0, 30.0)
    steps = store.steps
    assert steps[0] == 30
    assert steps[-1] == 100
    assert len(steps) == 5
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 40


def test_a_snapshot_at_the_minimum_is_before_it():
    store, _ = filled([(5, 4.0), (10, 10.0), (15, 10.0), (20, 10.0)])
    assert store.steps == [10, 15, 20]


@pytest.mark.parametrize(
    ("argmin", "expected"), [(0.0, 10), (12.4, 10), (12.5, 10), (12.6, 15), (22.5, 15), (29.0, 30)]
)
def test_the_nearest_is_put_back_the_earlier_of_two(argmin, expected):
    store, model = filled([(5, 4.0), (10, 9.0), (15, 12.0), (30, 12.0)])
    assert store.steps == [10, 15, 30]
    assert store.restore(argmin) == expected
    assert model.weight.item() == expected
    assert store.steps == [10, 15, 30]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=25))
def test_property_at_most_five_and_always_the_newest(shares):
    takes = [(3 * (i + 1), share * 3 * (i + 1)) for i, share in enumerate(shares)]
    store, model = filled(takes)
    assert len(store.steps) <= 5
    assert store.steps[-1] == takes[-1][0]
    step = store.restore(takes[-1][1])
    assert step in store.steps
    assert model.weight.item() == step


@settings(max_examples=60, deadline=None)
@given(every=st.integers(1, 5), number=st.integers(1, 25), lowest=st.floats(0.0, 60.0))
def test_property_a_minimum_that_is_seen_at_once_gets_the_nearest_snapshot_of_all(every, number, lowest):
    takes = [(every * (i + 1), min(lowest, every * (i + 1) - 1.0)) for i in range(number)]
    store, _ = filled(takes)
    final = takes[-1][1]
    assert store.restore(final) == min(
        (step for step, _ in takes), key=lambda step: (abs(step - final), step)
    )


def test_nothing_to_put_back():
    store, model = filled([])
    value = model.weight.item()
    assert store.restore(3.0) is None
    assert model.weight.item() == value
    store.take(1, 0.0)
    store.clear()
    assert store.steps == []
    assert store.restore(1.0) is None


@pytest.mark.parametrize("place", ["host", "device"])
def test_memory_of_snapshots(place):
    """AdamW: parameters and two moments of each, a counter each, batch norm's two statistics and counter."""
    model, optimizer = trained("adamw", steps=2)
    store = SnapshotStore(model, optimizer, place=place)
    assert store.nbytes == 0
    store.take(2, 0.0)
    parameters = list(model.parameters())
    floats = 3 * sum(p.numel() for p in parameters) + len(parameters) + 2 * 4
    assert store.nbytes == 4 * floats + 8
    store.take(3, 2.0)
    assert store.nbytes == 2 * (4 * floats + 8)
    store.clear()
    assert store.nbytes == 0


def test_a_scaler_goes_back_with_the_rest():
    model, optimizer = trained("adamw", steps=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # its scale is made at the first use
    store = SnapshotStore(model, optimizer, scaler=scaler)
    store.take(2, 0.0)
    scaler.update(new_scale=2.0)
    store.restore(2)
    assert scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_names_are_those_of_the_users_own_module(wrap):
    """A run that goes on with another number of workers has its model wrapped, or no longer."""
    model, optimizer = trained("adamw", steps=1)
    store = SnapshotStore(wrap(model), optimizer)
    store.take(1, 0.0)
    state = saved_and_loaded(store.state_dict())
    kept = everything(model, optimizer)
    go_on(model, optimizer, 2)
    other = SnapshotStore(model, optimizer)
    other.load_state_dict(state)
    other.restore(1)
    assert_same(everything(model, optimizer), kept)


def test_snapshots_of_another_model_are_refused_and_nothing_changed():
    model, optimizer = trained("adamw", batch_norm=True, steps=1)
    schedule = AutoWarmup(optimizer, 20, model=model)
    schedule.step(1.0)
    state = saved_and_loaded(schedule.state_dict())
    other_model, other_optimizer = trained("adamw", batch_norm=False, steps=1)
    other = AutoWarmup(other_optimizer, 20, model=other_model)
    before = saved_and_loaded(other.state_dict())
    with pytest.raises(
        ValueError, match=r"state_dict: its snapshots are of another model; \d+ tensors differ"
    ):
        other.load_state_dict(state)
    assert_same(other.state_dict(), before)


def test_no_rollback_keeps_nothing():
    """With ``rollback=False`` the model is never read and the looks are the tests alone."""
    model, optimizer = trained("adamw")
    whole = AutoWarmup(optimizer, 2000, model=model)
    none = AutoWarmup(optimizer, 2000, model=model, rollback=False)
    without = AutoWarmup(optimizer, 2000)
    assert whole._snapshots is not None
    assert none._snapshots is None
    assert none.state_dict()["snapshots"] is None
    assert none._settings() == without._settings()
    looks = [0]
    while looks[-1] < none.warmup_steps:
        looks.append(none._course.next_look(looks[-1]))
    assert len(looks) == 1 + len(range(0, 1000, 1000 // 64))


@pytest.mark.parametrize("from_before", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_round_trip(name, from_before):
    """States from before snapshots were packed hold every tensor by itself, in the same nest."""
    model, optimizer = trained(name, steps=3)
    store = SnapshotStore(model, optimizer)
    store.take(3, 1.0)
    kept = everything(model, optimizer)
    state = store.state_dict()
    if from_before:
        state = {"snapshots": {step: snapshot.nested() for step, snapshot in store._snapshots.items()}}
    state = saved_and_loaded(state)
    go_on(model, optimizer, 2)
    fresh = SnapshotStore(model, optimizer)
    fresh.load_state_dict(state)
    assert fresh.steps == [3]
    fresh.restore(3)
    assert_same(everything(model, optimizer), kept)
    assert_same(fresh.state_dict(), store.state_dict())


def test_histories_that_an_optimizer_keeps_in_lists_are_copied_and_put_back():
    """As L-BFGS does: the snapshot's own must not change with what is put back."""
    model, optimizer = trained("sgd_momentum", steps=1)
    state = optimizer.state[next(iter(model.parameters()))]
    state["history"], state["nested"] = [torch.ones(2), None], {"a": torch.zeros(3)}
    store = SnapshotStore(model, optimizer)
    store.take(1, 0.0)
    for _ in range(2):
        state["history"][0].add_(1.0)
        state["history"].append(torch.ones(1))
        state["nested"]["a"].add_(1.0)
        store.restore(1)
        assert_same(state["history"], [torch.ones(2), None])
        assert_same(state["nested"], {"a": torch.zeros(3)})


def test_a_snapshot_has_a_block_for_each_type_however_many_tensors_the_model_has():
    """Numbers of each type together: what a checkpoint takes to write is theirs, not their names'."""
    model, optimizer = trained("adamw", batch_norm=True, steps=2)
    assert len([*model.parameters(), *model.buffers()]) > 5
    store = SnapshotStore(model, optimizer)
    for step in (1, 2):
        store.take(step, 1.0)
    for snapshot in store.state_dict()["snapshots"].values():
        assert sorted(str(block.dtype) for block in snapshot["blocks"]) == ["torch.float32", "torch.int64"]
