"""Updates of low rank: weights that rest are held and kept once, a RUN writes them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.pixel_statistics import SCALES, Joined
from cytofm_cli.encoders.sr_vit import SIZES
from cytofm_cli.encoders.weights import read_description
from cytofm_cli.errors import InputError, UsageError, WeightsError
from cytofm_cli.evaluate.choice import choose
from cytofm_cli.pretrain import checkpoint, ema
from cytofm_cli.pretrain.backbone import make_backbones, resting
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.pretrain.run import pretrain
from cytofm_cli.pretrain.teacher import Network

SR = "sr-vit-tiny"


@pytest.fixture(autouse=True, scope="module")
def small_sr_vit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (32, 2, 2))
        yield


def write_vit(path: Path, seed: int = 5) -> Path:
    """Write the weights of a plain ViT that fits the small SR-ViT."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    save_file(VisionTransformer(num_classes=0, **shape).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_vit(tmp_path_factory.mktemp("base") / "base.safetensors")


def trunks(base: Path, **more: Any):
    config = PretrainConfig(encoder=SR, h=0, init=base, lora_rank=2, **more)
    return make_backbones(config, drop_path=0.0, patch_px=16, img_px=32)[0]


def run_once(out: Path, store: Path, base: Path | None, **more: Any):
    views = PretrainViews(global_px=32, local_px=16, n_local=1, preset="none")
    low = {} if base is None else {"init": base, "lora_rank": 2}
    how: dict[str, Any] = {"steps": 2, "batch": 4, "threads": 1, "ncp": False} | low
    config = PretrainConfig(encoder=SR, method="dino", h=4, **how | more)
    head = {"prototypes": 8, "hidden": 8, "bottleneck": 4, "lr": 0.1, "freeze_last": 0}
    return pretrain(config, views_of("dino", views, SR), [store], out, settings=head)


def test_trunks__share_what_rests_and_nothing_else(base: Path) -> None:
    make = trunks(base)
    student, teacher = make(role="student", masks=True), make(role="teacher")
    own = dict(student.named_parameters())
    theirs = dict(teacher.named_parameters())
    shared = {name for name, p in theirs.items() if p is own[name]}
    assert shared == resting(teacher) == resting(student) and "trunk.pos_embed" in shared
    moving = theirs.keys() - shared
    assert all(("lora_" in name or ".rpe_" in name) for name in moving)
    assert not any(own[name].data_ptr() == theirs[name].data_ptr() for name in moving)
    assert not any(p.requires_grad for p in (*theirs.values(), *(own[name] for name in shared)))
    before = {name: own[name].clone() for name in shared}
    with torch.no_grad():
        for name in moving:
            own[name].add_(1)
    a, b = Network(teacher, {}), Network(student, {})
    assert len(ema.own_parameters(a, b)) == len(moving)
    ema.follow(a, b, 0.75)
    for name in moving:
        torch.testing.assert_close(theirs[name], own[name] - 0.75)
    assert all(torch.equal(own[name], before[name]) for name in shared)


def test_trunks__in_one_state_each_when_they_are_sharded(base: Path) -> None:
    make = trunks(base, parallel="fsdp")
    student, teacher = make(role="student"), make(role="teacher")
    assert not {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(student.eval()(x).cls_BD, trunks(base)(role="teacher").eval()(x).cls_BD)


@pytest.mark.parametrize(
    ("targets", "widths"), [(("fc1",), {(32, 128)}), (("qkv", "fc2"), {(32, 96), (128, 32)})]
)
def test_targets__are_the_layers_that_are_named(base: Path, targets, widths) -> None:
    student = trunks(base, lora_targets=targets)(role="student")
    state = student.state_dict()
    a = {k: v for k, v in state.items() if k.endswith("lora_a")}
    assert {k.split(".")[-2] for k in a} == set(targets) and len(a) == 2 * len(targets)
    assert {(v.shape[1], state[k[:-1] + "b"].shape[0]) for k, v in a.items()} == widths
    with pytest.raises(UsageError, match="lora_targets"):
        PretrainConfig(lora_targets=("qkv", "attn"))


def embedded(word: Path, weights: Path | None = None) -> np.ndarray:
    encoder = load_encoder(str(word), weights=weights, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return encoder.encode(encoder.prepare(pixels))


def test_run__updates_of_a_base_that_joins_pixels_open_with_it(
    make_store, tmp_path, base: Path
) -> None:
    scales = {f"{SCALES}{name}": x for name, x in Joined(64).state_dict().items()}
    joined = tmp_path / "joined.safetensors"
    save_file(load_file(base) | scales, joined)
    run = run_once(tmp_path / "run", make_store("a", 6), joined)
    updates = run.path / "adapters.safetensors"
    np.testing.assert_allclose(embedded(updates, joined), embedded(run.encoder), atol=0.02)


def test_run__its_updates_and_their_base_are_its_encoder(make_store, tmp_path, base: Path) -> None:
    run = run_once(tmp_path / "run", make_store("a", 6), base)
    updates = run.path / "adapters.safetensors"
    about = read_description(updates).updates
    assert about is not None and (about.rank, about.alpha, about.targets, about.base) == (
        2, 16.0, ("qkv", "proj"), "base.safetensors",
    )  # fmt: skip
    assert run.summary["updates"]["base_sha256"] == about.base_sha256
    held = load_file(updates)
    low = {f"blocks.{i}.attn.{n}.lora_{x}" for i in (0, 1) for n in ("qkv", "proj") for x in "ab"}
    assert low == {key for key in held if "lora" in key}
    assert all(".rpe_" in key for key in held.keys() - low)
    merged = embedded(updates, base)  # the encoder's weights are of half precision
    np.testing.assert_allclose(merged, embedded(run.encoder), atol=0.02)
    assert all(held[key].any() for key in low)  # they were trained
    # The checkpoint holds what moves, and the head; not the weights that rest.
    saved = load_file(checkpoint.step_folder(run.path, 2) / "model.safetensors")
    assert not any(key.endswith("qkv.weight") for key in saved)
    assert any(key.endswith("qkv.lora_b") for key in saved)


def test_run__goes_on_to_the_same_updates(make_store, tmp_path, base: Path) -> None:
    store = make_store("a", 6)
    whole = run_once(tmp_path / "whole", store, base, save_every=1, keep_every=1)
    again = tmp_path / "again"
    again.mkdir()
    for name in ("config.toml", "log.jsonl"):
        (again / name).write_bytes((whole.path / name).read_bytes())
    first = checkpoint.step_folder(whole.path, 1)
    target = checkpoint.step_folder(again, 1)
    target.mkdir(parents=True)
    for path in first.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    resumed = run_once(again, store, base)
    for name in ("adapters.safetensors", "encoder.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    # Weights that changed beneath a RUN are refused.
    other = write_vit(tmp_path / "base.safetensors", seed=6)
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(base.read_bytes())
    run_once(tmp_path / "third", store, mine, steps=2)
    mine.write_bytes(other.read_bytes())
    (tmp_path / "third" / "summary.json").unlink()
    with pytest.raises(InputError, match="begun with other weights"):
        run_once(tmp_path / "third", store, mine, steps=2)


def test_updates__need_the_very_weights_they_were_trained_on(
    make_store, tmp_path, base: Path
) -> None:
    run = run_once(tmp_path / "run", make_store("a", 6), base)
    updates = run.path / "adapters.safetensors"
    with pytest.raises(WeightsError, match="need the weights") as error:
        load_encoder(str(updates), device="cpu")
    assert "--weights base.safetensors" in (error.value.hint or "")
    other = write_vit(tmp_path / "other.safetensors", seed=6)
    with pytest.raises(WeightsError, match=r"trained on base\.safetensors"):
        load_encoder(str(updates), weights=other, device="cpu")
    wide = tmp_path / "wide.safetensors"
    save_file(
        VisionTransformer(num_classes=0, embed_dim=48, depth=2, num_heads=2).state_dict(), wide
    )
    with pytest.raises(WeightsError, match="does not fit"):
        load_encoder(str(updates), weights=wide, device="cpu")
    (choice,) = choose([f"{updates}={base}"], weights=None, random_weights=False, seed=0)
    again = choose([str(updates)], weights=base, random_weights=False, seed=0)[0]
    assert choice == again and choice.has_weights
    loaded = choice.load(device="cpu", seed=0, pooling=None)
    assert loaded.spec.weights_sha256 == choice.weights_sha256
    held = load_file(updates)
    held["blocks.0.attn.qkv.lora_b"][0] = torch.inf
    with safe_open(updates, "pt") as file:
        save_file(held, tmp_path / "broken.safetensors", metadata=file.metadata())
    with pytest.raises(WeightsError, match=r"qkv\.lora_b holds values"):
        load_encoder(str(tmp_path / "broken.safetensors"), weights=base, device="cpu")
