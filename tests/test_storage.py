"""Object storage as a place for results: a local S3 server, records, checkpoints, and a whole sweep."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.fs
import pytest
import torch
import yaml

pytest.importorskip("moto")
from moto.server import ThreadedMotoServer

from autolr_ray.cli import main
from autolr_ray.compare.board import EventFiles
from autolr_ray.compare.figures import _STYLE
from autolr_ray.compare.ledger import read_ledger
from autolr_ray.files import remove_tree, write_atomically
from autolr_ray.remote import RemotePath, location
from autolr_ray.train.checkpoints import CheckpointFolder

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URI options that lead to a server on this machine; the bucket ``bucket`` exists."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in CREDENTIALS.items():
            patch.setenv(key, value)
        system, _ = pyarrow.fs.FileSystem.from_uri(f"s3://bucket{options}")
        system.create_dir("bucket")
        yield options
    server.stop()


def test_a_remote_place_has_the_manners_of_a_path(s3: str) -> None:
    top = location(f"s3://bucket/first{s3}")
    assert isinstance(top, RemotePath)
    assert str(top / "a" / "b.json") == f"s3://bucket/first/a/b.json{s3}"
    assert not top.exists()
    assert list(top.iterdir()) == []
    path = top / "a" / "b.json"
    write_atomically(path, b"one")
    assert (path.name, path.stem, path.is_file(), path.read_bytes()) == ("b.json", "b", True, b"one")
    write_atomically(path, b"two")
    write_atomically(top / "a" / "c.txt", b"")
    assert {found.name for found in (top / "a").iterdir()} == {"b.json", "c.txt"}
    assert list((top / "a").glob("*.json")) == [path]
    assert location(str(path)) == path
    assert pickle.loads(pickle.dumps(path)).read_bytes() == b"two"
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    remove_tree(top)
    assert not top.exists()


@pytest.mark.parametrize(
    ("where", "phrase"),
    [("nothing://bucket/x", "nothing"), ("s3:///x", "a bucket is needed"), ("", "a folder or a URI")],
)
def test_a_place_that_is_none(where: str, phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        location(where)


def test_checkpoints_in_object_storage(s3: str) -> None:
    folder = CheckpointFolder(location(f"s3://bucket/checkpoints{s3}"), keep=2)
    assert folder.newest() is None
    for step in (3, 7, 20):
        folder.save({"step": step, "weights": torch.full((3,), float(step))}, step)
    assert [path.name for path in folder.paths()] == ["checkpoint-000000020.pt", "checkpoint-000000007.pt"]
    assert folder.newest()["weights"].tolist() == [20.0] * 3
    write_atomically(folder.paths()[0], b"damaged")
    with pytest.warns(UserWarning, match="is damaged and is passed over"):
        assert folder.newest()["step"] == 7
    folder.clear()
    assert folder.paths() == []


STUDY = {
    "name": "remote",
    "task": "digits",
    "model": "mlp",
    "seeds": [0],
    "batches": [{"size": 64, "epochs": 4}, {"size": 256, "epochs": 3, "workers": 2}],
    "arms": {"auto": {}, "tuned": {"grid": {"peak_lr": [0.01], "warmup_fraction": [0.1]}}},
    "candidate": "auto",
    "baseline": "tuned",
}


def test_a_sweep_into_object_storage_is_killed_and_goes_on(
    s3: str, ray_tmp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    results = f"s3://bucket/results{s3}"
    place = location(results) / "remote"
    command = [
        sys.executable,
        str(ROOT / "experiments" / "compare.py"),
        "--study",
        str(tmp_path / "study.yaml"),
    ]
    folder = ray_tmp / "s3"
    folder.mkdir()
    environment = {**os.environ, **CREDENTIALS, "RAY_TMPDIR": str(folder), "HOME": str(folder)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--results", results], env=environment, cwd=tmp_path, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    process = start()
    deadline = time.monotonic() + 600
    while not list((place / "cells").glob("*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _end_ray(folder)
    before = {path.name: path.read_bytes() for path in (place / "cells").glob("*.json")}
    assert 1 <= len(before) < 4
    # Whoever has lost the terminal finds the study by its address alone.
    assert main(["status", str(place)]) == 0
    assert f"remote ({place}): {len(before)} of 4 runs finished" in capsys.readouterr().out

    process = start()
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert f"report: {place / 'report.html'}" in said
    assert f"{len(before)} of them finished before" in said
    after = {path.name: path.read_bytes() for path in (place / "cells").glob("*.json")}
    assert len(after) == 4
    assert before.items() <= after.items()
    assert b"remote" in (place / "report.html").read_bytes()
    assert (place / "ledger.parquet").is_file()
    assert (place / "figures" / "accuracy.png").is_file()
    # Checkpoints of finished runs are gone; nothing was written beside the storage.
    system, _ = pyarrow.fs.FileSystem.from_uri(results)
    selector = pyarrow.fs.FileSelector("bucket/results/remote/runs", recursive=True)
    assert not [info.path for info in system.get_file_info(selector) if "checkpoint" in info.path]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"]


def test_those_who_look_on_read_object_storage(
    s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger or a folder, with the study beside it; nothing is written there."""
    monkeypatch.setitem(_STYLE, "savefig.dpi", 30)
    for name in ("quick", "fashion_mnist"):
        for file in ("ledger.parquet", "study.yaml"):
            put = location(f"s3://bucket/looked/{name}{s3}") / file
            write_atomically(put, (RESULTS / name / file).read_bytes())
    quick, ledger = f"s3://bucket/looked/quick{s3}", f"s3://bucket/looked/fashion_mnist/ledger.parquet{s3}"
    assert main(["status", quick, "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["finished"], status["total"]) == (20, 20)
    assert main(["report", quick, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert f"report: {tmp_path / 'report' / 'report.html'}" in capsys.readouterr().out
    assert main(["report", quick]) == 2
    assert capsys.readouterr().err.startswith("out: a folder is needed for a report on s3://")
    paper = next(r for r in read_ledger(location(ledger)) if r.arm == "autowu_original")
    assert main(["replay", ledger, "--cell", paper.cell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["replay", ledger]) == 2
    assert "is not allowed without --cell" in capsys.readouterr().err
    files = EventFiles(location(quick), tmp_path / "board")
    assert files.update() == 20
    files.close()
    assert len(list((tmp_path / "board").rglob("events.out.tfevents.*"))) == 20
    assert {path.name for path in location(quick).iterdir()} == {"ledger.parquet", "study.yaml"}


def test_storage_that_cannot_be_reached_is_refused_before_anything_starts(s3: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [
        sys.executable, str(ROOT / "experiments" / "compare.py"), "--study", str(tmp_path / "study.yaml"),
        "--results", f"s3://no-such-bucket/results{s3.replace('&allow_bucket_creation=true', '')}",
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **CREDENTIALS}, text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("results: s3://no-such-bucket/results/remote")
    assert "cannot be written to" in line


def _end_ray(folder: Path) -> None:
    """Kill what the killed sweep has left, found by its own temporary directory."""
    for _ in range(50):
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    told = (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if f"RAY_TMPDIR={folder}\0".encode() in told + b"\0" and state != "Z":
                        left.append(int(entry.name))
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
