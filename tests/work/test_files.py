"""A file is the old one or the new one, and what could not be written leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cytofm_cli.errors import CytofmError, DiskFullError, InputError, OutputError
from cytofm_cli.work import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing__a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "a") as partial:
        assert partial.name.startswith(".a.")
        assert partial.name.endswith(".partial")
        partial.write_text("half")
        assert (tmp_path / "a").read_text() == "old"
        raise RuntimeError
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_replacing__two_writers_of_one_file_never_share_a_name(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a") as first:
        first.write_text("first")
        with files.replacing(tmp_path / "a") as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_replacing__permissions_are_those_of_a_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "text", "x")
        with files.replacing(tmp_path / "weights") as partial:
            save_file({"x": torch.zeros(1)}, partial)
            partial.chmod(0o600)  # as safetensors of some versions leaves it
    finally:
        os.umask(before)
    for name in ("text", "weights"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask


def test_replacing__is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        calls.append("flush " + Path(f"/proc/self/fd/{descriptor}").readlink().name[:3])
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    files.write_bytes(tmp_path / "a", b"1")
    files.write_bytes(tmp_path / "b", b"1", flush=False)
    assert calls == ["flush .a.", "rename to a", "rename to b"]
    calls.clear()
    (tmp_path / "sub").mkdir()
    files.write_bytes(tmp_path / "sub" / "c", b"1", flush=False)
    calls.clear()
    files.flush_folder(tmp_path)
    assert sorted(calls) == ["flush a", "flush b", "flush c"]


def test_replacing__a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 127 + "x"
    files.write_text(tmp_path / name, "x")
    assert names(tmp_path) == [name]


def test_replacing__removes_what_was_abandoned_and_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    for name, age_s in ((".a.host-1-x.partial", 7200), (".a.host-2-x.partial", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    folder = tmp_path / ".s.tile.host-3.partial"  # of a step: not a file of ours
    folder.mkdir()
    os.utime(folder, (0, 0))
    files.write_text(tmp_path / "a", "x")
    assert names(tmp_path) == [".a.host-2-x.partial", folder.name, "a"]
    files.remove_partials(tmp_path)
    assert names(tmp_path) == [folder.name, "a"]


def test_replacing__killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    script = (
        "import os, sys; from pathlib import Path; from cytofm_cli.work.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], check=False)
    assert process.returncode == -9
    assert (tmp_path / "a").read_text() == "old"
    assert len(names(tmp_path)) == 2
    files.remove_partials(tmp_path)
    assert names(tmp_path) == ["a"]


def test_replacing__folders_in_the_way_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        files.write_text(tmp_path / "folder", "x")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, or lies in one"):
        files.write_text(tmp_path / "file" / "a", "x")
    files.write_text(tmp_path / "new" / "deep" / "a", "x")
    assert (tmp_path / "new" / "deep" / "a").read_text() == "x"


def test_write_json__bytes_are_these(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"ü": [1, None], "name": os.fsdecode(b"x\xff")}, indent=1)
    assert path.read_bytes() == ('{\n "ü": [\n  1,\n  null\n ],\n "name": "x\\udcff"\n}\n'.encode())
    assert os.fsencode(json.loads(path.read_text())["name"]) == b"x\xff"
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, float("nan"))
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, DiskFullError, 75),
        (errno.EDQUOT, DiskFullError, 75),
        (errno.EROFS, OutputError, 2),
        (errno.EACCES, OutputError, 2),
        (errno.ENOTDIR, OutputError, 2),
        (errno.ENAMETOOLONG, InputError, 3),
    ],
)
def test_output_errors__say_what_the_disk_said(
    tmp_path: Path, number: int, kind: type[CytofmError], code: int
) -> None:
    with pytest.raises(kind, match=str(tmp_path)) as caught, files.output_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    "said",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "Unable to write (file write failed: errno = 28, error message = 'No space left')",
    ],
)
def test_output_errors__a_full_disk_that_a_library_tells_in_words(
    tmp_path: Path, said: str
) -> None:
    with pytest.raises(DiskFullError), files.output_errors(tmp_path):
        raise RuntimeError(said)


@pytest.mark.parametrize(
    "error", [RuntimeError("No such file (os error 2)"), OSError(errno.EIO, "os error 2")]
)
def test_output_errors__what_is_not_about_the_output_passes(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(type(error), match="os error 2") as caught, files.output_errors(tmp_path):
        raise error
    assert caught.value is error


def test_output_errors__a_full_disk_that_torch_hides_behind_an_error_of_its_own(
    tmp_path: Path,
) -> None:

    with (
        pytest.raises(DiskFullError),
        files.output_errors(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        torch.save(torch.zeros(100_000), file)


def test_replacing__what_a_link_names_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "there" / "real.txt")
    files.write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.txt").read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 3


def test_replacing__sweeps_what_a_killed_process_left_and_not_what_a_living_one_writes(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cytofm_cli.work.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False)
    (left,) = tmp_path.iterdir()
    assert files.is_partial(left.name)
    with files.replacing(tmp_path / "b.txt") as partial:
        assert [path.name for path in tmp_path.iterdir()] == [partial.name]
        files._remove_abandoned.cache_clear()
        files.write_text(tmp_path / "c.txt", "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "c.txt"]


def _failure(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "item", "message"),
    [
        (
            _failure(errno.EIO, "a/.x.partial"),
            "s.zarr",
            "s.zarr: a/.x.partial: cannot be read or written (Input/output error).",
        ),
        (
            _failure(errno.ESTALE),
            None,
            "standard output, or a file: cannot be read or written (Stale file handle).",
        ),
        (_failure(errno.EDQUOT, "a/x"), None, "a/x: no space left on the disk."),
        (_failure(errno.ENOSPC, "a/x"), "s.zarr", "s.zarr: no space left on the disk."),
    ],
)
def test_known_error__names_the_item_and_the_file(
    error: OSError, item: str | None, message: str
) -> None:
    known = files.known_error(error, item)
    assert known is not None
    assert known.message == message
    assert isinstance(known, DiskFullError if "space" in message else InputError)


@pytest.mark.parametrize("error", [KeyError("x"), _failure(errno.EDOM), OSError("no number")])
def test_known_error__the_rest_is_a_bug(error: Exception) -> None:
    assert files.known_error(error, "s.zarr") is None
