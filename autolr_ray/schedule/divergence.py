"""Training that diverges before it has learned anything: said aloud, or an error, as the user chose."""

from __future__ import annotations

import warnings

from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.switch import Verdict

ON_DIVERGENCE = ("warn", "raise")


class DivergenceError(RuntimeError):
    """The loss rose, or was never finite, before it had fallen."""


class DivergenceWarning(UserWarning):
    """The same, where the run was asked to go on."""


def report_divergence(receipt: Receipt, *, min_lr: float, peak_lr: float, on_divergence: str) -> None:
    """Warn or raise if ``receipt``, which ended the warmup, says that training diverged from the start."""
    if receipt.verdict not in (Verdict.DIVERGED, Verdict.NO_EVIDENCE):
        return
    message = (
        f"loss: {receipt.reason} (step {receipt.step}, learning rates from {min_lr:.3g} to {receipt.lr:.3g}; "
        f"the peak is now {peak_lr:.3g}); look for an error in the data or the model, or start lower than "
        f"min_lr={min_lr:g}"
    )
    if on_divergence == "raise":
        raise DivergenceError(message)
    warnings.warn(message, DivergenceWarning, stacklevel=4)
