"""Learning rates that set themselves during the one run that matters, and the proof, on Ray.

``import autolr_ray`` brings the schedules and needs torch, numpy and scipy only; Ray, torchvision and
timm are imported by the rooms that use them (``autolr_ray.tasks``, ``.train``, ``.compare``).
"""

from autolr_ray.schedule import AutoWarmup, LinearWarmup, Receipt, Verdict

__version__ = "0.1.0"
__all__ = ["AutoWarmup", "LinearWarmup", "Receipt", "Verdict", "__version__"]
