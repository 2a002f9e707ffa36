"""Mutated files: the same seed gives the same bytes; what reads them ends with one line."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from . import mutations

FIELD = np.random.default_rng(0).integers(60, 200, (40, 40, 3), np.uint8)


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FIELD).save(buffer, kind)
    return buffer.getvalue()


def _tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, FIELD, photometric="rgb", description="<a b='1'>2</a>")
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", pickle.dumps([1], 2))
        file.writestr("x/data/0", bytes(8))
    return buffer.getvalue()


def _safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


WHOLE: dict[str, Callable[[], bytes]] = {
    "a.tif": _tiff,
    "a.jpg": lambda: _picture("jpeg"),
    "a.png": lambda: _picture("png"),
    "a.json": lambda: b'{"a": [1, {"b": null}], "c": "d"}',
    "a.xml": lambda: b'<?xml version="1.0"?><a><b c="1" d="2"/></a>',
    "a.csv": lambda: b"slide_id,x\na,1\nb,2\n",
    "a.toml": lambda: b"[a]\nb = 1\nc = 'd'\n",
    "a.pt": _zip,
    "a.safetensors": _safetensors,
}


@pytest.mark.parametrize("name", WHOLE)
def test_mutate__the_same_state_gives_the_same_bytes_and_others_others(name: str) -> None:
    data = WHOLE[name]()
    made = [mutations.mutate(name, data, random.Random(seed)) for seed in range(60)]
    again = [mutations.mutate(name, data, random.Random(seed)) for seed in range(60)]
    assert made == again
    assert len({each for each, _ in made}) > 20
    known = {mutation.__name__ for kind in mutations.BY_ENDING.values() for mutation in kind}
    assert {part for _, said in made for part in said.split("+")} <= known | {"flip"}


def test_tiff__one_number_of_one_entry_is_another() -> None:
    data = _tiff()
    for seed in range(50):
        mutant = mutations.tiff(data, random.Random(seed))
        assert len(mutant) == len(data)
        assert 0 <= sum(a != b for a, b in zip(data, mutant, strict=True)) <= 24


def test_png__checksums_are_right_again() -> None:
    header = next(
        mutant
        for mutant in (mutations.png(_picture("png"), random.Random(seed)) for seed in range(99))
        if mutant[16:24] != _picture("png")[16:24] and mutant[12:16] == b"IHDR"
    )
    with pytest.raises((OSError, ValueError, SyntaxError)) as error:
        Image.open(io.BytesIO(header)).load()
    assert "crc" not in str(error.value).lower()


@pytest.mark.slow
def test_mutants__are_met_with_one_line_each(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ("--count", "100", "--seed", "11", "--batch", "5", "--short", "--report", str(report))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mutate.py")), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert report.exists(), done.stderr
    told = json.loads(report.read_text())
    assert told["findings"] == []
    assert told["total"]["tried"] >= 100
    assert told["total"]["refused"] >= 20
    assert done.returncode == 0
