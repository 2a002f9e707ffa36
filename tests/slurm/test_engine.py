"""On workers of dask.distributed nothing is lost, and the stores are those of a local run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
WAIT_S = 900.0  # ends what hangs
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("distributed") and find_spec("cryptography")),
        reason="no dask.distributed here: pip install 'cytofm[cluster]'",
    ),
]


@dataclass
class Engine:
    """A scheduler with two workers, and what a client needs to speak to it."""

    file: Path
    environment: Mapping[str, str]

    def cytofm(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "cytofm_cli", *words)

    def python(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            env=self.environment, cwd=self.file.parent, timeout=WAIT_S,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def batch(self, *payloads: str, stall_s: float = WAIT_S) -> list[dict[str, Any]]:
        done = self.python(HERE / "run_engine.py", self.file, stall_s, *payloads)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def secrets_in(folder: Path) -> dict[str, str]:
    """Write keys of one's own; return the settings that name them."""
    from distributed.security import Security

    security = Security.temporary()
    for name, text in (("cert", security.tls_client_cert), ("key", security.tls_client_key)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    tls = "DASK_DISTRIBUTED__COMM__TLS"
    named = {f"{tls}__CA_FILE": "cert", **{
        f"{tls}__{role}__{kind.upper()}": kind
        for role in ("SCHEDULER", "WORKER", "CLIENT") for kind in ("cert", "key")
    }}  # fmt: skip
    return {setting: str(folder / name) for setting, name in named.items()}


@contextlib.contextmanager
def started(folder: Path, protocol: str = "tls", workers: int = 2) -> Iterator[Engine]:
    environment = {
        **os.environ, **secrets_in(folder), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "2",
        "DASK_DISTRIBUTED__WORKER__DAEMON": "False",
    }  # fmt: skip
    file = folder / "sched.json"
    common = [
        f"--protocol={protocol}",
        "--host=127.0.0.1",
        "--no-dashboard",
        f"--scheduler-file={file}",
    ]
    worker = ["--nthreads=1", "--death-timeout=60", f"--local-directory={folder}"]
    commands = [["scheduler", *common, "--port=0"], *[["worker", *common, *worker]] * workers]
    with contextlib.ExitStack() as stack:
        for name, *words in commands:
            log = stack.enter_context((folder / f"{name}.log").open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{name}", *words],
                env=environment, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
            deadline = time.monotonic() + WAIT_S
            while not file.exists():
                assert time.monotonic() < deadline, (folder / "scheduler.log").read_text()
                time.sleep(0.1)
        yield Engine(file, environment)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with started(tmp_path_factory.mktemp("engine")) as engine:
        yield engine


def test_engine__what_crashes_and_fails_takes_no_other_along(engine: Engine) -> None:
    told = engine.batch("fail", "ok", "crash", "note", "bug", "ok", "ok", "once", "ok")
    outcomes = {line["name"]: line for line in told if "name" in line}
    assert Counter(line["status"] for line in outcomes.values()) == {"done": 6, "failed": 3}
    assert outcomes["0fail"]["error"] == "0: damaged."
    assert outcomes["2crash"]["error"] == "2: crashed"
    assert "ZeroDivisionError" in outcomes["4bug"]["error"]
    assert outcomes["7once"]["status"] == "done"  # its worker was lost: tried again
    assert {"note": "look at this"} in told
    assert {"progress": [1, 2]} in told


def test_engine__what_it_loads_stays_loaded(engine: Engine) -> None:
    done = engine.batch(*["ok"] * 8)
    last = Counter[int]()
    for line in done:
        last[line["pid"]] = max(last[line["pid"]], line["of_this_worker"])
    assert len(last) <= 2
    assert sum(last.values()) == 8


def test_engine__what_hangs_is_given_up_and_the_others_are_done(engine: Engine) -> None:
    told = engine.batch("hang", *["ok"] * 4, stall_s=20)
    assert [line["error"] for line in told if line["status"] == "failed"] == ["0: stalled"]
    assert Counter(line["status"] for line in told) == {"done": 4, "failed": 1}


def test_engine__stores_are_those_of_a_local_run(
    engine: Engine, simulated: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    shutil.copytree(simulated / "slides", slides)
    (slides / "broken.jpg").write_text("no picture")
    made = {}
    for name, on in (("here", ()), ("there", ("--on", engine.file))):
        out = tmp_path / name
        tiled = engine.cytofm("tile", slides, "-o", out, "--tile-px", 256, *on)
        assert tiled.returncode == 4, tiled.stderr
        for words in (("detect", out), ("embed", out, "--unit", "cell")):
            done = engine.cytofm(*words, *on)
            assert done.returncode == 0, done.stderr
        failures = list(map(json.loads, (out / "failures.jsonl").read_text().splitlines()))
        made[name] = (
            {
                path.relative_to(out): path.read_bytes()
                for path in sorted(out.glob("*.zarr/**/*"))
                if path.is_file() and path.name != "zarr.json"
            },
            [(failure["slide_id"], failure["error"]) for failure in failures],
        )
    assert len(made["here"][0]) > 8
    assert made["here"] == made["there"]


@pytest.mark.parametrize("unit", ["tile", "cell"])
def test_engine__a_report_is_that_of_a_local_run(engine: Engine, tmp_path: Path, unit: str) -> None:
    words: list[tuple[object, ...]] = [
        ("simulate", "-o", "cohort", "--patients", 8, "--slides-per-patient", 1, "--size-px", 400,
         "--abnormal-share", 0.4, "--format", "jpeg"),
        ("tile", "cohort/slides", "-o", "stores", "--tile-px", 200, "--foreground", "none"),
        ("detect", "stores"),
        ("embed", "stores", "--encoder", "handcrafted", "--unit", unit),
        ("mil", "train", "--bags", "stores", "--labels", "cohort/labels.csv", "-o", "run",
         "--unit", unit, "--folds", 2, "--epochs", 2, "--bootstrap", 100),
        ("mil", "score", "run", "stores", "-o", "scores.csv"),
        ("report", "run", "stores", "-o", "here/page.html", "--cells", 2),
        ("report", "run", "stores", "-o", "there/page.html", "--cells", 2, "--on", engine.file),
    ]  # fmt: skip
    at = replace(engine, file=tmp_path / "sched.json")  # where its commands work
    for command in words:
        done = at.cytofm(*command)
        assert done.returncode == 0, (command, done.stderr)
    here, there = ((tmp_path / name).read_text() for name in ("here/page.html", "there/page.html"))
    assert here.count("data:image/") > 6
    times = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?")
    assert times.sub("", here) == times.sub("", there)


def test_engine__runs_of_a_benchmark_are_those_of_a_local_one(
    engine: Engine, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = ["slide_id,label,group"]
    for number in range(12):
        bag = rng.normal(size=(20, 8)) + 3 * (number % 2)
        torch.save(torch.from_numpy(bag.astype(np.float32)), tmp_path / f"s{number:02}.pt")
        rows.append(f"s{number:02},{number % 2},g{number // 2}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    words = (
        "mil", "benchmark", "--bags", tmp_path, "--labels", tmp_path / "labels.csv",
        "--method", "abmil,mean", "--folds", 2, "--epochs", 2, "--bootstrap", 100,
    )  # fmt: skip
    made = {}
    for name, on in (("here", ()), ("there", ("--on", engine.file))):
        done = engine.cytofm(*words, "-o", tmp_path / name, *on)
        assert done.returncode == 0, done.stderr
        made[name] = {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in sorted((tmp_path / name).rglob("*"))
            if path.name in ("predictions.csv", "table.csv", "splits.csv")
            or path.suffix == ".safetensors"
        }
    assert len(made["here"]) >= 6
    assert made["here"] == made["there"]


def test_engine__strangers_and_plain_connections_are_refused(
    engine: Engine, tmp_path: Path
) -> None:
    foreign = Engine(engine.file, {**engine.environment, **secrets_in(tmp_path)})
    (tmp_path / "plain.json").write_text('{"address": "tcp://127.0.0.1:9"}')
    (tmp_path / "a.jpg").write_text("x")
    for place, code, said in (
        (tmp_path / "plain.json", 2, "without TLS"),
        (engine.file, 75, "no scheduler answers"),
        ("nowhere", 2, "is no scheduler file"),
    ):
        done = foreign.cytofm("tile", tmp_path / "a.jpg", "-o", tmp_path / "out", "--on", place)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
