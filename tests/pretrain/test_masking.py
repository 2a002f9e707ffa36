"""Masks: exact counts, blocks, and independence from the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.pretrain.masking import block_masks, draw_masks
from cytofm_cli.views.draws import sample_keys

CPU = torch.device("cpu")


def draw(n: int = 64, n_views: int = 2, grid: tuple[int, int] = (14, 14), **more):
    wanted = {"chance": 0.5, "ratio": (0.1, 0.5), "device": CPU} | more
    return draw_masks(sample_keys(3, np.arange(n)), n_views, grid, **wanted)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 17), st.integers(1, 17), st.data())
def test_block_masks__have_exactly_the_count_on_any_grid(rows: int, columns: int, data) -> None:
    counts = data.draw(st.lists(st.integers(0, rows * columns), min_size=1, max_size=5))
    smallest = data.draw(st.integers(1, 6))
    keys = sample_keys(data.draw(st.integers(0, 99)), np.arange(len(counts)))
    mask = block_masks(keys, (rows, columns), counts, min_patches=smallest)
    assert mask.shape == (len(counts), rows * columns)
    assert mask.sum(1).tolist() == counts


def test_block_masks__are_blocks_not_dust() -> None:
    keys = sample_keys(0, np.arange(200))
    mask = block_masks(keys, (14, 14), [78] * 200, min_patches=4).reshape(-1, 14, 14)
    # Of two neighbours of a masked patch, a random mask of 40 % has 40 % masked.
    beside = (mask[:, 1:] & mask[:, :-1]).sum() / mask[:, 1:].sum()
    assert 0.7 < beside < 0.95


def test_block_masks__reach_every_patch_and_favour_no_side() -> None:
    keys = sample_keys(1, np.arange(2000))
    share = block_masks(keys, (6, 9), [16] * 2000, min_patches=4).mean(0).reshape(6, 9)
    assert share.min() > 0.08  # corners are in fewer blocks: 0.3 on average
    assert np.abs(share - share[::-1]).max() < 0.05
    assert np.abs(share - share[:, ::-1]).max() < 0.05


def test_draw_masks__a_mask_depends_on_its_key_alone() -> None:
    together = draw(8).mask_GN.view(2, 8, -1)
    alone = draw_masks(
        sample_keys(3, np.array([5])), 2, (14, 14), chance=0.5, ratio=(0.1, 0.5), device=CPU
    )
    assert torch.equal(alone.mask_GN, together[:, 5])
    assert torch.equal(draw(8).mask_GN, draw(8).mask_GN)


def test_draw_masks__leave_the_global_generators_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = draw(8).mask_GN
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(draw(8).mask_GN, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_masks__views_and_tiles_differ() -> None:
    mask = draw(40, chance=1.0).mask_GN
    assert len(mask.unique(dim=0)) == 80


def test_draw_masks__half_of_the_views_and_ratios_between_the_limits() -> None:
    share = draw(2000).mask_GN.float().mean(1)
    masked = share[share > 0]
    assert 0.47 < len(masked) / 4000 < 0.53
    assert masked.min() >= 0.1 - 0.5 / 196 and masked.max() <= 0.5 + 0.5 / 196
    assert masked.mean().item() == pytest.approx(0.3, abs=0.01)
    assert masked.std().item() == pytest.approx(0.4 / 12**0.5, abs=0.01)  # uniform


def test_draw_masks__index_and_weight_fit_the_mask() -> None:
    found = draw(9, grid=(3, 5))
    assert torch.equal(found.index_M, found.mask_GN.flatten().nonzero().squeeze(1))
    per_image = found.mask_GN.sum(1)
    weight_GN = found.mask_GN / (per_image.clamp(min=1)[:, None] * 18.0)
    torch.testing.assert_close(found.weight_M, weight_GN[found.mask_GN])
    n_masked = int((per_image > 0).sum())
    assert found.weight_M.sum().item() == pytest.approx(n_masked / 18)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_draw_masks__never_or_always_everything(chance: float, share: float) -> None:
    found = draw(4, chance=chance, ratio=(1.0, 1.0))
    assert found.mask_GN.float().mean().item() == share
    assert len(found.index_M) == len(found.weight_M) == int(share * 8 * 196)
