"""experiments/cluster/rayjob.yaml against the schemas of KubeRay and Kubernetes, with no unknown field."""

import argparse
import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from autolr_ray.cli import add_compare
from autolr_ray.compare.study import load_study

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "experiments" / "cluster"
KUBERNETES = "1.31"


def strict(schema: Any) -> Any:
    """KubeRay's schema as an API server with strict field validation reads it.

    Such schemas say nothing about unknown fields, which are dropped; here they are refused. Numbers that may
    be text (``x-kubernetes-int-or-string``) have an ``anyOf`` of their own; rules in CEL are not looked at.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        schema["additionalProperties"] = False
    return schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """Return what refuses a RayJob that KubeRay does not know."""
    schema = strict(json.loads((ROOT / "tests/data/kuberay/rayjob_v1.json").read_text()))
    # The API server knows these for every kind; a definition says no more than "object".
    names = {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": {}, "annotations": {}}
    assert schema["properties"]["metadata"] == {"type": "object"}
    schema["properties"]["metadata"] = {"type": "object", "properties": names, "additionalProperties": False}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def job() -> dict[str, Any]:
    """Return the file as it is written."""
    found: dict[str, Any] = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    return found


def cluster(job: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster."""
    found: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return found


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The head's and the workers' pod templates."""
    (workers,) = cluster(job)["workerGroupSpecs"]
    return {"head": cluster(job)["headGroupSpec"]["template"], "workers": workers["template"]}


def test_kuberay_knows_every_field(job: dict[str, Any], validator: jsonschema.Draft202012Validator) -> None:
    """The definition of version v1 accepts the file."""
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    validator.validate(job)


MISTAKES: dict[str, Callable[[dict[str, Any]], object]] = {
    "shutdownAfterJobFinish": lambda job: job["spec"].update(shutdownAfterJobFinish=True),
    "autoscalingOptions": lambda job: cluster(job).update(autoscalingOptions={}),
    "maxReplica": lambda job: cluster(job)["workerGroupSpecs"][0].update(maxReplica=3),
    "volumeMount": lambda job: pods(job)["head"]["spec"]["containers"][0].update(volumeMount=[]),
    "restartPolcy": lambda job: pods(job)["workers"]["spec"].update(restartPolcy="Never"),
    "lables": lambda job: job["metadata"].update(lables={}),
    "tokens": lambda job: cluster(job)["authOptions"].update(mode="tokens"),
    "four": lambda job: cluster(job)["workerGroupSpecs"][0].update(maxReplicas="four"),
    "minReplicas": lambda job: cluster(job)["workerGroupSpecs"][0].pop("minReplicas"),
    "much": lambda job: pods(job)["head"]["spec"]["containers"][0]["resources"]["limits"].update(cpu="much"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused(
    job: dict[str, Any], validator: jsonschema.Draft202012Validator, mistake: str
) -> None:
    """A misspelt field, a value of the wrong kind, one that is missing: the check above would see it."""
    job = copy.deepcopy(job)
    MISTAKES[mistake](job)
    with pytest.raises(jsonschema.ValidationError, match=mistake):
        validator.validate(job)


@pytest.mark.parametrize("which", ["head", "workers"])
def test_kubernetes_knows_the_pods(job: dict[str, Any], which: str) -> None:
    """Kubernetes' own schema accepts the templates, and its check has teeth."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **pods(job)[which]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    pod["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_kubernetes_knows_the_storage(job: dict[str, Any]) -> None:
    """The claim is valid, can be mounted by all pods at once, and is the one that the job mounts."""
    claim = yaml.safe_load((FILES / "rayjob_storage.yaml").read_text())
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(job).values():
        (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert f"--results {mount['mountPath']}/" in job["spec"]["entrypoint"]


def test_it_ends_and_costs_no_more_than_it_says(job: dict[str, Any]) -> None:
    """The cluster goes when the study ends or takes too long; workers come from zero and go when idle."""
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
    assert 0 < spec["backoffLimit"] <= 3
    assert cluster(job)["enableInTreeAutoscaling"] is True
    assert cluster(job)["autoscalerOptions"]["version"] == "v2"
    assert 0 < cluster(job)["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    (workers,) = cluster(job)["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == 0
    assert workers["maxReplicas"] >= 1
    # KubeRay refuses any other with the autoscaler's version 2.
    assert {pod["spec"]["restartPolicy"] for pod in pods(job).values()} == {"Never"}


def test_the_head_runs_no_trials(job: dict[str, Any]) -> None:
    """Whatever CPUs its pod has, Ray sees none."""
    assert cluster(job)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


def test_nothing_is_open_and_everything_asks_for_the_token(job: dict[str, Any]) -> None:
    """No service of the head leaves the cluster; the token is KubeRay's, not this file's."""
    assert cluster(job)["authOptions"] == {"mode": "token"}
    head = cluster(job)["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress")
    assert "RAY_AUTH_TOKEN" not in str(job)
    assert pods(job)["workers"]["spec"]["automountServiceAccountToken"] is False


def test_resources_are_bounded_and_probes_are_kuberays(job: dict[str, Any]) -> None:
    """Requests equal limits, as KubeRay wants them; GPUs are the workers' alone."""
    for which, pod in pods(job).items():
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (which == "workers")
        assert not {key for key in container if key.endswith("Probe")}


def test_ray_is_that_of_pyproject(job: dict[str, Any]) -> None:
    """The image is built from the Ray that the package asks for, and the file says so to KubeRay."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    version = cluster(job)["rayVersion"]
    assert version in ray.specifier
    docker = (FILES / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.*)$", docker, re.M) == [f"rayproject/ray:{version}-py311-gpu"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().split()
    folder = re.search(r"^WORKDIR (.*)$", docker, re.M)
    assert folder is not None
    assert f"{folder[1]}/experiments/compare.py" in job["spec"]["entrypoint"]
    for source in re.findall(r"^COPY --chown=\S+ (.*) \S+$", docker, re.M):
        assert all((ROOT / name).exists() for name in source.split()), source


def test_the_study_and_its_flags_are_real(job: dict[str, Any]) -> None:
    """The entry point's words are what compare.py takes, and the study comes with the package."""
    words = job["spec"]["entrypoint"].split()
    assert words[0] == "python"
    assert (ROOT / "experiments" / Path(words[1]).name).is_file()
    parser = argparse.ArgumentParser()
    add_compare(parser)
    options = parser.parse_args(words[2:])
    assert (ROOT / "experiments" / "studies" / f"{options.study}.yaml").is_file()
    assert options.data_dir is None  # nothing has filled the volume
    load_study(options.study)  # refuses a task whose data are not there
    (workers,) = cluster(job)["workerGroupSpecs"]
    assert options.max_concurrent == workers["maxReplicas"]
