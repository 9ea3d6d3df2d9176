"""A sweep waits for machines that are still to join, says for what and how long, and gives up in the end."""

from collections.abc import Callable

import pytest

from autolr_ray.compare import cluster as cluster_module
from autolr_ray.compare.cluster import ClusterError, _wait_for


class _Cluster:
    """A clock that moves only when somebody sleeps, and what the cluster has at each second."""

    def __init__(self, cpus: dict[float, float]) -> None:
        self.now, self._cpus = 0.0, cpus
        self.requests: list[int] = []

    def request(self, *, bundles: list[dict[str, float]]) -> None:
        self.requests.append(len(bundles))

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def resources(self) -> dict[str, float]:
        cpus = [amount for since, amount in self._cpus.items() if since <= self.now]
        return {"CPU": cpus[-1]} if cpus else {}


Install = Callable[[dict[float, float]], _Cluster]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def use(cpus: dict[float, float]) -> _Cluster:
        fake = _Cluster(cpus)
        monkeypatch.setattr(cluster_module, "time", fake)
        monkeypatch.setattr(cluster_module, "most_resources", fake.resources)
        monkeypatch.setattr(cluster_module, "request_resources", fake.request)
        return fake

    return use


def test_nothing_is_waited_for_where_all_is_there(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install({0: 2.0})
    assert _wait_for({"CPU": 2.0}) == {"CPU": 2.0}
    assert fake.now == 0
    assert fake.requests == []
    assert capsys.readouterr().out == ""


def test_it_waits_says_so_and_lets_a_second_machine_come(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install({40: 2.0, 44: 4.0})
    assert _wait_for({"CPU": 2.0}) == {"CPU": 4.0}
    assert 50 <= fake.now < 55
    assert fake.requests == [2, 0], "an autoscaler is asked for machines, and no longer once they are there"
    first, second = capsys.readouterr().out.splitlines()
    assert "needs 2 CPUs, the cluster has 0; 0 s of at most 15 min" in first
    assert "30 s of at most 15 min" in second


def test_with_too_little_it_goes_on_in_the_end(install: Install) -> None:
    fake = install({10: 1.0})
    assert _wait_for({"CPU": 2.0}) == {"CPU": 1.0}
    assert fake.now == pytest.approx(900, abs=1)


def test_with_nothing_it_gives_up(install: Install) -> None:
    install({})
    with pytest.raises(ClusterError, match=r"no machine with a CPU .* within 15 min"):
        _wait_for({"CPU": 2.0})
