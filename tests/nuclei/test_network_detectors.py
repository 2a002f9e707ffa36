"""CellViT: what can be proven without its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from cytofm_cli.errors import (
    InputError,
    WeightsError,
)
from cytofm_cli.nuclei import cellvit_net, hover, vit_encoders
from cytofm_cli.nuclei.cellvit_net import SIZES, CellViT, EncoderSize
from cytofm_cli.nuclei.detectors import cellvit

TINY = EncoderSize(dim=32, depth=4, heads=2, taps=(1, 2, 3, 4), sam=False)
TINY_SAM = EncoderSize(dim=32, depth=4, heads=2, taps=(1, 2, 3, 4), sam=True, global_blocks=(1, 3))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- CellViT: the network -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "millions"),
    [("CellViT-256", 439, 46.75), ("SAM-B", 466, None), ("SAM-L", 634, None),
     ("SAM-H", 746, 699.7)],
)  # fmt: skip
def test_network__tensors_and_parameters_of_the_published_files(name, tensors, millions):
    with torch.device("meta"):
        network = CellViT(SIZES[name])
    assert len(network.state_dict()) == tensors
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions is None or abs(count - millions) < 0.05


def test_network__key_names_of_the_published_files():
    with torch.device("meta"):
        plain, sam = (set(CellViT(SIZES[n]).state_dict()) for n in ("CellViT-256", "SAM-H"))
    assert {
        "encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight",
        "encoder.blocks.11.attn.qkv.bias", "encoder.blocks.0.mlp.fc1.weight",
        "encoder.norm.weight", "encoder.head.bias", "decoder0.1.block.1.running_mean",
        "decoder1.2.block.0.weight", "decoder2.1.block.2.num_batches_tracked",
        "decoder3.0.block.1.weight", "hv_map_decoder.bottleneck_upsampler.weight",
        "nuclei_binary_map_decoder.decoder3_upsampler.2.block.1.bias",
        "nuclei_binary_map_decoder.decoder3_upsampler.3.weight",
        "nuclei_type_maps_decoder.decoder2_upsampler.2.bias",
        "nuclei_type_maps_decoder.decoder0_header.2.weight",
    } <= plain  # fmt: skip
    assert {
        "encoder.pos_embed", "encoder.blocks.31.mlp.lin2.bias", "encoder.neck.3.bias",
        "encoder.blocks.0.attn.rel_pos_h", "classifier_head.weight",
    } <= sam  # fmt: skip
    with torch.device("meta"):
        state = CellViT(SIZES["SAM-H"]).state_dict()
    assert state["encoder.blocks.0.attn.rel_pos_h"].shape == (27, 80)
    assert state["encoder.blocks.7.attn.rel_pos_w"].shape == (127, 80)
    assert state["encoder.pos_embed"].shape == (1, 64, 64, 1280)


@pytest.mark.parametrize("size", [TINY, TINY_SAM], ids=["plain", "sam"])
def test_network__maps_have_the_size_of_the_image(size):
    network = CellViT(size, n_classes=5, n_tissues=3, regression=True).eval()
    with torch.inference_mode():
        maps = network(torch.randn(1, 3, 32, 48))
    shapes = {name: tuple(value.shape) for name, value in maps.items()}
    assert shapes == {
        "tissue_types": (1, 3), "nuclei_binary_map": (1, 2, 32, 48),
        "hv_map": (1, 2, 32, 48), "nuclei_type_map": (1, 5, 32, 48),
    }  # fmt: skip


def test_windows__padding_does_not_change_an_identity():
    x = torch.randn(2, 9, 17, 4)
    torch.testing.assert_close(vit_encoders._in_windows(torch.nn.Identity(), x, 7), x)


def test_sam_attention__equals_a_direct_sum():
    torch.manual_seed(0)
    attention = vit_encoders._SamAttention(8, 2, 5).double()
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    x = torch.randn(1, 3, 5, 8, dtype=torch.float64)
    H, W = 3, 5
    q, k, v = attention.qkv(x).reshape(H * W, 3, 2, 4).permute(1, 2, 0, 3)
    rows = F.interpolate(attention.rel_pos_h.mT[None], size=2 * H - 1, mode="linear")[0].mT
    out = torch.zeros(2, H * W, 4, dtype=torch.float64)
    for g in range(2):
        logits = torch.zeros(H * W, H * W, dtype=torch.float64)
        for i in range(H * W):
            for j in range(H * W):
                r = rows[i // W - j // W + H - 1] + attention.rel_pos_w[i % W - j % W + W - 1]
                logits[i, j] = q[g, i] @ k[g, j] / 2 + q[g, i] @ r
        out[g] = logits.softmax(1) @ v[g]
    expected = attention.proj(out.transpose(0, 1).reshape(1, H, W, 8))
    torch.testing.assert_close(attention(x), expected)


def test_plain_positions__own_grid_is_untouched_and_class_token_kept():
    encoder = vit_encoders.PlainEncoder(8, 1, 2, (1,), 3)
    torch.nn.init.normal_(encoder.pos_embed)
    torch.testing.assert_close(encoder._positions(14, 14), encoder.pos_embed)
    larger = encoder._positions(20, 16)
    assert larger.shape == (1, 321, 8)
    torch.testing.assert_close(larger[:, 0], encoder.pos_embed[:, 0])


# --- CellViT: separation --------------------------------------------------------------------


def nuclei_maps(centres, radius, height=96, width=128):
    """Draw nuclei and their exact distance maps, nearest centre first."""
    yy, xx = np.mgrid[:height, :width].astype(float)
    distance = np.array([np.hypot(xx - x, yy - y) for x, y in centres])
    owner = distance.argmin(0)
    labels = np.where(distance.min(0) <= radius, owner + 1, 0)
    hv = np.zeros((2, height, width), np.float32)
    for i, (x, y) in enumerate(centres, 1):
        mine = labels == i
        for axis, (grid, middle) in enumerate(((xx, x), (yy, y))):
            delta = grid - middle
            hv[axis][mine] = (delta / np.abs(delta[mine]).max())[mine]
    return labels, hv


@pytest.mark.parametrize(("magnification", "radius"), [(40, 13), (20, 7)])
def test_separate__touching_nuclei_are_split_where_they_touch(magnification, radius):
    gap = round(1.6 * radius)
    centres = [(30, 30), (30 + gap, 30), (30, 70), (90, 60), (90 + gap, 62)]
    truth, hv = nuclei_maps(centres, radius)
    labels = hover.separate(truth > 0, hv, hover.SEPARATIONS[magnification])
    assert labels.max() == len(centres)
    for i in range(1, len(centres) + 1):
        mine = truth == i
        match = np.bincount(labels[mine]).argmax()
        both = (mine & (labels == match)).sum()
        assert both / (mine | (labels == match)).sum() > 0.85
    np.testing.assert_array_equal(labels > 0, truth > 0)


def test_separate__nothing_and_specks():
    hv = np.zeros((2, 32, 32), np.float32)
    assert hover.separate(np.zeros((32, 32), bool), hv, hover.SEPARATIONS[40]).max() == 0
    speck = np.zeros((32, 32), bool)
    speck[4:7, 4:7] = True
    assert hover.separate(speck, hv, hover.SEPARATIONS[40]).max() == 0


def test_derivative__wide_sobel_by_hand():
    ramp = np.tile(np.arange(64.0, dtype=np.float32), (48, 1))
    slope = hover._derivative(ramp, 11, axis=1)
    np.testing.assert_allclose(slope[:, 16:-16], slope[24, 32], rtol=1e-5)
    assert slope[24, 32] > 0
    np.testing.assert_allclose(hover._derivative(ramp, 11, axis=0), 0, atol=1e-4)
    # Width 3 is Sobel's filter: (-1, 0, 1) along, (1, 2, 1) across, here divided by 2 and 4.
    image = np.random.default_rng(0).random((9, 9)).astype(np.float32)
    np.testing.assert_allclose(
        hover._derivative(image, 3, axis=1), ndimage.sobel(image, axis=1, mode="mirror") / 8,
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_watershed__line_lies_on_the_ridge():
    x = np.arange(41)
    energy = np.tile(-np.abs(x - 25.0).astype(np.float32), (5, 1))
    marker = np.zeros((5, 41), np.int32)
    marker[2, 3], marker[2, 38] = 1, 2
    mask = np.ones((5, 41), bool)
    mask[0] = False
    labels = hover.watershed(energy, marker, mask)
    assert (labels[0] == 0).all()
    assert (labels[1:, :25] == 1).all() and (labels[1:, 26:] == 2).all()


def test_majority_class__background_has_no_vote():
    labels = np.array([[1, 1, 1, 2], [0, 1, 3, 3]], np.int32)
    classes = np.array([[0, 0, 4, 2], [5, 4, 0, 0]])
    np.testing.assert_array_equal(hover.majority_class(labels, classes, 6), [4, 2, 0])


def test_nuclei_from_maps__class_area_confidence():
    truth, hv = nuclei_maps([(40, 40), (60, 42)], 12)
    binary = np.stack([np.where(truth > 0, -2.0, 2.0), np.zeros(truth.shape)]).astype(np.float32)
    types = np.zeros((6, *truth.shape), np.float32)
    types[0][truth == 0] = 1
    types[1][truth == 1] = 1
    types[5][truth == 2] = 1
    table = cellvit.nuclei_from_maps(
        binary, hv, types, magnification=40, mpp=0.25, classes=cellvit.PANNUKE
    ).validate()
    assert [table.classes[i] for i in table.class_id] == ["neoplastic", "epithelial"]
    np.testing.assert_allclose(table.probability, 1 / (1 + np.exp(-2)), rtol=1e-5)
    areas = np.bincount(truth.ravel())[1:] * 0.0625
    np.testing.assert_allclose(table.area_um2, areas, rtol=0.05)


# --- CellViT: the file ----------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file in the published layout, of a small network that goes by CellViT-256's name."""
    monkeypatch.setitem(cellvit_net.SIZES, "CellViT-256", TINY)
    torch.manual_seed(0)
    content = {
        "arch": "CellViT256",
        "epoch": 1,
        "config": {
            "data.num_nuclei_classes": 6, "model.backbone": "default",
            "transformations.normalize.mean": [0.4, 0.5, 0.6],
            "transformations.normalize.std": [0.2, 0.2, 0.2],
            "training.mixed_precision": True,
        },
        "best_metric": np.float64(0.5),
        "model_state_dict": CellViT(TINY).state_dict(),
    }  # fmt: skip
    path = tmp_path / "CellViT-256-x20.pth"
    torch.save(content, path)
    return path, content


def test_read_checkpoint__network_normalisation_magnification(checkpoint):
    path, content = checkpoint
    file = cellvit.read_checkpoint(path)
    assert (file.mean, file.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    assert file.magnification == 20 and cellvit.read_checkpoint(path, 40).magnification == 40
    assert file.classes == cellvit.PANNUKE and file.half
    for key, value in content["model_state_dict"].items():
        torch.testing.assert_close(file.network.state_dict()[key], value)


def test_cellvit__detect_runs_on_any_size(checkpoint):
    detector = cellvit.CellvitDetector(cellvit.CellvitConfig(weights=checkpoint[0], device="cpu"))
    for shape in ((1, 1, 3), (45, 70, 4)):
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        table = detector.detect(image, 0.25).validate()
        assert table.classes == cellvit.PANNUKE
    with pytest.raises(InputError, match="8 bits"):
        detector.detect(np.zeros((8, 8, 3), np.uint16), 0.25)


def change(content, **parts):
    return {**content, **parts}


@pytest.mark.parametrize(
    ("break_it", "word"),
    [
        (lambda c: {k: v for k, v in c.items() if k != "config"}, "no config"),
        (lambda c: change(c, arch="CellViTUNI"), "CellViTUNI"),
        (lambda c: change(c, arch="CellViTSAM", config={"model.backbone": "SAM-X"}), "SAM-X"),
        (lambda c: change(c, model_state_dict={}), "missing"),
        (lambda c: change(c, model_state_dict={
            k: v for k, v in c["model_state_dict"].items() if "decoder2.0" not in k}),
         "9 tensors are missing"),
        (lambda c: change(c, model_state_dict={**c["model_state_dict"], "extra": torch.ones(1)}),
         "1 do not belong"),
        (lambda c: change(c, model_state_dict={
            **c["model_state_dict"], "encoder.cls_token": torch.ones(1, 1, 7)}), "cls_token"),
        (lambda c: change(c, config={"transformations.normalize.mean": [1, 2]}), "three numbers"),
        (lambda c: [c], "not a dictionary"),
    ],
)  # fmt: skip
def test_read_checkpoint__names_what_does_not_fit(checkpoint, break_it, word):
    path, content = checkpoint
    torch.save(break_it(content), path)
    with pytest.raises(WeightsError, match=word):
        cellvit.read_checkpoint(path)
