"""Slides on which cytofm once went wrong, as `../shared/cases` makes them: what is right now.

Each case is an input of a public bug report. The same kinds, on inputs made here, are tested in
`tests/slides`; `docs/formats.md` names what is read.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zarr

from .conftest import Run

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RGB = (229.8, 221.0, 229.3)  # mean of the picture that the colour models hold


class Right(NamedTuple):
    """What is right: exit codes of the commands, what they say, what they must not say.

    `slides` are the stores that come out, `mean` the mean colour of the only one.
    """

    codes: tuple[int, ...]
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    slides: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None


CASES = {
    "dicom-extra-file": Right((0, 0), (r"1024 × 1024 px, 0\.25",), slides=("S1",)),
    "dicom-flat-two": Right((0,), slides=("a_0", "b_0")),
    "dicom-no-suffix": Right((0, 0), (r"slides/S1\n +1024 × 1024", r"1\.2\.3\.1\n +1024 × 1024")),
    "hint-16-bit-png": Right((3,), ("16-bit samples", "scale it to 8 bits")),
    "icclab": Right((0,), mean=RGB),
    "info-duplicates": Right((0,), ("d/a/x.tif", "d/b/x.tif")),
    "jpeg-tile-corrupt": Right((0,), ("1 of 16 tiles are damaged",), slides=("corrupt",)),
    "labels-na": Right((3,), ("4 bag.* no label", "NA is no label")),
    "long-name-embed": Right((0, 0), slides=("L" * 215,)),
    "manifest-semicolon": Right((0, 0), (r"0\.25 µm/px",), slides=("001",)),
    "motic-mpp": Right((0, 0), (r"0\.2573 µm/px \(motic\.MPP\)",), slides=("motic",)),
    "mpp-flag-overrides-appmag": Right(
        (0, 0), (r"without: 4 of 4 .* the slide's 0\.25 by its 40",), slides=("with", "without")
    ),
    "ome-foreign-level": Right((0, 0), (r"1024 × 1024 px, 0\.25", r"levels 1/1\n", "Image 0")),
    "ome-label-first": Right((0, 0), (r"1024 × 1024 px, 0\.25", r"levels 1/1, 1/2\n", "Image 1")),
    "ome-planar-mpp": Right((0, 0), (r"1024 × 1024 px, 0\.25", r"levels 1/1, 1/2, 1/4\n")),
    "ome-zstd-channels": Right((0, 0), (r"deflate.*\n.*\n +Of 3", r"0\.25.*zstd.*\n.*\n +Of 3 ch")),
    "rgbx-unspecified": Right((0, 2), ("4 of 4 tiles",), mean=RGB),
    "svs-thumbnail-only": Right((3,), ("only the thumbnail",)),
    "symlinked-folder": Right((0,), slides=("a", "b")),
    "tiff-label-first-tiled": Right((0,), (r"1024 × 1024 px, 0\.25", r"levels 1/1, 1/2, 1/4\n")),
    "tiff-smallest-first": Right((0,), (r"1024 × 1024 px, 0\.25", r"levels 1/1, 1/2, 1/4\n")),
    "vms-folder": Right((0, 0), (r"1024 × 1024 px, 0\.25",), never=("slide.jpg", "map2")),
    "vsi-overview": Right((3, 3), (r"_s_/stack1/frame_t\.ets",), slides=()),
    "ycbcr-lzw": Right((0,), mean=RGB),
}  # fmt: skip


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the input of a case in a folder of its own, which becomes the working directory."""
    name = str(request.param)
    for each in (name, "_common"):
        shutil.copytree(SHARED / "cases" / each, tmp_path / "shared" / "cases" / each)
    (tmp_path / "shared" / "data").symlink_to(SHARED / "data")
    folder = tmp_path / "shared" / "cases" / name
    for path in (tmp_path / "shared" / "cases").rglob("*"):
        path.chmod(0o755)
    folder.chmod(0o755)
    subprocess.run([sys.executable, "make.py"], cwd=folder, check=True, capture_output=True)
    monkeypatch.chdir(folder)
    return name


def commands(script: str) -> list[list[str]]:
    """Return the words after `cytofm` of each of its calls in a script, without its pipes."""
    lines = (re.split(r"[|;>]|2>", line)[0] for line in script.splitlines())
    words = [shlex.split(line) for line in lines if line.startswith("cytofm ")]
    return [
        [each for word in line[1:] for each in (sorted(map(str, Path().glob(word))) or [word])]
        for line in words
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=pytest.mark.needs_shared(f"cases/{n}"), id=n) for n in CASES],
    indirect=True,
)
def test_case__gives_what_is_right(case: str, here: Run) -> None:
    right = CASES[case]
    done = [here(*words) for words in commands(Path("cmd.sh").read_text())]
    assert tuple(each.returncode for each in done[: len(right.codes)]) == right.codes
    said = "\n".join(each.stdout + each.stderr for each in done)
    for pattern in right.says:
        assert re.search(pattern, said), (pattern, said)
    assert not [word for word in right.never if word in said]
    stores = sorted(path.stem for path in Path("out").glob("*.zarr"))
    if right.slides is not None:
        assert tuple(stores) == right.slides
    if right.mean is not None:
        (store,) = stores
        thumbnail = zarr.open_group(f"out/{store}.zarr", mode="r")["thumbnail"][:]
        np.testing.assert_allclose(thumbnail.reshape(-1, 3).mean(0), right.mean, atol=3)
