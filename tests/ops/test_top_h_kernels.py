"""The Triton kernels without a GPU: numerics in the interpreter, machine code by compiling."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]

COMPILE = """
import json, sys
from cytofm_kernels.aot import as_row, compile_config
from cytofm_kernels.configs import main_configs
capability = int(sys.argv[1])
configs = main_configs(capability)[: int(sys.argv[2])]
print(json.dumps([as_row(compile_config(c, capability)) for c in configs]))
"""
# Lane instructions a score: what the innermost loop may cost before we call it a regression.
SELECTION_BUDGET = 3.2
STREAM_PASS_BUDGET = 18.0


def run(command, **env):
    folder = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**clean, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


@pytest.mark.slow
def test_kernels_in_the_interpreter__agree_with_float64():
    done = run(
        ["-m", "pytest", str(HERE / "interpreter_cases.py"), "-q", "-p", "no:cacheprovider"],
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


# The full list for sm_90, the forward and backward of short rows
# for sm_80. The recorded table has them all.
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "count"), [(90, 9), (80, 3)], ids=["sm_90", "sm_80"])
def test_main_configurations__compile_without_spills(capability, count, tmp_path):
    command = ["-W", "ignore", "-c", COMPILE, str(capability), str(count)]
    done = run(command, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    assert len(rows) == count
    assert [r["name"] for r in rows if not r["fits"]] == []
    by_kernel = {r["name"]: r for r in rows}
    dense = [r for r in rows if "pairs" not in r["name"] and "_bits" not in r["name"]]
    wanted = {"HGMMA", "HMMA"} if capability == 90 else {"HMMA"}
    assert {r["tensor_core"] for r in dense if "words" not in r["name"]} <= wanted
    if capability == 90:
        row = by_kernel["forward_row n=197 d=64 bf16"]
        assert row["tensor_core"] == "HGMMA"
        assert max(row["loops_per_score"]) < SELECTION_BUDGET
        stream = by_kernel["forward_stream n=1025 d=64 bf16"]
        assert stream["loops_per_score"][0] < STREAM_PASS_BUDGET


def test_recorded_compilation__has_no_spills():
    table = json.loads((ROOT / "kernels/bench/results/compile.json").read_text())
    assert len(table["rows"]) > 50
    assert {r["capability"] for r in table["rows"]} == {80, 90}
    assert [(r["name"], r["capability"]) for r in table["rows"] if not r["fits"]] == []
