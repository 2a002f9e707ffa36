"""The published networks that timm rebuilds: the entries of the encoder `timm`.

Only models whose structure timm rebuilds to the published number of parameters are listed;
numeric parity with the authors' own code is not tested here. None of the weights are fetched
unless asked: the user passes the file.

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
_NC_ND: Final = "CC-BY-NC-ND-4.0"
_SWIGLU: Final = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}


def _vit(name: str, model: str, dim: int, licence: str, source: str, **more: Any) -> Entry:
    return Entry(name=name, model=model, dim=dim, licence=licence, source=source, **more)


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
    yield _vit("h0-mini", mini, 768, terms, "bioptimus/H0-mini", **bio)
    owkin = "Owkin non-commercial"
    base = "vit_base_patch16_224"
    yield _vit("phikon", base, 768, owkin, "owkin/phikon", interpolation="bilinear")
    large14 = "vit_large_patch14_dinov2"
    sixteen = {"patch_size": 16} | scale
    yield _vit("phikon-v2", large14, 1024, owkin, "owkin/phikon-v2", builder=sixteen)
    yield _vit("gpfm", large14, 1024, _NC_ND, "majiabo/GPFM", builder=scale)
    half: dict[str, Any] = {"norm": HALF, "mpp": None}
    midnight = half | {"pooling": "cls+mean", "builder": scale}
    yield _vit("midnight", giant, 3072, "MIT", "kaiko-ai/midnight", **midnight)
    half["interpolation"] = "bilinear"
    for short, model, dim in (
        ("s16", "vit_small_patch16_224", 384),
        ("s8", "vit_small_patch8_224", 384),
        ("b16", base, 768),
        ("b8", "vit_base_patch8_224", 768),
        ("l14", "vit_large_patch14_reg4_dinov2", 1024),
    ):
        where = f"1aurent/{model}.kaiko_ai_towards_large_pathology_fms"
        yield _vit(f"kaiko-{short}", model, dim, "not stated", where, **half)


def _cytology_and_natural_images() -> Iterable[Entry]:
    any_mpp: dict[str, Any] = {"mpp": None}
    base, terms = "vit_base_patch16_224", "none stated: do not redistribute"
    yield _vit("cytofm", base, 768, terms, "arXiv:2504.13402, the authors' file", **any_mpp)
    for size, dim in (("small", 384), ("base", 768), ("large", 1024)):
        letter = size[0]
        plain = f"vit_{size}_patch16_224"
        code = "Apache-2.0 (code)"
        yield _vit(f"ibot-{letter}16", plain, dim, code, "arXiv:2111.07832", **any_mpp)
        for tag, name in (("", f"dinov2-{letter}14"), ("reg4_", f"dinov2-reg-{letter}14")):
            model = f"vit_{size}_patch14_{tag}dinov2.lvd142m"
            yield _vit(name, model, dim, "Apache-2.0", f"timm/{model}", **any_mpp)
        model = f"vit_{size}_patch16_dinov3.lvd1689m"
        third = any_mpp | {"input_px": 256, "gated": True}
        yield _vit(f"dinov3-{letter}16", model, dim, "DINOv3 licence", f"timm/{model}", **third)


PUBLISHED: Final = (*_cytology_and_natural_images(), *_pathology())
