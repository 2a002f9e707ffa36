"""Weight files: safe to open, strict to load, and named for what they are."""

import argparse
import collections
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from cytofm_cli.encoders import layouts, weights
from cytofm_cli.encoders.base import store_key
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import OutOfMemoryError, UsageError, WeightsError


def _vit(seed=0, **changes):
    torch.manual_seed(seed)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    arguments |= {"num_classes": 0} | changes
    model = timm.models.VisionTransformer(**arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def _same(model, other, side=32):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x))


# --- reading ----------------------------------------------------------------------------------


def _checkpoint(state, wrap):
    prefixed = {f"module.backbone.{k}": v for k, v in state.items()}
    head = {
        "module.head.last_layer.weight_g": torch.ones(3),
        "module.head.mlp.0.bias": torch.ones(3),
    }
    return {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}},
        "ibot": {
            "student": {k: v + 1 for k, v in prefixed.items()},
            "teacher": prefixed | head,
            "epoch": 7,
            "args": argparse.Namespace(arch="vit_base", lr=np.float64(5e-4)),
            "ibot_loss": {"center": torch.zeros(4)},
            "best": np.float64(0.5),
        },
        "nested": {"model": {"state_dict": collections.OrderedDict(state)}},
    }[wrap]


@pytest.mark.parametrize("wrap", ["plain", "model", "lightning", "ibot", "nested"])
@pytest.mark.parametrize("zipped", [True, False])
def test_read_state__finds_the_weights_in_checkpoints(tmp_path, wrap, zipped):
    source, target = _vit(0), _vit(1)
    path = tmp_path / "w.pth"
    torch.save(_checkpoint(source.state_dict(), wrap), path, _use_new_zipfile_serialization=zipped)
    report = layouts.load_into(target, weights.read_state(path), where=str(path))
    _same(source, target)
    assert report.n_loaded == len(source.state_dict())
    assert len(report.dropped) == (2 if wrap == "ibot" else 0)


def test_read_state__numpy_scalars_under_their_old_name(tmp_path):
    source, target = _vit(0), _vit(1)
    buffer = io.BytesIO()
    torch.save({"teacher": source.state_dict(), "score": np.float64(0.25)}, buffer)
    path = tmp_path / "cytofm.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(item.filename, content)
    layouts.load_into(target, weights.read_state(path), where="")
    _same(source, target)


class _Touch:
    """On unpickling, creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_read_state__never_runs_what_is_in_a_pickle(tmp_path, how, suffix):
    witness, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    content = {"state_dict": _vit().state_dict(), "x": _Touch(witness)}
    if how == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError) as caught:
        weights.read_state(path)
    assert not witness.exists()
    assert "\n" not in caught.value.one_line()
    if suffix != ".safetensors" and how != "bare":
        assert "Python object" in caught.value.message
    pickle.loads(pickle.dumps(_Touch(witness)))
    assert witness.exists()  # the trap does work


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not weights at all", b"PK\x03\x04" * 20])
def test_read_state__damaged_files_are_weights_errors(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="w\\."):
        weights.read_state(path)


def test_read_state__truncated_files_are_weights_errors(tmp_path):
    save_file(_vit().state_dict(), tmp_path / "a.safetensors")
    torch.save(_vit().state_dict(), tmp_path / "b.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "b.pth"):
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(WeightsError):
            weights.read_state(path)


def test_read_state__missing_folder_and_no_weights(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        weights.read_state(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="folder"):
        weights.read_state(tmp_path)
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "o.pth")
    with pytest.raises(WeightsError, match="epoch, optimizer"):
        weights.read_state(tmp_path / "o.pth")


# --- fitting ----------------------------------------------------------------------------------


def test_load_into__is_strict_and_says_how_much_is_wrong():
    state = _vit().state_dict()
    lacking = {k: v for k, v in state.items() if "blocks.3" not in k} | {
        "blocks.9.x": torch.ones(1)
    }
    with pytest.raises(WeightsError) as caught:
        layouts.load_into(_vit(), lacking, where="file.pth")
    assert "file.pth" in caught.value.message
    assert "12 missing (blocks.3." in caught.value.message
    assert "1 unexpected (blocks.9.x)" in caught.value.message
    assert "42 of 54 fit" in caught.value.message
    before = _vit(5)
    with pytest.raises(WeightsError, match="misfit"):
        layouts.load_into(before, _vit(embed_dim=16).state_dict(), where="")
    _same(before, _vit(5))
    with pytest.raises(WeightsError, match="not finite"):
        layouts.load_into(_vit(), state | {"norm.bias": torch.full((32,), torch.nan)}, where="")


def test_load_into__the_same_entry_twice_is_an_error():
    state = _vit().state_dict()
    twice = {f"module.{k}": v for k, v in state.items()} | {"norm.bias": state["norm.bias"]}
    with pytest.raises(WeightsError, match="twice"):
        layouts.load_into(_vit(), twice, where="")


def test_load_into__a_head_is_kept_where_the_model_has_one():
    source, target = _vit(0, num_classes=3), _vit(1, num_classes=3)
    report = layouts.load_into(target, source.state_dict(), where="")
    assert report.dropped == ()
    _same(source, target)


def test_load_into__dinov2_names_chunks_registers_and_swiglu():
    changes = {
        "reg_tokens": 4,
        "no_embed_class": True,
        "mlp_layer": SwiGLUPacked,
        "act_layer": torch.nn.SiLU,
        "init_values": 1e-5,
    }
    source, target = _vit(0, **changes), _vit(1, **changes)
    state, offset = {}, torch.randn(1, 1, 32)
    for key, value in source.state_dict().items():
        if key.startswith("blocks."):
            _, n, rest = key.split(".", 2)
            rest = rest.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
            state[f"teacher.backbone.blocks.{int(n) // 2}.{n}.{rest}"] = value
        elif key == "pos_embed":  # DINOv2 has a position for the class token
            state["teacher.backbone.pos_embed"] = torch.cat([offset, value], 1)
        else:
            name = "register_tokens" if key == "reg_token" else key
            moved = value - offset if key == "cls_token" else value
            state[f"teacher.backbone.{name}"] = moved
    state |= {
        "teacher.backbone.mask_token": torch.ones(1, 32),
        "teacher.dino_head.mlp.0.bias": torch.ones(2),
    }
    report = layouts.load_into(target, state, where="")
    _same(source, target)
    assert len(report.dropped) == 2
    assert report.network == "teacher.backbone."
    assert len(report.notes) == 5


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_load_into__hugging_face_names(kind):
    changes = {"init_values": 1e-5} if kind == "dinov2" else {}
    source, target = _vit(0, **changes), _vit(1, **changes)
    to_vit = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    top = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    state = {}
    for key, value in source.state_dict().items():
        if key in top:
            state[top[key]] = value
            continue
        _, n, rest = key.split(".", 2)
        stem, leaf = rest.rsplit(".", 1)
        layer = f"encoder.layer.{n}"
        if stem == "attn.qkv":
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"{layer}.attention.attention.{name}.{leaf}"] = part
        elif stem == "attn.proj":
            state[f"{layer}.attention.output.dense.{leaf}"] = value
        elif leaf == "gamma":
            state[f"{layer}.layer_scale{stem[-1]}.lambda1"] = value
        else:
            state[f"{layer}.{to_vit[stem] if kind == 'vit' else stem}.{leaf}"] = value
    if kind == "vit":
        state = {f"vit.{k}": v for k, v in state.items()} | {"classifier.weight": torch.ones(2, 32)}
    layouts.load_into(target, state, where="")
    _same(source, target)


def test_load_into__positions_are_resized_and_that_is_said():
    source, target = _vit(0, img_size=48), _vit(1, img_size=32)
    report = layouts.load_into(target, source.state_dict(), where="")
    assert report.notes == ("positions resized from 6 × 6 to 4 × 4 (bicubic)",)
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(target.pos_embed.data, expected.data)


def test_resize_positions__keeps_prefix_and_constants():
    pos = torch.cat([torch.full((1, 1, 3), 9.0), torch.full((1, 25, 3), 2.0)], 1)
    found = layouts.resize_positions(pos, (3, 7), n_prefix=1)
    assert found.shape == (1, 22, 3)
    assert torch.equal(found[:, 0], pos[:, 0])
    torch.testing.assert_close(found[:, 1:], torch.full((1, 21, 3), 2.0))


# --- through load_encoder ---------------------------------------------------------------------


def _tile(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), np.uint8)


def test_load_encoder__timm_weights_give_timm_features(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder(
        "timm/vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", device="cpu"
    )
    assert encoder.report.dropped == ("head.bias", "head.weight")
    assert encoder.spec.weights_sha256 == weights.sha256(tmp_path / "w.safetensors")
    assert store_key(encoder.spec) == "timm.vit_tiny_patch16_224"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        expected = model.forward_head(model.forward_features((x - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(
        torch.from_numpy(encoder.encode(encoder.prepare(pixels))), expected, rtol=1e-4, atol=1e-5
    )


def test_load_encoder__plain_vit_weights_open_as_sr_vit(tmp_path):
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    state = {f"module.backbone.{k}": v for k, v in plain.state_dict().items()}
    torch.save(
        {"teacher": state | {"module.head.last_layer.weight_v": torch.ones(1)}},
        tmp_path / "dino.pth",
    )
    encoder = load_encoder("sr-vit-tiny", weights=tmp_path / "dino.pth", device="cpu")
    assert encoder.report.n_loaded == len(plain.state_dict())
    assert len(encoder.report.added) == 36
    assert all(".rpe_" in key for key in encoder.report.added)


def test_load_encoder__catalogue_entry_takes_a_local_file(tmp_path):
    model = timm.create_model("vit_small_patch16_224", num_classes=0)
    state = {f"backbone.{k}": v.half() for k, v in model.state_dict().items()}
    torch.save({"teacher": state, "loss": np.float64(1.0)}, tmp_path / "ibot.pth")
    encoder = load_encoder("ibot-s16", weights=tmp_path / "ibot.pth", device="cpu")
    assert encoder.spec.name == "ibot-s16"
    assert encoder.spec.mean == (0.485, 0.456, 0.406)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert encoder.encode(encoder.prepare(_tile())).shape == (1, 384)


def test_load_encoder__what_a_file_does_not_hold_is_computed(tmp_path):
    # the frequencies of DINOv3's rotary positions are in no weight file
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = load_encoder("dinov3-s16", weights=tmp_path / "w.safetensors", device="cpu")
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.model.forward_features(x), model.forward_features(x), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "sr-vit-tiny", "uni"])
def test_load_encoder__no_weights_is_an_error_with_a_hint(name):
    with pytest.raises(WeightsError) as caught:
        load_encoder(name, device="cpu")
    assert "--weights" in caught.value.hint


def test_load_encoder__random_weights_show_in_the_name_and_follow_the_seed():
    state = torch.random.get_rng_state()
    one, two, other = (
        load_encoder("sr-vit-tiny", random_weights=True, seed=seed, device="cpu")
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.spec.name == "sr-vit-tiny-random3"
    assert one.spec.weights_sha256 is None
    values = [e.encode(e.prepare(_tile())) for e in (one, two, other)]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 0.1


def test_load_encoder__impossible_requests(tmp_path):
    of_another = tmp_path / "of_another.safetensors"
    save_file({"x": torch.zeros(1)}, of_another)
    for name, options in (
        ("timm/vit_tiny_patch99", {}),
        ("timm/", {}),
        ("nothing", {}),
        ("handcrafted", {"random_weights": True}),
        ("sr-vit-tiny", {"download": True}),
        ("uni", {"download": True}),
        ("timm/resnet18", {"random_weights": True, "pooling": "cls"}),
        ("timm/vit_tiny_patch16_224", {"random_weights": True, "device": "tpu9"}),
        ("timm/vit_tiny_patch16_224", {"random_weights": True, "weights": tmp_path / "w.pth"}),
        (str(of_another), {"weights": tmp_path / "w.pth"}),
    ):
        with pytest.raises(UsageError):
            load_encoder(name, **({"device": "cpu"} | options))
    with pytest.raises(UsageError) as caught:
        load_encoder("timm/vit_tiny_patch16_225", device="cpu")
    assert "timm/vit_tiny_patch16_224" in caught.value.hint


def test_load_encoder__a_download_that_fails_is_a_weights_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="could not be fetched") as caught:
        load_encoder("timm/resnet18.a1_in1k", download=True, device="cpu")
    assert "\n" not in caught.value.one_line()


def test_state_sha256__depends_on_names_types_and_values():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    digests = {
        weights.state_sha256(s)
        for s in (
            state,
            dict(reversed(state.items())),
            {"c": state["a"], "b": state["b"]},
            state | {"a": torch.arange(4.0) + 1},
            state | {"a": torch.arange(4.0).view(2, 2)},
            state | {"b": torch.ones(2, dtype=torch.float16)},
        )
    }
    assert len(digests) == 5


def test_encode__out_of_memory_is_our_error():
    encoder = load_encoder("timm/vit_tiny_patch16_224", random_weights=True, device="cpu")
    huge = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(2**34, 3, 224, 224)
    with pytest.raises(OutOfMemoryError, match="batch of 17179869184"):
        encoder.encode(huge)
