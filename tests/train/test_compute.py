"""How steps are computed: number and memory formats, compilation, micro-batches that fit."""

import math

import pytest
import torch
import train_helpers as helpers
from torch import nn
from train_helpers import AUTO, LINEAR, SpyContext, assert_same, result, spec_of

from autolr_ray.schedule import DivergenceError
from autolr_ray.tasks import Task
from autolr_ray.train import run
from autolr_ray.train.batches import TrainBatches
from autolr_ray.train.compute import Compute
from autolr_ray.train.micro_batch import find_accumulation_steps, rehearse

CPU = torch.device("cpu")


def images(inputs):
    """Rows of 12 as images of one channel, 3 x 4."""
    return helpers.scale(inputs).view(-1, 1, 3, 4)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


conv = Task(name="conv", data=helpers.tensors, model=convolutional, transform=images)


@pytest.fixture(autouse=True)
def _tasks(monkeypatch):
    monkeypatch.setattr(helpers, "conv", conv, raising=False)


def trained(tmp_path, name="conv", **changes):
    settings = {"epochs": 4, "schedule": LINEAR} | changes
    return helpers.train(spec_of(name, **settings), tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("schedule", [LINEAR, AUTO], ids=["linear", "auto"])
def test_lower_precision_trains_nearly_the_same_and_resumes_exactly(precision, schedule, tmp_path):
    full, _ = trained(tmp_path / "full", schedule=schedule)
    compute = {"precision": precision}
    low, state = trained(tmp_path / "low", schedule=schedule, compute=compute)
    assert low.cell != full.cell
    assert low.trace.loss[0] != full.trace.loss[0]
    assert low.trace.loss[0] == pytest.approx(full.trace.loss[0], rel=0.02)
    assert low.test_accuracy == pytest.approx(full.test_accuracy, abs=0.15)
    assert {value.dtype for value in state["model"].values()} == {torch.float32, torch.int64}
    assert bool(state["scaler"]) is (precision == "float16")
    spec = spec_of("conv", epochs=4, schedule=schedule, compute=compute)
    cut, cut_state = helpers.train_with_cuts(spec, tmp_path / "cut", "after")
    assert result(cut) == result(low)
    assert_same(cut_state, state)


def test_an_overflow_in_float16_skips_the_step(monkeypatch, tmp_path):
    """The scaler starts high: the first gradients overflow, the weights stay, the scale is halved."""
    build = Compute.scaler

    def high(self, device):
        scaler = build(self, device)
        scaler._init_scale = 2.0**40
        return scaler

    monkeypatch.setattr(Compute, "scaler", high)
    record, state = trained(tmp_path, compute={"precision": "float16"}, epochs=2)
    assert state["scaler"]["scale"] < 2.0**40
    assert all(math.isfinite(loss) for loss in record.trace.loss)
    assert record.trace.loss[0] != record.trace.loss[-1]


def test_channels_last_changes_the_memory_not_the_result(tmp_path):
    plain, _ = trained(tmp_path / "1")
    last, _ = trained(tmp_path / "2", compute={"channels_last": True})
    assert last.trace.loss == pytest.approx(plain.trace.loss, rel=1e-3)
    seen = []
    network = Compute(channels_last=True).prepare(convolutional(), CPU)
    network[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(Compute(channels_last=True).inputs(torch.randn(4, 1, 3, 4)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    rows = torch.randn(4, 12)
    assert Compute(channels_last=True).inputs(rows) is rows


def test_compile_computes_the_same(monkeypatch, tmp_path):
    plain, _ = trained(tmp_path / "1")
    compiled = []
    compile_ = torch.compile

    def eager(model):
        compiled.append(model)
        return compile_(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    record, state = trained(tmp_path / "2", compute={"compile": True})
    assert len(compiled) == 1
    assert record.trace.loss == pytest.approx(plain.trace.loss, rel=1e-4)
    assert not any(key.startswith("_orig_mod") for key in state["model"])


def test_synchronised_batch_norm_needs_gpus(tmp_path):
    with pytest.raises(ValueError, match=r"compute.sync_batch_norm: True is not allowed on cpu"):
        trained(tmp_path, compute={"sync_batch_norm": True})


@pytest.mark.gpu
def test_synchronised_batch_norm_on_a_gpu():
    network = Compute(sync_batch_norm=True).prepare(convolutional(), torch.device("cuda"))
    assert isinstance(network[1], nn.SyncBatchNorm)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_on_a_gpu(precision, tmp_path):
    context = SpyContext(tmp_path)
    context.device = torch.device("cuda")
    spec = spec_of("conv", epochs=4, compute={"precision": precision, "channels_last": True})
    record = run(spec, context)
    assert record.train_loss < record.epoch_rows[0].train_loss


# --- micro-batches ---


@pytest.mark.parametrize(
    ("share", "room", "parts"), [(64, 64, 1), (64, 63, 2), (64, 1, 64), (48, 20, 3), (7, 6, 7), (1, 1, 1)]
)
def test_the_fewest_parts_that_fit(share, room, parts):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert find_accumulation_steps(share, attempt) == parts
    assert tried == sorted(tried, reverse=True)


def test_not_even_one_fits():
    def attempt(size):
        raise torch.OutOfMemoryError

    with pytest.raises(ValueError, match=r"accumulation_steps: 'auto' .* not even one example"):
        find_accumulation_steps(8, attempt)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def attempt(size):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        find_accumulation_steps(8, attempt)


def test_a_rehearsal_leaves_no_trace():
    network = convolutional()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rehearse(network, lambda: network(torch.randn(8, 1, 3, 4)).sum())
    assert_same(dict(network.state_dict()), before)
    assert all(parameter.grad is None for parameter in network.parameters())


class Small(nn.Module):
    """Runs out of memory with more than ``room`` examples at a time."""

    room = 3

    def __init__(self):
        super().__init__()
        self.inner = helpers.simple_network()

    def forward(self, inputs):
        if self.training and len(inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(inputs)


def test_auto_finds_what_fits_and_computes_the_same(monkeypatch, tmp_path):
    small = Task(name="simple", data=helpers.tensors, model=Small, transform=helpers.scale64)
    monkeypatch.setattr(helpers, "small", small, raising=False)
    record, state = trained(tmp_path / "auto", "small", accumulation_steps="auto")
    assert state["accumulation_steps"] == 4  # of 8 examples 2 at a time, since 3 divides no batch of 8
    given, given_state = trained(tmp_path / "given", "small", accumulation_steps=4)
    assert record.trace == given.trace
    assert_same(state["model"], given_state["model"])
    whole, _ = trained(tmp_path / "whole", "simple")
    assert record.trace.loss == pytest.approx(whole.trace.loss, rel=1e-5)


def test_auto_keeps_what_it_found_when_it_goes_on(monkeypatch, tmp_path):
    small = Task(name="simple", data=helpers.tensors, model=Small, transform=helpers.scale64)
    monkeypatch.setattr(helpers, "small", small, raising=False)
    spec = spec_of("small", epochs=4, schedule=LINEAR, accumulation_steps="auto")

    def cut(epoch, when):
        if (epoch, when) == (2, "after"):
            raise helpers.Cut

    with pytest.raises(helpers.Cut):
        run(spec, SpyContext(tmp_path, cut))
    monkeypatch.setattr(Small, "room", 1000)  # the next life has more room
    record, state = helpers.train(spec, tmp_path)
    assert state["accumulation_steps"] == 4
    assert record.restarts == 1


# --- workers that come and go ---


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 6])
def test_micro_batches_are_shared_out_whole(workers):
    spec = spec_of(batch_size=24, workers=3, accumulation_steps=2)
    examples = helpers.examples("train")
    parts = [TrainBatches(examples, spec, rank, CPU, world_size=workers) for rank in range(workers)]
    shares = [part.indices(1) for part in parts]
    assert torch.equal(
        torch.cat([share.flatten(1) for share in shares], dim=1),
        TrainBatches(examples, spec_of(batch_size=24), 0, CPU).indices(1).flatten(1),
    )
    counts = [share.shape[1] for share in shares]
    assert sum(counts) == 6
    assert max(counts) - min(counts) <= 1


def test_more_workers_than_micro_batches_are_refused():
    spec = spec_of(workers=2)
    with pytest.raises(ValueError, match=r"workers: 3 run, but a batch has 2 micro-batches"):
        TrainBatches(helpers.examples("train"), spec, 0, CPU, world_size=3)


# --- losses that are not finite ---

LOST = {"optimizer": {"name": "sgd_nesterov"}, "schedule": LINEAR | {"peak_lr": 1e30}}


def test_a_lost_run_ends_as_asked(tmp_path):
    record, _ = trained(tmp_path / "1", "simple", **LOST)
    assert not math.isfinite(record.train_loss)
    first = next(i for i, loss in enumerate(record.trace.loss) if not math.isfinite(loss))
    with pytest.raises(
        DivergenceError, match=rf"loss: not finite since step {first} .* epoch 2; on_non_finite"
    ):
        trained(tmp_path / "2", "simple", on_non_finite="raise", **LOST)


def test_a_warmup_that_blows_up_is_rolled_back_not_refused(tmp_path):
    schedule = AUTO | {"max_lr": 1e30, "min_lr": 1e-3}
    record, _ = trained(
        tmp_path,
        "simple",
        schedule=schedule,
        epochs=8,
        optimizer={"name": "sgd_nesterov"},
        on_non_finite="raise",
    )
    assert record.rolled_back_to >= 0
    assert math.isfinite(record.train_loss)
