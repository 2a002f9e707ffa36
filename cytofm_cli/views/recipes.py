"""View sets of the self-supervised methods, as their official code has them.

| | views | colour, in `natural` |
|---|---|---|
| `dino` | 2 × 224 (0.4 – 1) + 8 × 96 (0.05 – 0.4) | jitter .4/.4/.2/.1, grey .2, blur 1/.1/.5, solarise 0/.2/0 |
| `ibot` | 2 × 224 (0.25 – 1) + 10 × 96 (0.05 – 0.25) | same |
| `dinov2` | 2 × 224 (0.32 – 1) + 8 × 96 (0.05 – 0.32); 98 px for patches of 14 | same |
| `moco` (v3), `byol` | 2 × 224 (0.08 – 1) | same, first two columns |
| `simclr` | 2 × 224 (0.08 – 1) | jitter .8/.8/.8/.2, grey .2, blur .5 |
| `distill` | 2 × 224 (0.4 – 1), and the first one's crop (or the whole tile) unchanged, for the teacher | as `dino`; none |

Scales are shares of the tile's area. `cytology` colours, the default, keep brightness, contrast,
saturation and blur; they leave out greyscale, solarise and hue, which stains do not do, and
have stain jitter in optical density and all eight turns instead (our choice; ablate). With
`stain_of` "channels" it scales and shifts each channel, of every view.
Numbers: facebookresearch/dino, bytedance/ibot, facebookresearch/dinov2, facebookresearch/moco-v3,
arXiv:2002.05709, arXiv:2006.07733.
"""  # noqa: E501 - a table cannot be wrapped

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cytofm_cli.config import field_types, resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.views.augment import IDENTITY, IMAGENET_MEAN, IMAGENET_STD, Augment
from cytofm_cli.views.config import StainOf, ViewsConfig
from cytofm_cli.views.ncp import PRESETS, NcpConfig


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """One view of a set.

    Attributes:
        size_px: side of the view.
        scale: range of the crop's area, as a share of the tile's.
        aspect: range of the crop's width / height, drawn log-uniformly.
        augment: what happens to it.
        crop_of: the number of another view, whose crop this one shows.
        untouched: nothing around nuclei is perturbed.
    """

    size_px: int
    scale: tuple[float, float]
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    augment: Augment = IDENTITY
    crop_of: int | None = None
    untouched: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A set of views, global ones first.

    Attributes:
        name: the method it belongs to.
        views: in the order of the output.
        n_global: how many of them the teacher sees.
        mean: normalisation per colour, of values in 0 … 1.
        std: likewise.
    """

    name: str
    views: tuple[ViewSpec, ...]
    n_global: int = 2
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def ncp_of(config: ViewsConfig) -> NcpConfig:
    """Return the preset with what the configuration changes in it."""
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(NcpConfig)}
    changed = {name: value for name, value in own.items() if value is not None}
    return dataclasses.replace(PRESETS[config.preset], **changed)


def recipe_of(config: ViewsConfig) -> Recipe:
    """Build the set of views that a configuration describes.

    Raises:
        UsageError: a view that is not a whole number of patches, or that the recipe has not.
    """
    global_scale, local_scale, n_local = _SCALES[config.recipe]
    global_scale = _range("global_scale", config.global_scale) or global_scale
    n_local = n_local if config.n_local is None else config.n_local
    if local_scale is not None:
        local_scale = _range("local_scale", config.local_scale) or local_scale
    if local_scale is None and n_local:
        raise UsageError(
            f"recipe {config.recipe!r} has no local views.", hint="use dino, ibot or dinov2"
        )
    patch = config.patch_px
    local_px = config.local_px or round(96 / patch) * patch
    for name, size in (("global_px", config.global_px), ("local_px", local_px)):
        if size % patch and (name == "global_px" or n_local):
            near = max(patch, round(size / patch) * patch)
            raise UsageError(
                f"[views] {name} = {size} is no multiple of the patch ({patch} px).",
                hint=f"{name} = {near}",
            )
    first, second, local = _augments(config)
    aspect = ViewSpec.aspect if config.aspect is None else _aspect(config.aspect)
    views = [
        ViewSpec(size_px=config.global_px, scale=global_scale, aspect=aspect, augment=augment)
        for augment in (first, second)
    ]
    if local_scale is not None:
        one = ViewSpec(size_px=local_px, scale=local_scale, aspect=aspect, augment=local)
        views += [one] * n_local
    if config.recipe == "distill":
        views.append(_of_teacher(config, global_scale))
    elif config.teacher_px is not None:
        raise UsageError(
            f"recipe {config.recipe!r} has no view for a frozen teacher.", hint="use distill"
        )
    return Recipe(name=config.recipe, views=tuple(views))


def same_views(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two records of settings come to the same views, however they were typed."""
    made = []
    for record in (one, other):
        known = {key: value for key, value in record.items() if key in field_types(ViewsConfig)}
        config = resolve(ViewsConfig, ViewsConfig.SECTION, known)
        made.append((recipe_of(config), ncp_of(config)))
    return made[0] == made[1]


def _of_teacher(config: ViewsConfig, global_scale: tuple[float, float]) -> ViewSpec:
    """Return what the frozen teacher of a distillation sees."""
    if config.teacher_px is None:
        return ViewSpec(size_px=config.global_px, scale=global_scale, crop_of=0)
    return ViewSpec(size_px=config.teacher_px, scale=(1, 1), aspect=(1, 1), untouched=True)


_SCALES: Final[dict[str, tuple[tuple[float, float], tuple[float, float] | None, int]]] = {
    "simclr": ((0.08, 1.0), None, 0),
    "distill": ((0.4, 1.0), None, 0),
    "moco": ((0.08, 1.0), None, 0),
    "byol": ((0.08, 1.0), None, 0),
    "dino": ((0.4, 1.0), (0.05, 0.4), 8),
    "ibot": ((0.25, 1.0), (0.05, 0.25), 10),
    "dinov2": ((0.32, 1.0), (0.05, 0.32), 8),
}


def _range(name: str, given: tuple[float, ...] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    if len(given) != 2 or not 0 < given[0] <= given[1] <= 1:
        raise UsageError(
            f"[views] {name} = {given}: two shares, 0 < low ≤ high ≤ 1.", hint=f"{name} = 0.25,1"
        )
    return given[0], given[1]


def _aspect(given: tuple[float, ...]) -> tuple[float, float]:
    if len(given) != 2 or not 0 < given[0] <= given[1]:
        raise UsageError(
            f"[views] aspect = {given}: two ratios, 0 < low ≤ high.", hint="aspect = 0.9,1.1"
        )
    return given[0], given[1]


_STAIN: Final[dict[StainOf, dict[str, Any]]] = {
    "stains": {"stain": (0.15, 0.02), "stain_p": 0.8},
    "channels": {"stain": (0.15, 0.0375), "stain_p": 1.0, "stain_of": "channels"},
}


def _augments(config: ViewsConfig) -> tuple[Augment, Augment, Augment]:
    """Return the augmentations of the first and second global view and of local views."""
    if config.colours != "cytology":
        _refuse_stain(config)
    if config.colours == "none":
        return (Augment(flip=(0.5, 0.5), transpose=0.5),) * 3
    strength = config.colour_strength
    stain = strength if config.stain_strength is None else config.stain_strength
    first, second, local = (_weakened(of, strength, stain) for of in _full_augments(config))
    return first, second, local


def _refuse_stain(config: ViewsConfig) -> None:
    """Refuse settings of stains beside colours that leave them as they are."""
    for name, default in (("stain_strength", None), ("stain_of", "stains")):
        value = getattr(config, name)
        if value != default:
            said = f"{value:g}" if isinstance(value, float) else value
            raise UsageError(
                f"[views] {name} = {said}: {config.colours!r} colours leave stains alone.",
                hint="colours = cytology",
            )


def _weakened(full: Augment, strength: float, stain_strength: float) -> Augment:
    """Shrink the ranges of jitter and stain, and the chances of blur, grey and solarising."""
    brightness, contrast, saturation, hue = (value * strength for value in full.jitter)
    factor, shift = (value * stain_strength for value in full.stain)
    return dataclasses.replace(
        full,
        jitter=(brightness, contrast, saturation, hue),
        stain=(factor, shift),
        blur_p=full.blur_p * strength,
        grey_p=full.grey_p * strength,
        solarise_p=full.solarise_p * strength,
    )


def _full_augments(config: ViewsConfig) -> tuple[Augment, Augment, Augment]:
    strong = config.recipe == "simclr"
    jitter = (0.8, 0.8, 0.8, 0.2) if strong else (0.4, 0.4, 0.2, 0.1)
    base = Augment(flip=(0.5, 0.0), jitter=jitter, jitter_p=0.8, grey_p=0.2, blur_p=0.5)
    if config.colours == "cytology":
        base = dataclasses.replace(
            base,
            flip=(0.5, 0.5),
            transpose=0.5,
            jitter=(*jitter[:3], 0.0),
            grey_p=0.0,
            **_STAIN[config.stain_of],
        )
    if strong:
        return base, base, base
    solarise_p = 0.2 if config.colours == "natural" else 0.0
    first = dataclasses.replace(base, blur_p=1.0)
    second = dataclasses.replace(base, blur_p=0.1, solarise_p=solarise_p)
    return first, second, base
