"""Settings of the views; importing them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from cytofm_cli.config import option

RECIPES: Final = ("simclr", "moco", "byol", "dino", "ibot", "dinov2", "distill")
VERSION: Final = 2  # goes up when equal settings give other views; 2: over the edges of tiles
PRESET_NAMES: Final = ("paper", "safe", "none")  # the keys of `perturb.PRESETS`


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Settings of `cytofm views` and of the views in `cytofm pretrain`.

    The fields from `keep` on change one setting of the preset each; see `NcpConfig`.
    """

    SECTION: ClassVar[str] = "views"

    recipe: str = option("dino", "set of views", choices=RECIPES)
    preset: str = option(
        "safe", "Algorithm 1 as printed, made safe, or no nuclei", choices=PRESET_NAMES
    )
    colours: str = option("cytology", "colour changes", choices=("cytology", "natural", "none"))
    colour_strength: float = option(
        1.0, "how far colours and sharpness change, share of the recipe's", low=0, high=1
    )
    aspect: tuple[float, ...] | None = option(
        None, "range of a view's width / height before it is made square (default: 0.75,1.333)"
    )
    patch_px: int = option(16, "the encoder's patch; views are whole patches", low=1)
    global_px: int = option(224, "side of a global view", low=14)
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
    keep: str | None = option(None, "subset, all, single or piece")
    keep_fraction: float | None = option(None, "probability that a nucleus survives")
    region: str | None = option(None, "disk or boundary")
    radius_um: float | None = option(None, "what is kept around a nucleus, µm", low=0)
    fill: str | None = option(None, "pixels, blocks, window, mean, blur or none")
    block_px: int | None = option(None, "side of blocks and windows, tile pixels", low=2)
    redraw: str | None = option(None, "image, noise or view")
    feather_um: float | None = option(None, "width of the dissolving edge, µm", low=0)
    clean_probability: float | None = option(None, "share of unperturbed views")
    centred: bool | None = option(None, "centre views on kept nuclei")
    centre_jitter: float | None = option(None, "largest shift of a centre, share of the view")
    without_nuclei: str | None = option(None, "plain or drop")
