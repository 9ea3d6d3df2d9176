"""A study on four machines: head, two workers, a laptop. What is lost on the way costs no run.

The tests are one story, told in order: the cluster comes up without workers, a job waits for them, its
terminal is lost, then its driver, then a machine; the report is fetched, doors are tried, and everything is
stopped. The commands are those of docs/cluster.md. The last test prints how many seconds the story took.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
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
    do_without,
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
        self.job = ""
        self.marks: dict[str, float] = {}

    def mark(self, moment: str) -> None:
        """Remember when the story came to this moment; nothing asserts on it."""
        self.marks[moment] = time.monotonic()

    def boot(self, name: str) -> Host:
        return self.laboratory.boot(name, _NUMBERS[name])

    def ray(self, script: str, *, timeout: float = 240, check: bool = True) -> str:
        """Run a command in the repository's folder on the laptop."""
        return self.laptop.run(f"cd {REPOSITORY}; {script}", timeout=timeout, check=check)

    def open_tunnel(self) -> None:
        """As a user does in a second terminal."""
        self.laptop.start(f"cd {REPOSITORY}; ray dashboard ~/own.yaml", self.output / "tunnel.log")

    def wait_for_tunnel(self) -> None:
        there = "curl -s -o /dev/null -m 5 http://127.0.0.1:8265/; echo $?"
        wait_for("tunnelled", lambda: self.laptop.run(there).endswith("0\n"), 90)

    def submit_job(self) -> str:
        """The page's command for a job, always the same; the id that it printed."""
        said = self.ray(
            f"{_TUNNELLED}; ray job submit --no-wait --working-dir . -- "
            f"python experiments/compare.py {_COMPARE.format(study='own_study.yaml')}"
        )
        found = re.search(r"Job '(\S+)' submitted successfully", said)
        assert found, said
        self.job = found[1]
        return self.job

    def said_by(self, job: str) -> str:
        """What a job has printed so far, from its file on the head."""
        sessions = Path(f"/proc/{self.head.pid}/root/tmp/ray").glob("session_2*")
        return "".join(log.read_text() for s in sessions for log in s.glob(f"logs/job-driver-{job}.log"))

    def finished(self) -> list[str]:
        return sorted(path.name for path in self._shared("own/cells").glob("*.json"))

    def checkpoints(self, run: str) -> int:
        return len(list(self._shared("own/runs").glob(f"{run}/checkpoint_*")))

    def _shared(self, path: str) -> Path:
        return Path(f"/proc/{self.head.pid}/root{_RESULTS}") / path


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    if reason := why_not():
        do_without(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with Laboratory(folder) as laboratory:
            story = Story(laboratory, Path(tempfile.mkdtemp(prefix="out-", dir="/tmp")))
            addresses = {name: f"{NETWORK}.{number}" for name, number in _NUMBERS.items()}
            workers = [addresses["worker1"], addresses["worker2"]]
            furnish(story.laptop, on_premise(addresses["head"], workers))
            for path in filter(Path.is_file, _STUDY.iterdir()):
                # A study of the user's own, in the folder that `ray up` copies and a job takes along.
                story.laptop.write(f"{REPOSITORY}/{path.name}", path.read_text())
            yield story
            shutil.rmtree(story.output)
    except LaboratoryError as error:
        do_without(f"no host can be made here: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_up_comes_before_its_workers(story: Story) -> None:
    story.mark("begin")
    story.ray("ray up -y ~/own.yaml")
    story.mark("up")
    story.open_tunnel()
    log = story.output / "status.log"
    status = story.laptop.start("ray exec ~/own.yaml 'ray status'", log)
    story.wait_for_tunnel()
    assert status.wait(timeout=120) == 0
    assert "0.0/0.0 CPU" not in (said := log.read_text())
    assert not re.search(r"/[1-9]\S* CPU", said)


def test_a_job_outlives_its_terminal_and_waits_for_machines(story: Story) -> None:
    """Submitted while there is no worker and left alone: it says what it waits for, and goes on."""
    job = story.submit_job()
    follower = story.laptop.start(f"{_TUNNELLED}; ray job logs --follow {job}", story.output / "follow.log")
    waiting = "waiting for machines to join: the largest run needs 2 CPUs, the cluster has 0; "
    wait_for("said what it waits for", lambda: waiting in story.said_by(job), 120)

    for pid in story.laptop.processes("ray job logs") | story.laptop.processes("ray dashboard"):
        story.laptop.run(f"kill -9 {pid}", check=False)
    story.laptop.run("pkill -9 ssh", check=False)
    follower.wait(timeout=30)
    for worker in ("worker1", "worker2"):
        story.boot(worker)
    story.mark("terminal lost")
    # Found again in both ways that the page names, while the machines join.
    story.open_tunnel()
    status = story.ray(f"ray exec ~/own.yaml 'autolr-ray status {_RESULTS}/own'")
    assert re.search(rf"own \({_RESULTS}/own\): \d of 4 runs finished", status)
    assert re.search(r"sweeping: process \d+ on head", status)
    story.wait_for_tunnel()
    jobs = story.laptop.run(f"{_TUNNELLED}; ray job list")
    assert re.search(rf"submission_id='{job}'.*RUNNING", jobs)
    # Those of one worker, side by side; the driver is lost with the others before it.
    wait_for("two runs finished", lambda: len(story.finished()) >= 2, 300)
    story.mark("first runs")


def test_the_same_command_goes_on_after_driver_terminal_and_machine_are_lost(story: Story) -> None:
    drivers = story.head.processes("compare.py")
    assert drivers
    story.head.run(f"kill -9 {' '.join(map(str, drivers))}", check=False)  # the shell ends with its child
    wait_for("known as failed", lambda: '"status": "FAILED"' in _api(story, f"api/jobs/{story.job}"), 120)
    finished = story.finished()
    assert 2 <= len(finished) < 4
    goes_on = rf"own: 4 runs, [{len(finished)}-3] of them finished before"

    job = story.submit_job()
    wait_for("goes on as a job", lambda: re.search(goes_on, story.said_by(job)), 120)
    stopping = story.laptop.start(f"{_TUNNELLED}; ray job stop {job}", story.output / "stop.log")
    story.mark("job again")

    submit = f"cd {REPOSITORY}; ray submit ~/own.yaml experiments/compare.py -- "
    submit += _COMPARE.format(study="'~/autolr_ray/own_study.yaml'")
    lost = story.output / "lost.log"
    client = story.laptop.start(submit, lost)
    wait_for("begun", lambda: "own: 4 runs" in lost.read_text(errors="replace"), 120)
    for pid in story.laptop.processes("compare.py"):  # the command, and the ssh behind it
        story.laptop.run(f"kill -9 {pid}", check=False)
    client.wait(timeout=30)
    assert stopping.wait(timeout=60) == 0, (story.output / "stop.log").read_text()
    assert '"status": "STOPPED"' in _api(story, f"api/jobs/{job}")
    wait_for("ended with its terminal", lambda: not story.head.processes("compare.py"), 60)
    assert set(finished) <= set(story.finished())
    story.mark("submit lost")

    log = story.output / "submit.log"
    client = story.laptop.start(submit, log)
    try:
        wait_for("two epochs on two machines", lambda: story.checkpoints("*-b100-*") >= 2, 300, every=0.2)
        worker1, worker2 = (story.laboratory.hosts[name] for name in ("worker1", "worker2"))
        assert worker1.processes("RayTrainWorker")
        assert worker2.processes("RayTrainWorker")
        worker2.kill()
        story.mark("machine lost")
        wait_for("missed", lambda: '"DEAD"' in _api(story, "nodes?view=summary"), 120)
        story.boot("worker2")
        client.wait(timeout=400)
    finally:
        client.send_signal(signal.SIGKILL)
    said = log.read_text(errors="replace")
    assert client.returncode == 0, said
    assert re.search(goes_on, said)
    assert "[4/4]" in said
    assert "FAILED" not in said
    assert set(finished) < set(story.finished())
    story.mark("study finished")


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
    story.mark("report")


def test_doors_are_locked(story: Story) -> None:
    """From outside the dashboard does not answer at all; what does, and the tunnel, ask for the token."""
    address = story.head.address
    outside = "curl -sS -o /dev/null -m 5 -w '%{http_code}' "
    joins = (f"ray.init('{address}:6379')", f"ray.util.connect('{address}:10001', connection_retries=1)")
    script = "env HOME=/tmp RAY_AUTH_MODE=disabled timeout 100 python -c 'import ray; {}'; echo exit $?"
    logs = [story.output / f"join{n}.log" for n in range(len(joins))]
    attempts = [
        story.laptop.start(script.format(join.replace("'", '"')), log)
        for join, log in zip(joins, logs, strict=True)
    ]
    assert "Failed to connect" in story.laptop.run(f"{outside} http://{address}:8265/", check=False)
    assert story.laptop.run(f"{outside} http://{address}:52365/").endswith("401")  # the machine's agent

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
    for attempt, log in zip(attempts, logs, strict=True):
        attempt.wait(timeout=120)
        refused = log.read_text()
        assert refused.endswith("exit 1\n"), refused
        assert "ConnectionError" in refused
    assert not Path(f"/proc/{story.head.pid}/root/tmp/broken-in").exists()


def test_down_leaves_nothing_behind(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
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
    story.mark("down")
    begin = story.marks.pop("begin")
    seconds = {moment: round(then - begin, 1) for moment, then in story.marks.items()}
    with capsys.disabled():
        print("\n" + json.dumps({"name": "laboratory", "seconds": seconds, "cpus": os.cpu_count()}))


def _ray_processes(host: Host) -> list[str]:
    words = ("raylet", "gcs_server", "ray::", "/ray/", "compare.py", "autolr-ray")
    return [line for word in words for line in host.processes(word).values() if "ps -eo" not in line]


def _api(story: Story, path: str) -> str:
    """What the dashboard says; cheaper to ask again and again than ``ray job status``, which imports Ray."""
    token = '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
    return story.laptop.run(f"curl -s -m 10 {token} 'http://127.0.0.1:8265/{path}'", check=False)
