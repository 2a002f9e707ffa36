"""What every encoder plug-in must do."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cytofm_cli import registry
from cytofm_cli.encoders.base import Encoder, store_key
from cytofm_cli.encoders.load import load_encoder

# One model of each plug-in; a new plug-in must be named here to be tested.
EXAMPLES = {
    "handcrafted": ("handcrafted", {}),
    "sr_vit": ("sr-vit-tiny", {"random_weights": True}),
    "timm": ("timm/vit_tiny_patch16_224", {"random_weights": True}),
}
MORE = {
    "timm, convolutional": ("timm/resnet18", {"random_weights": True}),
    "timm, cls and mean": (
        "timm/vit_tiny_patch16_224",
        {"random_weights": True, "pooling": "cls+mean"},
    ),
}


def test_examples__cover_every_plugin():
    assert sorted(EXAMPLES) == registry.encoders.names()


@pytest.fixture(scope="module", params=[*EXAMPLES, *MORE])
def encoder(request):
    name, options = (EXAMPLES | MORE)[request.param]
    return load_encoder(name, device="cpu", **options)


def _tiles(n, side=96, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 256, (n, side // 8, side // 8, 3))
    fine = rng.integers(-10, 11, (n, side, side, 3))
    return np.clip(coarse.repeat(8, 1).repeat(8, 2) + fine, 0, 255).astype(np.uint8)


def test_encoder__has_shape_and_type_and_is_finite(encoder):
    assert isinstance(encoder, Encoder)
    values = encoder.encode(encoder.prepare(_tiles(3)))
    assert values.shape == (3, encoder.spec.dim)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert values.std() > 0
    assert "/" not in store_key(encoder.spec)


def test_encoder__gives_the_same_twice(encoder):
    tiles = _tiles(2)
    before = tiles.copy()
    first = encoder.encode(encoder.prepare(tiles))
    np.testing.assert_array_equal(encoder.encode(encoder.prepare(tiles)), first)
    np.testing.assert_array_equal(tiles, before)


def test_encoder__does_not_depend_on_the_rest_of_the_batch(encoder):
    tiles = _tiles(5)
    together = encoder.encode(encoder.prepare(tiles))
    alone = np.concatenate([encoder.encode(encoder.prepare(tile[None])) for tile in tiles])
    assert np.abs(alone - together).max() <= 1e-4 * np.abs(together).max()
    assert np.abs(together[0] - together[1]).max() > 1e-3 * np.abs(together).max()


def test_encoder__prepares_in_many_threads_at_once(encoder):
    batches = [_tiles(2, seed=seed) for seed in range(12)]
    expected = [np.asarray(encoder.prepare(batch)) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encoder.prepare, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (3, 2), (300, 300)])
@pytest.mark.parametrize("value", [0, 255])
def test_encoder__stands_blank_and_tiny_images(encoder, shape, value):
    tiles = np.full((1, *shape, 3), value, np.uint8)
    tiles.flags.writeable = False
    values = encoder.encode(encoder.prepare(tiles))
    assert values.shape == (1, encoder.spec.dim)
    assert np.isfinite(values).all()


def test_encoder__stands_an_empty_batch(encoder):
    values = encoder.encode(encoder.prepare(np.zeros((0, 64, 64, 3), np.uint8)))
    assert values.shape == (0, encoder.spec.dim)
