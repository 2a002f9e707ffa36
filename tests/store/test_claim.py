"""One living holder a claim; a dead one gives way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cytofm_cli.store import claim as claims
from cytofm_cli.store.claim import ClaimHeldError, claim


def test_claim__second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / ".a.claim"
    code = (
        "import sys, time; from pathlib import Path; from cytofm_cli.store.claim import claim\n"
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
    "import os, sys; from pathlib import Path; from cytofm_cli.store.claim import claim\n"
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
        "import sys, time; from pathlib import Path; from cytofm_cli.store.claim import claim\n"
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
        for _ in range(600):
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        assert path.exists()
        with claim(path):  # not yet reaped by us
            assert json.loads(path.read_text())["pid"] == os.getpid()
