"""Settings of the views; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

from cytofm_cli.config import Settings, option

RecipeName = Literal["simclr", "moco", "byol", "dino", "ibot", "dinov2", "distill"]
StainOf = Literal["stains", "channels"]
RECIPES: Final[tuple[RecipeName, ...]] = get_args(RecipeName)
VERSION: Final = 3  # goes up when equal settings give other views; 3: other noise
# What `perturb.NcpConfig` says of each of these.
Keep = Literal["subset", "all", "single", "piece"]
Region = Literal["disk", "boundary"]
Fill = Literal["pixels", "blocks", "window", "mean", "blur", "none"]
Redraw = Literal["image", "noise", "view"]
WithoutNuclei = Literal["plain", "drop"]


@dataclass(frozen=True, kw_only=True)
class ViewSettings(Settings):
    """Settings of the views, whoever names their recipe.

    The fields from `keep` on change one setting of the preset each; see `NcpConfig`.
    """

    SECTION: ClassVar[str] = "views"

    # What is `Any` the subclasses say. It is declared here for its place in help and records.
    recipe: Any = None
    preset: Literal["paper", "safe", "none"] = option(
        "safe", "Algorithm 1 as printed, made safe, or no nuclei"
    )
    colours: Literal["cytology", "natural", "none"] = option("cytology", "colour changes")
    colour_strength: float = option(
        1.0, "how far colours and sharpness change, share of the recipe's", low=0, high=1
    )
    stain_strength: float | None = option(
        None,
        "how far stains change, as a multiple of the recipe's (default: colour_strength)",
        low=0,
        high=4,
    )
    stain_of: StainOf = option(
        "stains",
        "what changes in optical density: unmixed stains (haematoxylin, eosin, DAB) or channels",
    )
    aspect: tuple[float, ...] | None = option(
        None, "range of a view's width / height before it is made square (default: 0.75,1.333)"
    )
    patch_px: Any = None
    global_px: Any = None
    global_scale: tuple[float, ...] | None = option(
        None, "range of a global view's area, share of the tile (default: the recipe's)"
    )
    local_scale: tuple[float, ...] | None = option(
        None, "likewise for local views (default: the recipe's)"
    )
    n_local: int | None = option(None, "number of local views (default: the recipe's)", low=0)
    local_px: int | None = option(None, "side of a local view (default: near 96)", low=14)
    teacher_px: int | None = option(
        None,
        "distill: side of whole tiles for its teacher, instead of the first crop",
        low=14,
    )
    keep: Keep | None = option(None, "which nuclei survive")
    keep_fraction: float | None = option(None, "probability that a nucleus survives", low=0, high=1)
    region: Region | None = option(None, "from where the radius counts")
    radius_um: float | None = option(None, "what is kept around a nucleus, µm", low=0)
    fill: Fill | None = option(None, "what replaces the rest")
    block_px: int | None = option(None, "side of blocks and windows, tile pixels", low=2)
    redraw: Redraw | None = option(None, "what is drawn anew for each view")
    feather_um: float | None = option(None, "width of the dissolving edge, µm", low=0)
    clean_probability: float | None = option(None, "share of unperturbed views", low=0, high=1)
    centred: bool | None = option(None, "centre views on kept nuclei")
    centre_jitter: float | None = option(
        None, "largest shift of a centre, share of the view", low=0, high=1
    )
    without_nuclei: WithoutNuclei | None = option(None, "what a tile without nuclei becomes")


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(ViewSettings):
    """Settings of `cytofm views`: a set of views and what happens to them."""

    recipe: RecipeName = option("dino", "set of views")
    patch_px: int = option(16, "the encoder's patch; views are whole patches", low=1)
    global_px: int = option(224, "side of a global view", low=14)
