"""One living holder a claim; a dead one gives way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cytofm_cli.work import claim as claims
from cytofm_cli.work.claim import ClaimHeldError, claim


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LOOK_S", 0.01)


def test_claim__second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    code = (
        "import sys, time; from pathlib import Path; from cytofm_cli.work.claim import claim\n"
        "with claim(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin
    assert holder.stdout
    with holder:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(ClaimHeldError, match=f"process {holder.pid} on") as caught, claim(path):
            pass
        assert caught.value.exit_code == 75
        holder.stdin.close()
        holder.wait()
    assert not path.exists()
    with claim(path):
        assert path.exists()


HOLD_AND_DIE = (
    "import os, sys; from pathlib import Path; from cytofm_cli.work.claim import claim\n"
    "held = claim(Path(sys.argv[1])); held.__enter__(); os._exit(9)"
)


def test_claim__killed_holder_gives_way_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(path)], check=False)
    assert path.exists()
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_claim__of_another_host_is_stale_only_without_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "token": "t"}))
    with pytest.raises(ClaimHeldError, match="on elsewhere"), claim(path):
        pass
    long_ago = time.time() - claims.STALE_S - 1
    os.utime(path, (long_ago, long_ago))
    with claim(path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_claim__a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": "0", "token": "t"}
    path.write_text(json.dumps(mine))
    with claim(path):
        pass


def test_claim__waits_for_the_holder(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    code = (
        "import sys, time; from pathlib import Path; from cytofm_cli.work.claim import claim\n"
        "with claim(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(0.3)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    with holder:
        holder.stdout.readline()
        with claim(path, wait_s=30):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_claim__a_zombie_is_not_a_holder(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    with subprocess.Popen([sys.executable, "-c", HOLD_AND_DIE, str(path)]) as dead:
        stat = Path(f"/proc/{dead.pid}/stat")
        for _ in range(6000):
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        assert path.exists()
        with claim(path):  # not yet reaped by us
            assert json.loads(path.read_text())["pid"] == os.getpid()


def claim_of(**changes: object) -> str:
    """Return a claim as a process of this host writes it, one that does not run any more."""
    gone = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1", "token": "t"}
    return json.dumps(gone | claims._realm() | changes)


@pytest.mark.parametrize(
    "elsewhere", [{"pid_namespace": "pid:[1]"}, {"boot": "another"}, {"host": "elsewhere"}]
)
def test_claim__a_process_that_cannot_be_looked_up_is_judged_by_its_heartbeat_alone(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of())
    with claim(path):  # here it can be looked up, and is gone
        pass
    path.write_text(claim_of(**elsewhere))
    with pytest.raises(ClaimHeldError, match=f"process {2**22 + 1} on") as caught, claim(path):
        pass
    assert "lapses after 10 minutes" in str(caught.value.hint)
    long_ago = time.time() - claims.STALE_S - 1
    os.utime(path, (long_ago, long_ago))
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_claim__in_another_pid_namespace_a_living_holder_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    code = (
        "import sys; from pathlib import Path; from cytofm_cli.work.claim import claim\n"
        "with claim(Path(sys.argv[1])): pass"
    )
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not make PID namespaces here")
    command = [*inside, sys.executable, "-c", code, str(path)]
    with claim(path):
        told = subprocess.run(command, check=False, capture_output=True, text=True)
        assert f"ClaimHeldError: .a.claim: process {os.getpid()} on" in told.stderr
        assert path.exists()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_claim__a_process_that_proc_hides_is_judged_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of())

    def denied(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", denied)
    with pytest.raises(ClaimHeldError), claim(path):
        pass


def test_claim__the_disks_clock_counts_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of(host="elsewhere"))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    with pytest.raises(ClaimHeldError), claim(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == [".a.claim"]


def beating(path: Path, ahead_s: float, stop: threading.Event) -> None:
    """Be the heart of a holder on another machine, whose clock is off by so much."""
    while not stop.is_set():
        os.utime(path, (time.time() + ahead_s,) * 2)
        time.sleep(0.002)


@pytest.mark.parametrize("ahead_s", [86_400.0, -86_400.0])
def test_claim__of_a_wrong_clock_is_kept_while_it_beats_and_lapses_when_it_does_not(
    tmp_path: Path, ahead_s: float
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of(host="elsewhere"))
    stop = threading.Event()
    heart = threading.Thread(target=beating, args=(path, ahead_s, stop))
    heart.start()
    while abs(path.stat().st_mtime - time.time()) < 80_000:
        time.sleep(0.001)
    with pytest.raises(ClaimHeldError, match="on elsewhere"), claim(path):
        pass
    stop.set()
    heart.join()
    with claim(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def taken(path: Path) -> None:
    """Let another process take a claim that we hold."""
    path.unlink()
    path.write_text(claim_of(host="elsewhere", token="theirs"))


def test_claim__that_was_lost_makes_no_failure_of_what_it_broke(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    with (
        pytest.raises(ClaimHeldError, match="another process took this claim") as caught,
        claim(path),
    ):
        taken(path)
        (tmp_path / "staged" / "x").write_text("the other one has cleared it away")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert json.loads(path.read_text())["token"] == "theirs"


def test_refuse_lost__before_work_is_put_over_that_of_the_other(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    claims.refuse_lost(path)  # not held: not judged
    with claim(path):
        claims.refuse_lost(path)
        taken(path)
        with pytest.raises(ClaimHeldError):
            claims.refuse_lost(path)
    path.write_text("{}")
    claims.refuse_lost(path)


def test_heartbeat__only_for_the_claim_that_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.005)
    path = tmp_path / ".a.claim"
    with claim(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.005)
        taken(path)
        os.utime(path, (0, 0))
        time.sleep(0.1)
        assert path.stat().st_mtime == 0


JOB = {"cluster": "c", "id": "7", "task": "3", "restart": 1}


def in_job(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Put this process into a run of a job of Slurm."""
    said = JOB | changes
    for name, key in (
        ("SLURM_CLUSTER_NAME", "cluster"),
        ("SLURM_JOB_ID", "id"),
        ("SLURM_ARRAY_TASK_ID", "task"),
        ("SLURM_RESTART_COUNT", "restart"),
    ):
        if said[key] is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(said[key]))


def test_claim__says_which_run_of_which_job_of_slurm_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".a.claim"
    for changes, told in (
        ({}, JOB),
        ({"restart": None, "task": None}, JOB | {"restart": 0, "task": ""}),
        ({"id": None}, None),
    ):
        in_job(monkeypatch, **changes)
        with claim(path):
            assert json.loads(path.read_text()).get("job") == told


def test_claim__of_a_former_run_of_this_job_gives_way_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of(host="a-lost-node", job=JOB))
    in_job(monkeypatch, restart=2)
    monkeypatch.setattr(claims, "_stays", lambda *_: pytest.fail("looked again"))
    with claim(path):
        assert json.loads(path.read_text())["job"] == JOB | {"restart": 2}


@pytest.mark.parametrize(
    "ours",
    [
        {"restart": 1},  # another process of the same run
        {"restart": 0},  # a process that outlived its job's node: the later run has the claim
        {"restart": 2, "id": "8"},
        {"restart": 2, "task": "4"},
        {"restart": 2, "cluster": "d"},
        {"restart": 2, "id": None},  # in no job
    ],
)
def test_claim__of_another_job_or_run_is_kept_while_it_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: dict[str, object]
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of(host="a-lost-node", job=JOB))
    in_job(monkeypatch, **ours)
    with pytest.raises(ClaimHeldError, match="on a-lost-node"), claim(path):
        pass


@pytest.mark.parametrize("job", ["7", 7, [], {"id": "7"}, JOB | {"restart": "0"}])
def test_claim__that_says_nonsense_of_its_job_is_judged_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: object
) -> None:
    path = tmp_path / ".a.claim"
    path.write_text(claim_of(host="a-lost-node", job=job))
    in_job(monkeypatch, restart=2)
    with pytest.raises(ClaimHeldError), claim(path):
        pass
