"""A run's spec: what is refused and in which words, and the hash that says which runs are the same."""

import pytest
from pydantic import ValidationError

from autolr_ray.train import OPTIMIZERS, AutoWarmupSpec, LinearWarmupSpec, RunSpec
from autolr_ray.train.config import explain
from autolr_ray.train.optimizers import AdamP, AdamW, Lamb, SGDNesterov
from autolr_ray.train.trainer import RunRequest

BASE = {"task": "fashion_mnist_subset", "batch_size": 64, "epochs": 2}


def spec(**changes):
    return RunSpec.model_validate(BASE | changes)


def refusal(**changes):
    with pytest.raises(ValidationError) as caught:
        spec(**changes)
    return explain(caught.value)


# --- what is refused ---


def test_an_error_of_the_whole_reads_like_one_of_a_field():
    assert refusal(workers=3).startswith("batch_size: 64 is not allowed; it must be divisible")
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate([1, 2])
    assert explain(caught.value) == "a mapping of fields is needed, this is list"


def test_a_batch_must_divide_among_workers_and_micro_batches():
    message = refusal(workers=3, accumulation_steps=2)
    assert "batch_size: 64 is not allowed" in message
    assert "divisible by workers x accumulation_steps (3 x 2 = 6)" in message


@pytest.mark.parametrize("value", [0, -1, "all", 2.0, True])
def test_accumulation_steps_are_a_count_or_auto(value):
    message = refusal(accumulation_steps=value)
    assert message == f"accumulation_steps: {value!r} is not allowed; an integer >= 1 or 'auto' is needed"
    assert spec(accumulation_steps="auto").cell != spec().cell


@pytest.mark.parametrize("field", ["batch_size", "workers", "epochs", "checkpoint_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_one(field, value):
    message = refusal(**{field: value})
    assert message == f"{field}: Input should be greater than or equal to 1 (given: {value})"


@pytest.mark.parametrize("field", ["seed", "loader_workers"])
def test_numbers_that_may_be_zero(field):
    assert spec(**{field: 0})
    assert refusal(**{field: -1}) == f"{field}: Input should be greater than or equal to 0 (given: -1)"


def test_unknown_keys_are_refused_by_name():
    assert refusal(batchsize=3).startswith("batchsize: unknown key")
    assert "learning_rate: unknown key" in refusal(optimizer={"name": "adamw", "learning_rate": 0.1})
    assert "peak_lr: unknown key" in refusal(schedule={"kind": "auto_warmup", "peak_lr": 0.1})


def test_unknown_names_are_refused_with_the_known_ones():
    message = refusal(optimizer={"name": "adagrad"})
    assert message.startswith("optimizer: ")
    assert all(name in message for name in ("adagrad", *OPTIMIZERS))
    message = refusal(schedule={"kind": "one_cycle"})
    assert message.startswith("schedule: ")
    assert all(name in message for name in ("one_cycle", "auto_warmup", "linear_warmup"))
    message = refusal(schedule={"kind": "auto_warmup", "rule": "brave"})
    assert all(name in message for name in ("rule", "brave", "robust", "paper"))


OUT_OF_BOUNDS = [
    ("optimizer", {"name": "adamw", "weight_decay": -0.5}, "weight_decay", "greater than or equal to 0"),
    ("optimizer", {"name": "adamw", "weight_decay": float("inf")}, "weight_decay", "finite"),
    ("optimizer", {"name": "adamp", "delta": -0.5}, "delta", "greater than or equal to 0"),
    ("optimizer", {"name": "lamb", "betas": [0.9, 1.5]}, "betas.1", "less than 1"),
    ("optimizer", {"name": "lamb", "betas": [0.9, float("nan")]}, "betas.1", "less than 1"),
    ("optimizer", {"name": "sgd_nesterov", "momentum": 1}, "momentum", "less than 1"),
    ("optimizer", {"name": "sgd_nesterov", "momentum": -0.5}, "momentum", "greater than 0"),
    ("schedule", {"kind": "linear_warmup", "peak_lr": 0}, "peak_lr", "greater than 0"),
    ("schedule", {"kind": "linear_warmup", "peak_lr": float("nan")}, "peak_lr", "finite"),
    ("schedule", {"kind": "linear_warmup", "peak_lr": 1, "warmup_fraction": 1.5}, "warmup_fraction", "1"),
    ("schedule", {"kind": "auto_warmup", "min_lr": -1.0}, "min_lr", "greater than 0"),
    ("schedule", {"kind": "auto_warmup", "max_lr": float("inf")}, "max_lr", "finite"),
    ("schedule", {"kind": "auto_warmup", "max_warmup_fraction": 0}, "max_warmup_fraction", "than 0"),
    ("schedule", {"kind": "auto_warmup", "decay": "square"}, "decay", "'constant-then-cosine'"),
]


@pytest.mark.parametrize(("part", "settings", "field", "allowed"), OUT_OF_BOUNDS)
def test_settings_out_of_bounds_are_refused(part, settings, field, allowed):
    message = refusal(**{part: settings})
    assert message.startswith(f"{part}.")
    assert f"{field}: " in message
    assert allowed in message


@pytest.mark.parametrize(("part", "settings", "field", "allowed"), OUT_OF_BOUNDS)
def test_the_given_value_is_always_named(part, settings, field, allowed):
    name, _, place = field.partition(".")
    given = settings[name][int(place)] if place else settings[name]
    assert f"(given: {given!r})" in refusal(**{part: settings})


def test_the_place_is_the_one_the_user_wrote():
    # Not "optimizer.adamw.weight_decay": no such key stands in the study.
    places = [refusal(**{part: settings}).partition(": ")[0] for part, settings, *_ in OUT_OF_BOUNDS]
    assert places == [f"{part}.{field}" for part, _, field, _ in OUT_OF_BOUNDS]


def test_a_warmup_must_rise():
    message = refusal(schedule={"kind": "auto_warmup", "min_lr": 2, "max_lr": 0.5})
    assert "min_lr: 2 is not allowed; it must be below max_lr (0.5)" in message


def test_a_linear_warmup_needs_its_peak():
    message = refusal(schedule={"kind": "linear_warmup"})
    assert "peak_lr" in message
    assert "required" in message.lower()


def test_each_problem_has_a_line():
    lines = refusal(epochs=0, seed=-2, colour="red").splitlines()
    assert len(lines) == 3
    assert {line.partition(":")[0] for line in lines} == {"epochs", "seed", "colour"}


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        spec().seed = 1


# --- the hash ---


def test_the_cell_of_a_spec_never_changes():
    # Results on disk are found by it: a change here makes every finished run of every study run again.
    # But for the linear warmup's, AutoWarmup's usual one, where its decisions change (_REVISION).
    assert spec().cell == "1d41c64643faba1c"
    assert spec(optimizer={"name": "lamb"}).cell == "aa17f37e990ddadb"
    assert spec(optimizer={"name": "sgd_nesterov"}).cell == "b9228d8150fe1eb6"
    linear = {"kind": "linear_warmup", "peak_lr": 0.01}
    assert spec(schedule=linear).cell == "ad5f1ccea210a875"
    # What always was exponential is named as ever.
    exponential = {"kind": "auto_warmup", "warmup": "exponential"}
    assert spec(schedule=exponential).cell == "1b57bce992d697e0"
    assert spec(schedule=exponential | {"decay": "cosine"}).cell == "1b57bce992d697e0"
    paper = {"kind": "auto_warmup", "rule": "paper", "rollback": False}
    assert spec(schedule=paper).cell == spec(schedule=paper | {"warmup": "exponential"}).cell


DECIDING = {
    "task": "cifar10",
    "model": "resnet18",
    "batch_size": 128,
    "workers": 2,
    "accumulation_steps": 2,
    "epochs": 3,
    "optimizer": {"name": "adamp"},
    "schedule": {"kind": "linear_warmup", "peak_lr": 0.1},
    "seed": 1,
    "compute": {"channels_last": True},
    "code": "0123456789abcdef",
}
NOT_DECIDING = {
    "data_dir": "/data", "loader_workers": 4, "checkpoint_every": 10, "on_non_finite": "raise"
}  # fmt: skip


def test_every_field_is_said_to_decide_or_not():
    assert set(DECIDING) | set(NOT_DECIDING) == set(RunSpec.model_fields)


@pytest.mark.parametrize("field", DECIDING)
def test_the_cell_changes_with_what_decides(field):
    assert spec(**{field: DECIDING[field]}).cell != spec().cell


@pytest.mark.parametrize("field", NOT_DECIDING)
def test_the_cell_does_not_change_with_what_does_not_decide(field):
    assert spec(**{field: NOT_DECIDING[field]}).cell == spec().cell


BETAS = [0.8, 0.99]
SETTINGS = {
    AdamP: {"weight_decay": 0.2, "betas": BETAS, "delta": 0.2, "wd_ratio": 0.2},
    Lamb: {"weight_decay": 0.2, "betas": BETAS, "max_grad_norm": 2},
    AdamW: {"weight_decay": 0.2, "betas": BETAS},
    SGDNesterov: {"weight_decay": 0.2, "momentum": 0.8},
    AutoWarmupSpec: {
        "rule": "paper",
        "warmup": "exponential",
        "decay": "constant-then-cosine",
        "fallback": "keep",
        "rollback": False,
        "min_lr": 1e-4,
        "max_lr": 2,
        "max_warmup_fraction": 0.4,
    },
    LinearWarmupSpec: {"peak_lr": 0.2, "warmup_fraction": 0.1, "decay": "constant-then-cosine"},
}


@pytest.mark.parametrize("part", SETTINGS, ids=lambda part: part.__name__)
def test_the_cell_changes_with_every_setting(part):
    (tag,) = {"name", "kind"} & set(part.model_fields)
    assert set(SETTINGS[part]) == set(part.model_fields) - {tag}
    field = {"name": "optimizer", "kind": "schedule"}[tag]
    start = {tag: part.model_fields[tag].default}
    start |= {"peak_lr": 0.1} if part is LinearWarmupSpec else {}
    cells = [spec(**{field: start}).cell]
    cells += [spec(**{field: start | {key: value}}).cell for key, value in SETTINGS[part].items()]
    assert len(set(cells)) == len(cells)


def test_the_cell_is_of_values_not_of_how_they_are_written():
    written = {"name": "adamw", "betas": (0.9, 0.999), "weight_decay": 1e-2}
    assert spec(optimizer=written).cell == spec().cell
    one = spec(schedule={"kind": "linear_warmup", "peak_lr": 1})
    assert one.cell == spec(schedule={"peak_lr": 1.0, "kind": "linear_warmup"}).cell


# --- the request that travels to the workers ---


@pytest.mark.parametrize("peak_lr", [0.1, 1 / 3, 1e-300, 0.1 + 0.2, 5e-324])
def test_a_request_arrives_as_it_was_sent(peak_lr):
    request = RunRequest(
        spec=spec(schedule={"kind": "linear_warmup", "peak_lr": peak_lr}, data_dir="/data"),
        arm="tuned", point="peak_lr=0.1 warmup=0.05", runs_dir="/runs", record_dir="/cells",
    )  # fmt: skip
    arrived = RunRequest.model_validate_json(request.model_dump_json())
    assert arrived == request
    assert arrived.spec.cell == request.spec.cell
    assert request.name == f"tuned-peak_lr-0.1_warmup-0.05-b64-s0-{request.spec.cell}"


def test_a_request_without_labels_has_a_name():
    request = RunRequest(spec=spec(), runs_dir="/runs", record_dir="/cells")
    assert request.name == f"b64-s0-{request.spec.cell}"
