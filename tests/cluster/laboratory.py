"""A laboratory of machines inside this one: each host has its own address, processes, files, and sshd.

A host is a set of Linux namespaces. Its disk is an overlay of this machine's, so that it finds the Python
environment and the repository at the same paths, and what it writes stays its own. ``/shared`` is one folder
for all, as a network file system would be. Ending a host ends it like a power cut: no process of it gets
to say goodbye, and nobody answers at its address any more.

Needs root and, of Debian's packages, iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Self

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(sys.prefix)
HOME = "/root"
SHARED = "/shared"
NETWORK = "10.77.0"
_TOOLS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")

# The first process of the namespace that all hosts live in: ending it ends everything.
_GROUND = f"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 laboratory "$1"
mount -t tmpfs -o mode=755 run /run
mkdir "$1/shared" /run/netns
touch /run/netns/hub && mount --bind /proc/self/ns/net /run/netns/hub
ip link set lo up
ip link add hub type bridge && ip address add {NETWORK}.1/24 dev hub && ip link set hub up
ssh-keygen -q -t ed25519 -N "" -f "$1/key"
echo ready
exec sleep infinity
"""

# The first process of a host. Arguments: folder of the laboratory, name, address, number of this start, then
# what the host needs of this machine's files although it may lie below a folder that the host has anew.
_HOST = """
set -eu
ground=$1 name=$2 address=$3 boot=$4 home=$5
shift 5
disk=$ground/$name root=$ground/$name/root
hostname "$name"
ip link set lo up
hardware=02:00:00:00:00:$(printf %02x "${address##*.}") # the same after a new start: others remember it
ip link add eth0 address "$hardware" type veth peer name "v$boot" netns hub
ip -n hub link set "v$boot" master hub up
ip address add "$address/24" dev eth0 && ip link set eth0 up
ip route add default via "${address%.*}.1" # Ray asks the kernel for the address that leads out

mkdir -p "$disk"/upper "$disk"/work "$disk"/home "$root"
mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" overlay "$root"
mkdir -p "$root/shared" "$root$home" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/run"
mount --bind "$ground/shared" "$root/shared"
mount --bind "$disk/home" "$root$home"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx" && ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
n=0
for path; do # at the same place, whatever was mounted over it
  n=$((n + 1))
  mkdir -p "$root$path" "$disk/keep$n" "$disk/keepwork$n"
  mount -t overlay -o "lowerdir=$path,upperdir=$disk/keep$n,workdir=$disk/keepwork$n" overlay "$root$path"
done

printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > "$root/etc/hosts" # as Debian does: a trap for Gloo
mkdir -p "$root/run/sshd" "$root$home/.ssh" && chmod 700 "$root$home" "$root$home/.ssh"
cp "$ground/key.pub" "$root$home/.ssh/authorized_keys"
install -m 600 "$ground/key" "$root/etc/ssh/laboratory_key"
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow" # an account without password may be locked altogether
cat > "$root/etc/ssh/laboratory" <<CONFIGURATION
ListenAddress 0.0.0.0:22
HostKey /etc/ssh/laboratory_key
PermitRootLogin prohibit-password
UsePAM no
PidFile none
MaxStartups 100
CONFIGURATION
exec chroot "$root" bash -c '/usr/sbin/sshd -f /etc/ssh/laboratory; echo ready; sleep infinity & wait'
"""


def why_not() -> str | None:
    """What this machine lacks for a laboratory; None where there is all of it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
    if os.geteuid() != 0:
        return "a laboratory of hosts needs root"
    return f"a laboratory of hosts needs {', '.join(missing)}" if missing else None


def do_without(reason: str) -> NoReturn:
    """Skip the test; with ``LABORATORY=required``, as ``.ci/run`` sets it for root, fail it."""
    if os.environ.get("LABORATORY") == "required":
        pytest.fail(f"LABORATORY=required: {reason}")
    pytest.skip(reason)


class LaboratoryError(RuntimeError):
    """A host could not be made; the message is what its first process said."""


class Laboratory:
    """Hosts on one network, by name; a context manager that ends them all.

    Args:
        folder: an empty folder with a short path; what lies in it during the laboratory's life is seen by
            its hosts alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self._boots = 0

    def __enter__(self) -> Self:
        command = ["unshare", "--pid", "--net", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        script = ["bash", "-c", _GROUND, "ground", str(self.folder)]
        # Should this process die, so does the laboratory.
        self._ground = _started(["setpriv", "--pdeathsig", "KILL", *command, "--mount-proc", *script])
        self._ground_pid = _child(self._ground.pid)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._ground_pid, signal.SIGKILL)
        self._ground.wait(timeout=30)

    def boot(self, name: str, number: int) -> Host:
        """Start a host, or start it again after its end: with its disk, without processes and ``/tmp``."""
        self._boots += 1
        address = f"{NETWORK}.{number}"
        base = Path(sys.base_prefix)
        kept = [str(p) for p in dict.fromkeys((ENVIRONMENT, base, REPOSITORY)) if _is_covered(p)]
        command = ["unshare", "--pid", "--net", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        arguments = [str(self.folder), name, address, str(self._boots), HOME, *kept]
        enter = ["nsenter", "--target", str(self._ground_pid), "--all"]
        process = _started([*enter, *command, "--mount-proc", "bash", "-c", _HOST, "host", *arguments])
        host = Host(name, address, process, _child(_child(process.pid)))
        self.hosts[name] = host
        return host


class Host:
    """One host of a laboratory."""

    def __init__(self, name: str, address: str, process: subprocess.Popen[str], pid: int) -> None:
        self.name, self.address = name, address
        self._process, self.pid = process, pid

    def command(self, script: str) -> list[str]:
        """What runs a script on this host, in a login shell of its own user."""
        enter = ["nsenter", "--target", str(self.pid), "--all", "--root", f"--wd=/proc/{self.pid}/root{HOME}"]
        return [*enter, "env", "-i", f"HOME={HOME}", "TERM=dumb", "USER=root", "bash", "-lc", script]

    def run(self, script: str, *, timeout: float = 120, check: bool = True) -> str:
        """Run a script and wait; what it wrote, both streams together.

        Raises:
            AssertionError: it failed; the message holds what it wrote.
        """
        done = subprocess.run(
            self.command(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=timeout,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{self.name}: {script}: exit {done.returncode}\n{done.stdout}"
        )
        return done.stdout

    def start(self, script: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a script that goes on beside this process; what it writes goes to a file."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self.command(script), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on this host's disk."""
        place = Path(f"/proc/{self.pid}/root{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=mode)
        place.write_text(text)

    def read(self, path: str) -> str:
        """Read a file of this host."""
        return Path(f"/proc/{self.pid}/root{path}").read_text()

    def processes(self, word: str) -> dict[int, str]:
        """Command lines of this host's processes that hold a word, by their ids on this host."""
        lines = self.run("ps -eo pid=,args= -ww").splitlines()
        found = [line.strip().partition(" ") for line in lines if word in line]
        return {int(pid): rest for pid, _, rest in found}

    def kill(self) -> None:
        """End the host at once, with everything on it."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(timeout=30)


def furnish(laptop: Host, launcher_file: str) -> None:
    """Give a host what a user has on a laptop: Ray, a key, a token, the launcher file (``~/own.yaml``)."""
    path = f"{ENVIRONMENT}/bin:/usr/sbin:$PATH"
    laptop.write(f"{HOME}/.profile", f"export PATH={path} RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0\n")
    laptop.write(f"{HOME}/.ssh/id_ed25519", laptop.read("/etc/ssh/laboratory_key"), 0o600)
    laptop.write(f"{HOME}/own.yaml", launcher_file)
    laptop.run("(umask 077; ray get-auth-token --generate)")


def wait_for(what: str, condition: Callable[[], object], seconds: float, every: float = 0.5) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not hold after so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:g} s: not {what}"
        time.sleep(every)


def _started(command: list[str]) -> subprocess.Popen[str]:
    """Start a first process and wait until it says that it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    while select.select([process.stdout], [], [], 30)[0]:
        line = process.stdout.readline()
        if line == "ready\n":
            return process
        if not line:
            break
        said.append(line)
    process.kill()
    raise LaboratoryError("".join(said) or "no sign of life for 30 s")


def _child(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _is_covered(path: Path) -> bool:
    """Whether an overlay of ``/`` lacks the path on a host: mounted on its own, or below a new folder."""
    new = any(path.is_relative_to(folder) for folder in ("/tmp", "/run", "/dev", HOME))
    return new or path.stat().st_dev != os.stat("/").st_dev
