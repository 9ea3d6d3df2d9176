"""A node provider for Ray's autoscaler whose machines are the hosts of a laboratory.

It stands where AWS stands in ``cluster.yaml``: a machine that is asked for is one that is reachable and has
not been used yet; one that is given back has Ray stopped on it and is never used again.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from ray.autoscaler._private.local.node_provider import LocalNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

_ON_THE_HEAD = Path.home() / "ray_bootstrap_key.pem"


class LaboratoryProvider(LocalNodeProvider):
    """Hosts by address: ``provider`` holds ``head_ip``, ``worker_ips`` and ``head_type``."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        if _ON_THE_HEAD.exists() and provider_config["head_ip"] not in self.non_terminated_nodes({}):
            # The laptop made the head; the head's own list does not know it yet.
            tags = {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: provider_config["head_type"],
                TAG_RAY_NODE_NAME: f"ray-{cluster_name}-head",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
            super().create_node({}, tags, 1)

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Take as many machines as are there."""
        if tags[TAG_RAY_NODE_KIND] != NODE_KIND_WORKER:
            super().create_node(node_config, tags, count)
            return
        with self.state.lock, self.state.file_lock:
            for address, info in self.state.get().items():
                fresh = info["state"] == "terminated" and not info.get("teardown_complete")
                if count and fresh and address != self.provider_config["head_ip"] and _answers(address):
                    self.state.put(address, {"tags": tags, "state": "running"})
                    count -= 1

    def terminate_node(self, node_id: str) -> None:
        """Give a machine back."""
        key = _ON_THE_HEAD if _ON_THE_HEAD.exists() else Path.home() / ".ssh" / "id_ed25519"
        options = ["-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=3"]
        stop = ["bash --login -ic 'ray stop --force'"]
        subprocess.run(["ssh", *options, f"root@{node_id}", *stop], check=False, capture_output=True)
        super().terminate_node(node_id)


def _answers(address: str) -> bool:
    try:
        socket.create_connection((address, 22), timeout=1).close()
    except OSError:
        return False
    return True
