"""What lies in the working folder, or in a name, is neither run nor obeyed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli

RAN = "raise SystemExit(open(r'{}', 'a').write('x'))"
SPAWN = """
import sys
from pathlib import Path
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import catch_signals
if __name__ == "__main__":
    with catch_signals() as stop:
        print(sorted(result for _, result in in_processes(abs, [-1, 2], 1, stop)))
"""
FRESH = """
import cytofm_cli as cytofm
done = cytofm.tile(["field.png"], "stores", workers=1, slide_mpp=0.25, tile_px=128)
print([outcome.status for outcome in done])
"""


@pytest.mark.parametrize(("code", "printed"), [(SPAWN, "[1, 2]"), (FRESH, "['done']")])
def test_children__do_not_run_modules_of_the_working_folder(
    tmp_path: Path, code: str, printed: str
) -> None:
    rng = np.random.default_rng(0)
    field = rng.integers(60, 200, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(field).save(tmp_path / "field.png")
    for name in ("signal", "json", "struct", "pickle", "selectors", "tempfile"):
        (tmp_path / f"{name}.py").write_text(RAN.format(tmp_path / "ran"))
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    package = str(Path(cytofm_cli.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": package},
    )  # fmt: skip
    assert done.stdout.strip() == printed, done.stderr
    assert not (tmp_path / "ran").exists()


def test_names__are_one_line_and_no_escape_sequence(cytofm, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "ok.png")
    name = "a\x1b]0;title\x07b\nerror: c"
    (tmp_path / f"{name}.png").write_bytes((tmp_path / "ok.png").read_bytes()[:20])
    done = cytofm("info", tmp_path)
    for stream in (done.stdout, done.stderr):
        assert "\x1b" not in stream and "\x07" not in stream
    assert not [row for row in done.stderr.splitlines() if row.startswith("error: c")]
    assert "a\\x1b]0;title\\x07b" in done.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / f"{name}.png").write_bytes((tmp_path / "ok.png").read_bytes())
    done = cytofm("info", whole)
    assert done.stdout.splitlines()[0].endswith("a\\x1b]0;title\\x07b\\nerror: c.png")
