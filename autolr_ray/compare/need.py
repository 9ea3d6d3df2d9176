"""What runs take of a cluster: of each worker's bundle, and of the largest run as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Ten tenths of a GPU are one GPU, whatever floats say.
_ROUNDING = 1e-6


def uses_gpu(device: Literal["auto", "cpu", "gpu"], resources: Mapping[str, float]) -> bool:
    """Whether a study with that ``device`` trains on GPUs where there is so much of each resource."""
    return device == "gpu" or (device == "auto" and resources.get("GPU", 0.0) > 0)


@dataclass(frozen=True, kw_only=True)
class Need:
    """A run by what it takes.

    Attributes:
        workers: processes that share each batch.
        device: with "auto" the first machine that joins shows whether GPUs are needed.
        gpus_per_worker: of a worker that trains on GPUs.
    """

    workers: int = 0
    device: Literal["auto", "cpu", "gpu"] = "auto"
    gpus_per_worker: float = 1.0

    def bundles(self, resources: Mapping[str, float]) -> list[dict[str, float]]:
        """What each worker takes, of a cluster that has ``resources``.

        >>> Need(workers=2).bundles({})
        [{'CPU': 1.0}, {'CPU': 1.0}]
        >>> Need(workers=1).bundles({"CPU": 4.0, "GPU": 1.0})
        [{'CPU': 1.0, 'GPU': 1.0}]
        """
        gpu = {"GPU": self.gpus_per_worker} if uses_gpu(self.device, resources) else {}
        return [{"CPU": 1.0, **gpu} for _ in range(self.workers)]

    def lacking(self, resources: Mapping[str, float]) -> dict[str, float]:
        """How much the run needs of each resource that ``resources`` hold too little of.

        >>> Need(workers=2).lacking({"CPU": 4.0, "GPU": 1.0})
        {'GPU': 2.0}
        """
        needed: dict[str, float] = {}
        for bundle in self.bundles(resources):
            for kind, amount in bundle.items():
                needed[kind] = needed.get(kind, 0.0) + amount
        return {
            kind: amount for kind, amount in needed.items() if resources.get(kind, 0.0) < amount - _ROUNDING
        }
