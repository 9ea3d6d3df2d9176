"""on_premise.yaml: what Ray's launcher checks, and that it is as careful as cluster.yaml."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "experiments/cluster/on_premise.yaml").read_text())
    return config


def test_ray_accepts_it(written: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(written))
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == len(written["provider"]["worker_ips"])


def test_what_is_copied_is_what_cluster_yaml_copies(written: dict[str, Any]) -> None:
    other = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for key in ("file_mounts", "rsync_exclude"):
        assert written[key] == other[key]


def test_doors_are_closed(written: dict[str, Any]) -> None:
    for role in ("head", "worker"):
        (start,) = (c for c in written[f"{role}_start_ray_commands"] if "ray start" in c)
        assert "RAY_AUTH_MODE=token" in start
        assert re.findall(r"--dashboard-host=(\S+)", start) == (["127.0.0.1"] if role == "head" else [])
        assert "--port=6379" in start or "$RAY_HEAD_IP:6379" in start
    assert not re.search(r"0\.0\.0\.0|::/0", str(written))


def test_it_names_nobody(written: dict[str, Any]) -> None:
    """Addresses come from the block that is kept for examples; keys and tokens are named by path alone."""
    assert all(
        ip.startswith("192.0.2.")
        for ip in re.findall(r"\d+\.\d+\.\d+\.\d+", str(written))
        if ip != "127.0.0.1"
    )
    assert not re.search(r"BEGIN|[0-9a-f]{32}", str(written))
