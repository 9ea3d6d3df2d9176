"""The Ray that a sweep runs on: join the cluster at hand or start a local one, and what there is on it."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from autolr_ray.compare.need import Need
from autolr_ray.compare.progress import clock, say

# Set where the user has not set them; they travel to every worker.
_ENVIRONMENT = {
    # The controller of a Ray Train run takes one report a poll; its default of 2 s would rule short epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # `ray list` and the dashboard's API know the nested runs.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    # A user's task may open files by paths relative to where the sweep was started.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The sweep prints the reason of a failure itself; the traceback is in the trial's error.txt.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# What Ray says to everybody, and what the sweep says in its own words. Nothing else is held back: above all
# not the warning that a cluster has no authentication.
_SAID_OTHERWISE = (
    "Token authentication is enabled",
    "Stop signal received",
    "Experiment has been interrupted",
    "Trials did not complete",
)
# How long a sweep waits for machines that are still to join, and how often it says so. Those of a cluster of
# one's own come one after the other: after the first, none may come for so long before the sweep starts.
_PATIENCE_SECONDS, _SAY_SECONDS, _SETTLE_SECONDS = 900.0, 30.0, 6.0
_NOISY_LOGGERS = ("ray._private.authentication.authentication_token_setup", "ray.tune.tune")


class ClusterError(RuntimeError):
    """The Ray cluster that was asked for cannot be used; the message is ready to be shown."""


@contextmanager
def cluster(
    address: str | None,
    names: Sequence[str],
    need: Need | None = None,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, float]]:
    """Be connected to Ray inside the block; yields what the cluster has, or can grow to, of each resource.

    A cluster that was joined is given a quarter of an hour to have what the largest run needs: its machines
    may still be starting.

    Args:
        address: the cluster; None: the one this machine is part of, or a new local one, which ends with the
            block.
        names: a user's own task and arms, as ``package.module:attribute``: their code is sent to the workers
            of a cluster. On a new local one they find it by themselves, in the directories of this process.
        need: what the largest run takes.
        on_wait: called every now and then while machines are waited for.

    Raises:
        ClusterError: there is no cluster at ``address``, or no machine has joined it in time.
    """
    if ray.is_initialized():
        yield most_resources()
        return
    say("starting Ray ...")
    began = time.monotonic()
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    logging.getLogger("ray").setLevel(logging.WARNING)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)
    context = _connect(address, names)
    try:
        resources = most_resources() if is_ours() else _wait_for(need or Need(), on_wait)
        found = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        dashboard = getattr(context, "dashboard_url", None)
        where = f", dashboard at http://{dashboard}" if dashboard else ""
        say(f"Ray is up after {clock(time.monotonic() - began)}: {found}{where}")
        yield resources
    finally:
        ray.shutdown()


def most_resources() -> dict[str, float]:
    """What the nodes have now, or, where Ray knows it of a cluster that grows, what it can grow to.

    The autoscalers that come with Ray do not tell: on their clusters it is what there is now.
    """
    resources: dict[str, float] = dict(ray.cluster_resources())
    try:
        from ray._private.state import state

        most = state.get_max_resources_from_cluster_config() or {}
    except Exception:  # a private function of Ray: without it, what there is now counts
        most = {}
    for kind, amount in most.items():
        resources[kind] = max(resources.get(kind, 0.0), float(amount))
    return resources


def _wait_for(need: Need, on_wait: Callable[[], None] = lambda: None) -> dict[str, float]:
    """What there is, or can be, once that is enough, or once patience has ended and there is something.

    Raises:
        ClusterError: there is nothing to run on.
    """
    resources = most_resources()
    began, spoke, room = time.monotonic(), -math.inf, _room(resources)
    changed = -math.inf  # no need to settle where everything was there
    asked: list[dict[str, float]] = []
    while True:
        now = time.monotonic()
        lacking = need.lacking(resources)
        waited = now - began
        if (not lacking and now - changed >= _SETTLE_SECONDS) or waited >= _PATIENCE_SECONDS:
            break
        # A cluster that grows by itself grows for those who ask. Again, where the first machine to join has
        # shown that the runs will be on GPUs: until then its CPUs alone might be enough.
        if lacking and (bundles := need.bundles(resources)) != asked:
            asked = bundles
            request_resources(bundles=bundles)
        if lacking and now - spoke >= _SAY_SECONDS:
            spoke = now
            wanted = " and ".join(f"{amount:g} {kind}s" for kind, amount in lacking.items())
            there = " and ".join(f"{resources.get(kind, 0):g}" for kind in lacking)
            say(
                f"waiting for machines to join: the largest run needs {wanted}, the cluster has {there}; "
                f"{clock(waited)} of at most {clock(_PATIENCE_SECONDS)}, `ray status` shows who is on the way"
            )
        on_wait()
        time.sleep(0.5)
        resources = most_resources()
        if (seen := _room(resources)) != room:
            room, changed = seen, time.monotonic()
    if asked:
        request_resources(bundles=[])  # from here on the runs ask for themselves
    if lacking and not resources.get("CPU"):
        raise ClusterError(
            f"address: no machine with a CPU to run on joined the cluster within {clock(_PATIENCE_SECONDS)}; "
            "`ray status` on the head shows why, finished runs are kept"
        )
    return resources


def _room(resources: dict[str, float]) -> tuple[float, float]:
    """What changes when a machine joins."""
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def _connect(address: str | None, names: Sequence[str]) -> Any:
    """Join a cluster, else start a local one; Ray's context."""
    joining = _joins(address)
    if not joining:
        # Ray would start a worker for each CPU at once. They are not ready by the time that the first runs
        # ask for theirs, so others are started, and all of them import side by side.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        # Never "auto": that joins any Ray on this machine, another user's sweep for one.
        return ray.init(
            address=address,
            # The workers of a local Ray have this process's environment.
            runtime_env=_runtime_env(names) if joining else {},
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="autolr_ray",
        )
    except (ConnectionError, ValueError) as error:
        asked = address or os.environ.get("RAY_ADDRESS")
        if not asked:
            raise
        reason = " ".join(str(error).split())
        raise ClusterError(f"address: no Ray cluster can be used at {asked!r} ({reason})") from error


def _runtime_env(names: Sequence[str]) -> dict[str, Any]:
    """What the workers of a cluster that is up need from here."""
    given = _job_runtime_env()
    variables = {key: os.environ[key] for key in _ENVIRONMENT if key not in given.get("env_vars", {})}
    environment: dict[str, Any] = {"env_vars": variables}
    modules = sorted({str(path) for name in names if (path := _own_module(name)) is not None})
    if modules and not given.keys() & {"py_modules", "working_dir"}:
        environment["py_modules"] = modules
    return environment


def _joins(address: str | None) -> bool:
    """Whether :func:`cluster` will join one that is up: the rules that Ray has for an address of None."""
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    return bool(address or os.environ.get("RAY_ADDRESS")) or current.exists()


def is_ours() -> bool:
    """Whether this process started the Ray that it is connected to: nobody will join that one."""
    from ray._private import worker  # the file that `_joins` looks for may be left over from a killed cluster

    return worker._global_node is not None and bool(worker._global_node.is_head())


def _job_runtime_env() -> dict[str, Any]:
    """What ``ray job submit --runtime-env`` has set already: Ray refuses to be told twice."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return dict(job.get("runtime_env") or {})
    except (ValueError, AttributeError):
        return {}


def _own_module(name: str) -> Path | None:
    """The file, or the package's folder, behind a user's name, unless it is installed like a library."""
    top = name.partition(":")[0].partition(".")[0]
    origin = getattr(sys.modules.get(top), "__file__", None)
    if origin is None:
        return None
    path = Path(origin).resolve()
    libraries = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    if any(path.is_relative_to(folder) for folder in libraries):
        return None
    return path.parent if path.name == "__init__.py" else path


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_SAID_OTHERWISE)
