"""Nuclei-Centred Perturbation: keep nuclei and what surrounds them, shuffle the rest.

Algorithm 1 of Cyto-SSL (AAAI 2026) in two presets. `paper` is the algorithm as printed; `safe`
removes the shortcuts that it leaves open. The text is ambiguous in places; these are the
readings of its words, each a setting of `NcpConfig`:

| the paper's words | `paper` | `safe` | other readings |
|---|---|---|---|
| "randomly retain part of the nucleus" | `keep="subset"`: a random non-empty subset of the nuclei | same | `all` (Algorithm 1 to the letter), `single` (one nucleus a view), `piece` (half the disk of one nucleus) |
| "outside radius r" | `region="disk"`: disks of 12.5 µm (50 px at 40×) around centroids, united with the nucleus masks where given | same | `boundary`: 12.5 µm from the mask's edge |
| "shuffle pixels" | `fill="pixels"`: one permutation of whole RGB triplets over everything outside | same | `blocks`, `window` (shuffled within windows), `mean`, `blur` |
| same noise for all views? | `redraw="image"`: once an image | `redraw="view"`: subset and noise anew for each view | `noise`: one subset an image, noise anew for each view |
| no nucleus found | `without_nuclei="plain"`: ordinary multi-crop, nothing perturbed, counted | same | `drop` |

`safe` further moves each centre by up to `centre_jitter` of the view's side, feathers the hard
edge over `feather_um`, and leaves a view unperturbed with `clean_probability`. Feathering gives
each row of a disk radii of its own, so that a pixel is kept with a probability that falls
linearly across the edge; nothing is blended, so the shuffle stays an exact permutation.

Perturb before crop and resize, at the tile's own resolution: radii are physical.
"""  # noqa: E501 - a table cannot be wrapped

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cytofm_cli.config import Settings, option
from cytofm_cli.views.config import Fill, Keep, Redraw, Region, WithoutNuclei


@dataclass(frozen=True, kw_only=True)
class NcpConfig(Settings):
    """How nuclei guide the views. The defaults are the `safe` preset."""

    keep: Keep = option("subset", "which nuclei survive")
    keep_fraction: float = option(
        0.5, "probability that a nucleus survives (at least one does)", low=0, high=1
    )
    region: Region = option("disk", "from where the radius counts")
    radius_um: float = option(12.5, "what is kept around a nucleus, µm", low=0)
    fill: Fill = option("pixels", "what replaces the rest")
    block_px: int = option(16, "side of blocks and windows, tile pixels", low=2)
    redraw: Redraw = option("view", "what is drawn anew for each view")
    feather_um: float = option(2.0, "width of the feathered edge, µm", low=0)
    clean_probability: float = option(0.25, "share of unperturbed views", low=0, high=1)
    centred: bool = option(True, "centre views on kept nuclei")
    centre_jitter: float = option(
        0.1, "largest shift of a centre, as a share of the view's side", low=0, high=1
    )
    without_nuclei: WithoutNuclei = option("plain", "what a tile without nuclei becomes")


PRESETS: Final[dict[str, NcpConfig]] = {
    "paper": NcpConfig(redraw="image", feather_um=0.0, clean_probability=0.0, centre_jitter=0.0),
    "safe": NcpConfig(),
    "none": NcpConfig(keep="all", fill="none", centred=False),
}
