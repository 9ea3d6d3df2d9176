"""Optimizers by name, each with its own settings. The learning rate is the schedule's affair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.optim import Optimizer

from autolr_ray.train.config import Config

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Parameters = Iterable[torch.nn.Parameter]
# Any learning rate will do: the schedule sets the first before the first step.
_LR = 1.0


class AdamP(Config):
    """AdamP (Heo et al. 2021), timm's; the defaults are those of the AutoWU paper."""

    name: Literal["adamp"] = "adamp"
    weight_decay: NonNegative = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    delta: NonNegative = 0.1
    wd_ratio: NonNegative = 0.1

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        from timm.optim import AdamP as TimmAdamP

        optimizer: Optimizer = TimmAdamP(
            parameters, lr=_LR, betas=self.betas, weight_decay=self.weight_decay,
            delta=self.delta, wd_ratio=self.wd_ratio,
        )  # fmt: skip
        return optimizer


class Lamb(Config):
    """LAMB (You et al. 2020), timm's."""

    name: Literal["lamb"] = "lamb"
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: NonNegative = 1.0

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        from timm.optim import Lamb as TimmLamb

        optimizer: Optimizer = TimmLamb(
            parameters, lr=_LR, betas=self.betas, weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm or None,
        )  # fmt: skip
        return optimizer


class AdamW(Config):
    """AdamW (Loshchilov and Hutter 2019), torch's."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        found = list(parameters)
        return torch.optim.AdamW(
            found, lr=_LR, betas=self.betas, weight_decay=self.weight_decay, fused=_on_gpu(found)
        )


class SGDNesterov(Config):
    """SGD with Nesterov momentum, torch's."""

    name: Literal["sgd_nesterov"] = "sgd_nesterov"
    weight_decay: NonNegative = 5e-4
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        found = list(parameters)
        return torch.optim.SGD(
            found, lr=_LR, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=True,
            fused=_on_gpu(found),
        )  # fmt: skip


class Prodigy(Config):
    """Prodigy (Mishchenko and Defazio 2024), its authors' package: finds the scale of its own steps.

    The schedule's learning rate multiplies what it finds; its authors advise 1 and a cosine.
    """

    name: Literal["prodigy"] = "prodigy"
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d_coef: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        import prodigyopt

        optimizer: Optimizer = prodigyopt.Prodigy(
            parameters, lr=_LR, betas=self.betas, weight_decay=self.weight_decay, d_coef=self.d_coef,
            use_bias_correction=self.use_bias_correction, safeguard_warmup=self.safeguard_warmup,
        )  # fmt: skip
        return optimizer


class ScheduleFreeAdamW(Config):
    """Schedule-free AdamW (Defazio et al. 2024), its authors' package: averages weights, needs no decay.

    Its linear warmup is its own, since its averages must know of it; the schedule is "constant".
    """

    name: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    weight_decay: NonNegative = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05

    def build(self, parameters: Parameters, total_steps: int) -> Optimizer:
        """The optimizer over ``parameters`` for a run of ``total_steps``."""
        import schedulefree

        optimizer: Optimizer = schedulefree.AdamWScheduleFree(
            parameters, lr=_LR, betas=self.betas, weight_decay=self.weight_decay,
            warmup_steps=round(self.warmup_fraction * total_steps),
        )  # fmt: skip
        return optimizer


def _on_gpu(parameters: list[torch.nn.Parameter]) -> bool | None:
    """True, for one kernel a step, where all parameters are on a GPU; None, torch's own choice, elsewhere."""
    return all(parameter.is_cuda for parameter in parameters) or None


OptimizerSpec = Annotated[
    AdamP | Lamb | AdamW | SGDNesterov | Prodigy | ScheduleFreeAdamW, Field(discriminator="name")
]
OPTIMIZERS = ("adamp", "lamb", "adamw", "sgd_nesterov", "prodigy", "schedule_free_adamw")
