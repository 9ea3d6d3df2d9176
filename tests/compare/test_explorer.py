"""What the explorer draws keeps the shape of the curves, is small, and is safe inside a page."""

import json
import math

import numpy as np
from synthetic import changed, run, study

from autolr_ray.compare.explorer import POINTS, explorer_json, thin
from autolr_ray.compare.tables import key_of
from autolr_ray.train.record import ReceiptRow, Trace


def record(lr, loss, **changes):
    trace = Trace(step=list(range(0, 3 * len(lr), 3)), lr=list(lr), loss=list(loss))
    return run("auto_warmup", "", 64, 0, 0.01, 0.1).model_copy(update={"trace": trace} | changes)


def parsed(records, reported=(), first=()):
    return json.loads(str(explorer_json(records, reported, first)))


def test_thinning_keeps_peaks_ends_and_the_turn():
    rng = np.random.default_rng(0)
    lr = np.concatenate([np.geomspace(1e-5, 1, 333), np.full(667, 0.1)])
    loss = 1 + 0.1 * rng.normal(size=1000)
    loss[77], loss[801] = 9.0, -4.0
    kept = thin(lr, loss)
    assert len(kept) <= POINTS + 5
    assert len(kept) > POINTS / 2
    assert (np.diff(kept) > 0).all()
    assert {0, 77, 332, 333, 801, 999} <= set(kept.tolist())
    assert np.diff(kept).max() < 40  # nowhere empty


def test_thinning_keeps_the_place_where_a_loss_was_lost():
    loss = np.ones(1000)
    loss[500] = np.nan
    loss[900:] = np.inf
    kept = set(thin(np.ones(1000), loss).tolist())
    assert {500, 900} <= kept or {500, 999} <= kept
    assert any(900 <= i < 990 for i in kept)
    assert thin(np.ones(7), np.full(7, np.nan)).tolist() == list(range(7))
    assert thin(np.ones(0), np.ones(0)).tolist() == []


def test_curves_come_back_in_three_digits():
    lr = np.geomspace(1e-5, 0.5, 100)
    loss = [2.34567, math.nan, math.inf, *np.linspace(1, 0.123456, 97)]
    [run_] = parsed([record(lr, loss, peak_lr=0.0123456)])["runs"]
    assert np.cumsum(run_["step"]).tolist() == list(range(0, 300, 3))
    np.testing.assert_allclose(run_["lr"], lr, rtol=5.1e-3)
    assert run_["loss"][:3] == [2.35, None, None]
    assert run_["loss"][-1] == 0.123
    assert run_["smooth"][1] is None
    assert run_["smooth"][3] is not None
    assert run_["peak"] == "0.0123"


def test_receipts_are_all_there_and_texts_are_kept_once():
    receipts = [
        ReceiptRow(
            step=i, lr=0.001 * i, verdict="rising", reason="not yet", strength=0.5, probability=math.nan,
            positives=0, argmin_step=i - 1, argmin_lr=0.1,
        )
        for i in range(1, 200)
    ]  # fmt: skip
    data = parsed([record([1, 1], [1, 1], receipts=receipts), run("grid", "p", 64, 0, 0.1, 0.1)])
    assert data["words"] == ["rising", "not yet"]
    first, second = data["runs"]
    assert first["tests"]["step"] == list(range(1, 200))
    assert set(first["tests"]["verdict"]) == {0}
    assert set(first["tests"]["reason"]) == {1}
    assert set(first["tests"]["probability"]) == {None}
    assert "tests" not in second


def test_test_accuracy_only_of_reported_runs():
    records = study((128,), seeds=(0,), peaks=(0.01,), warmups=(0.1,))
    shown = [d["test"] for d in parsed(records, [key_of(records[0])])["runs"]]
    assert shown[0].endswith(" %")
    assert set(shown[1:]) == {"not shown"}


def test_first_runs_are_found_by_name_even_where_two_share_a_cell():
    records = study((128,), seeds=(0,), peaks=(0.01,), warmups=(0.1,))
    twin = changed(records[0], arm="twin", cell=records[0].cell)
    data = parsed([*records, twin], first=[key_of(twin), ("gone", "", 1, 1)])
    assert data["first"] == [len(records)]


def test_hostile_names_stay_inside_the_script_element():
    evil = "</script><!-- <script> & ' \" \u2028 \u017c"
    text = str(explorer_json([record([1], [1], arm=evil)], []))
    assert not set("<>&'\u2028") & set(text)
    assert json.loads(text)["runs"][0]["arm"] == evil


def test_five_hundred_runs_are_small():
    lr, loss = np.geomspace(1e-5, 1, 1000), np.random.default_rng(0).normal(size=1000)
    text = str(explorer_json([record(lr, loss, seed=i) for i in range(50)], []))
    assert len(text) < 50 * 4000
