"""Two real processes with different losses: one decision, the same learning rates."""

import dataclasses
import datetime
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from schedule_helpers import (
    OPTIMIZERS,
    assert_same,
    backward_on_batch,
    dummy_optimizer,
    everything,
    saved_and_loaded,
    small_net,
    valley,
)

from autolr_ray.schedule import AutoWarmup, PaperRule, Verdict
from autolr_ray.schedule.pending import PendingLosses
from autolr_ray.schedule.swing import Swing

TOTAL = 80
RANKS = 2


def losses_of(rank, case="valley"):
    """Each rank's own losses: neither is the valley, their mean is."""
    own = np.random.default_rng(7).normal(0.0, 0.4, TOTAL // 2) * (1 if rank else -1)
    curve = np.array(valley(TOTAL // 2, lowest=0.5)) + own
    if case == "nan_on_one" and rank == 1:
        curve[:] = np.nan
    if case == "holes" and rank == 1:
        curve[3::7] = np.nan
    return [*curve.tolist(), *[1.0] * (TOTAL // 2)]


class Contrary(PaperRule):
    """On rank 1 it sees a passed minimum at once."""

    def test(self):
        evidence = super().test()
        return dataclasses.replace(evidence, positive=True, argmin=0.0) if dist.get_rank() else evidence


def make(**settings):
    arguments = {"steps_per_epoch": 4, "rule": "paper"} | settings
    return AutoWarmup(dummy_optimizer(1.0, 0.5), TOTAL, **arguments)


def run(scheduler, losses):
    rates = [scheduler.get_last_lr()]
    for loss in losses:
        scheduler.step(loss)
        rates.append(scheduler.get_last_lr())
    return {
        "rates": rates,
        "receipts": [receipt.to_vector() for receipt in scheduler.receipts],
        "verdict": scheduler.receipts[-1].verdict.name,
        "switch_step": scheduler.switch_step,
        "peak_lr": scheduler.peak_lr,
    }


def train(rank, batch_norm=True):
    """Each rank with its own weights: what is shared is the decision, not the snapshot."""
    model = small_net(batch_norm, seed=rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = AutoWarmup(optimizer, TOTAL, steps_per_epoch=4, model=model, rule="paper", max_lr=0.1)
    past = {}
    losses = losses_of(rank)
    step = 0
    while scheduler.phase == "warmup":
        backward_on_batch(model, 1000 * rank + step)
        optimizer.step()
        past[step + 1] = everything(model, optimizer)
        scheduler.step(torch.tensor(losses[step]))
        step += 1
    assert_same(everything(model, optimizer), past[scheduler.rolled_back_to])
    return {
        "rolled_back_to": scheduler.rolled_back_to,
        "receipts": [r.to_vector() for r in scheduler.receipts],
    }


def swept_losses(rank, total, straight=False):
    """A sweep that explodes in the seventh step, a fall, a blow-up; on each rank with its own noise.

    ``straight``: the fall is a straight line, and nothing blows up.
    """
    own = np.random.default_rng(3).normal(0.0, 0.1, total) * (1 if rank else -1)
    fall = 0.5 + 1.8 * np.exp(-np.arange(total - 7) / 6.0)
    fall[18:] = 9.0
    if straight:
        fall = np.maximum(2.3 - 0.1 * np.arange(total - 7), 0.5)
    return (np.array([2.3, 2.3, 2.3, 2.2, 1.9, 1.3, 40.0, *fall]) + own).tolist()


def sweep(rank, optimizers=(OPTIMIZERS["adamw"],) * RANKS, total=TOTAL, **losses):
    """A linear warmup of each rank's own weights."""
    model = small_net(True, seed=rank)
    optimizer = optimizers[rank](model.parameters())
    scheduler = AutoWarmup(optimizer, total, model=model)
    past, rates, found = {}, [], None
    for step, loss in enumerate(swept_losses(rank, total, **losses)):
        rates.append(scheduler.get_last_lr())
        backward_on_batch(model, 1000 * rank + step)
        optimizer.step()
        past[step + 1] = everything(model, optimizer)
        scheduler.step(loss)
        if found is None and scheduler.receipts and scheduler.receipts[-1].verdict is Verdict.PASSED:
            found = scheduler.rolled_back_to
            assert_same(everything(model, optimizer), past[found])
    return {
        "rates": rates, "receipts": [r.to_vector() for r in scheduler.receipts], "rolled_back_to": found,
        "verdicts": [r.verdict.name for r in scheduler.receipts],
    }  # fmt: skip


def swing(rank):
    """A warmup long enough for gradients to be asked: yes, then no; on rank 1 always no."""
    answers = iter([rank == 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Swing, "is_little", lambda *_: next(answers, False))
        patch.setattr(Swing, "floor", lambda self, losses, fallen: losses)
        # The line has ended long before the warmup does: the pace asks for nothing.
        return sweep(rank, straight=True, total=300)


def count_collectives(rank):
    calls = []
    originals = dist.all_reduce, dist.broadcast
    dist.all_reduce = lambda *a, **k: calls.append("all_reduce") or originals[0](*a, **k)
    dist.broadcast = lambda *a, **k: calls.append("broadcast") or originals[1](*a, **k)
    try:
        scheduler = make()
        run(scheduler, losses_of(rank))
    finally:
        dist.all_reduce, dist.broadcast = originals
    return {"calls": calls, "looks": len(scheduler.receipts)}


def resume(rank):
    """Every rank stops in the middle of an epoch and goes on from its own state."""
    first = make()
    losses = losses_of(rank)
    for loss in losses[:10]:
        first.step(loss)
    second = make()
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    return run(second, losses[10:])


def drained(rank):
    pending = PendingLosses()
    for loss in (1.0 + rank, 4.0 * rank, torch.tensor(2.5)):
        pending.add(loss, capacity=3)
    return {"losses": torch.from_numpy(pending.drain(distributed=True)), "left": len(pending)}


def work(rank, folder):
    torch.set_num_threads(1)
    # Ranks that disagree would wait for each other: fail instead.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {
        "paper": run(make(), losses_of(rank)),
        "robust": run(make(rule="robust"), losses_of(rank)),
        "explicit": run(make(distributed=True), losses_of(rank)),
        "fallback": run(make(steps_per_epoch=10**6), losses_of(rank)),
        "holes": run(make(), losses_of(rank, "holes")),
        "nan_on_one": run(make(), losses_of(rank, "nan_on_one")),
        "contrary": run(make(rule=Contrary()), losses_of(rank)),
        "alone": run(make(distributed=False), losses_of(rank)),
        "resume": resume(rank),
        "train": train(rank),
        "sweep": sweep(rank),
        "rises": sweep(rank, straight=True),
        "swing": swing(rank),
        "layers": sweep(rank, (OPTIMIZERS["lamb"], OPTIMIZERS["adamw"])),
        "collectives": count_collectives(rank),
        "drained": drained(rank),
    }
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes saw, [rank][case]."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        # A spawned process finds this module and the package as this one does.
        paths = [
            str(Path(__file__).parent),
            str(Path(__file__).resolve().parents[2]),
            os.environ.get("PYTHONPATH", ""),
        ]
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


CASES = ["paper", "robust", "explicit", "fallback", "holes", "nan_on_one", "contrary", "resume"]


@pytest.mark.parametrize("case", CASES)
def test_ranks_with_different_losses_agree_at_every_step(ranks, case):
    assert losses_of(0) != losses_of(1)
    assert_same(ranks[0][case], ranks[1][case])
    assert ranks[0][case]["rates"][-1] == [0.0, 0.0]
    assert len(ranks[0][case]["receipts"]) >= 1


@pytest.mark.parametrize(("case", "settings"), [("paper", {}), ("robust", {"rule": "robust"}), ("holes", {})])
def test_ranks_decide_as_one_process_with_the_mean_loss(ranks, case, settings):
    mean = np.mean([losses_of(rank, case) for rank in range(RANKS)], axis=0)
    assert_same(ranks[0][case], run(make(**settings), mean.tolist()))


def test_cases_end_as_they_should(ranks):
    assert ranks[0]["paper"]["verdict"] == Verdict.PASSED.name
    assert ranks[0]["fallback"]["verdict"] == Verdict.EXHAUSTED.name
    assert ranks[0]["nan_on_one"]["verdict"] == Verdict.NO_EVIDENCE.name
    assert_same(ranks[0]["explicit"], ranks[0]["paper"])
    # From the middle on, a resumed run is the run that was not stopped.
    assert ranks[0]["resume"]["rates"] == ranks[0]["paper"]["rates"][10:]
    assert_same(ranks[0]["resume"]["receipts"], ranks[0]["paper"]["receipts"])


def test_rank_zero_decides(ranks):
    assert_same(ranks[1]["contrary"], ranks[0]["paper"])


def test_without_sharing_each_rank_goes_its_own_way(ranks):
    first, second = (ranks[rank]["alone"]["receipts"][0] for rank in range(RANKS))
    assert not torch.equal(first, second)
    for rank in range(RANKS):
        assert_same(ranks[rank]["alone"], run(make(), losses_of(rank)))


def test_each_rank_rolls_its_own_weights_back_to_the_same_step(ranks):
    assert_same(ranks[0]["train"], ranks[1]["train"])
    assert ranks[0]["train"]["rolled_back_to"] > 0


def test_ranks_sweep_and_go_back_together(ranks):
    assert_same(ranks[0]["sweep"], ranks[1]["sweep"])
    verdicts = ranks[0]["sweep"]["verdicts"]
    assert verdicts[0] == Verdict.SWEPT.name
    assert Verdict.PASSED.name in verdicts
    assert ranks[0]["sweep"]["rolled_back_to"] > 7


@pytest.mark.parametrize("case", ["rises", "swing"])
def test_ranks_rise_on_together(ranks, case):
    assert_same(ranks[0][case], ranks[1][case])
    verdicts = ranks[0][case]["verdicts"]
    assert Verdict.RISES_ON.name in verdicts
    assert Verdict.REACHED.name in verdicts


def test_rank_zero_says_whether_the_peak_comes_from_the_steps_left(ranks):
    """Shards of weights may not show it."""
    assert_same(ranks[0]["layers"], ranks[1]["layers"])
    assert ranks[0]["layers"]["verdicts"][0] == Verdict.LAYERWISE.name


def test_one_reduction_and_one_broadcast_per_look(ranks):
    for rank in range(RANKS):
        found = ranks[rank]["collectives"]
        assert found["calls"] == ["all_reduce", "broadcast"] * found["looks"]


def test_losses_are_averaged_over_the_ranks(ranks):
    for rank in range(RANKS):
        assert ranks[rank]["drained"]["losses"].tolist() == [1.5, 2.0, 2.5]
        assert ranks[rank]["drained"]["left"] == 0
