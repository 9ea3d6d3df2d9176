"""A sweep waits for machines that are still to join, says for what and how long, and gives up in the end."""

import doctest
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest

from autolr_ray.compare import cluster as cluster_module
from autolr_ray.compare import need
from autolr_ray.compare.cluster import ClusterError, _wait_for
from autolr_ray.compare.need import Need


class _Cluster:
    """A clock that moves only when somebody sleeps, and what the cluster has at each second."""

    def __init__(self, cpus: dict[float, float]) -> None:
        self.now, self._cpus = 0.0, cpus
        self.requests: list[list[dict[str, float]]] = []

    def request(self, *, bundles: list[dict[str, float]]) -> None:
        self.requests.append(bundles)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def resources(self) -> dict[str, float]:
        cpus = [amount for since, amount in self._cpus.items() if since <= self.now]
        return {"CPU": cpus[-1]} if cpus else {}


class _Growing(_Cluster):
    """Machines of four CPUs and a GPU, as many as what is asked for takes, a minute after it was asked."""

    def __init__(self, machines: int = 0) -> None:
        super().__init__({})
        self.machine = {"CPU": 4.0, "GPU": 1.0}
        self._joined = [-math.inf] * machines

    def request(self, *, bundles: list[dict[str, float]]) -> None:
        super().request(bundles=bundles)
        asked: dict[str, float] = {}
        for bundle in bundles:
            for kind, amount in bundle.items():
                asked[kind] = asked.get(kind, 0.0) + amount
        wanted = max((math.ceil(n / self.machine[kind]) for kind, n in asked.items()), default=0)
        self._joined += [self.now + 60] * (wanted - len(self._joined))

    def resources(self) -> dict[str, float]:
        there = sum(since <= self.now for since in self._joined)
        return {kind: there * amount for kind, amount in self.machine.items() if there}


Install = Callable[[dict[float, float] | _Growing], _Cluster]
CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def use(cpus: dict[float, float] | _Growing) -> _Cluster:
        fake = cpus if isinstance(cpus, _Growing) else _Cluster(cpus)
        monkeypatch.setattr(cluster_module, "time", fake)
        monkeypatch.setattr(cluster_module, "most_resources", fake.resources)
        monkeypatch.setattr(cluster_module, "request_resources", fake.request)
        return fake

    return use


def test_nothing_is_waited_for_where_all_is_there(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install({0: 2.0})
    assert _wait_for(Need(workers=2)) == {"CPU": 2.0}
    assert fake.now == 0
    assert fake.requests == []
    assert capsys.readouterr().out == ""


def test_it_waits_says_so_and_lets_a_second_machine_come(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install({40: 2.0, 44: 4.0})
    signs: list[float] = []
    assert _wait_for(Need(workers=2), lambda: signs.append(fake.now)) == {"CPU": 4.0}
    assert 50 <= fake.now < 55
    assert max(after - before for before, after in pairwise(signs)) < 3, (
        "`autolr-ray status` would call it stale"
    )
    assert fake.requests == [[CPU, CPU], []], (
        "an autoscaler is asked for machines, and no longer once they are there"
    )
    first, second = capsys.readouterr().out.splitlines()
    assert "needs 2 CPUs, the cluster has 0; 0 s of at most 15 min" in first
    assert "30 s of at most 15 min" in second


def test_with_too_little_it_goes_on_in_the_end(install: Install) -> None:
    fake = install({10: 1.0})
    assert _wait_for(Need(workers=2)) == {"CPU": 1.0}
    assert fake.now == pytest.approx(900, abs=1)


def test_with_nothing_it_gives_up(install: Install) -> None:
    install({})
    with pytest.raises(ClusterError, match=r"no machine with a CPU .* within 15 min"):
        _wait_for(Need(workers=2))


@pytest.mark.parametrize("device", ["auto", "gpu"])
@pytest.mark.parametrize("machines", [0, 1])
def test_a_cluster_grows_to_the_gpus_of_the_largest_run(
    install: Install, capsys: pytest.CaptureFixture[str], device: Literal["auto", "gpu"], machines: int
) -> None:
    """One machine has CPUs for both workers, a GPU for one; with none yet, that shows when it has joined."""
    fake = install(_Growing(machines))
    found = _wait_for(Need(workers=2, device=device))
    assert found == {"CPU": 8.0, "GPU": 2.0}
    first = [[CPU, CPU]] if device == "auto" and machines == 0 else []
    assert fake.requests == [*first, [GPU, GPU], []]
    said = capsys.readouterr().out
    assert ("needs 2 GPUs, the cluster has 1;" in said) == bool(first or machines)


def test_workers_that_share_a_gpu_ask_for_their_share(install: Install) -> None:
    fake = install(_Growing())
    assert _wait_for(Need(workers=4, device="gpu", gpus_per_worker=0.5)) == {"CPU": 8.0, "GPU": 2.0}
    assert fake.requests == [[{"CPU": 1.0, "GPU": 0.5}] * 4, []]


def test_runs_on_cpus_ask_for_no_gpu(install: Install) -> None:
    fake = install(_Growing())
    assert _wait_for(Need(workers=4, device="cpu")) == {"CPU": 4.0, "GPU": 1.0}
    assert fake.requests == [[CPU] * 4, []]
    assert doctest.testmod(need).failed == 0
