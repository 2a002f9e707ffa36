"""The encoders known by name: what they are built from and what they expect.

An entry carries what the published weights need (architecture, normalisation, size, resize,
resolution, pooling) and under what licence they come. One, cytofm-tiny, ships with its weights;
of the others none are fetched unless asked: the user passes the file. Only models whose
structure timm rebuilds to the published number of parameters are listed; numeric parity with
the authors' own code is not tested here.

Sources: model cards; timm; the normalisation constants are the authors'.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cytofm_cli import registry
from cytofm_cli.encoders.base import Interpolation, Pooling
from cytofm_cli.encoders.weights import SUFFIXES, read_description
from cytofm_cli.errors import UsageError

Triple = tuple[float, float, float]

IMAGENET: Final[tuple[Triple, Triple]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Final[tuple[Triple, Triple]] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: Final[tuple[Triple, Triple]] = (
    (0.707223, 0.578729, 0.703617),
    (0.211883, 0.230117, 0.177517),
)
_NC_ND: Final = "CC-BY-NC-ND-4.0"
SHIPPED: Final = Path(__file__).parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One encoder that has a name.

    Attributes:
        name: what the user types.
        plugin: which plug-in opens it.
        model: which of the plug-in's models.
        dim: length of its vectors.
        builder: keyword arguments of the network.
        norm: mean and std, RGB in [0, 1].
        source: where its weights are published.
        gated: whether one must be granted access to them.
        needs_weights: whether the user must pass a file.
        any_weights: an architecture for weights from anywhere: nothing is known of them.
        shipped: the file of its weights, in `encoders/shipped/`; it describes itself.
        (others: see `EncoderSpec`)
    """

    name: str
    plugin: str = "timm"
    model: str
    dim: int
    builder: Mapping[str, Any] = field(default_factory=dict)
    norm: tuple[Triple, Triple] = IMAGENET
    input_px: int | None = 224
    resize_px: int | None = None
    mpp: float | None = 0.5
    interpolation: Interpolation = "bicubic"
    pooling: Pooling = "cls"
    licence: str
    source: str = ""
    gated: bool = False
    needs_weights: bool = True
    any_weights: bool = False
    shipped: str | None = None

    def expects(self) -> dict[str, Any]:
        """Return the fields of `EncoderSpec` that the entry fixes."""
        if self.any_weights:
            return {"dim": self.dim}
        return {
            "dim": self.dim,
            "input_px": self.input_px,
            "resize_px": self.resize_px,
            "mpp": self.mpp,
            "mean": self.norm[0],
            "std": self.norm[1],
            "interpolation": self.interpolation,
            "pooling": self.pooling,
            "licence": self.licence,
        }


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A name or file, traced to the plug-in that opens it."""

    name: str
    plugin: str
    model: str
    weights: Path | None
    builder: Mapping[str, Any]
    expects: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `cytofm encoders`; None means that it depends, or that any will do."""

    name: str
    dim: int | None
    input_px: int | None
    mpp: float | None
    licence: str
    needs_weights: bool
    gated: bool
    source: str


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


def _own() -> Iterable[Entry]:
    yield Entry(
        name="handcrafted",
        plugin="handcrafted",
        model="",
        dim=263,
        norm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        input_px=None,
        mpp=None,
        pooling="none",
        licence="Apache-2.0",
        needs_weights=False,
    )
    yield Entry(
        name="cytofm-tiny",
        plugin="sr_vit",
        model="tiny",
        dim=384,
        input_px=64,
        mpp=None,
        pooling="cls+mean",
        licence="Apache-2.0",
        source="ships with cytofm; for single cells",
        needs_weights=False,
        shipped="cytofm-tiny.safetensors",
    )
    for size, dim in (("tiny", 192), ("small", 384), ("base", 768)):
        for patch_px, suffix in ((16, ""), (14, "-p14")):
            yield Entry(
                name=f"sr-vit-{size}{suffix}",
                plugin="sr_vit",
                model=size,
                dim=dim,
                builder={"size": size, "patch_px": patch_px},
                mpp=None,
                licence="that of the weights",
                source="cytofm pretrain",
                any_weights=True,
            )


ENTRIES: Final[dict[str, Entry]] = {
    entry.name: entry
    for part in (_own, _cytology_and_natural_images, _pathology)
    for entry in part()
}


def describe() -> list[Row]:
    """List all encoders for `cytofm encoders`, without importing torch."""
    rows = [
        Row(
            name=entry.name,
            dim=entry.dim,
            input_px=entry.input_px,
            mpp=entry.mpp,
            licence=entry.licence,
            needs_weights=entry.needs_weights,
            gated=entry.gated,
            source=entry.source,
        )
        for entry in ENTRIES.values()
    ]
    known = {entry.plugin for entry in ENTRIES.values()} - {"timm"}
    others = [plugin for plugin in registry.encoders.names() if plugin not in known]
    rows += [
        Row(
            name=f"{plugin}/<name>" if plugin == "timm" else plugin,
            dim=None,
            input_px=None,
            mpp=None,
            licence="that of the weights",
            needs_weights=True,
            gated=False,
            source=plugin,
        )
        for plugin in others
    ]
    return rows


def resolve(name_or_file: str, *, weights: Path | None = None) -> Resolved:
    """Trace a name, or a file that names its own architecture, to its plug-in.

    Raises:
        UsageError: nothing is called that.
        WeightsError: the file does not say what it is.
    """
    if _is_file_name(name_or_file):
        if weights is not None:
            raise UsageError(
                f"{name_or_file} is a weight file, and {weights} another one.",
                hint="name an encoder with --encoder, and its file with --weights",
            )
        return _resolve_file(Path(name_or_file))
    entry = ENTRIES.get(name_or_file)
    if entry is not None and entry.shipped is not None:
        if weights is not None:
            raise UsageError(
                f"{entry.name} ships with its weights, and {weights} are others.",
                hint=f"--encoder {weights}",
            )
        return _resolve_file(SHIPPED / entry.shipped)
    if entry is not None:
        return Resolved(
            name=entry.name,
            plugin=entry.plugin,
            model=entry.model,
            weights=weights,
            builder=entry.builder,
            expects=entry.expects(),
        )
    plugin, _, model = name_or_file.partition("/")
    if plugin.replace("-", "_") not in registry.encoders.names() or (
        plugin == "timm" and not model
    ):
        known = [row.name for row in describe()]
        close = difflib.get_close_matches(name_or_file, known, n=2)
        within = Path(name_or_file) / "encoder.safetensors"
        if within.is_file():  # the RUN of `cytofm pretrain` for the file in it
            close = [str(within)]
        raise UsageError(
            f"no encoder is called {name_or_file!r}.",
            hint=f"did you mean {' or '.join(close)}?" if close else "cytofm encoders lists them",
        )
    return Resolved(
        name=name_or_file, plugin=plugin, model=model, weights=weights, builder={}, expects={}
    )


def _is_file_name(name: str) -> bool:
    return Path(name).suffix in SUFFIXES or (name not in ENTRIES and Path(name).is_file())


def _resolve_file(path: Path) -> Resolved:
    described = read_description(path)
    if _is_file_name(described.arch):
        raise UsageError(f"{path}: its architecture is another file ({described.arch}).")
    base = resolve(described.arch, weights=path)
    return Resolved(
        name=described.name,
        plugin=base.plugin,
        model=base.model,
        weights=path,
        builder={**base.builder, **described.config},
        expects={key: v for key, v in base.expects.items() if key == "dim"} | described.expects,
    )
