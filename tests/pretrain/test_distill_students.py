"""Students of a frozen ViT: golden losses, a teacher that rests, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.pretrain.base import Batch, Length, Method
from cytofm_cli.pretrain.frozen import FrozenTeacher, open_teacher
from cytofm_cli.pretrain.heads import DinoHead
from cytofm_cli.pretrain.losses import (
    dino_loss,
    koleo_loss,
    masked_patch_loss,
    relation_loss,
    similarity_loss,
    sinkhorn_knopp,
)
from cytofm_cli.pretrain.optim import build_optimizer
from cytofm_cli.pretrain.published_heads import published_heads
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.testing.samples.teachers import write_checkpoint, write_teacher
from cytofm_cli.testing.samples.trunks import Backbones
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD
from cytofm_cli.views.draws import sample_keys

STUDENTS = ("distill_tokens", "distill_relations", "distill_dino")
SMALL: dict[str, Any] = {"prototypes": 32, "hidden": 24, "bottleneck": 8, "mask_min_patches": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def make(name: str, teacher: Path, **settings: Any) -> Method:
    plugin = pretrain_methods.load(name)
    known = SMALL | settings if name == "distill_dino" else settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        length = Length(n_steps=100, steps_per_epoch=10, batch=8)
        config = plugin.config(teacher=str(teacher), **known)
        method: Method = plugin.make(Backbones("vit"), config, length)
    return method.train()


def batch(n: int = 8, seed: int = 0, views: int = 2) -> Batch:
    own = torch.Generator().manual_seed(seed)
    tile = torch.randn(n, 3, 1, 1, generator=own)
    drawn = [tile + 0.5 * torch.randn(n, 3, 16, 16, generator=own) for _ in range(views)]
    return Batch(views=drawn, n_global=2, keys_B=sample_keys(seed, np.arange(n)))


def test_losses__are_those_of_dinov2s_code() -> None:
    i, j = torch.arange(6.0)[:, None], torch.arange(4.0)
    t, s = torch.sin(4 * i + j), torch.cos(1.7 * (4 * i + j))
    q = sinkhorn_knopp(t, 0.07)
    np.testing.assert_allclose(q[0], [0.000001, 0.588942, 0.410935, 0.000122], atol=1e-6)
    np.testing.assert_allclose(q[3], [0.000000, 0.000962, 0.881302, 0.117736], atol=1e-6)
    np.testing.assert_allclose(q.sum(0), [1.327478, 1.262495, 1.292238, 2.117789], atol=1e-6)
    positions = masked_patch_loss(q, s, torch.full((6,), 1 / 6), 0.1)
    assert float(positions) == pytest.approx(7.168984, abs=1e-5)
    p_TBK, s_SBK = q.view(2, 3, 4), s.view(2, 3, 4)
    pairs = [
        -(p_TBK[a] * functional.log_softmax(s_SBK[b] / 0.1, -1)).sum(-1).mean()
        for a in (0, 1)
        for b in (0, 1)
    ]
    assert float(sum(pairs)) == pytest.approx(36.631531, abs=1e-4)
    # A view is never compared with itself: of the four pairs two count.
    assert float(dino_loss(p_TBK, s_SBK, 0.1)) == pytest.approx(float(pairs[1] + pairs[2]) / 2)
    x = torch.sin(0.3 * (4 * torch.arange(5.0)[:, None] + torch.arange(4.0)))
    assert float(koleo_loss(x)) == pytest.approx(0.536231, abs=1e-5)


def test_similarity_loss__by_hand_and_0_where_they_agree() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    said, target = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    p = torch.softmax(torch.tensor([0.0, 1 / 0.5]), 0)
    q = torch.softmax(torch.tensor([1 / 0.5, 0.0]), 0)
    expected = float((p * (p / q).log()).sum())
    assert float(similarity_loss(said, target, known, 0.5)) == pytest.approx(expected)
    assert float(similarity_loss(2 * target, target, known, 0.5)) == pytest.approx(0, abs=1e-7)


def test_relation_loss__does_not_see_turns_of_the_space_or_lengths() -> None:
    own = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 4, generator=own)
    turned = tokens @ torch.linalg.qr(torch.randn(4, 4, generator=own))[0]
    assert float(relation_loss(3 * turned, tokens, 0.1)) == pytest.approx(0, abs=1e-5)
    wider = torch.cat([turned, torch.zeros(2, 5, 3)], -1)
    assert float(relation_loss(wider, tokens, 0.1)) == pytest.approx(0, abs=1e-5)
    assert float(relation_loss(torch.randn(2, 5, 4, generator=own), tokens, 0.1)) > 0.1


def test_frozen_teacher__says_what_the_encoder_says_of_the_enlarged_view(teacher: Path) -> None:
    encoder = load_encoder(str(teacher), device="cpu")
    frozen = FrozenTeacher(str(teacher), patch_px=4)  # its own patches are of 8
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    pixels = torch.randint(0, 256, (2, 3, 1, 1)).expand(2, 3, 16, 16).to(torch.uint8)
    tokens = frozen((pixels / 255 - mean) / std)
    assert tokens.patch_BND is not None and tokens.patch_BND.shape == (2, 16, 128)
    # Images of one colour are the same at any size.
    same = pixels[..., :1, :1].expand(2, 3, 32, 32).contiguous()
    np.testing.assert_allclose(tokens.cls_BD, encoder.encode(same), atol=1e-4)


def test_frozen_teacher__of_timm_is_seen_on_the_grid_of_the_student(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 0.5}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=56, **shape).eval()
    path = tmp_path / "published.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in vit.state_dict().items()}}, path)
    builder = "\n".join(f"{name} = {value}" for name, value in shape.items())
    path.with_name("published.pth.toml").write_text(
        'arch = "timm/vit_tiny_patch16_224"\ninput_px = 56\nmean = [0.5, 0.5, 0.5]\n'
        f"std = [0.5, 0.5, 0.5]\n[builder]\n{builder}\n"
    )
    frozen = FrozenTeacher(str(path), patch_px=8)
    grey = torch.full((2, 3, 32, 32), 0.25)  # 4 by 4 patches of either
    column = [torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)]
    tokens = frozen((grey - column[0]) / column[1])
    with torch.no_grad():
        expected = vit.forward_features((torch.full((2, 3, 56, 56), 0.25) - 0.5) / 0.5)
    torch.testing.assert_close(tokens.cls_BD, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.patch_BND, expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert frozen(torch.zeros(1, 3, 64, 48)).patch_BND.shape == (1, 8 * 6, 24)  # of any size


@pytest.mark.parametrize("name", STUDENTS)
def test_student__teacher_rests_and_is_no_part_of_the_run(name: str, teacher: Path) -> None:
    method = make(name, teacher)
    frozen = method._frozen[0]._trunk
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    optimizer = build_optimizer(method)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for step in range(3):
        optimizer.zero_grad()
        method(batch(seed=step), step).loss.backward()
        optimizer.step()
        method.after_update(step)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(id(p) in trained or p.requires_grad for p in frozen.parameters())
    assert not any("frozen" in key for key in method.state_dict())
    assert method.encoder() is method.teacher_net.trunk  # the running mean of the student


@pytest.mark.slow
def test_student__comes_nearer_to_its_teacher_and_not_to_a_shuffled_one(teacher: Path) -> None:
    def distance(shuffled: bool) -> tuple[float, float]:
        method = make("distill_tokens", teacher, patch_weight=0.0, lr=0.02)
        optimizer = build_optimizer(method)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3
        frozen = method._frozen[0]
        if shuffled:  # the target of another tile of the batch
            calls = iter(range(10**6))

            def ask(view: torch.Tensor) -> Any:
                own = torch.Generator().manual_seed(next(calls) // 2)
                return frozen(view[torch.randperm(len(view), generator=own)])

            method._frozen = (ask,)  # type: ignore[assignment]
            ask.dim = frozen.dim  # type: ignore[attr-defined]
        losses = []
        for step in range(40):
            optimizer.zero_grad()
            out = method(batch(16, seed=step), step)
            out.loss.backward()
            optimizer.step()
            method.after_update(step)
            losses.append(float(out.loss.detach()))
        return sum(losses[:5]) / 5, sum(losses[-5:]) / 5

    start, end = distance(shuffled=False)
    assert end < 0.8 * start
    start, end = distance(shuffled=True)
    assert end > 0.9 * start


def test_distill_dino__patch_loss_pulls_at_chosen_patches_alone(teacher: Path) -> None:
    method = make("distill_dino", teacher, koleo=0.0, head_share=0.0, mask_chance=1.0)
    seen: list[torch.Tensor] = []
    trunk = method.student()

    def keep(layer: object, args: object, out: torch.Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    trunk.norm.register_forward_hook(keep)
    out = method(batch(), 50)
    method.zero_grad()
    # Only what the patches' loss sends back: that of whole views goes through the class token.
    out.loss.backward()
    grad_GND = torch.cat([x.grad[:, 1:] for x in seen if x.shape[1] == 17])
    moved_GN = grad_GND.abs().sum(-1) > 0
    from cytofm_cli.pretrain.patches import masks_of

    chosen_GN = masks_of(method.config, batch(), 4).mask_GN.flatten(1)
    assert torch.equal(moved_GN, chosen_GN)
    assert "mask_token" not in dict(trunk.named_parameters())  # the student sees every patch


def test_distill_dino__student_rests_while_heads_are_learnt(teacher: Path) -> None:
    method = make("distill_dino", teacher, head_share=0.5)
    method(batch(), 49).loss.backward()
    assert not any(p.grad.any() for p in method.student().parameters())
    assert any(p.grad.any() for p in method.learnt.parameters())
    method.zero_grad()
    method(batch(), 50).loss.backward()
    assert any(p.grad.any() for p in method.student().parameters())


def test_distill_dino__takes_the_heads_of_a_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, n_prototypes=12)
    method = make("distill_dino", path)
    assert method.learnt is None
    assert "its file's heads" in method.notes()[-1]
    assert len(method.student_net.heads["patch"].prototypes) == 12
    heads = published_heads(torch.load(path)["teacher"], "x")
    torch.manual_seed(1)
    ours = DinoHead(128, 12, hidden=24, bottleneck=8)
    ours.mlp.load_state_dict({k: 10 * v for k, v in ours.mlp.state_dict().items()})
    x = torch.randn(3, 128)
    torch.testing.assert_close(heads["cls"](x), ours(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["original", "plain", "v"])
def test_published_head__last_layer_however_it_is_stored(kind: str) -> None:
    torch.manual_seed(0)
    v, g = torch.randn(5, 3), torch.rand(5, 1) + 0.5
    weight = g * functional.normalize(v, dim=1)
    last = {
        "original": {
            "parametrizations.weight.original0": g,
            "parametrizations.weight.original1": v,
        },
        "plain": {"weight": weight},
        "v": {"weight_g": g, "weight_v": v},
    }[kind]
    shapes = {0: (4, 2), 2: (4, 4), 4: (3, 4)}
    state = {f"student.dino_head.last_layer.{k}": w for k, w in last.items()}
    for i, shape in shapes.items():
        state[f"student.dino_head.mlp.{i}.weight"] = torch.randn(shape)
        state[f"student.dino_head.mlp.{i}.bias"] = torch.randn(shape[0])
    x = torch.randn(6, 2)
    z = x
    for i in shapes:
        w, b = (state[f"student.dino_head.mlp.{i}.{n}"] for n in ("weight", "bias"))
        z = functional.linear(z, w, b)
        z = z if i == 4 else functional.gelu(z)
    expected = functional.normalize(z, dim=-1) @ weight.T
    heads = published_heads(state, "x")
    torch.testing.assert_close(heads["cls"](x), expected)
    assert heads["patch"] is heads["cls"]  # one head for both


def test_mistakes__are_named(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no teacher is named"):
        FrozenTeacher("", 8)
    with pytest.raises(UsageError, match="no teacher is named"):
        open_teacher("")
    with pytest.raises(UsageError, match="handcrafted: is no Vision Transformer"):
        FrozenTeacher("handcrafted", 8)
    resnet = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), resnet)
    with pytest.raises(UsageError, match="resnet10t: is no Vision Transformer"):
        FrozenTeacher(f"timm/resnet10t={resnet}", 8)
    with pytest.raises(WeightsError, match="no such file"):
        FrozenTeacher(f"uni={tmp_path / 'none.pth'}", 8)
    with pytest.raises(UsageError, match="whole views alone"):
        make("distill_relations", teacher)(batch(views=3), 0)
    with pytest.raises(WeightsError, match="no head of DINOv2's kind"):
        published_heads({"dino_head.mlp.0.weight": torch.ones(2, 2)}, "x")
