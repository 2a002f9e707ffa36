"""Augmentations: identities, hand-worked values, torchvision as the reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from cytofm_cli.views import augment, pixels, recolour, recolour_host
from cytofm_cli.views.augment import IDENTITY, IMAGENET_MEAN, IMAGENET_STD, Augment
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.recipes import recipe_of

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def images(n=3, side=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=["batch", "host"])
def run(request):
    """Draw and augment, by `recolour` and by `recolour_host`: same values, same tolerances."""
    apply = _apply_batch if request.param == "batch" else _apply_host

    def run(rgb, how, *, seed=0, mean=ZERO, std=ONE, **replaced):
        drawn = augment.draw(sample_keys(seed, np.arange(len(rgb))), how)
        drawn = dataclasses.replace(drawn, **replaced)
        return apply(rgb, drawn, mean, std), drawn

    return run


def _apply_batch(rgb, drawn, mean, std):
    ready = recolour.prepare(drawn, rgb.shape[-1], rgb.device, mean, std)
    out = torch.empty(rgb.shape, dtype=torch.float32)
    return recolour.apply(pixels.pack(rgb), ready, slice(None), out)


def _apply_host(rgb, drawn, mean, std):
    out = np.empty(rgb.shape, np.float32)
    views = np.ascontiguousarray(rgb.movedim(1, -1))
    recolour_host.apply(list(views), recolour_host.prepare(drawn, mean, std), 0, 1, out)
    return torch.from_numpy(out)


def test_identity__gives_the_pixels_normalised(run):
    rgb = images()
    got, _ = run(rgb, IDENTITY, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = TF.normalize(rgb.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(got, expected, atol=2e-6)


def test_zero_strength__is_identity_whatever_the_probability(run):
    rgb = images()
    how = Augment(jitter=(0, 0, 0, 0), jitter_p=1, stain=(0, 0), stain_p=1)
    assert torch.allclose(run(rgb, how)[0], rgb / 255, atol=1e-6)


def test_stain_jitter__at_vanishing_strength_is_identity(run):
    rgb = images()
    got, drawn = run(rgb, Augment(stain=(1e-9, 0), stain_p=1))
    assert drawn.stain_GCC is not None
    assert torch.allclose(got, rgb / 255, atol=1e-5)


def test_stain_jitter__scales_optical_density(run):
    rgb = images()
    doubled = np.tile(2 * np.eye(3), (3, 1, 1))
    got, _ = run(rgb, Augment(stain=(0.1, 0), stain_p=1), stain_GCC=doubled)
    expected = 256 * ((rgb.double() + 1) / 256) ** 2 - 1  # OD' = 2 OD
    assert torch.allclose(got.double(), expected.clamp(0, 255) / 255, atol=1e-5)


def test_stain_jitter__moves_one_stain_along_its_own_vector():
    factor_first = np.array([[1.0, 0.5, 0.5, 0.5, 0.5, 0.5]])  # draws: +1 for haematoxylin only
    scale, shift = augment._stain(factor_first, np.array([True]), (0.2, 0.0))
    stain = np.array([0.65, 0.70, 0.29])
    assert np.allclose(scale[0] @ stain, 1.2 * stain) and np.allclose(shift, 0)
    assert np.allclose(scale[0] @ [0.07, 0.99, 0.11], [0.07, 0.99, 0.11])


def test_channel_jitter__has_a_factor_in_common_and_one_of_each():
    u_G7 = np.array([[1.0, 0.5, 0.0, 1.0, 0.5, 1.0, 0.0], [1.0] * 7])
    scale, shift = augment._channels(u_G7, np.array([True, False]), (0.2, 0.04))
    assert np.allclose(scale[0], np.diag([1.2, 1.2 * 0.9, 1.2 * 1.1]))
    assert np.allclose(shift[0], [0.0, 0.04, -0.04])
    assert np.array_equal(scale[1], np.eye(3)) and not shift[1].any()


def test_channel_jitter__moves_what_the_script_of_cytofm_tiny_moves():
    how = Augment(stain=(0.15, 0.0375), stain_p=1, stain_of="channels")
    drawn = augment.draw(sample_keys(4, np.arange(20_000)), how)
    assert drawn.stain_GCC is not None
    factor_GC = np.diagonal(drawn.stain_GCC, axis1=1, axis2=2)
    assert not (drawn.stain_GCC - factor_GC[..., None] * np.eye(3)).any()
    assert factor_GC.min() >= 0.85 * 0.925 and factor_GC.max() <= 1.15 * 1.075
    # Variance of a uniform ± s: s²/3. Of the product: (1 + v) (1 + w) - 1; its covariance is v.
    common, own = 0.15**2 / 3, 0.075**2 / 3
    expected = np.full((3, 3), common) + np.eye(3) * (1 + common) * own
    assert np.allclose(np.cov(factor_GC.T), expected, atol=2e-4)
    assert np.allclose(drawn.stain_shift_GC.std(0), 0.0375 / math.sqrt(3), rtol=0.02)


@pytest.mark.parametrize("code", range(8))
def test_turn__inverse_restores(code):
    inverse = {0: 0, 1: 1, 2: 2, 4: 4, 6: 6, 7: 7, 3: 5, 5: 3}[code]
    word = torch.arange(25, dtype=torch.int32).view(1, 5, 5)
    assert torch.equal(pixels.turn(pixels.turn(word.clone(), [code]), [inverse]), word)


def test_turn__quarter_turn_four_times_is_identity():
    word = torch.arange(36, dtype=torch.int32).view(1, 6, 6)
    once = pixels.turn(word.clone(), [3])
    assert torch.equal(once, torch.rot90(word, -1, (1, 2)))
    thrice = word.clone()
    for _ in range(4):
        thrice = pixels.turn(thrice, [3])
    assert torch.equal(thrice, word)


def test_turn__all_eight_are_different_and_per_view():
    word = torch.arange(9, dtype=torch.int32).view(1, 3, 3).repeat(8, 1, 1)
    turned = pixels.turn(word, list(range(8)))
    assert len({tuple(view.flatten().tolist()) for view in turned}) == 8


def test_turn__draws_all_eight_equally():
    how = Augment(flip=(0.5, 0.5), transpose=0.5)
    counts = np.bincount(augment.draw(sample_keys(0, np.arange(8000)), how).turn_G)
    assert len(counts) == 8 and np.abs(counts - 1000).max() < 120


@pytest.mark.parametrize(
    ("position", "reference"),
    [
        (0, TF.adjust_brightness),
        (1, TF.adjust_contrast),
        (2, TF.adjust_saturation),
    ],
)
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.9])
def test_jitter__one_step_equals_torchvision(run, position, reference, draw):
    strength = [0.0] * 4
    strength[position] = 0.4
    u = np.full((3, 8), draw)
    A, K = augment._colour(u, np.ones(3, bool), tuple(strength))
    rgb = images()
    got, _ = run(rgb, IDENTITY, colour_GCC=A, contrast_GCC=K)
    factor = 1 + 0.4 * (2 * draw - 1)
    expected = torch.stack([reference(x, factor) for x in rgb.double() / 255])
    assert torch.allclose(got.double(), expected, atol=2e-4)  # its luma has four digits


def test_jitter__steps_run_in_the_drawn_order(run):
    rgb = (images() // 4) + 96  # no clamping on the way
    rgb = rgb.to(torch.uint8)
    steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        u = np.full((3, 8), 0.8)
        u[:, 3] = 0.5  # no hue
        u[:, 7] = 0.99
        for place, step in enumerate(order):
            u[:, 4 + step] = 0.1 * place
        A, K = augment._colour(u, np.ones(3, bool), (0.2, 0.3, 0.4, 0.1))
        got, _ = run(rgb, IDENTITY, colour_GCC=A, contrast_GCC=K)
        factors = [1.12, 1.18, 1.24]
        expected = rgb.double() / 255
        for step in order:
            expected = torch.stack([steps[step](x, factors[step]) for x in expected])
        assert torch.allclose(got.double(), expected, atol=3e-4)


def test_hue__turns_red_towards_green_and_keeps_luma():
    turned = augment._hue(np.array([0.0, 1 / 3, 1.0]))
    assert np.allclose(turned[0], np.eye(3)) and np.allclose(turned[2], np.eye(3))
    red = turned[1] @ [1.0, 0.0, 0.0]
    assert np.allclose(augment._RGB_TO_YIQ[0] @ red, 0.299, atol=1e-3)
    assert red.argmax() in (1, 2) and red[0] < 0.3


def test_grey__all_channels_equal_luma(run):
    rgb = images()
    got, _ = run(rgb, Augment(grey_p=1))
    luma = (rgb.double() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    for colour in range(3):
        assert torch.allclose(got[:, colour].double(), luma, atol=1e-6)


@pytest.mark.parametrize("side", [24, 96, 98, 97])
def test_blur__equals_torchvision_in_float64(run, side):
    rgb, sigma = images(3, side), np.array([0.3, 1.0, 2.0])
    got, _ = run(rgb, IDENTITY, blur_sigma_G=sigma)
    for g in range(3):
        expected = TF.gaussian_blur(rgb[g].double() / 255, [9, 9], [sigma[g]] * 2)
        assert torch.allclose(got[g].double(), expected, atol=2e-6)


def test_blur__only_where_drawn(run):
    rgb = images(4)
    got, _ = run(rgb, IDENTITY, blur_sigma_G=np.array([0, 1.5, 0, 0]))
    sharp = rgb / 255
    assert torch.allclose(got[[0, 2, 3]], sharp[[0, 2, 3]], atol=1e-6)
    assert got[1].std() < 0.5 * sharp[1].std()


def test_solarise__inverts_the_bright_half(run):
    rgb = images()
    got, _ = run(rgb, Augment(solarise_p=1), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = TF.normalize(TF.solarize(rgb, 128) / 255, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(got, expected, atol=5e-6)


def test_values__stay_in_the_range_of_colours(run):
    how = Augment(jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=1, stain=(0.5, 0.2), stain_p=1)
    got, _ = run(images(20), how)
    assert got.min() >= 0 and got.max() <= 1


@pytest.mark.parametrize("name", ["jitter_p", "grey_p", "blur_p", "solarise_p", "stain_p"])
def test_probability__is_respected(name):
    how = Augment(jitter=(0.4, 0.4, 0.4, 0.1), stain=(0.1, 0.1), **{name: 0.3})
    drawn = augment.draw(sample_keys(2, np.arange(4000)), how)
    changed = {
        "jitter_p": (np.abs(drawn.colour_GCC - np.eye(3)) > 1e-9).any((1, 2)),
        "grey_p": (np.abs(drawn.colour_GCC[:, 0] - drawn.colour_GCC[:, 1]) < 1e-9).all(1),
        "blur_p": drawn.blur_sigma_G > 0,
        "solarise_p": drawn.solarise_G,
        "stain_p": None if drawn.stain_GCC is None else (np.abs(drawn.stain_shift_GC) > 0).any(1),
    }[name]
    assert changed.mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    "given",
    [{}, {"stain_of": "channels"}, {"colours": "natural"}],
    ids=["stains", "channels", "natural"],
)
def test_host__equals_batch_whatever_is_drawn(given):
    rgb = images(40, 48)
    for spec in recipe_of(ViewsConfig(**given)).views[:3]:
        drawn = augment.draw(sample_keys(3, np.arange(40)), spec.augment)
        batch, host = (
            apply(rgb, drawn, IMAGENET_MEAN, IMAGENET_STD) for apply in (_apply_batch, _apply_host)
        )
        assert torch.allclose(batch, host, atol=2e-5)


def test_host__takes_the_draws_that_it_is_told_to():
    rgb = images(6, 20)
    drawn = augment.draw(sample_keys(0, np.arange(12)), Augment(flip=(0.5, 0.5), solarise_p=0.5))
    ready = recolour_host.prepare(drawn, ZERO, ONE)
    out = np.empty((4, 3, 20, 20), np.float32)
    views = np.ascontiguousarray(rgb.movedim(1, -1))
    recolour_host.apply(list(views[:4]), ready, 2, 3, out)
    for g, row in enumerate((2, 5, 8, 11)):
        x = pixels.unpack(pixels.turn(pixels.pack(rgb[g : g + 1]), [int(drawn.turn_G[row])]))[0]
        expected = TF.solarize(x, 128) if drawn.solarise_G[row] else x
        assert np.allclose(out[g] * 255, expected, atol=1e-4)
