"""A study on four machines: head, two workers, a laptop. What is lost on the way costs no run.

The tests are one story, told in order: the cluster comes up without workers, a job waits for them, its
terminal is lost, then its driver, then a machine; the report is fetched and everything is stopped.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import (
    HOME,
    NETWORK,
    REPOSITORY,
    SHARED,
    Host,
    Laboratory,
    LaboratoryError,
    furnish,
    wait_for,
    why_not,
)
from rendered import on_premise

from autolr_ray.compare.ledger import read_ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_STUDY = Path(__file__).parent / "study"
_NUMBERS = {"laptop": 10, "head": 11, "worker1": 12, "worker2": 13}
_RESULTS = f"{SHARED}/results"
_COMPARE = f"--study {{study}} --results {_RESULTS}"
_TUNNELLED = "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265"


class Story:
    """The hosts, and what the laptop's user types."""

    def __init__(self, laboratory: Laboratory, output: Path) -> None:
        self.laboratory, self.output = laboratory, output
        self.laptop = laboratory.boot("laptop", _NUMBERS["laptop"])
        self.head = laboratory.boot("head", _NUMBERS["head"])

    def boot(self, name: str) -> Host:
        return self.laboratory.boot(name, _NUMBERS[name])

    def ray(self, script: str, *, timeout: float = 240, check: bool = True) -> str:
        """Run a command in the repository's folder on the laptop."""
        return self.laptop.run(f"cd {REPOSITORY}; {script}", timeout=timeout, check=check)

    def finished(self) -> list[str]:
        return sorted(path.name for path in self._shared("own/cells").glob("*.json"))

    def checkpoints(self, run: str) -> int:
        return len(list(self._shared("own/runs").glob(f"{run}/checkpoint_*")))

    def _shared(self, path: str) -> Path:
        return Path(f"/proc/{self.head.pid}/root{_RESULTS}") / path


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with Laboratory(folder) as laboratory:
            story = Story(laboratory, Path(tempfile.mkdtemp(prefix="out-", dir="/tmp")))
            addresses = {name: f"{NETWORK}.{number}" for name, number in _NUMBERS.items()}
            workers = [addresses["worker1"], addresses["worker2"]]
            furnish(story.laptop, on_premise(addresses["head"], workers))
            for path in filter(Path.is_file, _STUDY.iterdir()):
                story.laptop.write(f"{HOME}/mine/{path.name}", path.read_text())
            yield story
            shutil.rmtree(story.output)
    except LaboratoryError as error:
        pytest.skip(f"no host can be made here: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_up_comes_before_its_workers(story: Story) -> None:
    story.ray("ray up -y ~/own.yaml")
    assert "0.0/0.0 CPU" not in (status := story.ray("ray exec ~/own.yaml 'ray status'"))
    assert not re.search(r"/[1-9]\S* CPU", status)


def test_doors_are_locked(story: Story) -> None:
    """From other machines the dashboard does not answer at all, and what does asks for the token."""
    address = story.head.address
    outside = "curl -sS -o /dev/null -m 5 -w '%{http_code}' "
    assert "Failed to connect" in story.laptop.run(f"{outside} http://{address}:8265/", check=False)
    assert story.laptop.run(f"{outside} http://{address}:52365/").endswith("401")  # the machine's agent
    joins = (f"ray.init('{address}:6379')", f"ray.util.connect('{address}:10001', connection_retries=1)")
    script = "env HOME=/tmp RAY_AUTH_MODE=disabled timeout 100 python -c 'import ray; {}'; echo exit $?"
    logs = [story.output / f"join{n}.log" for n in range(len(joins))]
    attempts = [
        story.laptop.start(script.format(join.replace("'", '"')), log)
        for join, log in zip(joins, logs, strict=True)
    ]
    for attempt, log in zip(attempts, logs, strict=True):
        attempt.wait(timeout=120)
        refused = log.read_text()
        assert refused.endswith("exit 1\n"), refused
        assert "ConnectionError" in refused


def test_the_tunnel_needs_the_token(story: Story) -> None:
    _dashboard(story)
    ask = "curl -s -o /dev/null -m 10 -w '%{http_code} '"
    token = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
    for path in ("api/jobs/", "nodes?view=summary", "api/v0/actors"):
        codes = story.laptop.run(
            f"{ask} 'http://127.0.0.1:8265/{path}'; {ask} {token} 'http://127.0.0.1:8265/{path}'"
        )
        assert codes.split() == ["401", "200"], path
    post = "-X POST -H 'Content-Type: application/json' -d '{\"entrypoint\": \"touch /tmp/broken-in\"}'"
    assert story.laptop.run(f"{ask} {post} http://127.0.0.1:8265/api/jobs/").split() == ["401"]
    refused = story.laptop.run(
        f"{_TUNNELLED}; RAY_AUTH_MODE=disabled ray job submit --no-wait -- touch /tmp/broken-in", check=False
    )
    assert "Unauthorized" in refused
    assert not Path(f"/proc/{story.head.pid}/root/tmp/broken-in").exists()


def test_a_job_outlives_its_terminal_and_waits_for_machines(story: Story) -> None:
    """Submitted while there is no worker and left alone: it says what it waits for, and goes on."""
    submit = "ray job submit --no-wait --submission-id own --working-dir ~/mine -- autolr-ray compare "
    said = story.laptop.run(f"{_TUNNELLED}; {submit}{_COMPARE.format(study='own_study.yaml')}")
    assert "submitted successfully" in said
    follower = story.laptop.start(f"{_TUNNELLED}; ray job logs --follow own", story.output / "follow.log")
    waiting = "waiting for machines to join: the largest run needs 2 CPUs, the cluster has 0; "
    wait_for("said what it waits for", lambda: waiting in _log(story), 120)

    for pid in story.laptop.processes("ray job logs") | story.laptop.processes("ray dashboard"):
        story.laptop.run(f"kill -9 {pid}", check=False)
    story.laptop.run("pkill -9 ssh", check=False)
    follower.wait(timeout=30)
    for worker in ("worker1", "worker2"):
        story.boot(worker)
    _dashboard(story)
    assert re.search(r"submission_id='own'.*RUNNING", story.laptop.run(f"{_TUNNELLED}; ray job list"))
    wait_for("a run finished", story.finished, 300)


def test_the_same_command_goes_on_after_driver_terminal_and_machine_are_lost(story: Story) -> None:
    drivers = story.head.processes("autolr-ray compare")
    assert drivers
    story.head.run(f"kill -9 {' '.join(map(str, drivers))}")
    wait_for("known as failed", lambda: '"status": "FAILED"' in _api(story, "api/jobs/own"), 120)
    finished = story.finished()
    assert 1 <= len(finished) < 4

    story.ray("ray rsync-up ~/own.yaml ~/mine/ '~/'")
    submit = "ray submit ~/own.yaml experiments/compare.py -- "
    study = _COMPARE.format(study="'~/own_study.yaml'")
    lost = story.output / "lost.log"
    client = story.laptop.start(f"cd {REPOSITORY}; {submit}{study}", lost)
    wait_for("begun", lambda: "own: 4 runs" in lost.read_text(errors="replace"), 120)
    for pid in story.laptop.processes("compare.py"):  # the command, and the ssh behind it
        story.laptop.run(f"kill -9 {pid}", check=False)
    client.wait(timeout=30)
    wait_for("ended with its terminal", lambda: not story.head.processes("compare.py"), 60)
    assert set(finished) <= set(story.finished())

    log = story.output / "submit.log"
    client = story.laptop.start(f"cd {REPOSITORY}; {submit}{study}", log)
    try:
        wait_for("two epochs on two machines", lambda: story.checkpoints("*-b100-*") >= 2, 300, every=0.2)
        worker1, worker2 = (story.laboratory.hosts[name] for name in ("worker1", "worker2"))
        assert worker1.processes("RayTrainWorker")
        assert worker2.processes("RayTrainWorker")
        worker2.kill()
        wait_for("missed", lambda: '"DEAD"' in _api(story, "nodes?view=summary"), 120)
        story.boot("worker2")
        client.wait(timeout=400)
    finally:
        client.send_signal(signal.SIGKILL)
    said = log.read_text(errors="replace")
    assert client.returncode == 0, said
    assert re.search(rf"own: 4 runs, [{len(finished)}-3] of them finished before", said)
    assert "[4/4]" in said
    assert "FAILED" not in said
    assert set(finished) < set(story.finished())


def test_the_report_is_fetched_whole(story: Story, tmp_path: Path) -> None:
    story.ray(f"ray rsync-down ~/own.yaml {_RESULTS}/own/ ~/fetched/")
    fetched = Path(f"/proc/{story.laptop.pid}/root{HOME}/fetched")
    records = read_ledger(fetched / "ledger.parquet")
    assert sorted((record.arm, record.workers) for record in records) == [
        ("auto_warmup", 1), ("auto_warmup", 2), ("linear_warmup", 1), ("linear_warmup", 2)
    ]  # fmt: skip
    assert max(record.restarts for record in records if record.workers == 2) >= 1
    assert "linear_warmup" in (fetched / "report.html").read_text()
    assert (fetched / "figures").is_dir()


def test_down_leaves_nothing_behind(story: Story) -> None:
    """``ray down`` stops the head; the workers of a local provider are stopped by a line of ssh each."""
    story.ray("ray down -y ~/own.yaml")
    stop = "ssh -o StrictHostKeyChecking=no root@{} 'bash -ic \"ray stop\"'"
    stopping = [
        story.laptop.start(stop.format(story.laboratory.hosts[worker].address), story.output / worker)
        for worker in ("worker1", "worker2")
    ]
    assert [process.wait(timeout=60) for process in stopping] == [0, 0]
    for name in ("head", "worker1", "worker2"):
        host = story.laboratory.hosts[name]
        assert not _ray_processes(host), name


def _ray_processes(host: Host) -> list[str]:
    words = ("raylet", "gcs_server", "ray::", "/ray/", "compare.py", "autolr-ray")
    return [line for word in words for line in host.processes(word).values() if "ps -eo" not in line]


def _dashboard(story: Story) -> None:
    """Open the tunnel, as a user does in a second terminal."""
    story.laptop.start(f"cd {REPOSITORY}; ray dashboard ~/own.yaml", story.output / "tunnel.log")
    there = "curl -s -o /dev/null -m 5 http://127.0.0.1:8265/; echo $?"
    wait_for("tunnelled", lambda: story.laptop.run(there).endswith("0\n"), 90)


def _api(story: Story, path: str) -> str:
    """What the dashboard says; cheaper to ask again and again than ``ray job status``, which imports Ray."""
    token = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
    return story.laptop.run(f"curl -s -m 10 {token} 'http://127.0.0.1:8265/{path}'", check=False)


def _log(story: Story) -> str:
    """What the job has said so far, from its file on the head."""
    sessions = Path(f"/proc/{story.head.pid}/root/tmp/ray").glob("session_2*")
    return "".join(log.read_text() for s in sessions for log in s.glob("logs/job-driver-own.log"))
