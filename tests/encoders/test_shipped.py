"""The encoders that ship: small, safe, what the catalogue says, and not others."""

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
SECOND = SHIPPED / "cytofm-tiny-2.safetensors"
EXPECTED_TOKENS = [[1.278, -0.465, 2.287, -0.204], [-0.139, 0.428, 0.846, 0.749]]
# Every 148th of tokens and pixels, × 100.
EXPECTED_SECOND = [[6.5, 5.8, 5.3, 1.2, -1.2, 0.6], [0.1, 4.7, 6.4, 2.0, 0.3, 0.5]]


def _cells() -> np.ndarray:
    """Draw two made-up cells: a dark disk, a small one and a large one, on pale ground."""
    y, x = np.mgrid[:72, :72] - 35.5
    cells = np.full((2, 72, 72, 3), (225, 210, 225), np.uint8)
    for cell, radius in zip(cells, (9, 21), strict=True):
        cell[np.hypot(x, y) < radius] = (110, 70, 150)
    return cells


@pytest.mark.parametrize("path", [FILE, SECOND])
def test_shipped__the_file_is_small_half_precision_and_describes_itself(path: Path) -> None:
    assert path.stat().st_size <= 12e6
    with safe_open(path, "pt") as file:
        weights = [key for key in file.keys() if not key.startswith("joined.")]  # noqa: SIM118
        assert {file.get_slice(key).get_dtype() for key in weights} == {"F16"}
        said = file.metadata()
    assert (said["name"], said["arch"], said["licence"]) == (
        path.stem, "sr-vit-tiny", "Apache-2.0",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "cell_um"), [("cytofm-tiny", 18.0), ("cytofm-tiny-2", 20.0)])
def test_shipped__opens_by_name_as_the_catalogue_says(name: str, cell_um: float) -> None:
    entry = catalogue.entries()[name][1]
    spec = load_encoder(name, device="cpu").spec
    assert (spec.dim, spec.input_px, spec.pooling, spec.licence) == (
        entry.dim, entry.input_px, entry.pooling, entry.licence,
    )  # fmt: skip
    assert store_key(spec) == name
    assert spec.cell_um == cell_um


def test_shipped__gives_the_vectors_it_gave() -> None:
    encoder = load_encoder("cytofm-tiny", device="cpu")
    said = encoder.encode(encoder.prepare(_cells()))
    assert said.shape == (2, 384)
    np.testing.assert_allclose(said[:, ::96], EXPECTED, atol=5e-3)


def test_shipped__the_second_joins_tokens_with_pixels() -> None:
    second = load_encoder("cytofm-tiny-2", device="cpu")
    said = second.encode(second.prepare(_cells()))
    assert said.shape == (2, 888)
    np.testing.assert_allclose(100 * said[:, ::148], EXPECTED_SECOND, atol=0.1)
    alone = load_encoder("cytofm-tiny-2", device="cpu", pooling="cls+mean")
    tokens = alone.encode(alone.prepare(_cells()))
    np.testing.assert_allclose(tokens[:, ::96], EXPECTED_TOKENS, atol=5e-3)
    # Joined, all tokens are moved, and scaled by one number.
    moved, own = (x[0, :384] - x[1, :384] for x in (said, tokens))
    np.testing.assert_allclose(moved, own * (moved @ own / (own @ own)), atol=1e-4)


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
