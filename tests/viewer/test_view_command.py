"""`cytofm view`: what it says and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import cytofm_cli as cytofm
from cytofm_cli.errors import InputError, MissingPackageError, UsageError
from cytofm_cli.viewer.marks import MarksFile


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cytofm_cli", "view", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_command__serves_on_loopback_with_a_new_token_until_it_is_stopped(work: Path) -> None:
    tokens = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-m", "cytofm_cli", "view", str(work / "stores"), "--json"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            url = json.loads(process.stdout.readline())["url"]
            assert url.startswith("http://127.0.0.1:")
            tokens.add(url.split("/")[3])
            with urllib.request.urlopen(f"{url}start") as answer:
                assert json.load(answer)["n_slides"] == 2
                assert answer.headers["server"] is None
            process.send_signal(number)
            said = process.stderr.read()
            assert process.wait(60) == 0, said
            assert "Traceback" not in said
    assert len(tokens) == 2
    assert all(len(token) >= 43 for token in tokens)
    assert not (work / "stores.marks.jsonl").exists()  # nothing was marked


def test_command__a_port_in_use_is_told(work: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(work / "stores", "--port", port)
    assert done.returncode == 2
    assert f"--port {port}: is in use." in done.stderr
    assert "Hint: name another one" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_command__what_is_no_run_or_store_is_told(work: Path) -> None:
    done = run(work / "stores", "--run", work / "stores")
    assert (done.returncode, "is no RUN" in done.stderr) == (3, True)
    done = run(work / "nowhere")
    assert (done.returncode, "no such store" in done.stderr) == (3, True)
    with pytest.raises(UsageError, match="3 RUNs"):
        cytofm.view(work / "stores", ["a", "b", "c"])


def test_view__a_missing_package_is_named_with_its_extra(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("starlette.applications", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingPackageError) as error:
                cytofm.view(work / "stores")
        assert error.value.one_line().endswith("Hint: pip install 'cytofm[view]'")
        assert module in error.value.message


def test_export__writes_what_was_marked(work: Path) -> None:
    with MarksFile(work / "model.marks.jsonl") as kept:
        for slide, key in [("p2_s1", 3), ("p1_s1", 5)]:
            kept.do({"do": "mark", "slide_id": slide, "x": 10, "y": 20.5, "key": key})
    model = work / "model"
    (table,) = cytofm.export_marks(work / "stores", work / "out" / "m.csv", model)
    rows = ["slide_id,x,y,label", "p1_s1,10.00,20.50,HSIL", "p2_s1,10.00,20.50,LSIL"]
    assert table.read_text().splitlines() == rows
    files = cytofm.export_marks(work / "stores", work / "out", model)
    assert [path.name for path in files] == ["p1_s1.geojson", "p2_s1.geojson"]
    assert json.loads(files[0].read_text())["features"][0]["geometry"]["coordinates"] == [10, 20.5]
    done = run("stores", "--run", "model", "--export-marks", "again.csv", cwd=work)
    assert (done.returncode, done.stdout) == (0, "again.csv\n")
    assert (work / "again.csv").read_text() == table.read_text()
    with pytest.raises(InputError, match="holds no marks"):
        cytofm.export_marks(work / "stores", work / "out" / "m.csv")


def test_view__a_folder_that_cannot_be_written_is_told_with_the_first_mark(work: Path) -> None:
    if os.geteuid() == 0:
        where = Path("/proc/nothing/marks.jsonl")
    else:
        (work / "closed").mkdir(mode=0o500)
        where = work / "closed" / "marks.jsonl"
    with MarksFile(where) as kept, pytest.raises(cytofm.errors.OutputError):
        kept.do({"do": "mark", "slide_id": "a", "x": 1, "y": 2, "key": 3})
    assert kept.book.marks() == []
