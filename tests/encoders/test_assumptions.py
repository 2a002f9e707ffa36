"""Weights from elsewhere: the input follows their positions, what is assumed is said."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import UsageError

_DINOV2 = "vit_small_patch14_dinov2"  # 518 px in timm


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Return a ViT for patches of 14 px with positions for 224 px, and its file."""
    torch.manual_seed(0)
    model = timm.create_model(_DINOV2, num_classes=0, img_size=224).eval()
    path = tmp_path_factory.mktemp("foreign") / "w.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, path)
    return model, path


def test_load_encoder__the_input_follows_the_positions_of_the_weights(foreign):
    model, path = foreign
    encoder = load_encoder(f"timm/{_DINOV2}", weights=path, device="cpu")
    spec = encoder.spec
    assert (spec.input_px, spec.positions, spec.network) == (224, None, "teacher.backbone")
    assert torch.equal(encoder.model.pos_embed, model.pos_embed)
    assert spec.licence == "unknown"  # timm's own weights are Apache-2.0
    assert spec.assumed == ("mean", "std", "interpolation", "pooling")
    (line,) = encoder.notes
    assert line.startswith(f"warning: timm/{_DINOV2}: its weight file does not say")
    assert "it sees 224 px; assumed: mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in line
    assert "resolution: unknown; licence: unknown" in line
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    with torch.no_grad():
        expected = model((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    found = torch.from_numpy(encoder.encode(encoder.prepare(pixels)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_load_encoder__what_the_user_states_goes_first_and_a_resizing_is_said(foreign):
    _, path = foreign
    own = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    encoder = load_encoder(
        f"timm/{_DINOV2}", weights=path, device="cpu", input_px=280, mean=own[0], std=own[1]
    )
    assert (encoder.spec.mean, encoder.spec.std) == own
    assert encoder.model.pos_embed.shape == (1, 401, 384)
    assert encoder.spec.positions == "16x16 → 20x20"
    assert encoder.spec.assumed == ("interpolation", "pooling")
    assert encoder.notes == (
        f"warning: timm/{_DINOV2}: its positions were resized, 16x16 → 20x20 patches, for an input "
        "of 280 px.",
    )
    assert encoder.spec.facts() == {
        "input_px": 280,
        "resize_px": None,
        "mean": own[0],
        "std": own[1],
        "interpolation": "bicubic",
        "pooling": "cls",
        "licence": "unknown",
        "weights_sha256": encoder.spec.weights_sha256,
        "network": "teacher.backbone",
        "pos_embed": "16x16 → 20x20",
        "assumed": ["interpolation", "pooling"],
    }


def test_load_encoder__of_the_catalogue_nothing_is_assumed_but_resizing_is_said(tmp_path):
    model = timm.create_model(_DINOV2, num_classes=0, img_size=518)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = load_encoder("dinov2-s14", weights=tmp_path / "w.pth", device="cpu")
    assert (encoder.spec.input_px, encoder.spec.assumed) == (224, ())
    assert encoder.spec.licence == "Apache-2.0"
    assert encoder.spec.positions == "37x37 → 16x16"
    assert len(encoder.notes) == 1


def test_load_encoder__sr_vit_follows_the_positions_of_plain_weights(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"license": "CC0"})
    encoder = load_encoder("sr-vit-tiny", weights=tmp_path / "w.safetensors", device="cpu")
    assert (encoder.spec.input_px, encoder.spec.positions) == (96, None)
    assert encoder.model.pos_embed.shape == (1, 37, 192)
    assert encoder.spec.licence == "CC0"
    assert encoder.spec.assumed == ("mean", "std", "interpolation", "pooling")


def test_load_encoder__without_positions_the_size_is_timms_and_assumed(tmp_path):
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "w.pth")
    encoder = load_encoder("timm/resnet18", weights=tmp_path / "w.pth", device="cpu")
    assert encoder.spec.assumed == ("input_px", "mean", "std", "interpolation", "pooling")
    assert f"assumed: input {encoder.spec.input_px} px, mean" in encoder.notes[0]


def test_load_encoder__random_weights_assume_nothing():
    encoder = load_encoder("timm/vit_tiny_patch16_224", random_weights=True, device="cpu")
    assert (encoder.spec.assumed, encoder.notes, encoder.spec.licence) == ((), (), "unknown")


def test_load_encoder__sizes_that_patches_do_not_fill_are_refused(foreign):
    with pytest.raises(UsageError, match="225 px cannot be cut into patches of 14 px") as caught:
        load_encoder(f"timm/{_DINOV2}", weights=foreign[1], device="cpu", input_px=225)
    assert caught.value.hint == "`cytofm embed --input-px 224`"
    with pytest.raises(UsageError, match="any size"):
        load_encoder("handcrafted", input_px=64)


@pytest.mark.parametrize(
    "values", [{"mean": (0.5, 0.5)}, {"mean": (123.7, 116.3, 103.5)}, {"std": (0.0, 0.2, 0.2)}]
)
def test_embed_config__mean_and_std_are_three_shares(values):
    with pytest.raises(UsageError, match="three numbers"):
        EmbedConfig(**values)
