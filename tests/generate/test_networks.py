"""Layout, start and shapes of the networks: upstream's, to the parameter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.discriminator import Discriminator, hinge
from cytofm_cli.generate.sit import SiT, SitShape, sin_cos
from cytofm_cli.generate.vae import Posterior, Vae, VaeShape

from .toys import VAE, sit_shape

B2 = SitShape(side=28, condition=ConditionShape(kind="class", classes=1000))


def sizes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def on_meta(make: type[torch.nn.Module], *words: object) -> torch.nn.Module:
    with torch.device("meta"):
        return make(*words)


def block(at: int, width: int) -> dict[str, tuple[int, ...]]:
    of = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width), "adaLN_modulation.1": (6 * width, width),
    }  # fmt: skip
    return linear({f"blocks.{at}.{name}": shape for name, shape in of.items()})


def linear(of: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    weights = {f"{name}.weight": shape for name, shape in of.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in of.items()}


def test_sit__of_b2_has_upstreams_names_shapes_and_parameters() -> None:
    wanted = {
        "pos_embed": (1, 196, 768),
        "y_embedder.embedding_table.weight": (1001, 768),
        "bn.running_mean": (4,),
        "bn.running_var": (4,),
        "bn.num_batches_tracked": (),
    }
    wanted |= linear(
        {
            "x_embedder.proj": (768, 4, 2, 2),
            "t_embedder.mlp.0": (768, 256),
            "t_embedder.mlp.2": (768, 768),
            "projectors.0.0": (2048, 768),
            "projectors.0.2": (2048, 2048),
            "projectors.0.4": (768, 2048),
            "final_layer.linear": (16, 768),
            "final_layer.adaLN_modulation.1": (1536, 768),
        }
    )
    for at in range(12):
        wanted |= block(at, 768)
    sit = on_meta(SiT, B2)
    assert sizes(sit) == wanted
    learnt = sum(p.numel() for p in sit.parameters())
    assert learnt + 196 * 768 == 137_798_928  # upstream counts its positions as a parameter
    assert "pos_embed" not in dict(sit.named_parameters())


def test_sit__of_xl2_has_upstreams_parameters() -> None:
    by_class = ConditionShape(kind="class", classes=1000)
    shape = SitShape(side=28, depth=28, width=1152, heads=16, condition=by_class)
    sit = on_meta(SiT, shape)
    assert sum(p.numel() for p in sit.parameters()) + 196 * 1152 == 683_173_392
    told = replace(shape, condition=ConditionShape(kind="encoder", dim=768))
    by_vector = sum(p.numel() for p in on_meta(SiT, told).parameters()) + 196 * 1152
    # The table of 1001 rows gives way to a linear layer and a null vector.
    assert by_vector == 683_173_392 - 1001 * 1152 + (768 + 1) * 1152 + 1152


def test_vae__of_f8d4_has_upstreams_entries_and_parameters() -> None:
    vae = on_meta(Vae, VaeShape())
    names = sizes(vae)
    assert len(names) == 248
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in vae.encoder.parameters()) == 34_163_592
    assert names["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert names["encoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)
    assert names["decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    assert names["decoder.up.0.block.2.conv2.weight"] == (128, 128, 3, 3)
    assert names["quant_conv.weight"] == (8, 8, 1, 1)
    assert names["post_quant_conv.weight"] == (4, 4, 1, 1)
    assert "encoder.down.3.downsample.conv.weight" not in names
    assert "decoder.up.0.upsample.conv.weight" not in names


def test_sit__says_exactly_nothing_at_the_start() -> None:
    torch.manual_seed(1)
    sit = SiT(sit_shape())
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(sit(x, t, torch.randn(3, 16)), torch.zeros(3, 4, 8, 8))


def test_sit__has_gradients_of_the_open_part_alone_at_the_start() -> None:
    """Gates of zero: of a block only the layer that opens them learns in the first step."""
    torch.manual_seed(1)
    sit = SiT(sit_shape(aligned=0))
    sit(torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 16)).square().sum().backward()
    moving = {name for name, p in sit.named_parameters() if p.grad is not None and p.grad.any()}
    assert moving == set()  # a square of zero is flat
    sit(torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 16)).sum().backward()
    moving = {name for name, p in sit.named_parameters() if p.grad is not None and p.grad.any()}
    assert moving == {"final_layer.linear.weight", "final_layer.linear.bias"}


def test_sit__one_pass_gives_what_two_give() -> None:
    torch.manual_seed(2)
    sit = SiT(sit_shape(depth=3, aligned_depth=2))
    for parameter in sit.parameters():  # open all gates
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, c = torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 16)
    velocity, tokens = sit.both(x, t, c)
    assert torch.equal(velocity, sit(x, t, c))
    assert torch.equal(tokens, sit.aligned(x, t, c))
    assert tokens.shape == (3, 16, 6)


def test_sit__a_patch_of_the_input_is_a_patch_of_the_output() -> None:
    """With closed blocks a change of one patch moves that patch of the output alone."""
    torch.manual_seed(3)
    sit = SiT(sit_shape(aligned=0))
    torch.nn.init.normal_(sit.final_layer.linear.weight)
    x, t, c = torch.randn(1, 4, 8, 8), torch.rand(1), torch.randn(1, 16)
    other = x.clone()
    other[0, 1, 2, 5] += 1  # row 2, column 5: the patch of rows 2-3 and columns 4-5
    moved = (sit(other, t, c) - sit(x, t, c))[0].abs().sum(0) > 0
    assert moved.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_positions__are_mae_helpers() -> None:
    table = sin_cos(3, 8).double().numpy()
    row, column = 2, 1
    wanted = []
    for at in (column, row):
        angle = at * np.array([1.0, 10000**-0.5])
        wanted += [*np.sin(angle), *np.cos(angle)]
    assert np.allclose(table[row * 3 + column], wanted, atol=1e-7)


def test_time__is_cosines_then_sines_of_t_itself() -> None:
    torch.manual_seed(4)
    sit = SiT(sit_shape())
    seen: list[torch.Tensor] = []
    sit.t_embedder.mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sit.t_embedder(torch.tensor([0.25]))
    angle = 0.25 * 10000 ** (-np.arange(128) / 128)
    assert np.allclose(seen[0][0].numpy(), [*np.cos(angle), *np.sin(angle)], atol=1e-6)


def test_vae__gives_back_the_shape_and_halves_twice() -> None:
    torch.manual_seed(5)
    vae = Vae(VaeShape(base=8, multipliers=(1, 2, 2), blocks=1))
    posterior = vae.encode(torch.randn(2, 3, 24, 16))
    assert posterior.mean_BChw.shape == (2, 4, 6, 4)
    assert vae.decode(posterior.mean_BChw).shape == (2, 3, 24, 16)
    assert VAE.factor == 2 and VaeShape().factor == 8


def test_vae__the_last_norm_of_a_small_decoder_leaves_an_image_its_colour() -> None:
    """Norms of one channel a group would make the mean of each channel 0 in every image."""
    assert [VaeShape(base=base).groups for base in (128, 64, 32, 16)] == [32, 16, 8, 4]
    torch.manual_seed(6)
    vae = Vae(VaeShape(base=16, multipliers=(1, 2), blocks=1))
    seen: list[torch.Tensor] = []
    vae.decoder.norm_out.register_forward_hook(lambda module, inputs, out: seen.append(out))
    vae.decode(torch.randn(2, 4, 6, 6))
    assert float(seen[0].mean((2, 3)).abs().mean().detach()) > 0.1
    alone = torch.nn.GroupNorm(16, 16)(seen[0])
    assert float(alone.mean((2, 3)).abs().max().detach()) < 1e-5


def test_posterior__divergence_and_sample_by_hand() -> None:
    mean = torch.tensor([[[[1.0, 0.0]]]])
    logvar = torch.tensor([[[[0.0, float(np.log(4.0))]]]])
    posterior = Posterior(mean, logvar)
    # ½ (1 + 1 - 1 - 0) + ½ (0 + 4 - 1 - log 4)
    assert float(posterior.divergence()) == pytest.approx(0.5 + 1.5 - np.log(2))
    assert posterior.sample(torch.tensor([[[[2.0, 3.0]]]])).flatten().tolist() == [3.0, 6.0]


def test_hinge__by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    # ½ mean(0, 1) + ½ mean(0, 1.5)
    assert float(hinge(real, fake)) == pytest.approx(0.625)
    assert Discriminator(4)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)
