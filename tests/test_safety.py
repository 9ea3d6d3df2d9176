"""What must never happen: a secret in the repository, and a study that runs code which it does not name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from autolr_ray.compare.study import StudyError, load_study

ROOT = Path(__file__).resolve().parent.parent

# Written so that this file does not find itself.
SECRETS = {
    "private key": r"-----BEGIN [A-Z ]*PRIVATE[ ]KEY-----",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret key": r"(?i)aws_secret_access_key[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "Google key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{34}\b",
    "OpenAI or Anthropic key": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}",
    "PyPI token": r"\bpypi-[A-Za-z0-9_-]{50,}",
    "web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
    "address with a password": r"\b[a-z][a-z0-9+]*://[^\s/:@'\"<>{}$]+:[^\s/:@'\"<>{}$]+@[A-Za-z0-9]",
    "Ray token": r"(?i)\bRAY_AUTH_TOKEN[\"']?\s*[:=]\s*[\"']?[0-9a-f]{32,}",
    # What `ray get-auth-token --generate` writes, alone in a file.
    "token file": r"\A[0-9a-f]{64}\s*\Z",
}
EXAMPLES = {
    "private key": "-----BEGIN OPENSSH PRIVATE" + " KEY-----",
    "AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "AWS secret key": "aws_secret_access_key = " + "a/" * 20,
    "GitHub token": "ghp_" + "a1" * 18,
    "Slack token": "xoxb-" + "1234567890-abc",
    "Google key": "AIza" + "a" * 35,
    "Hugging Face token": "hf_" + "a" * 34,
    "OpenAI or Anthropic key": "sk-ant-" + "a" * 40,
    "PyPI token": "pypi-" + "a" * 60,
    "web token": "eyJ" + "a" * 12 + ".eyJ" + "b" * 12 + ".c",
    "address with a password": "https://me:" + "word@example.com",
    "Ray token": "RAY_AUTH_TOKEN=" + "0f" * 32,
    "token file": "0f" * 32 + "\n",
}


def tracked() -> list[Path]:
    """Every file that a commit would hold."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("kind", SECRETS)
def test_the_patterns_find_what_they_are_for(kind: str) -> None:
    """A pattern that finds nothing would let every file pass."""
    assert re.search(SECRETS[kind], EXAMPLES[kind])


def test_no_secret_is_in_the_repository() -> None:
    """No key, token or password in any file, and no file by the name of one."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    paths = tracked()
    assert ROOT / "cluster.yaml" in paths
    found = [
        f"{path.relative_to(ROOT)}: {kind}"
        for path in paths
        for kind, pattern in SECRETS.items()
        if re.search(pattern, path.read_bytes().decode("utf-8", "replace"))
    ]
    assert found == []
    names = re.compile(r"auth_token|\.env|id_(rsa|dsa|ecdsa|ed25519)|credentials|.*\.(pem|key|p12|pfx)")
    assert [path.name for path in paths if names.fullmatch(path.name)] == []


STUDY = """\
name: mine
task: {task}
seeds: [0]
batches: [{{size: 8, epochs: 1}}]
arms: {{auto_warmup: {{}}, other: {{schedule: {{kind: linear_warmup, peak_lr: 0.1}}}}}}
candidate: auto_warmup
baseline: other
note: {note}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which code would leave a trace, where Python looks for modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("named_by_study", "not_named"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        task = "from autolr_ray.tasks import get_task\ntask = get_task('fashion_mnist_subset')\n"
        (tmp_path / f"{name}.py").write_text(f"open({name + '.ran'!r}, 'w').close()\n{task}")
    return tmp_path


@pytest.mark.parametrize(
    "note",
    [
        "!!python/object/apply:os.system ['touch not_named.ran']",
        "!!python/object:not_named.Thing {}",
        "!!python/name:not_named.task",
        "!!python/module:not_named",
        "!!python/object/new:not_named.Thing {}",
    ],
)
def test_a_study_cannot_make_objects(folder: Path, note: str) -> None:
    """YAML's tags for Python's objects are refused with the place and the tag, and nothing has run."""
    study = folder / "study.yaml"
    study.write_text(STUDY.format(task="fashion_mnist_subset", note=note))
    with pytest.raises(StudyError) as caught:
        load_study(study)
    message = str(caught.value)
    assert str(study) in message
    assert note.split(" ")[0].replace("!!", "tag:yaml.org,2002:") in message
    assert "line 8" in message
    assert not list(folder.glob("*.ran"))


def test_a_study_imports_the_module_that_it_names_alone(folder: Path) -> None:
    """The task's module runs; its neighbour does not, whatever the study says elsewhere."""
    study = folder / "study.yaml"
    study.write_text(STUDY.format(task="named_by_study:task", note="not_named:task"))
    assert load_study(study).task == "named_by_study:task"
    assert [path.name for path in folder.glob("*.ran")] == ["named_by_study.ran"]
    assert "not_named" not in sys.modules


@pytest.mark.parametrize("task", ["os;system:task", "__import__('not_named'):task", "not_named:task()", ":"])
def test_a_task_is_a_name_and_no_expression(folder: Path, task: str) -> None:
    """Anything else is refused by field and value before anything is imported."""
    study = folder / "study.yaml"
    study.write_text(STUDY.format(task=f'"{task}"', note="mine"))
    with pytest.raises(StudyError, match=r"task: .*is not allowed"):
        load_study(study)
    assert not list(folder.glob("*.ran"))


def test_a_study_without_a_task_of_its_own_runs_no_code(folder: Path) -> None:
    """A packaged task's study imports nothing of the folder that it lies in."""
    study = folder / "study.yaml"
    study.write_text(STUDY.format(task="fashion_mnist_subset", note="not_named:task"))
    load_study(study)
    assert not list(folder.glob("*.ran"))
