"""cluster.yaml in a mock of AWS: Ray's own `ray up`, autoscaler and `ray down`, and the machines they make.

Only ssh is left out. The security group, the bucket and the profiles are those that aws_setup.py makes. All
of it happens once (clients of AWS are slow to make), and the tests look at what was seen.
"""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from botocore.loaders import JSONFileLoader
from moto import mock_aws
from ray.autoscaler import sdk
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, IConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError, NodeProviderAdapter

ROOT = Path(__file__).resolve().parent.parent
REGION, BUCKET, LAPTOP = "us-west-2", "a-bucket-of-mine", "203.0.113.7/32"
WORKERS = ["gpu_spot", "gpu_on_demand"]


@pytest.fixture(scope="module")
def aws_setup() -> ModuleType:
    """Return the set-up script as a module."""
    path = ROOT / "experiments" / "cluster" / "aws_setup.py"
    spec = importlib.util.spec_from_file_location("aws_setup", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Updater:
    """Ray's thread that would set up a machine over ssh; keeps what it was asked to do."""

    asked: dict[str, Any]
    exitcode = 0

    def __init__(self, **asked: Any) -> None:
        type(self).asked = asked

    def start(self) -> None:
        """Do nothing."""

    join = start


@dataclass
class Seen:
    """What happened in the account, in order."""

    config: dict[str, Any]
    group: str = ""
    unchanged: str = ""
    heads: list[dict[str, Any]] = field(default_factory=list)
    head_setup: dict[str, Any] = field(default_factory=dict)
    workers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    attached: list[Any] = field(default_factory=list)
    worker_role: str = ""
    blocked: dict[str, bool] = field(default_factory=dict)
    typo: list[Exception] = field(default_factory=list)
    after_typo: int = -1
    states_at_the_end: list[str] = field(default_factory=list)
    second_group: str = ""
    ssh_after_second: dict[str, Any] = field(default_factory=dict)


def run_setup(aws_setup: ModuleType, *sources: str) -> str:
    """Run the script; the group's id that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        aws_setup.main(["--region", REGION, "--bucket", BUCKET, "--ssh-from", *sources])
    (group,) = yaml.safe_load(printed.getvalue().splitlines()[0])["security_groups"]
    return str(group)


def as_a_user_leaves_it(group: str, image: str, folder: Path) -> dict[str, Any]:
    """cluster.yaml with what aws_setup.py prints and the id of an image."""
    text = (ROOT / "cluster.yaml").read_text()
    for placeholder, value in (("sg-00000000000000000", group), ("ami-00000000000000000", image)):
        assert text.count(placeholder) == 1, placeholder
        text = text.replace(placeholder, value)
    config: dict[str, Any] = yaml.safe_load(text)
    # Ray hashes what it copies, and the whole folder takes its time.
    (folder / "small").mkdir()
    (folder / "token").write_text("not a real one")
    config["file_mounts"] = {
        "~/autolr_ray": str(folder / "small"),
        "~/.ray/auth_token": str(folder / "token"),
    }
    return config


def autoscale(config: dict[str, Any], wanted: dict[str, int]) -> list[Exception]:
    """Do what the head's autoscaler (version 2) does when it has decided to launch machines."""

    class Reader(IConfigReader):
        def get_cached_autoscaling_config(self) -> AutoscalingConfig:
            return AutoscalingConfig(config, skip_content_hash=True)

        def refresh_cached_autoscaling_config(self) -> None:
            """Nothing changes."""

    provider = NodeProviderAdapter(_get_node_provider(config["provider"], config["cluster_name"]), Reader())
    provider.launch(wanted, request_id="request-1")
    provider._main_executor.shutdown(wait=True)
    provider._node_launcher_executors.shutdown(wait=True)
    return list(provider.poll_errors())


def instances(ec2: Any) -> list[dict[str, Any]]:
    """Every machine that ever was."""
    return [m for reservation in ec2.describe_instances()["Reservations"] for m in reservation["Instances"]]


def tags(machine: dict[str, Any]) -> dict[str, str]:
    """The tags as a dictionary."""
    return {tag["Key"]: tag["Value"] for tag in machine["Tags"]}


@pytest.fixture(scope="module")
def seen(aws_setup: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Set up the account, `ray up` with and without the changes to make, launch workers, `ray down`."""
    folder = tmp_path_factory.mktemp("aws")
    caches = (aws_utils.client_cache, aws_utils.resource_cache, aws_config._get_subnets_or_die)
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(folder))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.setenv(name, "mock")
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setenv("RAY_UP_enable_autoscaler_v2", "1")
        patch.setattr(JSONFileLoader, "load_file", parse_once(JSONFileLoader.load_file))
        patch.setattr(commands, "POLL_INTERVAL", 0.01)  # seconds between two looks at the machines
        patch.setattr(commands, "NodeUpdaterThread", Updater)
        patch.setattr(commands, "exec_cluster", lambda *args, **kwargs: "")
        for cache in caches:
            cache.cache_clear()
        try:
            return story(aws_setup, folder, patch)
        finally:
            for cache in caches:
                cache.cache_clear()


def parse_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Keep AWS's descriptions of its services: each new session would parse megabytes of them again."""
    kept: dict[str, Any] = {}

    def load_file(self: JSONFileLoader, path: str) -> Any:
        if path not in kept:
            kept[path] = load(self, path)
        return kept[path]

    return load_file


def story(aws_setup: ModuleType, folder: Path, patch: pytest.MonkeyPatch) -> Seen:
    """All of it, in a mocked account."""
    ec2, iam, s3 = (boto3.client(service, region_name=REGION) for service in ("ec2", "iam", "s3"))
    asked: list[dict[str, Any]] = []
    create = aws_utils.boto3.session.Session.resource

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = create(self, *args, **kwargs)
        events = made.meta.client.meta.events
        events.register(
            "provide-client-params.ec2.RunInstances", lambda params, **_: asked.append(dict(params))
        )
        return made

    patch.setattr(aws_utils.boto3.session.Session, "resource", watched)
    group = run_setup(aws_setup, LAPTOP)
    image = ec2.describe_images()["Images"][0]["ImageId"]
    seen = Seen(as_a_user_leaves_it(group, image, folder), group=group, asked=asked)

    forgotten = copy.deepcopy(seen.config)
    for node_type in forgotten["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = ["sg-00000000000000000"]
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(AssertionError):
        sdk.create_or_update_cluster(forgotten, no_config_cache=True)
    seen.unchanged = said.getvalue()
    assert instances(ec2) == []

    # The configuration that the head gets, with what Ray has filled in.
    sent: list[dict[str, Any]] = []
    send = commands._set_up_config_for_head_node
    patch.setattr(commands, "_set_up_config_for_head_node", lambda c, *rest: sent.append(c) or send(c, *rest))
    sdk.create_or_update_cluster(seen.config, no_config_cache=True)
    seen.heads, seen.head_setup = instances(ec2), Updater.asked

    for kind in WORKERS:
        assert autoscale(sent[0], {kind: 2}) == []
        seen.workers[kind] = [m for m in instances(ec2) if tags(m)["ray-user-node-type"] == kind]
    typo = copy.deepcopy(sent[0])
    typo["available_node_types"]["gpu_spot"]["node_config"]["InstanceMarketOption"] = {"MarketType": "spot"}
    before = len(instances(ec2))
    seen.typo, seen.after_typo = autoscale(typo, {"gpu_spot": 1}), len(instances(ec2)) - before

    seen.volumes = {volume["VolumeId"]: volume for volume in ec2.describe_volumes()["Volumes"]}
    seen.groups = {found["GroupName"]: found for found in ec2.describe_security_groups()["SecurityGroups"]}
    for role in ("autolr-ray-worker", "autolr-ray-head"):
        policy = iam.get_role_policy(RoleName=role, PolicyName=role)["PolicyDocument"]
        seen.policies[role] = policy["Statement"]
        seen.attached += iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    seen.worker_role = iam.get_role(RoleName="autolr-ray-worker")["Role"]["Arn"]
    seen.blocked = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]

    sdk.teardown_cluster(seen.config)
    seen.states_at_the_end = [machine["State"]["Name"] for machine in instances(ec2)]
    seen.second_group = run_setup(aws_setup, "198.51.100.0/24", "2001:db8::/32")
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    seen.ssh_after_second = next(rule for rule in found["IpPermissions"] if rule["IpProtocol"] == "tcp")
    return seen


def disk(seen: Seen, machine: dict[str, Any]) -> dict[str, Any]:
    """The root volume."""
    (mapping,) = machine["BlockDeviceMappings"]
    assert mapping["Ebs"]["DeleteOnTermination"] is True
    return seen.volumes[mapping["Ebs"]["VolumeId"]]


def test_ray_up_makes_the_head(seen: Seen) -> None:
    """One CPU machine on demand, with our group and profile, set up by our commands alone."""
    (head,) = seen.heads
    assert head["InstanceType"] == "m6i.xlarge"
    assert "InstanceLifecycle" not in head
    assert [group["GroupId"] for group in head["SecurityGroups"]] == [seen.group]
    assert head["IamInstanceProfile"]["Arn"].endswith(":instance-profile/autolr-ray-head")
    assert tags(head)["project"] == tags(head)["ray-cluster-name"] == "autolr-ray"
    assert tags(head)["ray-user-node-type"] == tags(head)["ray-node-type"] == "head"
    volume = disk(seen, head)
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (150, "gp3", True)

    asked = seen.head_setup
    assert asked["is_head_node"] is True
    assert asked["initialization_commands"] == ["sudo shutdown -P +4320"]
    assert asked["setup_commands"] == seen.config["setup_commands"] + seen.config["head_setup_commands"]
    start = " ".join(asked["ray_start_commands"])
    assert "RAY_AUTH_MODE=token ray start --head --num-cpus=0 --num-gpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "~/.ray/auth_token" in asked["file_mounts"]


@pytest.mark.parametrize("kind", WORKERS)
def test_the_autoscaler_makes_workers(seen: Seen, kind: str) -> None:
    """GPU machines, spot or on demand, from the configuration that `ray up` hands to the head."""
    request = seen.asked[1 + WORKERS.index(kind)]
    market = request.get("InstanceMarketOptions")
    workers = seen.workers[kind]
    assert (request["MaxCount"], len(workers)) == (2, 1)  # the mock makes MinCount machines
    if kind == "gpu_spot":
        assert market == {"MarketType": "spot", "SpotOptions": {"MaxPrice": "1.006"}}
        assert {worker.get("InstanceLifecycle") for worker in workers} == {"spot"}
    else:
        assert market is None
        assert all("InstanceLifecycle" not in worker for worker in workers)
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert request["MetadataOptions"] == {"HttpTokens": "required"}
    for worker in workers:
        assert worker["InstanceType"] == "g5.xlarge"
        assert [found["GroupId"] for found in worker["SecurityGroups"]] == [seen.group]
        assert worker["IamInstanceProfile"]["Arn"].endswith(":instance-profile/autolr-ray-worker")
        assert tags(worker)["project"] == "autolr-ray"
        zones = seen.config["provider"]["availability_zone"].split(",")
        assert worker["Placement"]["AvailabilityZone"] in zones
        volume = disk(seen, worker)
        assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (200, "gp3", True)
        assert {"Key": "project", "Value": "autolr-ray"} in volume["Tags"]


def test_a_typo_in_a_node_config_is_found_by_the_first_launch_alone(seen: Seen) -> None:
    """Ray's checks let it through: that is why test_cluster_yaml.py knows the allowed names."""
    (error,) = seen.typo
    assert isinstance(error, LaunchNodeError)
    assert "InstanceMarketOption" in str(error.__cause__)
    assert seen.after_typo == 0


def test_only_ssh_from_known_addresses(seen: Seen) -> None:
    """Ray makes no group of its own beside ours, and ours lets in port 22 from one address and itself."""
    assert set(seen.groups) == {"default", "autolr-ray"}
    assert seen.groups["autolr-ray"]["GroupId"] == seen.group
    rules = seen.groups["autolr-ray"]["IpPermissions"]
    ssh, inside = sorted(rules, key=lambda rule: rule["IpProtocol"] == "-1")
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [found["CidrIp"] for found in ssh["IpRanges"]] == [LAPTOP]
    assert not ssh["UserIdGroupPairs"]
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [seen.group]
    assert not inside["IpRanges"]
    assert not inside["Ipv6Ranges"]


def test_a_file_that_nobody_changed_makes_nothing(seen: Seen) -> None:
    """With the placeholder of the group `ray up` stops before it opens or pays for anything, and says why."""
    assert "Failed to detect a security group" in seen.unchanged


def test_ray_down_leaves_no_machine(seen: Seen) -> None:
    """Head and workers are terminated, not stopped."""
    assert seen.states_at_the_end == ["terminated"] * 3


def test_profiles_may_do_little(seen: Seen) -> None:
    """Workers use the one bucket; the head also starts machines, and hands on the worker's role alone."""
    worker, head = seen.policies["autolr-ray-worker"], seen.policies["autolr-ray-head"]
    assert {one["Resource"] for one in worker} == {f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"}
    assert all(one in head for one in worker)
    passing = [one["Resource"] for one in head if "iam:PassRole" in one["Action"]]
    assert passing == [seen.worker_role]
    (ending,) = (one for one in head if "ec2:TerminateInstances" in one["Action"])
    assert ending["Condition"] == {"StringLike": {"aws:ResourceTag/ray-cluster-name": "*"}}
    actions = {
        a for one in head for a in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    }
    assert {action for action in actions if action.endswith("*")} == {"ec2:Describe*"}
    assert seen.attached == []
    assert len(seen.blocked) == 4
    assert all(seen.blocked.values())


def test_setup_twice_changes_the_addresses_alone(seen: Seen) -> None:
    """A user whose address has changed runs it again; the group keeps its id."""
    assert seen.second_group == seen.group
    ssh = seen.ssh_after_second
    assert [found["CidrIp"] for found in ssh["IpRanges"]] == ["198.51.100.0/24"]
    assert [found["CidrIpv6"] for found in ssh["Ipv6Ranges"]] == ["2001:db8::/32"]


@pytest.mark.parametrize("source", ["0.0.0.0/0", "::/0", "here", "203.0.113.7/8"])
def test_setup_refuses_the_world(
    aws_setup: ModuleType, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Port 22 is opened to known addresses only."""
    with pytest.raises(SystemExit):
        aws_setup.main(["--bucket", BUCKET, "--ssh-from", source])
    assert f"{source!r} is not allowed" in capsys.readouterr().err


def test_a_bucket_in_the_first_region_and_one_that_is_there(
    aws_setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """us-east-1 must not be named when a bucket is made there; a bucket that is there stays as it is."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "mock")
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        aws_setup.bucket(s3, BUCKET, "us-east-1")
        s3.put_object(Bucket=BUCKET, Key="studies/mine/report.html", Body=b"mine")
        aws_setup.bucket(s3, BUCKET, "us-east-1")
        assert s3.get_object(Bucket=BUCKET, Key="studies/mine/report.html")["Body"].read() == b"mine"
