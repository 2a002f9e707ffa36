"""Pictures of what the class token looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.resnet import resnet10t
from timm.models.vision_transformer import VisionTransformer

from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.pictures.colours import colour_map
from cytofm_cli.pretrain.attention import (
    _heat,
    choose_tiles,
    class_attention,
    draw_attention,
)
from cytofm_cli.pretrain.backbone import ConvTrunk, VitTrunk
from cytofm_cli.pretrain.data import open_index

LOOKS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "size_px": 64}
SHAPE = {"embed_dim": 12, "depth": 2, "num_heads": 3}


def sr_vit(**more):
    torch.manual_seed(0)
    return VitTrunk(SrVit(SrVitConfig(img_px=64, registers=2, **more), **SHAPE), "x", {}).eval()


def plain_vit(**more):
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=64, num_classes=0, dynamic_img_size=True, **SHAPE, **more)
    return VitTrunk(vit, "x", {}).eval()


@pytest.fixture
def x_BCHW():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def test_attention__of_a_plain_vit_is_what_its_block_computes(x_BCHW):
    made = plain_vit(qk_norm=True)
    attention = made.trunk.blocks[-1].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda layer, args, out: seen.append(out))
    with torch.no_grad():
        made(x_BCHW)
        found = class_attention(made, x_BCHW)
    assert found.shape == (2, 3, 4, 3)
    torch.testing.assert_close(found.flatten(2), seen[0][:, :, 0, 1:])


def test_attention__of_a_dense_sr_vit_is_that_of_the_plain_vit(x_BCHW):
    made, plain = sr_vit(h=None, irpe=False), plain_vit(reg_tokens=2, no_embed_class=True)
    plain.trunk.load_state_dict(made.trunk.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(class_attention(made, x_BCHW), class_attention(plain, x_BCHW))


def test_attention__keeps_h_keys(x_BCHW):
    with torch.no_grad():
        found = class_attention(sr_vit(h=2), x_BCHW).flatten(2)
    assert (found > 0).sum(-1).max() <= 2


def test_attention__of_what_has_none_is_none(x_BCHW):
    bare = plain_vit(class_token=False, global_pool="avg")
    assert class_attention(bare, x_BCHW) is None
    conv = ConvTrunk(resnet10t(num_classes=0), "x", {})
    assert class_attention(conv, x_BCHW) is None
    tiles = np.zeros((1, 64, 64, 3), np.uint8)
    assert draw_attention(conv, tiles, **LOOKS) is None
    assert conv.training  # as it was


def test_heat__by_hand():
    heat = _heat(torch.tensor([[0.0, 0.1], [0.2, 0.3]]), 4)
    third = [heat[0, 0], heat[0, 2], heat[2, 0], heat[3, 3]]
    wanted = colour_map("inferno")[[0, 85, 170, 255]]  # of 255 · (0, 1/3, 2/3, 1)
    assert np.array_equal(third, wanted)
    assert (heat[:2, :2] == wanted[0]).all() and heat.shape == (4, 4, 3)
    assert (_heat(torch.zeros(2, 2), 4) == wanted[0]).all()


def test_draw__has_a_strip_a_tile_and_a_panel_a_head():
    made = sr_vit(h=3)
    made.train()
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    sheet = draw_attention(made, tiles, **LOOKS)
    assert made.training and sheet.dtype == np.uint8
    # a gap of 10 on all sides and between; a line of 18 above each panel of 64
    assert sheet.shape == (10 + 2 * (18 + 64 + 10), 20 + (2 + 3) * (64 + 10), 3)
    assert np.array_equal(sheet[28:92, 10:74], tiles[0])
    assert np.array_equal(sheet[120:184, 10:74], tiles[1])
    x = (torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        maps = class_attention(made.eval(), x)
    assert np.array_equal(sheet[28:92, 84:148], _heat(maps[0].mean(0), 64))
    assert np.array_equal(sheet[120:184, 306:370], _heat(maps[1, 2], 64))
    assert np.array_equal(sheet, draw_attention(made, tiles, **LOOKS))


def test_choose__takes_tiles_with_nuclei_first_and_the_same_ones_each_time(make_store):
    paths = [make_store("a", 30, nuclei=[(64 * 7 + 5, 5), (64 * 20 + 5, 5)]), make_store("b", 1)]
    index = open_index(paths, None)
    found = choose_tiles(index, 3, seed=0)
    with_nuclei = {(7,), (20,), (0,)}  # two of a, and b's only one
    assert {(int(tile[0, 0, 0]),) for tile in found} == with_nuclei
    assert np.array_equal(choose_tiles(index, 3, seed=0), found)
    others = {choose_tiles(index, 1, seed)[0].tobytes() for seed in range(8)}
    assert len(others) > 1
    assert len(choose_tiles(index, 50, 0)) == 31
    index.close()
