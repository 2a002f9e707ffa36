"""The published networks that timm rebuilds: the entries of the encoder `timm`.

Only models whose structure timm rebuilds to the published number of parameters are listed. Those
that tests/encoders/test_layouts_of_files.py names give, from files of random numbers in the
authors' layouts, the features of a float64 reference that knows no timm; UNI2-h, Virchow,
H-optimus, H0-mini, Phikon, Midnight and DINOv2/3 have no such reference. No published file was
ever loaded here.
None of the weights are fetched unless asked: the user passes the file.

Sources: model cards; timm; the normalisation constants are the authors'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cytofm_cli.encoders.entries import Entry, Triple

HALF: Final[tuple[Triple, Triple]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: Final[tuple[Triple, Triple]] = (
    (0.707223, 0.578729, 0.703617),
    (0.211883, 0.230117, 0.177517),
)
HIBOU: Final[tuple[Triple, Triple]] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: Final[tuple[Triple, Triple]] = (
    (0.70322989, 0.53606487, 0.66096631),
    (0.21716536, 0.26081574, 0.20723464),
)
_NC_ND: Final = "CC-BY-NC-ND-4.0"
_APACHE: Final = "Apache-2.0"
_SWIGLU: Final = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}
# Millions of parameters as published, rounded as there; a test builds each network and counts.
_MILLIONS: Final = {
    8.5: "resnet50-layer3",
    22: (
        "dinobloom-s dinov2-reg-s14 dinov2-s14 dinov3-s16 ibot-s16 kaiko-s16 kaiko-s8 lunit-s16 "
        "lunit-s8 reddino-s"
    ),
    85.7: "h0-mini",
    85.8: "cytofm phikon",
    86: (
        "dinobloom-b dinov2-b14 dinov2-reg-b14 dinov3-b16 hibou-b ibot-b16 kaiko-b16 kaiko-b8 "
        "reddino-b"
    ),
    303: (
        "dinobloom-l dinov2-l14 dinov2-reg-l14 dinov3-l16 gpfm hibou-l ibot-l16 kaiko-l14 "
        "phikon-v2 reddino-l smart-ccs uni"
    ),
    303.8: "crown unicas",
    631: "virchow virchow2",
    681: "uni2-h",
    1135: "dinobloom-g h-optimus-0 h-optimus-1 midnight openmidnight prov-gigapath",
}
_PARAMS_M: Final = {
    name: millions for millions, names in _MILLIONS.items() for name in names.split()
}
_SIZES: Final = (("small", 384), ("base", 768), ("large", 1024), ("giant", 1536))


def _vit(name: str, model: str, dim: int, licence: str, source: str, **more: Any) -> Entry:
    return Entry(
        name=name,
        model=model,
        dim=dim,
        licence=licence,
        source=source,
        params_m=_PARAMS_M[name],
        **more,
    )


def _pathology() -> Iterable[Entry]:
    large, huge, giant = "vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_dinov2"
    scale: dict[str, Any] = {"init_values": 1e-5}
    yield _vit("uni", large, 1024, _NC_ND, "MahmoodLab/UNI", builder=scale, gated=True)
    uni2 = {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 5.33334, "reg_tokens": 8}
    uni2 |= scale | {"no_embed_class": True} | _SWIGLU
    uni2_base = "vit_giant_patch14_224"
    yield _vit("uni2-h", uni2_base, 1536, _NC_ND, "MahmoodLab/UNI2-h", builder=uni2, gated=True)
    virchow: dict[str, Any] = {"mlp_ratio": 5.3375} | scale | _SWIGLU
    both: dict[str, Any] = {"pooling": "cls+mean", "gated": True}
    yield _vit("virchow", huge, 2560, "Apache-2.0", "paige-ai/Virchow", builder=virchow, **both)
    virchow2 = virchow | {"reg_tokens": 4}
    yield _vit("virchow2", huge, 2560, _NC_ND, "paige-ai/Virchow2", builder=virchow2, **both)
    yield _vit(
        "prov-gigapath",
        giant,
        1536,
        "Apache-2.0, with conditions of use",
        "prov-gigapath/prov-gigapath",
        builder={"patch_size": 16, "mlp_ratio": 5.33334} | scale,
        resize_px=256,
        gated=True,
    )
    optimus = "vit_giant_patch14_reg4_dinov2"
    bio: dict[str, Any] = {"norm": BIOPTIMUS, "builder": scale, "gated": True}
    yield _vit("h-optimus-0", optimus, 1536, "Apache-2.0", "bioptimus/H-optimus-0", **bio)
    yield _vit("h-optimus-1", optimus, 1536, _NC_ND, "bioptimus/H-optimus-1", **bio)
    bio["builder"] = {"mlp_ratio": 5.33334} | scale | _SWIGLU
    mini, terms = "vit_base_patch14_reg4_dinov2", f"{_NC_ND}, also for derived models"
    bio["note"] = "The class token alone; the authors also report it with the mean of the patches "
    bio["note"] += "(1536-d): --pooling cls+mean."
    yield _vit("h0-mini", mini, 768, terms, "bioptimus/H0-mini", **bio)


def _more_pathology() -> Iterable[Entry]:
    scale: dict[str, Any] = {"init_values": 1e-5}
    owkin = "Owkin non-commercial"
    base = "vit_base_patch16_224"
    yield _vit("phikon", base, 768, owkin, "owkin/phikon", interpolation="bilinear")
    large14 = "vit_large_patch14_dinov2"
    sixteen = {"patch_size": 16} | scale
    yield _vit("phikon-v2", large14, 1024, owkin, "owkin/phikon-v2", builder=sixteen)
    yield _vit("gpfm", large14, 1024, _NC_ND, "majiabo/GPFM", builder=scale)
    half: dict[str, Any] = {"norm": HALF, "mpp": None}
    midnight = half | {"pooling": "cls+mean", "builder": scale}
    yield _vit("midnight", "vit_giant_patch14_dinov2", 3072, "MIT", "kaiko-ai/midnight", **midnight)
    half["interpolation"] = "bilinear"
    for short, model, dim in (
        ("s16", "vit_small_patch16_224", 384),
        ("s8", "vit_small_patch8_224", 384),
        ("b16", base, 768),
        ("b8", "vit_base_patch8_224", 768),
        ("l14", "vit_large_patch14_reg4_dinov2", 1024),
    ):
        where = f"1aurent/{model}.kaiko_ai_towards_large_pathology_fms"
        yield _vit(f"kaiko-{short}", model, dim, "Kaiko non-commercial", where, **half)
    for size, dim in _SIZES[1:3]:
        model, where = f"vit_{size}_patch14_reg4_dinov2", f"histai/hibou-{size[0].upper()}"
        hibou: dict[str, Any] = {"norm": HIBOU, "builder": scale, "gated": True}
        yield _vit(f"hibou-{size[0]}", model, dim, _APACHE, where, **hibou)
    giant = "vit_giant_patch14_reg4_dinov2"
    yield _vit("openmidnight", giant, 1536, _APACHE, "SophontAI/OpenMidnight", builder=scale)
    for patch_px in (16, 8):
        model = f"vit_small_patch{patch_px}_224"
        where = f"github.com/lunit-io/benchmark-ssl-pathology, DINO, ViT-S/{patch_px}"
        yield _vit(f"lunit-s{patch_px}", model, 384, "Lunit non-commercial", where, norm=LUNIT)
    yield _vit(
        "resnet50-layer3",
        "resnet50",
        1024,
        "BSD-3-Clause",
        "torchvision's ResNet50_Weights.IMAGENET1K_V1, or timm/resnet50.tv_in1k",
        builder={"last_stage": 3},
        mpp=None,
        interpolation="bilinear",
        pooling="pool",
        note="The baseline of the MIL literature: the third of four stages, mean over places.",
    )


def _cytology() -> Iterable[Entry]:
    any_mpp: dict[str, Any] = {"mpp": None}
    base, terms = "vit_base_patch16_224", "none stated: do not redistribute"
    assumed = "Its normalisation is not published; ImageNet's is assumed."
    where = "arXiv:2504.13402, the authors' file"
    yield _vit("cytofm", base, 768, terms, where, note=assumed, **any_mpp)
    large, wide = "vit_large_patch16_224", {"mlp_ratio": 5.34375} | _SWIGLU
    unicas = {"init_values": 1e-5} | wide
    yield _vit("unicas", large, 1024, _APACHE, "jianght/UniCAS", builder=unicas)
    crown = any_mpp | {"builder": {"init_values": 1.0} | wide, "note": assumed}
    yield _vit("crown", large, 1024, _APACHE, "LexieK/Crown", **crown)
    scale: dict[str, Any] = any_mpp | {"builder": {"init_values": 1e-5}}
    ccs = scale | {"norm": HALF, "resize_px": 244}
    terms = "Apache-2.0 with the weights, GPL-3.0 with the code"
    large14 = "vit_large_patch14_dinov2"
    yield _vit("smart-ccs", large14, 1024, terms, "github.com/hjiangaz/Smart-CCS", **ccs)
    for size, dim in _SIZES:
        model, letter = f"vit_{size}_patch14_dinov2", size[0]
        yield _vit(f"dinobloom-{letter}", model, dim, _APACHE, "MarrLab/DinoBloom", **scale)
        if size != "giant":
            terms = "Apache-2.0 (its card); non-commercial (its configuration)"
            where = f"Snarcy/RedDino-{size}"
            yield _vit(f"reddino-{letter}", model, dim, terms, where, **scale)


def _natural_images() -> Iterable[Entry]:
    any_mpp: dict[str, Any] = {"mpp": None}
    resized = "Trained at 518 px; here it sees 224, and its positions are resized: --input-px 518."
    for size, dim in _SIZES[:3]:
        letter = size[0]
        plain = f"vit_{size}_patch16_224"
        code = "Apache-2.0 (code)"
        yield _vit(f"ibot-{letter}16", plain, dim, code, "arXiv:2111.07832", **any_mpp)
        for tag, name in (("", f"dinov2-{letter}14"), ("reg4_", f"dinov2-reg-{letter}14")):
            model = f"vit_{size}_patch14_{tag}dinov2.lvd142m"
            yield _vit(name, model, dim, _APACHE, f"timm/{model}", note=resized, **any_mpp)
        model = f"vit_{size}_patch16_dinov3.lvd1689m"
        third = any_mpp | {"input_px": 256, "gated": True}
        yield _vit(f"dinov3-{letter}16", model, dim, "DINOv3 licence", f"timm/{model}", **third)


PUBLISHED: Final = (*_cytology(), *_natural_images(), *_pathology(), *_more_pathology())
