"""The repository's launcher files with a laboratory's values in place of a user's."""

from __future__ import annotations

import re
from typing import Any

import yaml
from laboratory import ENVIRONMENT, REPOSITORY

ON_PREMISE = REPOSITORY / "experiments" / "cluster" / "on_premise.yaml"
PRODUCTION = REPOSITORY / "cluster.yaml"

# Two cores carry all hosts: little memory each, a lost host is noticed soon, and Ray's workers, which start
# over and over here, do not stand back behind whatever else this machine does.
_LIGHT = "--object-store-memory=80000000"
_HASTE = {
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "8",  # from then on a lost machine is set up again, if it is there
}


def on_premise(head: str, workers: list[str]) -> str:
    """``on_premise.yaml`` with the values that a user changes, and what two cores and no index need."""
    config: dict[str, Any] = yaml.safe_load(ON_PREMISE.read_text())
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    config["setup_commands"] = [_without_index(command) for command in config["setup_commands"]]
    config["head_start_ray_commands"] = [_light(c) for c in config["head_start_ray_commands"]]
    config["worker_start_ray_commands"] = [
        _light(c, "--num-cpus=1") for c in config["worker_start_ray_commands"]
    ]
    return yaml.safe_dump(config, sort_keys=False)


def production(head: str, workers: list[str]) -> str:
    """``cluster.yaml`` with the laboratory in place of AWS and images; a worker has one CPU, no GPU."""
    config: dict[str, Any] = yaml.safe_load(PRODUCTION.read_text())
    config["provider"] = {
        "type": "external",
        "module": "laboratory_provider.LaboratoryProvider",
        "head_ip": head,
        "worker_ips": workers,
        "head_type": config["head_node_type"],
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    del config["docker"]
    for node_type in config["available_node_types"].values():
        node_type["node_config"] = {}
        if node_type["resources"].get("GPU"):
            node_type["resources"] = {"CPU": 1}
    # Ray fills these in for the providers that it knows.
    config |= {"cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_filter": []}
    config["idle_timeout_minutes"] = 0.8  # longer than a run takes to start
    variables = f"export PATH={ENVIRONMENT}/bin:$PATH RAY_AUTH_MODE=token"
    image = f"ln -sfn {ENVIRONMENT} ~/.autolr_ray; echo '{variables}' > ~/.bashrc"
    config["setup_commands"] = [image, *(_without_index(command) for command in config["setup_commands"])]
    config["head_setup_commands"] = []
    config["initialization_commands"] = []  # the cost cap turns a machine off: this one, of all
    provider = "PYTHONPATH=$HOME/autolr_ray/tests/cluster"
    config["head_start_ray_commands"] = [
        _light(c).replace("ray start", f"{provider} ray start") for c in config["head_start_ray_commands"]
    ]
    # AWS's names lead to the machines' addresses; a laboratory host's own name leads to 127.0.1.1.
    config["worker_start_ray_commands"] = [
        _light(c).replace("ray start", "GLOO_SOCKET_IFNAME=eth0 ray start")
        for c in config["worker_start_ray_commands"]
    ]
    return yaml.safe_dump(config, sort_keys=False)


def _without_index(command: str) -> str:
    """What stands for the installation: the environment that is there, and what pip writes into it."""
    command = command.replace("python3 -m venv ~/.autolr_ray", f"ln -s {ENVIRONMENT} ~/.autolr_ray")
    if "pip install" in command:
        return "echo ~/autolr_ray > ~/.autolr_ray/lib/python3*/site-packages/_editable_impl_autolr_ray.pth"
    return command


def _light(command: str, options: str = "") -> str:
    """A start command with the laboratory's options and intervals."""
    if "ray start" not in command:
        return command
    for name, value in _HASTE.items():
        command = re.sub(rf"{name}=\S+ ?", "", command)
        command = command.replace("RAY_AUTH_MODE=token", f"RAY_AUTH_MODE=token {name}={value}", 1)
    return f"{command} {_LIGHT} {options}".strip()
