"""One run: its spec, the loop that trains it, and the Ray Train trainer around the loop."""

from autolr_ray.train.context import LocalContext, RunContext
from autolr_ray.train.loop import run
from autolr_ray.train.optimizers import OPTIMIZERS
from autolr_ray.train.record import RunRecord
from autolr_ray.train.schedules import AutoWarmupSpec, LinearWarmupSpec
from autolr_ray.train.spec import RunSpec

__all__ = [
    "OPTIMIZERS",
    "AutoWarmupSpec",
    "LinearWarmupSpec",
    "LocalContext",
    "RunContext",
    "RunRecord",
    "RunSpec",
    "run",
]
