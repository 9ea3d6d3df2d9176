"""cluster.yaml: what Ray's launcher checks, and the mistakes that it lets through."""

import copy
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("gpu_spot", "gpu_on_demand")

# The parameters of EC2's RunInstances that this file may use, and SubnetIds, which is Ray's own. Ray hands
# over whatever it finds, so that a typo shows only when AWS refuses the first machine.
NODE_CONFIG_KEYS = {
    "BlockDeviceMappings",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "KeyName",
    "MetadataOptions",
    "SecurityGroupIds",
    "SubnetIds",
    "TagSpecifications",
}
PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"}


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """Return the file as it is written."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """Return the file with Ray's defaults filled in, as ``ray up`` uses it."""
    config: dict[str, Any] = prepare_config(copy.deepcopy(written))
    return config


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    """Ray's schema and its own checks pass."""
    validate_config(prepared)


def test_nothing_that_matters_is_inherited(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    """Ray's defaults install a nightly build and open the dashboard: only harmless keys come from them."""
    assert set(prepared) - set(written) <= {
        "cluster_synced_files",
        "file_mounts_sync_continuously",
        "rsync_filter",
    }
    assert "s3-us-west-2" not in str(prepared)


def test_images_carry_the_ray_of_pyproject(written: dict[str, Any]) -> None:
    """Head and workers run the same Ray and Python, in the range that the package asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    found = {}
    for role, suffix in (("head_image", ""), ("worker_image", "-gpu")):
        match = re.fullmatch(rf"rayproject/ray:(\d+\.\d+\.\d+)-py311{suffix}", written["docker"][role])
        assert match, written["docker"][role]
        found[role] = match[1]
        assert match[1] in ray.specifier
    assert len(set(found.values())) == 1
    assert f"ray=={found['head_image']}" in (ROOT / "constraints.txt").read_text().split()


def test_nothing_is_paid_for_while_idle(prepared: dict[str, Any]) -> None:
    """Workers come from zero, go when idle, and never exceed the cap."""
    types = prepared["available_node_types"]
    assert all(node_type["min_workers"] == 0 for node_type in types.values())
    assert all(0 <= types[name]["max_workers"] <= prepared["max_workers"] for name in WORKERS)
    assert 0 < prepared["idle_timeout_minutes"] <= 15
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_a_machine_without_a_head_ends_itself(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    """Workers whose head has died have nobody to end them: they shut down by the clock, and are gone."""
    (command,) = prepared["initialization_commands"]
    minutes = re.fullmatch(r"sudo shutdown -P \+(\d+)", command)
    assert minutes
    assert 24 * 60 <= int(minutes[1]) <= 7 * 24 * 60
    for node_type in prepared["available_node_types"].values():
        assert node_type["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"
        (disk,) = node_type["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["DeleteOnTermination"] is True


def test_every_type_brings_its_own_group_and_profile(written: dict[str, Any]) -> None:
    """Without a group Ray opens port 22 to the world; without a profile workers cannot write to S3."""
    values = written["metadata"]
    for name, node_type in written["available_node_types"].items():
        node_config = node_type["node_config"]
        assert node_config["SecurityGroupIds"] == values["security_groups"]
        profile = values["head_profile" if name == "head" else "worker_profile"]
        assert node_config["IamInstanceProfile"] == profile


def test_what_a_user_changes_stands_at_the_top(written: dict[str, Any]) -> None:
    """Every value under ``metadata`` is used below it; CHANGE and placeholders stand there alone."""
    top, below = (ROOT / "cluster.yaml").read_text().split("\ncluster_name:")
    assert set(re.findall(r"&(\w+)\s", top)) - {"mount"} == set(re.findall(r"\*(\w+)", below)) - {
        "gpu_config"
    }
    assert "CHANGE" in top
    assert "CHANGE" not in below
    assert not re.search(r"0{8}", below)


def test_the_mount_works_when_uncommented(written: dict[str, Any]) -> None:
    """The lines on EFS are YAML once their "#" is gone, and one command of the shell."""
    top, below = (ROOT / "cluster.yaml").read_text().split("\ncluster_name:")
    start = top.index("  # mount: &mount")
    lines = top[start:].replace("\n  # ", "\n  ").replace("  # mount", "  mount", 1)
    config = yaml.safe_load(f"{top[:start]}{lines}\ncluster_name:{below}")
    command = config["metadata"]["mount"]
    assert "mount -t nfs4 -o nfsvers=4.1" in command
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert {key: value for key, value in config.items() if key != "metadata"} == {
        key: value for key, value in written.items() if key != "metadata"
    }


def test_the_head_runs_no_trials(prepared: dict[str, Any]) -> None:
    """The head offers no CPU and no GPU, and is not started a second time as a worker."""
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert "--num-cpus=0 --num-gpus=0" in " ".join(prepared["head_start_ray_commands"])


def test_resources_are_whole_numbers(written: dict[str, Any]) -> None:
    """Every type states its resources, and the two worker types the same ones."""
    types = written["available_node_types"]
    assert all(type(n) is int for node_type in types.values() for n in node_type["resources"].values())
    assert types["gpu_spot"]["resources"] == types["gpu_on_demand"]["resources"]
    assert types["gpu_spot"]["resources"]["GPU"] >= 1


@pytest.mark.parametrize(
    ("spot_availability", "expected"),
    [(1.0, "gpu_spot"), (0.0, "gpu_on_demand"), (0.5, "gpu_on_demand")],
    ids=["spot", "spot refused", "spot refused a while ago"],
)
def test_spot_first_then_on_demand(prepared: dict[str, Any], spot_availability: float, expected: str) -> None:
    """Ray's scheduler sends two GPU trials from zero workers to spot, or on demand where spot was refused."""
    config = AutoscalingConfig(copy.deepcopy(prepared), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 2
        ),
        recoverable_resource_availabilities={"gpu_spot": spot_availability},
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == {expected: 2}


def test_only_the_spot_type_is_spot(written: dict[str, Any]) -> None:
    """The two worker types differ in the market alone."""
    spot, on_demand = (dict(written["available_node_types"][name]["node_config"]) for name in WORKERS)
    market = spot.pop("InstanceMarketOptions")
    assert market["MarketType"] == "spot"
    assert re.fullmatch(r"\d+\.\d+", market["SpotOptions"]["MaxPrice"])  # AWS wants text, in USD
    assert spot == on_demand


def test_no_unknown_keys_reach_aws(prepared: dict[str, Any]) -> None:
    """Ray accepts any key in node_config and provider; AWS does not."""
    for name, node_type in prepared["available_node_types"].items():
        assert set(node_type["node_config"]) <= NODE_CONFIG_KEYS, name
        assert {"InstanceType", "ImageId"} <= set(node_type["node_config"]), name
    assert set(prepared["provider"]) <= PROVIDER_KEYS


def test_the_dashboard_is_on_loopback_and_needs_a_token(prepared: dict[str, Any]) -> None:
    """The dashboard is reached by ``ray dashboard`` alone, and every Ray process asks for the token."""
    for role in ("head", "worker"):
        commands = prepared[f"{role}_start_ray_commands"]
        (start,) = (command for command in commands if "ray start" in command)
        assert "RAY_AUTH_MODE=token ray start" in start
        assert re.findall(r"--dashboard-host=(\S+)", start) == (["127.0.0.1"] if role == "head" else [])
    assert "-e RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert not re.search(r"0\.0\.0\.0|::/0", str(prepared))


def test_file_mounts_exist(prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that is copied is in this repository, but for the token that the user makes first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    mounts = {remote: ROOT / os.path.expanduser(local) for remote, local in prepared["file_mounts"].items()}
    assert mounts.pop("~/.ray/auth_token") == token
    assert set(mounts) == {"~/autolr_ray"}
    copied = mounts["~/autolr_ray"]
    for needed in ("pyproject.toml", "constraints.txt", "LICENSE", "autolr_ray/__init__.py"):
        assert (copied / needed).is_file(), needed
    install = "cd ~/autolr_ray && pip install --no-cache-dir -c constraints.txt -e ."
    assert install in prepared["head_setup_commands"]
    assert install in prepared["worker_setup_commands"]
    assert install.replace("-e .", "-e '.[aws]'") in prepared["head_setup_commands"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(name.startswith("boto3") for name in project["optional-dependencies"]["aws"])


def test_large_and_private_folders_stay_at_home(written: dict[str, Any]) -> None:
    """The environment, the history and old results are not copied; committed results are."""
    assert {".git", ".venv", "/results", ".env", "*.pem"} <= set(written["rsync_exclude"])
    assert "results" not in written["rsync_exclude"]
