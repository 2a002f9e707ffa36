"""A link in a store to a device or a pipe is refused: the one has no end, the other waits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.work.files import open_plain, read_plain, require_plain


@pytest.fixture
def store(cytofm, tmp_path: Path) -> Path:
    """A store of one field."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ("--slide-mpp", 0.25, "--tile-px", 32, "--foreground", "none", "--workers", 1)
    assert cytofm("tile", tmp_path / "a.png", "-o", tmp_path / "s", *words).returncode == 0
    return tmp_path / "s" / "a.zarr"


@pytest.mark.parametrize("name", ["zarr.json", "tiles/pen/zarr.json", "tiles/pen/c.0"])
@pytest.mark.parametrize("command", ["info", "verify"])
@pytest.mark.slow
def test_store__a_device_in_place_of_a_file_is_damage(
    cytofm, store: Path, command: str, name: str
) -> None:
    (store / name).unlink()
    (store / name).symlink_to("/dev/zero")
    done = cytofm(command, store)
    assert done.returncode in (3, 4), done.stderr
    assert "a.zarr" in done.stderr
    assert "bug" not in done.stderr


def test_plain__files_alone_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert read_plain(tmp_path / "link", 3) == b"abc"
    with pytest.raises(OSError, match="over 2 bytes"):
        read_plain(tmp_path / "a", 2)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="is no plain file"):
            open_plain(path)
    with pytest.raises(OSError, match="is no plain file"):
        require_plain(tmp_path)
    (tmp_path / "pipe").unlink()
    require_plain(tmp_path)
