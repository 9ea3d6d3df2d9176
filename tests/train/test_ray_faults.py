"""What can befall a run on Ray: each time it ends in the undisturbed record, or in one clear error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
import train_helpers as helpers
from ray.cluster_utils import Cluster
from ray.train import WorkerGroupError
from train_helpers import result, spec_of

from autolr_ray.train import RunRecord
from autolr_ray.train.checkpoints import load_state
from autolr_ray.train.trainer import RunRequest, build_trainer, run_in_process

ONE = spec_of("held_mlp")
TWO = spec_of("held_simple", workers=2)
HOLD = 60  # in the third epoch, when two have been reported

NODE = {"include_dashboard": False, "object_store_memory": 80_000_000}


class Lab:
    """A Ray cluster of its own whose head trains nothing, and the worker that waits in it (``_Hold``)."""

    def __init__(self, folder, ray_tmp):
        self.folder = folder
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 1000,
            "health_check_failure_threshold": 3,
        }
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args=NODE | {"num_cpus": 0, "temp_dir": str(ray_tmp), "_system_config": quick},
        )

    def have_nodes(self, count):
        """As many nodes with one CPU each."""
        for node in list(self.cluster.worker_nodes)[count:]:
            self.lose(node)
        while len(self.cluster.worker_nodes) < count:
            self.cluster.add_node(**NODE, num_cpus=1)

    def lose(self, node):
        self.cluster.remove_node(node, allow_graceful=False)

    def count_nodes(self):
        """Let an elastic run see at once what it would see in 20 s at most: that is how often Ray counts."""
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1 + len(self.cluster.worker_nodes))
        counter = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(counter.get_reserved_resources.remote("", recompute=True))

    def node(self, node_id, *, is_it):
        """The node of this id, or another one."""
        return next(n for n in self.cluster.worker_nodes if (n.node_id == node_id) == is_it)

    def hold(self, step):
        hold(self.folder, step)

    def held(self, fit):
        return until_held(self.folder, fit.request, fit.goes_on)

    def release(self):
        for name in ("hold", "held"):
            (self.folder / name).unlink(missing_ok=True)

    def logged(self, text):
        """A process of this Ray has written it to its log."""
        logs = Path(self.cluster.head_node.get_logs_dir_path()).glob("worker-*.err")
        return any(text in log.read_text(errors="replace") for log in logs)


class Fit:
    """A ``fit()`` under way in a thread."""

    def __init__(self, request, **settings):
        self.request, self.error = request, None

        def fit():
            try:
                build_trainer(request, **settings).fit()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=fit, daemon=True)
        self.thread.start()

    def goes_on(self):
        if self.error is not None:
            raise self.error
        return self.thread.is_alive()

    def record(self, timeout=300):
        """The record of the run, which ends well."""
        error = self.failure(timeout)
        if error is not None:
            raise error
        return record_of(self.request)

    def failure(self, timeout=300):
        """What it ended with, in bounded time."""
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"still at it after {timeout} s"
        return self.error


def until(condition, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.05)


def hold(folder, step):
    """Let rank 0 wait in this step of its life (``train_helpers._Hold``)."""
    (folder / "hold").write_text(str(step))


def until_held(folder, request, goes_on):
    """Process and node of the worker that waits, once its first two epochs are safe on the storage."""

    def there():
        assert goes_on(), "the run ended too early"
        return (folder / "held").exists() and steps_reported(request) == 50

    until(there)
    pid, node_id = (folder / "held").read_text().split()
    return int(pid), node_id


def request_of(folder, spec, **settings):
    return RunRequest(spec=spec, runs_dir=folder / "runs", record_dir=folder / "records", **settings)


def record_of(request):
    return RunRecord.model_validate_json((request.record_dir / f"{request.spec.cell}.json").read_text())


def snapshot(request):
    """What Ray's controller has written of the checkpoints it has taken in; empty before the first."""
    with suppress(FileNotFoundError, json.JSONDecodeError):  # it is being written
        return json.loads((request.runs_dir / request.name / "checkpoint_manager_snapshot.json").read_text())
    return {}


def steps_reported(request):
    """Optimizer steps up to the newest checkpoint that a new life would begin with."""
    newest = snapshot(request).get("latest_checkpoint_result")
    return newest["metrics"]["step"] if newest else 0


def newest_checkpoint(request):
    name = snapshot(request)["latest_checkpoint_result"]["checkpoint_dir_name"]
    return request.runs_dir / request.name / name / "checkpoint.pt"


@pytest.fixture(scope="module")
def quick_ray(ray_tmp):
    """Environment of each Ray of this module: the user's tasks, and a controller that polls often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process less in each life
        # A new life waits this long for its nodes before it counts them again.
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
        patch.setenv("TMPDIR", str(ray_tmp))  # where killed workers leave what they were about to carry
        # Where a cluster leaves its address, which must not reach others who ask for any Ray of this machine.
        patch.setenv("RAY_TMPDIR", str(ray_tmp))
        (ray_tmp / "ray").mkdir(exist_ok=True)
        yield


@pytest.fixture(scope="module")
def _lab(quick_ray, ray_tmp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(helpers.WATCH, str(folder))
        lab = Lab(folder, ray_tmp)
        try:
            ray.init(address=lab.cluster.address, log_to_driver=False, logging_level="WARNING")
            yield lab
        finally:
            ray.shutdown()
            for node in lab.cluster.list_all_nodes()[::-1]:
                lab.lose(node)


@pytest.fixture
def lab(_lab):
    """The cluster, nobody waiting in it."""
    _lab.release()
    yield _lab
    _lab.release()


@pytest.fixture(scope="module")
def one_undisturbed(tmp_path_factory):
    """Without Ray, which changes nothing (``test_ray_train``), and of a task that nobody holds."""
    return run_in_process(request_of(tmp_path_factory.mktemp("one"), spec_of()), on_report=lambda row: None)


@pytest.fixture(scope="module")
def two_undisturbed(tmp_path_factory):
    """Likewise, two processes of ``torch.distributed``."""
    folder = tmp_path_factory.mktemp("two")
    specs = {"run": [spec_of("simple", workers=2).model_dump(mode="json"), False]}
    (folder / "specs.json").write_text(json.dumps(specs))
    command = [sys.executable, helpers.__file__, str(folder), str(folder / "specs.json")]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    return RunRecord.model_validate_json((folder / "run" / "whole" / "result.json").read_text())


def numbers(record):
    """What was computed, without names."""
    return result(record.model_copy(update=dict.fromkeys(("cell", "study", "arm", "point"), "")))


def test_a_lost_node_is_replaced(two_undisturbed, lab, tmp_path):
    lab.have_nodes(2)
    lab.hold(HOLD)
    fit = Fit(request_of(tmp_path, TWO))
    _, node_id = lab.held(fit)
    lab.lose(lab.node(node_id, is_it=False))  # rank 1's
    lab.release()
    lab.have_nodes(2)
    record = fit.record()
    assert record.restarts >= 1
    assert numbers(record) == numbers(two_undisturbed)


def test_an_elastic_run_goes_on_with_the_nodes_that_are_left(two_undisturbed, lab, tmp_path):
    lab.have_nodes(2)
    lab.hold(HOLD)
    fit = Fit(request_of(tmp_path, TWO, min_workers=1))
    _, node_id = lab.held(fit)
    lab.lose(lab.node(node_id, is_it=True))  # rank 0's, which writes the checkpoints
    lab.count_nodes()
    lab.release()
    record = fit.record()
    assert len(lab.cluster.worker_nodes) == 1
    assert record.restarts >= 1
    # The same global batches, so the same run but for the order of sums.
    assert (record.switch_step, record.verdict) == (two_undisturbed.switch_step, two_undisturbed.verdict)
    assert record.trace.lr == pytest.approx(two_undisturbed.trace.lr, rel=1e-6)
    assert record.trace.loss == pytest.approx(two_undisturbed.trace.loss, rel=1e-5)
    assert record.test_accuracy == two_undisturbed.test_accuracy


SCRIPT = """
import sys
import ray
from autolr_ray.train.trainer import RunRequest, build_trainer

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80_000_000,
         _temp_dir=sys.argv[2], log_to_driver=False, logging_level="WARNING")
build_trainer(RunRequest.model_validate_json(sys.argv[1])).fit()
"""


@pytest.fixture(scope="module")
def killed_run(quick_ray, ray_tmp, tmp_path_factory):
    """The folder of a run whose script, and the Ray that it had started, were killed in the third epoch."""
    folder = tmp_path_factory.mktemp("script")
    request = request_of(folder, ONE)
    (folder / "script.py").write_text(SCRIPT)
    hold(folder, HOLD)
    script = subprocess.Popen(
        [sys.executable, folder / "script.py", request.model_dump_json(), str(ray_tmp)],
        env=os.environ | {helpers.WATCH: str(folder)},
        start_new_session=True,
    )
    try:
        pid, _ = until_held(folder, request, lambda: script.poll() is None)
    finally:
        os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())  # its Ray goes with it, and the worker with Ray
    assert not request.record_dir.exists()
    return request


@pytest.fixture
def interrupted(killed_run, tmp_path):
    """A copy of that run."""
    shutil.copytree(killed_run.runs_dir, tmp_path / "runs")
    return request_of(tmp_path, ONE)


def test_a_killed_script_takes_up_its_run(one_undisturbed, interrupted, lab):
    lab.have_nodes(1)
    record = Fit(interrupted).record()
    assert record.restarts == 1
    assert numbers(record) == numbers(one_undisturbed)


def test_a_damaged_checkpoint_is_passed_over(one_undisturbed, interrupted, lab):
    lab.have_nodes(1)
    damaged = newest_checkpoint(interrupted)
    os.truncate(damaged, damaged.stat().st_size // 2)
    record = Fit(interrupted).record()
    assert record.restarts == 1
    assert numbers(record) == numbers(one_undisturbed)
    until(lambda: lab.logged(f"checkpoint: {damaged} is damaged and is passed over"), timeout=10)


def test_a_lost_list_of_checkpoints_is_done_without(one_undisturbed, interrupted, lab):
    """Ray does not write its list in one move: what is left of it may be nothing."""
    lab.have_nodes(1)
    listing = newest_checkpoint(interrupted).parent.parent / "checkpoint_manager_snapshot.json"
    listing.write_bytes(b"")
    with pytest.warns(UserWarning, match="Ray's list of checkpoints was cut off"):
        record = Fit(interrupted).record()
    assert record.restarts == 1
    assert numbers(record) == numbers(one_undisturbed)


@pytest.fixture
def disk(tmp_path):
    """A small disk, for checkpoints alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root that can mount a tmpfs: {getattr(error, 'stderr', None) or error}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


def fill(folder):
    """A file that leaves no room for a byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def make_read_only(folder):
    mount("-o", "remount,ro", folder)


def test_a_storage_that_takes_no_more_ends_in_one_clear_error(one_undisturbed, lab, disk, tmp_path):
    lab.have_nodes(1)
    request = request_of(tmp_path, ONE).model_copy(update={"runs_dir": disk})

    error, filler = failure(lab, request, HOLD, lambda: fill(disk))
    assert_clear(error, request, "No space left on device")
    filler.unlink()

    error, _ = failure(lab, request, HOLD - 50, lambda: make_read_only(disk))  # it has gone on after step 50
    assert_clear(error, request, "Read-only file system")
    mount("-o", "remount,rw", disk)

    record = Fit(request).record()
    assert record.restarts == 1  # the second life left no checkpoint
    assert numbers(record) == numbers(one_undisturbed)


def failure(lab, request, step, disturb):
    """What a run ends with whose storage is disturbed while it waits in the third epoch."""
    lab.hold(step)
    fit = Fit(request, max_failures=0)
    lab.held(fit)
    disturbed = disturb()
    lab.release()
    return fit.failure(), disturbed


def assert_clear(error, request, cause):
    """One error, of the storage, that says what, why, and what is left; and that is left."""
    assert isinstance(error, WorkerGroupError)
    newest = newest_checkpoint(request)
    run_dir = newest.parent.parent
    (reason,) = error.worker_failures.values()
    assert re.fullmatch(
        rf"checkpoint: {run_dir}/checkpoint_\S+ cannot be written \(.*{cause}.*\); "
        rf"the newest whole one is {newest.parent}; start the run again when .*",
        str(reason),
    )
    assert str(reason) in str(error)
    assert load_state(newest)["step"] == steps_reported(request) == 50
    assert len(list(run_dir.glob("checkpoint_*/"))) == 2  # nothing of what could not be carried
