"""Make rayjob_v1.json from KubeRay's own definition of a RayJob.

    python tests/data/kuberay/prune.py ray.io_rayjobs.yaml > tests/data/kuberay/rayjob_v1.json

Kept is the schema of version v1. Left out, because it says nothing about which fields a file may have: every
description, and ``status``, which the operator writes. 1.4 MB become 0.2 MB.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def without_descriptions(schema: Any) -> Any:
    """The same schema; a property that is itself called "description" stays."""
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


if __name__ == "__main__":
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = without_descriptions(version["schema"]["openAPIV3Schema"])
    del schema["properties"]["status"]
    json.dump(schema, sys.stdout, separators=(",", ":"), sort_keys=True)
    print()
