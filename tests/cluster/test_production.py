"""cluster.yaml itself, a laboratory for AWS: no worker, two for a study, one for a lost one, none again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import (
    HOME,
    REPOSITORY,
    SHARED,
    Laboratory,
    LaboratoryError,
    do_without,
    furnish,
    wait_for,
    why_not,
)
from rendered import production

from autolr_ray.compare.ledger import read_ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_STUDY = """
name: pair
task: own_task:task
seeds: [0]
batches: [{size: 100, epochs: 20, workers: 2}]
arms:
  auto_warmup: {}
  linear_warmup: {grid: {peak_lr: [0.01], warmup_fraction: [0.1], extend: 0}}
candidate: auto_warmup
baseline: linear_warmup
resources: {device: cpu}
"""
_WORKERS = {"worker1": 12, "worker2": 13, "worker3": 14}


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    if reason := why_not():
        do_without(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        with Laboratory(folder) as laboratory:
            yield laboratory
    except LaboratoryError as error:
        do_without(f"no host can be made here: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_from_none_to_two_a_replacement_and_none(laboratory: Laboratory, tmp_path: Path) -> None:
    laptop, head = laboratory.boot("laptop", 10), laboratory.boot("head", 11)
    workers = [laboratory.boot(name, number) for name, number in _WORKERS.items()]
    furnish(laptop, production(head.address, [worker.address for worker in workers]))
    laptop.write(f"{HOME}/pair.yaml", _STUDY)
    laptop.write(f"{HOME}/own_task.py", (Path(__file__).parent / "study" / "own_task.py").read_text())
    shared = Path(f"/proc/{head.pid}/root{SHARED}/pair")

    go = f"cd {REPOSITORY}; export PYTHONPATH={REPOSITORY}/tests/cluster; "
    laptop.run(f"{go} ray up -y ~/own.yaml", timeout=300)
    assert not any(worker.processes("raylet") for worker in workers)

    for name in ("own_task.py", "pair.yaml"):
        laptop.run(f"{go} ray rsync-up ~/own.yaml ~/{name} '~/{name}'")
    log = tmp_path / "submit.log"
    submit = f"ray submit ~/own.yaml experiments/compare.py -- --study '~/pair.yaml' --results {SHARED}"
    client = laptop.start(f"{go} {submit}", log)
    try:
        wait_for("two epochs", lambda: len(list(shared.glob("runs/*-b100-*/checkpoint_*"))) >= 2, 400, 0.2)
        busy = [worker for worker in workers if worker.processes("RayTrainWorker")]
        (spare,) = [worker for worker in workers if not worker.processes("raylet")]
        assert len(busy) == 2
        busy[0].kill()
        client.wait(timeout=400)
    finally:
        client.kill()
    assert client.returncode == 0, log.read_text(errors="replace")
    assert spare.processes("raylet")

    records = read_ledger(shared / "ledger.parquet")
    assert sorted(record.arm for record in records) == ["auto_warmup", "linear_warmup"]
    assert max(record.restarts for record in records) >= 1
    left = [busy[1], spare]
    wait_for("none again", lambda: not any(worker.processes("raylet") for worker in left), 240)
    laptop.run(f"{go} ray down -y ~/own.yaml", timeout=300)
    assert not head.processes("/ray/")  # the workers were given back: AWS would have ended them
