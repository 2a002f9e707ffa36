"""Trunks: one start for all, masks where iBOT has them, and files that open as encoders."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.pixel_statistics import N_STATISTICS, measure
from cytofm_cli.encoders.sr_vit import SIZES
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.pretrain.backbone import h_at, make_backbones
from cytofm_cli.pretrain.config import PretrainConfig
from cytofm_cli.pretrain.export import export

SR, VIT, CONV = "sr-vit-tiny", "timm/test_vit", "timm/test_resnet"
NO_CLASS_TOKEN, ATTENTION_POOL = "timm/test_vit2", "timm/test_vit3"
NO_BRANCHES = "timm/dla46_c"
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True, scope="module")
def small_sr_vit():
    """Let SR-ViT be as small as timm's test networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (64, 6, 2))
        yield


@functools.cache  # the random weights are drawn once; every trunk has copies of its own
def make(encoder=SR, *, drop_path=0.1, patch_px=16, img_px=64, **more):
    config = PretrainConfig(encoder=encoder, **{"h": 4} | more)
    return make_backbones(config, drop_path=drop_path, patch_px=patch_px, img_px=img_px)


def trunk(encoder=SR, *, role="teacher", masks=False, **more):
    return make(encoder, **more)[0](role=role, masks=masks)


def images(n=2, side=64, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """Return the weights of a plain ViT for 64 px, as timm has them."""
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("encoder", [SR, VIT, CONV])
def test_trunks__start_from_the_same_weights_and_leave_the_generator_alone(encoder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    backbones, _ = make(encoder)
    student, teacher = backbones(role="student"), backbones(role="teacher")
    again, other = trunk(encoder), trunk(encoder, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    state = student.state_dict()
    assert state.keys() == teacher.state_dict().keys()
    for key, value in teacher.state_dict().items():
        assert torch.equal(state[key], value) and torch.equal(again.state_dict()[key], value)
    assert any(not torch.equal(state[key], v) for key, v in other.state_dict().items())


@pytest.mark.parametrize("encoder", [SR, VIT, CONV])
def test_roles__a_teacher_drops_no_paths_and_takes_no_gradient(encoder):
    backbones, info = make(encoder)
    student, teacher = backbones(role="student"), backbones(role="teacher")
    rates = [m.drop_prob for m in student.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1) and info.drop_path == 0.1
    assert not any(isinstance(m, DropPath) and m.drop_prob for m in teacher.modules())
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    count = sum(p.numel() for p in student.parameters())
    assert info.n_parameters == info.n_trained == count
    with pytest.raises(UsageError, match="role 'pupil'"):
        backbones(role="pupil")


@pytest.mark.parametrize("encoder", [SR, VIT])
@pytest.mark.parametrize("side", [64, 48])
def test_tokens__are_those_of_the_network_at_any_size(encoder, side):
    made = trunk(encoder).eval()
    tokens, expected = made(images(side=side)), made.trunk.forward_features(images(side=side))
    assert (made.dim, made.patch_px, made.n_patches(side)) == (64, 16, (side // 16) ** 2)
    assert torch.equal(tokens.cls_BD, expected[:, 0])
    assert torch.equal(tokens.patch_BND, expected[:, 1:])


def test_tokens__without_class_token_are_averaged_over_patches():
    made = trunk(NO_CLASS_TOKEN).eval()
    tokens = made(images())
    assert tokens.patch_BND.shape == (2, 16, 64)  # the register is left out
    assert torch.equal(tokens.cls_BD, tokens.patch_BND.mean(1))
    features = made.trunk.forward_features(images())
    pooled = made.trunk.forward_head(features, pre_logits=True)
    # the network itself norms after its pooling, and we before: equal up to the norm
    assert made.trunk.fc_norm(features)[:, 1:].mean(1).equal(tokens.cls_BD)
    assert pooled.shape == tokens.cls_BD.shape


def test_tokens__of_a_convolutional_network_are_its_pooled_features():
    made = trunk(CONV).eval()
    tokens = made(images())
    assert (made.dim, made.patch_px) == (96, None) and tokens.patch_BND is None
    assert torch.equal(tokens.cls_BD, made.trunk.forward_features(images()).mean((2, 3)))


@pytest.mark.parametrize("encoder", [SR, VIT])
def test_mask__hides_patches_before_their_positions_and_never_the_prefix(encoder):
    made = trunk(encoder, masks=True).eval()
    x = images()
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(made(x, nothing).cls_BD, made(x).cls_BD)
    mask = nothing.clone()
    mask[0, 5] = True  # second row, second column
    changed = x.clone()
    changed[0, :, 16:32, 16:32] = 7.0
    one, two = made(x, mask), made(changed, mask)
    assert torch.equal(one.patch_BND, two.patch_BND) and torch.equal(one.cls_BD, two.cls_BD)
    assert not torch.equal(made(changed).cls_BD, made(x).cls_BD)
    assert torch.equal(one.cls_BD[1], made(x).cls_BD[1])  # the other image
    # Everything masked: what is left are the token, the positions and the class token.
    with torch.no_grad():
        made.mask_token.fill_(0.25)
        everything = made(x, ~nothing)
        tokens = torch.cat([made.trunk.cls_token, torch.full((1, 16, 64), 0.25)], 1)
        tokens = tokens + made.trunk.pos_embed
        made.trunk._pos_embed = lambda patches: tokens.expand(2, -1, -1)
        expected = made(x)
    assert torch.equal(everything.patch_BND, expected.patch_BND)


def test_mask__token_only_where_wanted():
    backbones, _ = make()
    plain, masked = backbones(role="student"), backbones(role="student", masks=True)
    assert set(masked.state_dict()) - set(plain.state_dict()) == {"mask_token"}
    assert not masked.mask_token.any()
    with pytest.raises(UsageError, match="without a mask token"):
        plain(images(), torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(UsageError, match="no patches to mask") as found:
        make(CONV)[0](role="student", masks=True)
    assert "--method dino" in found.value.hint
    with pytest.raises(UsageError, match="no patches to mask"):
        trunk(CONV)(images(), torch.zeros(2, 16, dtype=torch.bool))


@pytest.mark.parametrize("encoder", [SR, VIT, CONV, NO_CLASS_TOKEN, ATTENTION_POOL])
def test_gradient__reaches_every_parameter(encoder):  # else DDP waits for ever
    masks = encoder in (SR, VIT)
    made = trunk(encoder, role="student", masks=masks, drop_path=0.0)
    mask = torch.eye(16, dtype=torch.bool)[:2] if masks else None
    made(images(), mask).cls_BD.square().sum().backward()
    bare = [name for name, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert bare == []


@pytest.mark.parametrize("encoder", [SR, VIT, CONV])
def test_checkpoint_activations__changes_no_gradient(encoder):
    found = []
    for again in (False, True):
        made = trunk(encoder, role="student", checkpoint_activations=again)
        torch.manual_seed(0)  # the dropped paths
        made(images()).cls_BD.square().sum().backward()
        found.append([p.grad for p in made.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_no_weight_decay__names_parameters():
    made = trunk(masks=True, role="student")
    names = {name for name, _ in made.named_parameters()}
    assert made.no_weight_decay() & names == {"trunk.pos_embed", "trunk.cls_token", "mask_token"}


def test_h__is_set_and_annealed():
    made, dense = trunk(h=4).eval(), trunk(h=0).eval()
    made.set_h(None)
    assert torch.equal(made(images()).cls_BD, dense(images()).cls_BD)
    with pytest.raises(UsageError, match="attends to all keys"):
        trunk(VIT).set_h(4)
    # 16 patches and the class token: annealing starts with all of them, and does not jump.
    begin = h_at(PretrainConfig(h=4, h_anneal=0.5), 0, n_steps=100, n_tokens=17)
    for side in (64, 32):  # of a global view, of a small one
        made.set_h(begin)
        assert torch.equal(made(images(side=side)).cls_BD, dense(images(side=side)).cls_BD)
        made.set_h(4)
        assert side == 32 or not torch.equal(
            made(images(side=side)).cls_BD, dense(images(side=side)).cls_BD
        )
    hs = [h_at(PretrainConfig(h=4, h_anneal=0.5), s, n_steps=100, n_tokens=17) for s in range(100)]
    assert hs[0] == 17 and hs[50:] == [4] * 50 and hs == sorted(hs, reverse=True)
    config = PretrainConfig(h=16, h_anneal=0.5)
    steps = [h_at(config, step, n_steps=100, n_tokens=64) for step in (0, 25, 50, 99)]
    assert steps == [64, 32, 16, 16]  # a factor of 2 in 25 steps
    assert h_at(PretrainConfig(h=16), 0, n_steps=100, n_tokens=64) == 16
    assert h_at(PretrainConfig(h=0, h_anneal=0.5), 0, n_steps=9, n_tokens=64) is None


def test_irpe__can_be_left_out():
    assert any(".rpe_" in name for name in trunk().state_dict())
    assert not any(".rpe_" in name for name in trunk(irpe=False).state_dict())


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


@pytest.mark.parametrize(
    ("encoder", "more", "match", "hint"),
    [
        ("sr-vit-huge", {}, "no encoder is called", "sr-vit"),
        ("handcrafted", {}, "'handcrafted' cannot be pretrained", "resnet50"),
        ("timm/resnet51", {}, "timm has no model 'resnet51'", "timm/resnet"),
        ("weights.safetensors", {}, "is a file", "--init weights.safetensors"),
        ("timm/vit_tiny_patch16_224", {"patch_px": 14, "img_px": 56}, "patches of 16 px", "16"),
        ("sr-vit-tiny-p14", {}, "patches of 14 px, the views of 16", "--patch-px 14"),
        ("timm/swin_tiny_patch4_window7_224", {}, "only plain Vision Transformers", "vit_"),
    ],
)
def test_encoder__that_cannot_be_is_refused(encoder, more, match, hint):
    with pytest.raises(UsageError, match=match) as found:
        make(encoder, **more)
    assert hint in found.value.hint


def test_resnet50__is_timms():
    _, info = make("resnet50")
    assert (info.arch, info.dim, info.patch_px) == ("timm/resnet50", 2048, None)
    assert info.n_parameters == 23_508_032


def test_drop_path__is_noted_where_there_is_none():
    backbones, info = make(NO_BRANCHES)
    assert info.drop_path == 0.0
    assert info.notes == (f"{NO_BRANCHES} cannot drop residual branches: drop path is 0",)
    assert backbones(role="student")(images()).cls_BD.shape == (2, info.dim)
