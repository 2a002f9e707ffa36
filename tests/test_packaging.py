"""What a user installs is what was tested."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_constraints__the_file_for_pip_and_the_list_for_uv_are_equal() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for_pip = [line for line in lines if line and not line.startswith("#")]
    assert for_pip == project()["tool"]["uv"]["constraint-dependencies"]
    assert all(re.fullmatch(r"[a-z0-9.\-_]+==[0-9a-z.]+", line) for line in for_pip)


def test_constraints__every_direct_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in project()["tool"]["uv"]["constraint-dependencies"]}
    groups = project()["project"]["dependencies"] + project()["dependency-groups"]["dev"]
    direct = {re.split(r"[<>=~!\[ ]", name)[0] for name in groups}
    assert direct - pinned == set()


def test_no_lock_file_and_no_package_host_is_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert "uv.lock" not in listed


def test_help__is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from cytofm_cli.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'zarr', 'pandas', 'scipy', 'pyvips'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout
    assert "heavy: []" in done.stderr


def test_tile__imports_neither_torch_nor_zarr() -> None:
    code = (
        "import sys\n"
        "import cytofm_cli.cli.tile, cytofm_cli.tiles.run\n"
        "heavy = {'torch', 'torchvision', 'timm', 'zarr', 'pandas', 'scipy', 'h5py', 'tifffile'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
