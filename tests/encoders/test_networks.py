"""Which network of a checkpoint is taken: that of its authors' features, and it is said."""

import re

import pytest
import timm
import torch

from cytofm_cli import registry
from cytofm_cli.encoders import catalogue, layouts, likeness, weights
from cytofm_cli.encoders.base import TrunkRequest
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import WeightsError


def _vit(**changes):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.models.VisionTransformer(**arguments | {"num_classes": 0} | changes)


def _filled(value, prefix="", **changes):
    """Return the entries of a small ViT, every number of them `value`."""
    return {
        prefix + key: torch.full_like(x, value) for key, x in _vit(**changes).state_dict().items()
    }


def _load(folder, content, key=None):
    """Save, read and load; return the report and the number that fills the model."""
    torch.save(content, folder / "w.pth")
    model = _vit()
    report = layouts.load_into(model, weights.read_state(folder / "w.pth"), where="w.pth", key=key)
    values = {float(x) for p in model.parameters() for x in p.detach().unique()}
    assert len(values) == 1
    return report, values.pop()


# What is taken holds 2, the other network 1.
_PAIRS = {
    "timm": ({"state_dict": _filled(1), "state_dict_ema": _filled(2)}, "state_dict_ema"),
    "deit": ({"model": _filled(1), "model_ema": _filled(2), "epoch": 3}, "model_ema"),
    "ema in one dict": ({"state_dict": _filled(1, "net.") | _filled(2, "ema.module.")},
                        "state_dict.ema.module"),
    "dino": ({"student": _filled(1, "module.backbone."), "teacher": _filled(2, "backbone.")},
             "teacher.backbone"),
    "lightly": ({"state_dict": _filled(1, "student_backbone.") | _filled(2, "teacher_backbone.")},
                "state_dict.teacher_backbone"),
    "moco v3": ({"state_dict": _filled(2, "module.base_encoder.")
                 | _filled(1, "module.momentum_encoder.")}, "state_dict.module.base_encoder"),
    "moco v2": ({"state_dict": _filled(1, "module.encoder_k.") | _filled(2, "module.encoder_q.")},
                "state_dict.module.encoder_q"),
    "solo": ({"state_dict": _filled(1, "momentum_backbone.") | _filled(2, "backbone.")},
             "state_dict.backbone"),
    "byol": (_filled(1, "target_network.") | _filled(2, "online_network."), "online_network"),
    "i-jepa": ({"encoder": _filled(1, "module."), "target_encoder": _filled(2, "module.")},
               "target_encoder.module"),
    "plain beside its average": (_filled(1) | _filled(2, "ema."), "ema"),
    "compiled, sharded": ({"student": _filled(1, "_orig_mod.module."),
                           "teacher": _filled(2, "module._orig_mod._fsdp_wrapped_module.")},
                          "teacher.module._orig_mod._fsdp_wrapped_module"),
}  # fmt: skip


@pytest.mark.parametrize("name", _PAIRS)
def test_load_into__takes_the_network_for_use_and_says_so(tmp_path, name):
    content, network = _PAIRS[name]
    report, value = _load(tmp_path, content)
    assert value == 2
    assert report.network == f"{network}."
    assert len(report.others) == 1
    assert report.choice.startswith(f"took the network {network} and not ")
    other = report.others[0].rstrip(".")
    if other:
        assert report.choice.endswith(f"; --weights-key {other} takes another")
        assert _load(tmp_path, content, key=other)[1] == 1


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "backbone.", "_orig_mod.module.", "module.encoder.", "my.own.name.",
     "model.online_network.trunk."],
)  # fmt: skip
def test_load_into__one_network_is_found_under_any_prefix(tmp_path, prefix):
    state = _filled(2, prefix) | {f"{prefix}head.weight": torch.ones(2)}
    beside = {"criterion": {"center": torch.ones(3)}, "optimizer": {"state": {0: _filled(1)}}}
    report, value = _load(tmp_path, {"state_dict": state} | beside)
    assert (value, report.choice) == (2, None)
    assert [key.rpartition("head.")[1:] for key in report.dropped] == [("head.", "weight")]
    assert "entries left out: criterion (1)" in report.notes


@pytest.mark.parametrize(
    "word", ["_orig_mod", "_fsdp_wrapped_module", "_fsdp_wrapped_module._checkpoint_wrapped_module"]
)
def test_load_into__blocks_that_are_wrapped_one_by_one(tmp_path, word):
    state = {
        re.sub(r"(blocks\.\d+|patch_embed|norm)\.(?!proj)", rf"\1.{word}.", name, count=1): value
        for name, value in _filled(2).items()
    }
    assert f"blocks.3.{word}.attn.qkv.weight" in state
    outer = {f"{word}.{name}": value for name, value in state.items()}
    for content in (state, outer, {"student": _filled(1), "teacher": outer}):
        assert _load(tmp_path, content)[1] == 2


def test_load_into__another_architecture_is_named_whatever_names_agree(tmp_path):
    torch.save(timm.create_model("resnet34", num_classes=0).state_dict(), tmp_path / "w.pth")
    state = weights.read_state(tmp_path / "w.pth")
    model = timm.create_model("efficientnet_b0", num_classes=0)
    with pytest.raises(WeightsError, match=r"w\.pth: does not fit the model") as caught:
        layouts.load_into(model, state, where="w.pth")
    assert caught.value.hint == "it looks like timm/resnet34"


def test_load_into__a_masked_autoencoders_decoder_is_no_network(tmp_path):
    decoder = {
        "decoder_pos_embed": torch.ones(1, 17, 16),
        "mask_token": torch.ones(1, 1, 16),
    } | {k.replace("blocks.", "decoder_blocks."): v for k, v in _filled(1).items() if "blocks" in k}
    report, value = _load(tmp_path, {"model": _filled(2, "encoder.") | decoder})
    assert (value, report.others) == (2, ())
    assert report.network == "model.encoder."


def test_load_into__networks_that_nothing_tells_apart_are_refused(tmp_path):
    content = {"left": _filled(1), "right": _filled(2)}
    with pytest.raises(
        WeightsError, match=r"several networks that fit \(left\., right\.\)"
    ) as caught:
        _load(tmp_path, content)
    assert caught.value.hint == "`cytofm embed --weights-key right` takes one"
    assert _load(tmp_path, content, key="left")[1] == 1
    with pytest.raises(WeightsError, match="no network is called 'middle'") as caught:
        _load(tmp_path, content, key="middle")
    assert caught.value.hint == "there are: left., right."
    assert _load(tmp_path, {"left": _filled(2), "right": _filled(2)})[1] == 2


def test_load_into__of_two_sizes_the_one_that_fits_is_taken(tmp_path):
    content = {"teacher": _filled(1, embed_dim=48), "student": _filled(2)}
    report, value = _load(tmp_path, content)
    assert (value, report.network, report.others) == (2, "student.", ())


def test_load_encoder__a_file_of_another_architecture_is_told_what_it_looks_like(tmp_path):
    small = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    state = {f"module.base_encoder.{k}": v for k, v in small.items()}
    torch.save({"state_dict": state, "optimizer": {}}, tmp_path / "moco.pth")
    with pytest.raises(WeightsError) as caught:
        load_encoder("timm/vit_tiny_patch16_224", weights=tmp_path / "moco.pth", device="cpu")
    assert caught.value.hint == "it looks like timm/vit_small_patch16_224"
    held = "The file has state_dict.module.base_encoder. (150 entries, 0 of 150 fit)."
    assert held in caught.value.message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("vit_small_patch14_dinov2", {"img_size": 224}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
        ("vit_tiny_patch16_224", {"img_size": 96}),
    ],
)
def test_guess__tells_common_architectures_apart(name, options):
    state = timm.create_model(name, num_classes=3, **options).state_dict()
    found = likeness.guess({f"a.b.{k}": v for k, v in state.items()}, layouts.timm_name)
    assert found == f"timm/{name}"


@pytest.mark.parametrize(
    ("name", "said"),
    [("uni", "uni or phikon-v2"), ("sr-vit-tiny", "sr-vit-tiny"), ("crown", "unicas or crown")],
)
def test_guess__knows_the_networks_that_differ_from_timms(name, said):
    plugin, entry = catalogue.entries()[name]
    request = TrunkRequest(
        name=name, model=entry.model, builder=entry.builder, patch_px=16, img_px=64, h=None,
        irpe=True,
    )  # fmt: skip
    with torch.device("meta"):
        state = registry.encoders.load(plugin).trunk(request).network(0.0).state_dict()
    found = likeness.guess({f"a.{k}": v for k, v in state.items()}, layouts.timm_name)
    assert found == said


def test_load_encoder__our_own_file_is_not_told_that_it_looks_like_what_it_does_not_fit():
    path = catalogue.entries()["cytofm-tiny"][1].shipped
    with pytest.raises(WeightsError, match="36 unexpected") as caught:
        load_encoder("timm/vit_tiny_patch16_224", weights=path, device="cpu")
    assert caught.value.hint == "it looks like sr-vit-tiny"


def test_guess__says_nothing_of_what_it_does_not_know():
    assert likeness.guess(_filled(1), layouts.timm_name) is None
    assert likeness.guess({"x": torch.ones(2)}, layouts.timm_name) is None
