"""SR-ViT: identities with timm's ViT, the four arms, and living inside PyTorch's machinery."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cytofm_cli.encoders import sr_vit
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sr_vit import (
    SrVit,
    SrVitConfig,
    TokenGrid,
    annealed_h,
    relative_keys,
)
from cytofm_cli.errors import UsageError
from cytofm_kernels import last_backend

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
ARMS = [(h, irpe) for h in (None, 6) for irpe in (False, True)]


def _small(seed=0, *, tables=True, **config):
    """Two blocks on 4 × 4 patches, with tables that are not zero."""
    torch.manual_seed(seed)
    model = SrVit(SrVitConfig(**({"img_px": 64} | config)), **SMALL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".rpe_" in name:
                parameter.normal_(std=0.3 if tables else 0.0)
            elif parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model.eval()


def _images(n=2, height=64, width=64, seed=1):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("irpe", [False, True])
def test_sr_vit__with_all_keys_and_zero_tables_is_timm(irpe):
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model = SrVit(SrVitConfig(h=197, irpe=irpe)).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == relative_keys(model)
    assert not unexpected
    assert len(missing) == (36 if irpe else 0)
    x = _images(2, 224, 224)
    with torch.no_grad():
        expected, found = plain(x), model(x)
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
        # float64 shows that what is left is rounding
        expected, found = plain.double()(x.double()), model.double()(x.double())
        assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("h", [None, 6])
def test_sr_vit__zero_tables_are_no_relative_positions(h):
    with_tables = _small(tables=False, h=h)
    without = _small(h=h, irpe=False)
    without.load_state_dict({k: v for k, v in with_tables.state_dict().items() if ".rpe_" not in k})
    x = _images()
    with torch.no_grad():
        torch.testing.assert_close(with_tables(x), without(x), rtol=1e-5, atol=1e-6)
        for parameter in with_tables.blocks[0].attn.rpe_k.parameters():
            parameter.normal_()
        assert (with_tables(x) - without(x)).abs().max() > 1e-3


def test_sr_vit__four_arms_differ():
    x = _images()
    weights = _small().state_dict()
    found = []
    for h, irpe in ARMS:
        model = _small(h=h, irpe=irpe)
        model.load_state_dict(weights, strict=irpe)
        with torch.no_grad():
            found.append(model(x))
    for i in range(4):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 1e-3


def test_sr_vit__tables_start_at_zero_under_the_names_of_the_paper_code():
    model = SrVit(SrVitConfig(img_px=64, registers=2), **SMALL)
    tables = {k: v for k, v in model.blocks[1].attn.state_dict().items() if "rpe" in k}
    assert {name: tuple(table.shape) for name, table in tables.items()} == {
        "rpe_q.lookup_table_weight": (1, 32, 50),
        "rpe_k.lookup_table_weight": (1, 32, 50),
        "rpe_v.lookup_table_weight": (1, 50, 32),
    }
    assert not any(table.any() for table in tables.values())


IRPE = {
    "method": "product",
    "mode": "contextual",
    "on": "qkv",
    "ratio": None,
    "share_heads": True,
}


def test_record__says_relative_positions_as_weight_files_always_did():
    assert SrVitConfig().to_record()["irpe"] == IRPE
    assert SrVitConfig(irpe=False).to_record()["irpe"] is None
    for stated in (IRPE, {}, {"ratio": 1.9}):
        assert SrVitConfig.from_record({"irpe": stated}).irpe
    assert not SrVitConfig.from_record({"irpe": None}).irpe


@pytest.mark.parametrize(
    "stated",
    [{"methode": "product"}, {"method": "cross"}, {"mode": "bias"}, {"on": "k"}, {"ratio": 2.0}, 1],
)
def test_record__other_relative_positions_are_refused_by_name(stated):
    with pytest.raises(UsageError, match="has no relative positions"):
        SrVitConfig.from_record({"irpe": stated})


@pytest.mark.parametrize("registers", [0, 4])
def test_sr_vit__other_grids_than_the_one_it_was_built_for(registers):
    model = _small(registers=registers)
    with torch.no_grad():
        tokens = model.forward_features(_images(1, 48, 112))
        grid = model.embed(_images(1, 48, 112))[1]
    assert grid == TokenGrid((3, 7), 1 + registers)
    assert tokens.shape == (1, 1 + registers + 21, 64)
    assert tokens.isfinite().all()


def test_sr_vit__patch_14():
    model = _small(patch_px=14, img_px=56)
    with torch.no_grad():
        assert model.forward_features(_images(1, 56, 56)).shape == (1, 17, 64)


def test_sr_vit__batch_of_one_gives_the_same():
    model, x = _small(), _images(5)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_sr_vit__attention_maps_are_those_of_the_forward_pass():
    model, x = _small(h=6), _images()
    with torch.no_grad():
        maps = model.attention_maps(x, (0, -1))
        assert set(maps) == {0, -1}
        for a in maps.values():
            assert a.shape == (2, 2, 17, 17)
            assert ((a > 0).sum(-1) == 6).all()
            torch.testing.assert_close(a.sum(-1), torch.ones(2, 2, 17))
        # rebuild the output of the first attention from its map
        attn = model.blocks[0].attn
        tokens, grid = model.embed(x)
        normed = model.blocks[0].norm1(tokens)
        v = attn.qkv(normed).view(2, 17, 3, 2, 32)[:, :, 2].transpose(1, 2)
        rel = attn._positions(grid, 17, x.device)
        by_pair = rel.table_v[0][rel.bucket.long()]
        rebuilt = maps[0] @ v + torch.einsum("bhij,ijd->bhid", maps[0], by_pair)
        rebuilt = attn.proj(rebuilt.transpose(1, 2).flatten(2))
        torch.testing.assert_close(rebuilt, attn(normed, attn_mask=grid), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError):
        model.attention_maps(x, (2,))


def test_sr_vit__runs_through_the_dispatch_of_the_kernels():
    import cytofm_kernels.ops as ops

    ops.note_backend("reference")
    with torch.no_grad():
        _small()(_images())
    assert last_backend() == "cpu"


def test_sr_vit__state_dict_round_trip(tmp_path):
    model, other = _small(seed=0), _small(seed=1)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    x = _images()
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    assert SrVitConfig.from_record(model.config.to_record()) == model.config


def test_sr_vit__autocast_is_close_to_float32():
    model, x = _small(), _images()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x)
    cosine = nn.functional.cosine_similarity(exact, rough.float())
    assert cosine.min() > 0.99


def test_sr_vit__trains_after_inference_and_with_checkpointing():
    model, x = _small().train(), _images()
    with torch.inference_mode():
        model(x)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).pow(2).sum().backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters()})
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(gradients[-1][key].any() for key in relative_keys(model))
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


@pytest.mark.slow
def test_sr_vit__compiles_in_one_graph_with_the_same_gradients():
    model, x = _small().train(), _images()
    model(x).pow(2).sum().backward()
    expected = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).pow(2).sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-5)


def test_sr_vit__intermediates_know_relative_positions():
    model, x = _small(), _images()
    with torch.no_grad():
        final, (last,) = model.forward_intermediates(x, indices=[1], norm=True)
        torch.testing.assert_close(final, model.forward_features(x))
    assert last.shape == (2, 64, 4, 4)


def test_sr_vit__h_can_be_changed_and_annealed():
    model, x = _small(h=6), _images()
    with torch.no_grad():
        sparse = model(x)
        model.set_h(None)
        dense = model(x)
        model.set_h(6)
        assert torch.equal(model(x), sparse)
    assert (dense - sparse).abs().max() > 1e-3
    steps = [annealed_h(s, n_steps=100, n_tokens=197, h=16) for s in range(-1, 120)]
    assert steps[0] == steps[1] == 197
    assert set(steps[101:]) == {16}
    assert steps == sorted(steps, reverse=True)
    assert steps[51] == round((197 * 16) ** 0.5)
    assert annealed_h(0, n_steps=10, n_tokens=9, h=16) == 16


def test_sr_vit__clear_errors():
    model = _small()
    with pytest.raises(UsageError, match="grid"):
        model.blocks(torch.zeros(1, 17, 64))
    with pytest.raises(UsageError):
        SrVitConfig(h=0)
    with pytest.raises(UsageError):
        SrVitConfig(size="huge")
    with pytest.raises(UsageError, match="dropout"):
        SrVit(SrVitConfig(img_px=64), **SMALL, attn_drop_rate=0.1)
    with pytest.raises(UsageError):
        SrVitConfig.from_record({"siez": "tiny"})


_DDP = """
    import sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = SrVit(SrVitConfig(img_px=64), embed_dim=64, depth=2, num_heads=2)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    model(x).pow(2).mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    replica = DistributedDataParallel(model)
    replica(x[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sr_vit__two_processes_average_to_the_gradient_of_one(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(textwrap.dedent(_DDP))
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors


@pytest.mark.parametrize("name", ["sr-vit-tiny", "timm/resnet18"])
def test_encode__is_the_same_to_the_bit_with_any_number_of_threads(name):
    encoder = load_encoder(name, random_weights=True, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    own, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            found.append(encoder.encode(encoder.prepare(pixels)))
    finally:
        torch.set_num_threads(own)
    assert all(np.array_equal(values, found[0]) for values in found)


def test_dense_attention__in_half_precision_is_that_of_float32_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 4, 17, 32, generator=generator).bfloat16() for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in qkv]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sr_vit._dense(*leaves)
    assert out.dtype == torch.bfloat16
    weights = torch.softmax(qkv[0].double() @ qkv[1].double().mT / 32**0.5, -1)
    expected = weights @ qkv[2].double()
    # nothing is rounded to bf16 but the output: half a unit in its last place
    assert ((out.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all()
    out.sum().backward()
    # of a sum of outputs the gradient of a value is the sum of its weights over all queries
    share = weights.sum(-2)[..., None].expand_as(qkv[2])
    assert (leaves[2].grad.double() - share).abs().max() < 2**-7
