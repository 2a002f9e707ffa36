"""Trunks and files: what is exported opens as an encoder, what is begun from fits or is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.pixel_statistics import N_STATISTICS, measure
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.pretrain.export import export

from .trunks import (  # noqa: F401 - small_sr_vit is for all
    ATTENTION_POOL,
    CONV,
    NO_CLASS_TOKEN,
    SR,
    VIT,
    images,
    make,
    small_sr_vit,
    trunk,
)

MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """Return the weights of a plain ViT for 64 px, as timm has them."""
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def pixels(side=64):
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def normalised(found):
    x = torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def write(path, made, **more):
    options = {"name": "mine", "mean": MEAN, "std": STD, "input_px": 64, "mpp": 0.5}
    return export(path, made, **options | {"dtype": torch.float32} | more)


def embed(path, found):
    encoder = load_encoder(str(path), device="cpu")
    return encoder.encode(encoder.prepare(found)), encoder.spec


@pytest.mark.parametrize("encoder", [SR, VIT, CONV, NO_CLASS_TOKEN, ATTENTION_POOL])
def test_export__opens_and_embeds_as_the_trunk(encoder, tmp_path):
    made = trunk(encoder, role="student", masks=encoder in (SR, VIT)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # as after training: tables are zero at first
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    spec = write(tmp_path / "e.safetensors", made, licence="CC0")
    values, opened = embed(tmp_path / "e.safetensors", pixels())
    with torch.no_grad():
        expected = made(normalised(pixels())).cls_BD.numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    assert (opened.name, opened.mpp, opened.mean, opened.licence) == ("mine", 0.5, MEAN, "CC0")
    assert dataclasses.replace(opened, weights_sha256=None) == spec
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    with safe_open(tmp_path / "e.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "mask_token" in key or "lora" in key]  # noqa: SIM118


@pytest.mark.parametrize("encoder", [SR, VIT])
def test_export__at_another_size_and_pooling(encoder, tmp_path):
    made = trunk(encoder).eval()
    write(tmp_path / "e.safetensors", made, input_px=96, pooling="cls+mean")
    values, spec = embed(tmp_path / "e.safetensors", pixels(96))
    with torch.no_grad():
        tokens = made(normalised(pixels(96)))
    expected = torch.cat([tokens.cls_BD, tokens.patch_BND.mean(1)], 1).numpy()
    assert spec.dim == 128 and spec.input_px == 96
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_export__joins_tokens_and_pixels_centred_and_scaled(tmp_path):
    made = trunk(SR).eval()
    path, crops = tmp_path / "e.safetensors", torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    spec = write(path, made, pooling="cls+mean+pixels", crops_BCHW=crops)
    values, opened = embed(path, pixels())
    assert spec.dim == opened.dim == values.shape[1] == 128 + N_STATISTICS
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
    for part, total in zip(np.split(values, [128], axis=1), (0.25, 1), strict=True):
        assert part.astype(np.float64).var(0).sum() == pytest.approx(total, abs=1e-3)
    with torch.no_grad():
        tokens = made(normalised(pixels()))
        statistics = measure(crops.float() / 255)
    for part, plain in (
        (2 * values[:, :128], torch.cat([tokens.cls_BD, tokens.patch_BND.mean(1)], 1)),
        (values[:, 128:], statistics),
    ):
        centred = (plain - plain.mean(0)).double().numpy()
        scale = np.sqrt((centred**2).mean(0).sum())
        np.testing.assert_allclose(part * scale, centred, atol=2e-3 * np.abs(centred).max())
    tokens_alone = load_encoder(str(path), device="cpu", pooling="cls")
    said = tokens_alone.encode(tokens_alone.prepare(pixels()))
    np.testing.assert_allclose(said, tokens.cls_BD.numpy(), atol=1e-4)


def test_export__that_joins_pixels_opens_by_the_name_of_its_network_too(tmp_path):
    path, crops = tmp_path / "e.safetensors", torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    write(path, trunk(SR, h=16), pooling="cls+mean+pixels", crops_BCHW=crops)  # h by default
    for pooling, width in (("cls", 64), ("cls+mean+pixels", 128 + N_STATISTICS)):
        by_file, by_name = (
            load_encoder(
                name, weights=file, device="cpu", pooling=pooling, input_px=64, mean=MEAN, std=STD
            )
            for name, file in ((str(path), None), (SR, path))
        )
        said = by_name.encode(by_name.prepare(pixels()))
        assert np.array_equal(said, by_file.encode(by_file.prepare(pixels())))
        assert said.shape[1] == width


def test_export__a_file_without_scales_cannot_be_opened_with_pixels(tmp_path):
    path = tmp_path / "e.safetensors"
    write(path, trunk(SR), pooling="cls+mean")
    with pytest.raises(UsageError, match="not written with it"):
        load_encoder(str(path), device="cpu", pooling="cls+mean+pixels")


def test_export__halves_the_weights_unless_they_do_not_fit(tmp_path, caplog):
    made = trunk(CONV).eval()
    path = tmp_path / "e.safetensors"
    write(path, made, dtype=torch.float16)
    with safe_open(path, "pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds["conv1.0.weight"] == torch.float16
    assert kinds["bn1.running_var"] == torch.float32
    values, _ = embed(path, pixels())
    with torch.no_grad():
        expected = made(normalised(pixels())).cls_BD.numpy()
    np.testing.assert_allclose(values, expected, rtol=0.02, atol=0.005)
    with torch.no_grad():
        made.trunk.conv1[0].weight[0, 0, 0, 0] = 1e6
    caplog.clear()
    write(path, made, dtype=torch.float16)
    with safe_open(path, "pt") as file:
        assert file.get_tensor("conv1.0.weight").dtype == torch.float32
        assert file.get_tensor("conv1.0.weight")[0, 0, 0, 0] == 1e6
    (said,) = caplog.messages
    assert said.startswith("warning: e.safetensors: weights up to 1e+06 are more than float16")
    with torch.no_grad():
        made.trunk.conv1[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"not finite: conv1\.0\.weight"):
        write(path, made, dtype=torch.float16)


def test_export__refuses_a_pooling_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no class token"):
        write(tmp_path / "e.safetensors", trunk(CONV), pooling="cls+mean")
    with pytest.raises(UsageError, match="only an SR-ViT joins"):
        write(tmp_path / "e.safetensors", trunk(VIT), pooling="cls+mean+pixels")


def test_lora__starts_as_the_file_and_exports_plain_weights(vit_file, tmp_path):
    backbones, info = make(VIT, init=vit_file, lora_rank=4, lora_alpha=8.0)
    student, teacher = backbones(role="student", masks=True), backbones(role="teacher")
    plain = trunk(VIT, init=vit_file).eval()
    assert torch.equal(student.eval()(images()).cls_BD, plain(images()).cls_BD)
    state = student.state_dict()
    assert all(torch.equal(state[key], v) for key, v in teacher.state_dict().items())
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {key for key in state if "lora_" in key} | {"mask_token"}
    assert info.n_trained == 6 * 4 * (64 + 192 + 64 + 64)
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    write(tmp_path / "e.safetensors", student)
    values, _ = embed(tmp_path / "e.safetensors", pixels())
    with torch.no_grad():
        expected = student(normalised(pixels())).cls_BD.numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    assert set(student.state_dict()) == set(state)
    with pytest.raises(UsageError, match="low-rank updates of random weights"):
        make(VIT, lora_rank=4)


def test_init__a_plain_vit_fits_sr_vit_which_adds_its_tables(tmp_path):
    torch.manual_seed(5)
    shape = {"embed_dim": 64, "depth": 6, "num_heads": 2, "img_size": 64}
    plain = VisionTransformer(num_classes=0, **shape).eval()
    path = tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), path)
    backbones, info = make(SR, init=path, h=0)
    # zero tables and all keys: it is that ViT
    cls_BD = backbones(role="teacher").eval()(images()).cls_BD
    torch.testing.assert_close(cls_BD, plain.forward_features(images())[:, 0])
    assert len(info.init_sha256) == 64 and "18 entries are new (blocks.0.attn.rpe_" in info.notes[0]
    _, info = make(SR, init=path, img_px=96)
    assert "positions resized from 4 × 4 to 6 × 6" in info.notes[0]


def test_init__of_a_training_checkpoint_takes_its_teacher(vit_file, tmp_path):
    torch.manual_seed(9)
    names = timm.create_model("test_vit", num_classes=0, img_size=64).state_dict()
    teacher = {f"backbone.{key}": value for key, value in names.items()}
    teacher |= {"head.last_layer.weight": torch.zeros(3, 3), "backbone.masked_embed": torch.ones(1)}
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, path)
    backbones, info = make(VIT, init=path)
    state = backbones(role="student").trunk.state_dict()
    assert all(torch.equal(state[key], value) for key, value in names.items())
    assert any("2 entries of training heads left out" in note for note in info.notes)


def normalised_otherwise(encoder, init):
    _, info = make.__wrapped__(encoder, init=init)  # what lies beside the file changes
    return [note for note in info.notes if "normalised" in note]


def test_init__normalised_otherwise_than_views_is_said(vit_file, tmp_path):
    path = tmp_path / "vit.safetensors"
    path.write_bytes(vit_file.read_bytes())
    (note,) = normalised_otherwise(VIT, path)
    assert "mean 0.5 0.5 0.5 and std 0.5 0.5 0.5; views have ImageNet's" in note  # as timm has it
    beside = tmp_path / "vit.safetensors.toml"
    beside.write_text("mean = [0.7, 0.5, 0.6]\nstd = [0.2, 0.2, 0.1]\n")
    (note,) = normalised_otherwise(VIT, path)
    assert "mean 0.7 0.5 0.6 and std 0.2 0.2 0.1" in note
    beside.write_text("mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n")
    assert normalised_otherwise(VIT, path) == []


def test_init__that_does_not_fit_is_refused(vit_file, tmp_path):
    with pytest.raises(WeightsError, match=r"vit.safetensors: does not fit the model"):
        make("sr-vit-small", init=vit_file)
    with pytest.raises(WeightsError, match="no such file"):
        make(SR, init=tmp_path / "none.safetensors")


def test_init__of_our_own_export(tmp_path):
    made = trunk(SR, seed=1)
    write(tmp_path / "e.safetensors", made)
    again, info = make(SR, init=tmp_path / "e.safetensors")
    for key, value in again(role="student").state_dict().items():
        assert torch.equal(value, made.state_dict()[key])
    (note,) = info.notes
    assert "normalised with mean 0.7 0.5 0.6" in note


def test_init__of_an_export_that_joins_pixels_takes_its_tokens(tmp_path):
    made, crops = trunk(SR, seed=1), torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    write(tmp_path / "e.safetensors", made, pooling="cls+mean+pixels", crops_BCHW=crops)
    again, info = make(SR, init=tmp_path / "e.safetensors")
    for key, value in again(role="student").state_dict().items():
        assert torch.equal(value, made.state_dict()[key])
    assert "pooling = cls+mean+pixels measures it anew" in info.notes[0]
