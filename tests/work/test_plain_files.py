"""What is read of RUNs, weights, tables and lists is a plain file: a pipe is not waited for."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytofm_cli.api.failures import FailureLog
from cytofm_cli.cells.lora_folds import _read as read_fold
from cytofm_cli.config import read_toml
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.encoders.weights import read_state
from cytofm_cli.errors import InputError, LabelError, UsageError, WeightsError
from cytofm_cli.evaluate.run_folder import read_features
from cytofm_cli.generate.file import _told as read_generator
from cytofm_cli.mil.artefacts import load_model, read_card
from cytofm_cli.mil.convert import _tensors as read_official
from cytofm_cli.mil.foreign import MEMBER, pt_origin
from cytofm_cli.mil.origin import UNKNOWN
from cytofm_cli.mil.run_folder import _recorded as read_manifest
from cytofm_cli.mil.run_folder import read_rows, run_digest
from cytofm_cli.named_files import absent, read_bounded
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei
from cytofm_cli.nuclei.files import match_files
from cytofm_cli.nuclei.torchscript import refuse_reaching
from cytofm_cli.nuclei.weights import check_whole, existing_file
from cytofm_cli.pretrain.monitor import read_log
from cytofm_cli.regions.config import RegionChoice
from cytofm_cli.regions.files import region_files
from cytofm_cli.report.answers import _finished as read_end
from cytofm_cli.slides.open import open_slide
from cytofm_cli.table_text import open_text
from cytofm_cli.work.claim import _look as look_at_claim
from cytofm_cli.work.claimed import holders
from cytofm_cli.work.files import known_error, read_plain
from cytofm_cli.work.unpickle import load_pickle

pytestmark = pytest.mark.timeout(60)


def unpickled(path: Path) -> Any:
    return load_pickle(path, kind=WeightsError, hint="")


REFUSED: list[tuple[str, Callable[[Path], Any], type[Exception]]] = [
    ("m.safetensors", read_card, WeightsError),
    ("m.safetensors", load_model, WeightsError),
    ("m.safetensors", read_official, WeightsError),
    ("m.safetensors", read_generator, WeightsError),
    ("m.pt", unpickled, WeightsError),
    ("m.pt", check_whole, WeightsError),
    ("predictions.csv", read_rows, OSError),
    ("log.jsonl", read_log, InputError),
    ("m.pt.toml", lambda path: sidecar(path.with_suffix("")), WeightsError),
    ("config.toml", lambda path: run_digest(path.parent), OSError),
]


@pytest.mark.parametrize(("name", "read", "error"), REFUSED)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_readers__refuse_a_pipe_and_a_device(
    tmp_path: Path, name: str, read: Callable[[Path], Any], error: type[Exception], kind: str
) -> None:
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(error, match="is no plain file"):
        read(path)


def test_readers_of_what_can_be_made_again__take_a_pipe_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("models/manifest.json", "log.jsonl", "f.safetensors", ".s.claim"):
        os.mkfifo(tmp_path / name)
    assert read_manifest(tmp_path) is None  # damaged
    assert read_end(tmp_path) == ""
    assert read_fold(tmp_path / "f.safetensors") is None
    assert read_features(tmp_path / "f.safetensors", 1) is None
    assert holders(tmp_path) == []
    sight = look_at_claim(tmp_path / ".s.claim")
    assert sight is not None
    assert sight.holder == {}


def test_failures__a_pipe_in_their_place_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "failures.jsonl")
    assert FailureLog(tmp_path, "tile", None)._read() == {}


def test_tables__a_pipe_is_read_up_to_a_size_and_a_device_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with open_text(pipe, LabelError) as (text, notes):
        assert (text.read(), notes) == ("", [])  # nobody writes
    for most in (1000, 4000):
        ours, theirs = os.pipe()  # as a shell's <(command) gives it
        os.write(theirs, b"a,b\n" * 1000)
        os.close(theirs)
        if most == 4000:
            assert read_bounded(Path(f"/dev/fd/{ours}"), most) == b"a,b\n" * 1000
        else:
            with pytest.raises(OSError, match="has over 1000 bytes"):
                read_bounded(Path(f"/dev/fd/{ours}"), most)
        os.close(ours)
    with pytest.raises(LabelError, match=r"cannot be read \(is a device\)"):
        open_text(Path("/dev/zero"), LabelError).__enter__()
    with pytest.raises(UsageError, match=r"cannot be read \(is a device\)"):
        read_toml(Path("/dev/zero"))
    (tmp_path / "a.csv").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a.csv", 5) == b"12345"
    with pytest.raises(OSError, match="has over 4 bytes"):
        read_bounded(tmp_path / "a.csv", 4)


def test_tables__what_a_pipe_gave_is_read_again_until_it_gives_more(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for content in (b"a,b\n", b"c,d\n"):
        ours = os.open(pipe, os.O_RDWR)
        os.write(ours, content)
        held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # keeps what is written until it is read
        os.close(ours)
        assert read_bounded(pipe, 100) == content
        os.close(held)
        assert read_bounded(pipe, 100) == content
    with pytest.raises(OSError, match="has over 3 bytes"):
        read_bounded(pipe, 3)


def test_files_that_are_read_by_their_names__say_that_a_pipe_is_none(tmp_path: Path) -> None:
    pipe, told = tmp_path / "pipe", "is a pipe, which can be read only once: write it into a file"
    os.mkfifo(pipe)
    assert absent(pipe) == told
    assert absent(tmp_path) == "is a folder"
    assert absent(Path("/dev/null")) == "is no plain file"
    assert absent(tmp_path / "none") == "no such file"
    readers: list[Callable[[], Any]] = [
        lambda: match_files(pipe, ["a"]),
        lambda: region_files(RegionChoice(regions=pipe), ["a"], lambda text: None),
        lambda: ImportedNuclei(ImportedConfig(nuclei=pipe)),
        lambda: existing_file(pipe, "x", "a file"),
        lambda: read_state(pipe),
        lambda: open_slide(str(pipe)),
    ]
    for read in readers:
        with pytest.raises(InputError, match=f"^{pipe}: {told}"):
            read()


def test_known_error__names_the_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(OSError, match="plain") as raised:
        read_plain(tmp_path / "config.toml")
    known = known_error(raised.value)
    assert known is not None and known.exit_code == 3
    assert str(known) == f"{tmp_path / 'config.toml'}: is no plain file."


def broken_zip(path: Path) -> Path:
    """Write an archive that ends before its members do, as its directory has them."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/{MEMBER}", "a" * 999)
        archive.writestr("archive/code/m.py", "b" * 999)
    data = bytearray(path.read_bytes())
    for at in [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]:
        data[at + 20 : at + 28] = 2 * (100_000).to_bytes(4, "little")  # bytes, packed and unpacked
    path.write_bytes(data)
    return path


def test_readers_of_zips__know_a_cut_member_for_damage(tmp_path: Path) -> None:
    """`zipfile` raises EOFError, which the command line took for "Aborted!"."""
    path = broken_zip(tmp_path / "m.pt")
    # Python 3.13 sees that one member reaches into the next.
    with zipfile.ZipFile(path) as archive, pytest.raises((EOFError, zipfile.BadZipFile)):
        archive.read(f"archive/{MEMBER}")
    assert pt_origin(path) == UNKNOWN
    with pytest.raises(WeightsError, match="damaged"):
        refuse_reaching(path)
    with pytest.raises(WeightsError, match="damaged"):
        check_whole(path)
