"""What transformers attend to in their last layer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cytofm_cli.encoders.attention import CLASS_TOKEN, PATCHES, patch_attention
from cytofm_cli.encoders.catalogue import entries
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig

SHAPE = {"embed_dim": 12, "depth": 2, "num_heads": 3}


def images(n: int = 2, height: int = 64, width: int = 48) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def vit(**more: object) -> VisionTransformer:
    torch.manual_seed(0)
    kinds = {"img_size": 64, "num_classes": 0, "dynamic_img_size": True, **SHAPE}
    model = VisionTransformer(**(kinds | more)).eval()
    for parameter in model.parameters():  # tables and scales begin at 0 or 1
        nn.init.normal_(parameter, std=0.3)
    return model


def by_hand(model: VisionTransformer, x_BCHW: Tensor) -> Tensor:
    """Return the weights of a plain ViT's last block in float64, written out: (B, H, N, N)."""
    model, x = model.double(), x_BCHW.double()
    p = model.patch_embed.proj
    patches = nn.functional.conv2d(x, p.weight, p.bias, stride=p.stride).flatten(2).mT
    side = math.isqrt(patches.shape[1])
    assert side * side == patches.shape[1]
    tokens = torch.cat([model.cls_token.expand(len(x), -1, -1), patches], 1) + model.pos_embed
    *others, last = model.blocks
    for block in others:
        tokens = block(tokens)
    normed = nn.functional.layer_norm(
        tokens, tokens.shape[-1:], last.norm1.weight, last.norm1.bias, last.norm1.eps
    )
    rows = normed @ last.attn.qkv.weight.T + last.attn.qkv.bias
    n_heads, width = last.attn.num_heads, tokens.shape[-1]
    scores = []
    for head in range(n_heads):
        part = width // n_heads
        q = rows[..., head * part : (head + 1) * part]
        k = rows[..., width + head * part : width + (head + 1) * part]
        scores.append((q @ k.mT / math.sqrt(part)).exp())
    weights = torch.stack(scores, 1)
    return weights / weights.sum(-1, keepdim=True)


def test_attention__of_a_vit_is_what_is_written_out_in_float64() -> None:
    model, x = vit(), images(width=64)
    with torch.no_grad():
        single = patch_attention(model, x)
        expected = by_hand(model, x)
        double = patch_attention(model, x.double())
    assert single is not None and double is not None
    assert (double.grid, double.query) == ((4, 4), CLASS_TOKEN)
    torch.testing.assert_close(double.patches_BHP, expected[:, :, 0, 1:], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(single.patches_BHP.double(), double.patches_BHP)


def probed(model: nn.Module, attention: nn.Module, x: Tensor) -> Tensor:
    """Return what timm's attention computes where it does not fuse, by its dropout's input."""
    attention.fused_attn = False
    seen: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda layer, given, out: seen.append(out))
    with torch.no_grad():
        model.forward_features(x)
    handle.remove()
    attention.fused_attn = True
    return seen[-1]


def eva(**more: object) -> Eva:
    torch.manual_seed(0)
    kinds = {"img_size": 64, "num_classes": 0, "dynamic_img_size": True, "use_rot_pos_emb": True}
    model = Eva(**(kinds | SHAPE | more)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("make", "n_prefix", "query"),
    [
        (lambda: vit(qk_norm=True, init_values=1e-5), 1, CLASS_TOKEN),
        (lambda: vit(reg_tokens=4, no_embed_class=True), 5, CLASS_TOKEN),
        (lambda: vit(mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU), 1, CLASS_TOKEN),
        (lambda: vit(class_token=False, global_pool="avg"), 0, PATCHES),
        (lambda: vit(class_token=False, reg_tokens=2, global_pool="avg"), 2, PATCHES),
        (eva, 1, CLASS_TOKEN),
        (lambda: eva(num_reg_tokens=4, qkv_fused=False, init_values=1e-5), 5, CLASS_TOKEN),
    ],
)
def test_attention__is_what_the_last_layer_computes(
    make: Callable[[], nn.Module], n_prefix: int, query: str
) -> None:
    model, x = make(), images()
    weights = probed(model, model.blocks[-1].attn, x)
    of_query = weights[:, :, 0] if query == CLASS_TOKEN else weights[:, :, n_prefix:].mean(2)
    with torch.no_grad():
        fused = patch_attention(model, x)
        model.blocks[-1].attn.fused_attn = False
        plain = patch_attention(model, x)
    for found in (fused, plain):
        assert found is not None
        assert (found.grid, found.query) == ((4, 3), query)
        torch.testing.assert_close(found.patches_BHP, of_query[..., n_prefix:])


class ByTorch(nn.Module):
    """A transformer of torch's own layers, which uses neither timm's names nor its methods."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 16, 16)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        patches = self.conv(x_BCHW).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1)
        return self.encode(tokens)


def test_attention__of_torchs_own_layers() -> None:
    model, x = ByTorch().eval(), images()
    last = model.encode.layers[-1]
    asked: list[Tensor] = []
    last.register_forward_pre_hook(lambda layer, given: asked.append(given[0]))
    with torch.no_grad():
        found = patch_attention(model, x)
        _, weights = last.self_attn(asked[0], asked[0], asked[0], average_attn_weights=False)
    assert found is not None and (found.grid, found.query) == ((4, 3), CLASS_TOKEN)
    torch.testing.assert_close(found.patches_BHP, weights[:, :, 0, 1:])


@given(h=st.integers(1, 12))
def test_attention__of_sr_vit_lies_on_the_chosen_keys_alone(h: int) -> None:
    torch.manual_seed(h)
    config = SrVitConfig(img_px=64, h=h, exact_h=True)
    model = SrVit(config, **SHAPE).eval()
    with torch.no_grad():
        sparse = patch_attention(model, images())
        model.set_h(None)
        weights = model.attention_maps(images())[-1][:, :, 0].double()
        dense = patch_attention(model, images())
    assert sparse is not None and dense is not None
    torch.testing.assert_close(dense.patches_BHP, weights[..., 1:].float())
    # Blocks before the last see other tokens when dense: ask about the support alone, and the mass.
    kept = (sparse.patches_BHP > 0).sum(-1)
    assert kept.max() <= h and kept.min() >= h - 1  # the class token may be one of them
    on_class = 1 - sparse.patches_BHP.sum(-1)
    assert ((on_class > 1e-6) == (kept == h - 1)).all()


def test_attention__of_one_block_of_sr_vit_is_the_dense_one_cut_and_renormalised() -> None:
    torch.manual_seed(0)
    model = SrVit(SrVitConfig(img_px=64, h=3), **(SHAPE | {"depth": 1})).eval().double()
    x = images().double()
    with torch.no_grad():
        sparse = patch_attention(model, x)
        model.set_h(None)
        dense = model.attention_maps(x)[-1][:, :, 0]
    assert sparse is not None
    kept = dense * (dense >= dense.sort(descending=True).values[..., 2:3])
    expected = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(
        sparse.patches_BHP.double(), expected[..., 1:].double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "name", ["resnet10t", "swin_tiny_patch4_window7_224", "convnext_atto", "mixer_s16_224"]
)
def test_attention__of_a_network_without_any_is_none(name: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    with torch.inference_mode():
        assert patch_attention(model, images(1, 224, 224)) is None


# Wider ones differ in nothing but their width and depth.
TRANSFORMERS = [
    name
    for name, (plugin, entry) in entries().items()
    if plugin in {"sr_vit", "timm"} and (entry.dim or 0) <= 1024 and name != "resnet50-layer3"
    if not name.startswith("sr-vit-base")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention__of_the_catalogue_is_over_all_patches(name: str) -> None:
    plugin, entry = entries()[name]
    encoder = load_encoder(
        name,
        random_weights=entry.shipped is None,
        device="cpu",
        builder={"depth": 1} if plugin == "timm" else {},
    )
    px = encoder.spec.input_px or 224
    with torch.inference_mode():
        found = patch_attention(encoder.model, torch.rand(1, 3, px, px))
    assert found is not None
    assert found.patches_BHP.shape[2] == math.prod(found.grid)
    assert found.query == CLASS_TOKEN


def test_attention__over_channels_is_not_taken_for_places() -> None:
    # XCiT's blocks let channels meet, (B, H, 36, 36) here; only its class token looks at patches.
    model = timm.models.xcit.Xcit(
        img_size=64, patch_size=16, num_classes=0, embed_dim=72, depth=1, cls_attn_layers=1,
        num_heads=2,
    ).eval()  # fmt: skip
    with torch.inference_mode():
        found = patch_attention(model, images(2, 64, 64))
    assert found is not None
    assert found.patches_BHP.shape == (2, 2, 16) and found.query == CLASS_TOKEN


def test_attention__changes_nothing_and_may_be_asked_twice() -> None:
    model, x = vit(), images()
    with torch.no_grad():
        before = model.forward_features(x)
        first, second = patch_attention(model, x), patch_attention(model, x)
        assert torch.equal(model.forward_features(x), before)
    assert first is not None and second is not None
    assert torch.equal(first.patches_BHP, second.patches_BHP)
