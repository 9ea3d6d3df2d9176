"""What the learning rate is next: schedules for optimizers of PyTorch. Never imports Ray."""

from autolr_ray.schedule.auto_warmup import AutoWarmup
from autolr_ray.schedule.base import Schedule
from autolr_ray.schedule.decay import DECAYS, constant_then_cosine, cosine
from autolr_ray.schedule.divergence import DivergenceError, DivergenceWarning
from autolr_ray.schedule.linear_warmup import LinearWarmup
from autolr_ray.schedule.paper_rule import PaperRule
from autolr_ray.schedule.receipt import Receipt
from autolr_ray.schedule.robust_rule import RobustRule
from autolr_ray.schedule.rules import RULES
from autolr_ray.schedule.smoother import Hyperparameters, LossPosterior, LossSmoother
from autolr_ray.schedule.switch import SwitchRule, Verdict

__all__ = [
    "DECAYS",
    "RULES",
    "AutoWarmup",
    "DivergenceError",
    "DivergenceWarning",
    "Hyperparameters",
    "LinearWarmup",
    "LossPosterior",
    "LossSmoother",
    "PaperRule",
    "Receipt",
    "RobustRule",
    "Schedule",
    "SwitchRule",
    "Verdict",
    "constant_then_cosine",
    "cosine",
]
