"""Trunks: one start for all, roles, tokens, masks, gradients."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath

from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.backbone import h_at
from cytofm_cli.pretrain.config import PretrainConfig

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

NO_BRANCHES = "timm/dla46_c"


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
