"""What every encoder must do. A case is the encoder, loaded as its sample says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders import catalogue
from cytofm_cli.encoders.base import Encoder, store_key
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import WeightsError
from cytofm_cli.registry import EncoderPlugin, Sample, encoders
from cytofm_cli.testing.suite import Case, Suite, refuses


def _load(name: str, _plugin: EncoderPlugin, sample: Sample, _folder: Path) -> Encoder:
    return load_encoder(**{"name_or_file": name, "device": "cpu", **sample.settings})


SUITE = Suite(encoders, _load)


def tiles(n: int, side: int = 96, seed: int = 0) -> NDArray[np.uint8]:
    """Draw n images of blocks with noise, uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 256, (n, side // 8, side // 8, 3))
    fine = rng.integers(-10, 11, (n, side, side, 3))
    images: NDArray[np.integer] = coarse.repeat(8, 1).repeat(8, 2) + fine
    clipped: NDArray[np.uint8] = np.clip(images, 0, 255).astype(np.uint8)
    return clipped


@SUITE.check
def vectors_have_shape_and_type_and_are_finite(case: Case) -> None:
    """And differ from one another."""
    encoder = case.thing
    assert isinstance(encoder, Encoder)
    values = encoder.encode(encoder.prepare(tiles(3)))
    assert values.shape == (3, encoder.spec.dim)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert values.std() > 0
    assert "/" not in store_key(encoder.spec)


@SUITE.check
def vectors_are_the_same_twice(case: Case) -> None:
    """And the images are left as they were."""
    images = tiles(2)
    before = images.copy()
    first = case.thing.encode(case.thing.prepare(images))
    np.testing.assert_array_equal(case.thing.encode(case.thing.prepare(images)), first)
    np.testing.assert_array_equal(images, before)


@SUITE.check
def a_vector_does_not_depend_on_the_rest_of_the_batch(case: Case) -> None:
    """A batch may be halved at any time."""
    encoder, images = case.thing, tiles(5)
    together = encoder.encode(encoder.prepare(images))
    alone = np.concatenate([encoder.encode(encoder.prepare(image[None])) for image in images])
    assert np.abs(alone - together).max() <= 1e-4 * np.abs(together).max()
    assert np.abs(together[0] - together[1]).max() > 1e-3 * np.abs(together).max()


@SUITE.check
def images_are_prepared_in_many_threads_at_once(case: Case) -> None:
    """As the embed step does."""
    batches = [tiles(2, seed=seed) for seed in range(12)]
    expected = [np.asarray(case.thing.prepare(batch)) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        prepared = list(pool.map(case.thing.prepare, batches))
    for got, wanted in zip(prepared, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@SUITE.check
def blank_and_tiny_images_are_stood(case: Case) -> None:
    """Also where they cannot be written to."""
    for shape in ((64, 64), (1, 1), (3, 2), (300, 300)):
        for value in (0, 255):
            images = np.full((1, *shape, 3), value, np.uint8)
            images.flags.writeable = False
            values = case.thing.encode(case.thing.prepare(images))
            assert values.shape == (1, case.thing.spec.dim)
            assert np.isfinite(values).all()


@SUITE.check
def an_empty_batch_is_stood(case: Case) -> None:
    """A slide may have no tiles."""
    values = case.thing.encode(case.thing.prepare(np.zeros((0, 64, 64, 3), np.uint8)))
    assert values.shape == (0, case.thing.spec.dim)


@SUITE.check
def what_is_said_before_loading_is_true(case: Case) -> None:
    """Whether it needs weights, and what it expects."""
    word = case.sample.settings.get("name_or_file", case.name)
    if catalogue.needs_weights(word):
        refuses(WeightsError, "", lambda: load_encoder(word, device="cpu"))
    said = catalogue.resolve(word).expects
    # A pooling of the sample's own may double the vector.
    other = {"pooling", "dim"} if "pooling" in case.sample.settings else set()
    for key in set(said) - other:
        assert getattr(case.thing.spec, key) == said[key], key


@SUITE.check
def a_trunk_can_be_trained(case: Case) -> None:
    """Where the plug-in says that it can be pretrained."""
    if case.plugin.trunk is None:
        return
    import torch

    from cytofm_cli.pretrain.backbone import make_backbones
    from cytofm_cli.pretrain.config import PretrainConfig

    word = case.sample.settings.get("name_or_file", case.name)
    backbones, about = make_backbones(
        PretrainConfig(encoder=word), drop_path=0.0, patch_px=16, img_px=64
    )
    student, teacher = backbones(role="student"), backbones(role="teacher")
    x_BCHW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = student.train()(x_BCHW)
    assert tokens.cls_BD.shape == (3, about.dim)
    assert (tokens.patch_BND is None) == (about.patch_px is None)
    (tokens.cls_BD**2).sum().backward()
    trained = [p for p in student.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in trained)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert catalogue.resolve(about.arch).plugin == case.name
