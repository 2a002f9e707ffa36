"""A real Slurm of one's own on this machine: a controller and two nodes, on loopback.

Debian has it as `slurmctld slurmd slurm-client munge`. Nothing of the system's own Slurm or munge
is touched: key, sockets, ports and state lie in one folder. No cgroups are needed, and no root.
The settings are short timers, a partition `urgent` that preempts `main` by requeueing, and
stand-in GPUs (links to /dev/null, which is the character device that Slurm asks for).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scancel", "scontrol")
WAIT_S = 900.0  # ends what hangs: nothing takes as long, on a busy machine either
NODES = 2
_SBIN = "/usr/sbin:/sbin"

_CONF = """
ClusterName=cytofm
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
# A job is requeued no sooner than its credential lapses: two minutes, but for this.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=10
UnkillableStepTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}]
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Name the tools of Slurm that are not on this machine."""
    return [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]


class Cluster:
    """A running Slurm; `environment` is what its clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": _path(),
        }

    def ask(self, *words: object) -> str:
        """Run a client of Slurm and return what it says.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment, capture_output=True, text=True, check=False, timeout=WAIT_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}{self.logs()}"
        return done.stdout.strip()

    def submit(self, *words: object, env: Mapping[str, str] | None = None) -> str:
        """Submit a job; return its number."""
        self.environment |= env or {}
        return self.ask("sbatch", "--parsable", *words)

    def states(self, job: str) -> list[str]:
        """Return the state of each task of a job: RUNNING, PENDING, COMPLETED, FAILED …"""
        told = self.ask("scontrol", "--oneliner", "show", "job", job)
        fields = [dict(w.partition("=")[::2] for w in line.split()) for line in told.splitlines()]
        return [of["JobState"] for of in fields]

    def finish(self, job: str) -> list[str]:
        """Wait until no task of a job is waiting or at work; return how they ended."""
        self.wait_for(lambda: not self.ask("squeue", "-h", "-j", job), f"the end of {job}")
        return self.states(job)

    def wait_for(self, happened: Callable[[], object], what: str) -> None:
        """Wait for something to be true.

        Raises:
            AssertionError: it was not in time.
        """
        deadline = time.monotonic() + WAIT_S
        while not happened():
            assert time.monotonic() < deadline, f"waited for {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """Return the end of the controller's log."""
        log = self.folder / "slurmctld.log"
        return "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a Slurm in a folder of a short path, and leave no process of it."""
    cluster = Cluster(folder)
    (folder / "state").mkdir(parents=True)
    _write_settings(folder)
    with contextlib.ExitStack() as daemons:
        daemons.callback(_end_left_over, cluster)
        _start_munge(cluster, daemons)
        # A controller that ends after its nodes asks them for ten seconds.
        handles = [_start(cluster, "slurmctld", "-D", "-c")]
        handles += [_start(cluster, "slurmd", "-D", "-N", f"n{n}") for n in range(NODES)]
        daemons.callback(_end, handles)
        idle = lambda: _idle(cluster) == NODES  # noqa: E731
        cluster.wait_for(idle, "idle nodes")
        yield cluster
        cluster.ask("scancel", "--quiet", "--user", _user())
        cluster.wait_for(lambda: not cluster.ask("squeue", "-h", "-t", "R,CG"), "ended jobs")


def _write_settings(folder: Path) -> None:
    first = _free_ports(NODES + 1)
    for n in range(NODES):
        (folder / f"n{n}").mkdir()
    for n in range(2):
        (folder / f"nvidia{n}").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-1]\n")
    (folder / "slurm.conf").write_text(
        _CONF.format(
            folder=folder, user=_user(), host=socket.gethostname().partition(".")[0],
            port=first, first=first + 1, last=first + NODES,
        )
    )  # fmt: skip


def _start_munge(cluster: Cluster, daemons: contextlib.ExitStack) -> None:
    folder = cluster.folder
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    words = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    words += [f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    daemons.callback(_end, [_start(cluster, "munged", *words)])
    cluster.wait_for((folder / "munge.socket").exists, "munged")


def _start(cluster: Cluster, *words: str) -> subprocess.Popen[bytes]:
    with (cluster.folder / f"{words[0]}.out").open("ab") as log:
        return subprocess.Popen(words, env=cluster.environment, stdout=log, stderr=log)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_left_over(cluster: Cluster) -> None:
    """End the processes of jobs whose node is gone: all know this cluster by its settings."""
    ours = f"SLURM_CONF={cluster.environment['SLURM_CONF']}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            pid = int(environ.parent.name)
            if ours in environ.read_bytes().split(b"\0") and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


def _idle(cluster: Cluster) -> int:
    asked = subprocess.run(
        ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"],
        env=cluster.environment, capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    return int(asked.stdout or 0) if asked.returncode == 0 else 0


def _free_ports(n: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    for first in range(17817, 30000, n):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + n):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SBIN}"
