"""Optimizers by name: the right class, the right settings, and a loss that falls."""

import prodigyopt
import pytest
import schedulefree
import timm.optim
import torch
import train_helpers
from torch import nn

from autolr_ray.train import OPTIMIZERS, RunSpec

CASES = {
    "adamp": (
        timm.optim.AdamP,
        {"weight_decay": 0.1, "betas": (0.9, 0.999), "delta": 0.1, "wd_ratio": 0.1, "nesterov": False},
        {"weight_decay": 0.3, "betas": (0.8, 0.99), "delta": 0.2, "wd_ratio": 0.4},
    ),
    "lamb": (
        timm.optim.Lamb,
        {"weight_decay": 0.01, "betas": (0.9, 0.999), "max_grad_norm": 1.0, "trust_clip": False},
        {"weight_decay": 0.3, "betas": (0.8, 0.99), "max_grad_norm": 2.0},
    ),
    "adamw": (
        torch.optim.AdamW,
        {"weight_decay": 0.01, "betas": (0.9, 0.999), "amsgrad": False},
        {"weight_decay": 0.3, "betas": (0.8, 0.99)},
    ),
    "sgd_nesterov": (
        torch.optim.SGD,
        {"weight_decay": 5e-4, "momentum": 0.9, "nesterov": True, "dampening": 0},
        {"weight_decay": 0.3, "momentum": 0.8},
    ),
    "prodigy": (
        prodigyopt.Prodigy,
        {"weight_decay": 0.01, "betas": (0.9, 0.999), "d_coef": 1.0, "safeguard_warmup": False},
        {"weight_decay": 0.3, "betas": (0.8, 0.99), "d_coef": 2.0, "safeguard_warmup": True},
    ),
    "schedule_free_adamw": (
        schedulefree.AdamWScheduleFree,
        {"weight_decay": 0.01, "betas": (0.9, 0.999), "warmup_steps": 2},
        {"weight_decay": 0.3, "betas": (0.8, 0.99)},
    ),
}


def build(name, **settings):
    schedule = {"kind": "constant"}
    spec = RunSpec(
        task="unused", batch_size=1, epochs=1, optimizer={"name": name, **settings}, schedule=schedule
    )
    return spec.optimizer.build(nn.Linear(3, 2).parameters(), total_steps=40)


def test_every_name_has_a_case():
    assert set(CASES) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_class_and_defaults(name):
    kind, defaults, _ = CASES[name]
    optimizer = build(name)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in defaults} == defaults
    assert len(group["params"]) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_arrive(name):
    _, _, settings = CASES[name]
    (group,) = build(name, **settings).param_groups
    assert {key: group[key] for key in settings} == settings


def test_lamb_without_a_bound_on_the_gradient():
    assert build("lamb", max_grad_norm=0).param_groups[0]["max_grad_norm"] is None


@pytest.mark.parametrize("name", train_helpers.SCHEDULED)
def test_trains(name, tmp_path):
    spec = train_helpers.spec_of(optimizer={"name": name}, schedule=train_helpers.LINEAR, epochs=4)
    record, _ = train_helpers.train(spec, tmp_path)
    losses = [row.train_loss for row in record.epoch_rows]
    assert losses[-1] < 0.8 * losses[0]
    assert record.validation_accuracy > 0.6
    assert record.optimizer == name
