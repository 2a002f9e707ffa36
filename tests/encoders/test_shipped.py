"""cytofm-tiny, the encoder that ships: small, safe, what the catalogue says, and not another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cytofm_cli.config import resolve
from cytofm_cli.encoders import catalogue
from cytofm_cli.encoders.base import store_key
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.entries import SHIPPED
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.recorded import digest_of_weights
from cytofm_cli.errors import UsageError

EXPECTED = [[1.203, -0.998, 0.629, -0.883], [1.076, 0.311, 1.173, -0.389]]
FILE = SHIPPED / "cytofm-tiny.safetensors"


def _cells() -> np.ndarray:
    """Draw two made-up cells: a dark disk, a small one and a large one, on pale ground."""
    y, x = np.mgrid[:72, :72] - 35.5
    cells = np.full((2, 72, 72, 3), (225, 210, 225), np.uint8)
    for cell, radius in zip(cells, (9, 21), strict=True):
        cell[np.hypot(x, y) < radius] = (110, 70, 150)
    return cells


def test_shipped__the_file_is_small_half_precision_and_describes_itself() -> None:
    assert FILE.stat().st_size <= 12e6
    with safe_open(FILE, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
        said = file.metadata()
    assert (said["name"], said["arch"], said["licence"]) == (
        "cytofm-tiny", "sr-vit-tiny", "Apache-2.0",
    )  # fmt: skip


def test_shipped__opens_by_name_as_the_catalogue_says() -> None:
    entry = catalogue.entries()["cytofm-tiny"][1]
    spec = load_encoder("cytofm-tiny", device="cpu").spec
    assert (spec.dim, spec.input_px, spec.pooling, spec.licence) == (
        entry.dim, entry.input_px, entry.pooling, entry.licence,
    )  # fmt: skip
    assert store_key(spec) == "cytofm-tiny"
    assert spec.cell_um == 18.0


def test_shipped__gives_the_vectors_it_gave() -> None:
    encoder = load_encoder("cytofm-tiny", device="cpu")
    said = encoder.encode(encoder.prepare(_cells()))
    assert said.shape == (2, 384)
    np.testing.assert_allclose(said[:, ::96], EXPECTED, atol=5e-3)


@pytest.mark.parametrize(("unit", "encoder"), [("cell", "cytofm-tiny"), ("tile", "handcrafted")])
def test_shipped__is_what_embeds_cells_unless_another_is_named(unit: str, encoder: str) -> None:
    assert EmbedConfig(unit=unit).encoder == encoder
    assert resolve(EmbedConfig, "embed", {"unit": unit}).encoder == encoder
    assert EmbedConfig(unit=unit, encoder="uni").encoder == "uni"


def test_shipped__the_store_knows_it_by_the_digest_of_its_file() -> None:
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert digest_of_weights(EmbedConfig(encoder="cytofm-tiny")) == digest
    assert digest_of_weights(EmbedConfig(encoder="handcrafted")) is None


def test_shipped__other_weights_are_refused_with_the_way_to_name_them() -> None:
    with pytest.raises(UsageError, match="ships with its weights") as caught:
        catalogue.resolve("cytofm-tiny", weights=Path("other.safetensors"))
    assert caught.value.hint == "--encoder other.safetensors"
