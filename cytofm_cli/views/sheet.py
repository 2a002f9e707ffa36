"""Draw a contact sheet on which a person can judge the views.

A strip per tile: the tile in its margin with the nuclei (kept: green, dropped: red), the edge of
what is kept and the boxes of the views (global: yellow, local: blue, numbered); the perturbed
tile that the first perturbed view was cut from; then all views as the encoder gets them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.pictures.colours import BLUE, GREEN, INK, RED, YELLOW
from cytofm_cli.pictures.shapes import cross, edge, rectangle
from cytofm_cli.pictures.sheet import below, beside, labelled
from cytofm_cli.pictures.text import text_line, write
from cytofm_cli.views import draws, pixels
from cytofm_cli.views.make import ViewSet, make_views
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import Recipe
from cytofm_cli.views.render import perturbation_of
from cytofm_cli.views.scene import build_scene

Image = NDArray[np.uint8]
_KEPT, _DROPPED, _GLOBAL, _LOCAL = GREEN, RED, YELLOW, BLUE
_PANEL_PX: Final = 512


def contact_sheet(
    tile_BCHW: Tensor,
    xy_BM2: NDArray[np.float64],
    valid_BM: NDArray[np.bool_],
    *,
    recipe: Recipe,
    ncp: NcpConfig,
    mpp: float,
    keys_B: draws.Keys,
    label_BHW: Tensor | None = None,
    margin_px: int = 0,
    title: str = "",
) -> Image:
    """Make the views of some tiles and draw them: uint8 (H, W, 3).

    Args are those of `make_views`, with the tiles on the host, and a title.
    """
    made = make_views(
        tile_BCHW, xy_BM2, valid_BM, recipe=recipe, ncp=ncp, mpp=mpp, keys_B=keys_B,
        label_BHW=label_BHW, margin_px=margin_px,
    )  # fmt: skip
    strips = []
    for row, b in enumerate(made.row_B.tolist()):
        one = slice(b, b + 1)
        label = None if label_BHW is None else label_BHW[one]
        v = _shown_view(made, row)
        scene = build_scene(tile_BCHW[one], torch.from_numpy(xy_BM2[one]), ncp, mpp, label)
        words_1HW, outside_1N = perturbation_of(scene, made.plan.part(slice(row, row + 1)), ncp, v)
        outside_HW = outside_1N.view(words_1HW.shape[1:]).numpy()
        tile = _panel(tile_BCHW[one], outside_HW, made, row, xy_BM2[b], valid_BM[b], recipe, v)
        if margin_px:
            _tile_edge(tile, margin_px / tile_BCHW.shape[-1])
        after = _fit(_to_image(pixels.unpack(words_1HW)[0]))
        text = f"what view {v + 1} is cut from" if not made.plan.clean_BV[row, v] else "clean"
        panels = [labelled(tile, f"tile {b + 1}: nuclei and views"), labelled(after, text)]
        strips.append(beside([*panels, *_views(made, row, recipe)]))
    head = [text_line(title or _settings(recipe, ncp, mpp)), *_legend()]
    return below([*head, *strips])


def to_rgb(view_CSS: Tensor, recipe: Recipe) -> Image:
    """Undo the normalisation of one view: uint8 (S, S, 3)."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (recipe.mean, recipe.std))
    return _to_image((view_CSS.cpu() * std + mean).mul(255).round().clamp(0, 255))


def _shown_view(made: ViewSet, row: int) -> int:
    """Return the first perturbed view, or the first."""
    return int(np.flatnonzero(~made.plan.clean_BV[row])[:1].sum())


def _panel(
    tile_1CHW: Tensor,
    outside_HW: NDArray[np.bool_],
    made: ViewSet,
    row: int,
    xy_M2: NDArray[np.float64],
    valid_M: NDArray[np.bool_],
    recipe: Recipe,
    view: int,
) -> Image:
    image = _to_image(tile_1CHW[0])
    scale = min(1.0, _PANEL_PX / max(image.shape[:2]))
    canvas = _fit(image)
    if not made.plan.clean_BV[row, view]:
        edge(canvas, outside_HW, _KEPT)
    for v in reversed(range(len(recipe.views))):
        colour = _GLOBAL if v < recipe.n_global else _LOCAL
        x, y, w, h = (int(side * scale) for side in made.plan.boxes_BV4[row, v])
        rectangle(canvas, x, y, w, h, colour)
        write(canvas, str(v + 1), x + 4, y + 2, colour, halo=True)
    for m in np.flatnonzero(valid_M):
        kept = made.plan.kept_BVM[row, view, m]
        x, y = (int(side * scale) for side in xy_M2[m])
        cross(canvas, x, y, _KEPT if kept else _DROPPED)
    return canvas


def _tile_edge(canvas: Image, share: float) -> None:
    """Draw where the tile ends and its margin begins."""
    height, width = canvas.shape[:2]
    x, y = round(share * width), round(share * height)
    rectangle(canvas, x, y, width - 2 * x, height - 2 * y, INK)


def _views(made: ViewSet, row: int, recipe: Recipe) -> list[Image]:
    """Lay out the views of a tile: global ones in a column, local ones in columns of four."""
    columns: list[list[Image]] = []
    for first, last, rows in (
        (0, recipe.n_global, 2),
        (recipe.n_global, len(recipe.views), 4),
    ):
        for start in range(first, last, rows):
            column = []
            for v in range(start, min(last, start + rows)):
                kind = "global" if v < recipe.n_global else "local"
                kind = "clean" if made.plan.clean_BV[row, v] else kind
                picture = to_rgb(made.views[v][row], recipe)
                column.append(labelled(picture, f"{v + 1} {kind}"))
            columns.append(column)
    return [below(column, margin=False) for column in columns]


def _settings(recipe: Recipe, ncp: NcpConfig, mpp: float) -> str:
    parts = [recipe.name, f"keep {ncp.keep}", f"fill {ncp.fill}", f"redraw {ncp.redraw}"]
    parts += [f"radius {ncp.radius_um:g} um = {ncp.radius_um / mpp:.0f} px"]
    return " / ".join([*parts, f"clean {ncp.clean_probability:.0%}"])


def _legend() -> list[Image]:
    items = [("+ kept nucleus", _KEPT), ("+ dropped nucleus", _DROPPED)]
    items += [("= edge of what is kept", _KEPT), ("= global view", _GLOBAL)]
    items += [("= local view", _LOCAL), ("= tile", INK)]
    return [beside([text_line(text, colour) for text, colour in items])]


def _to_image(rgb_CHW: Tensor) -> Image:
    return np.ascontiguousarray(rgb_CHW.to(torch.uint8).permute(1, 2, 0).numpy())


def _fit(image: Image) -> Image:
    """Shrink an image to the panel's size, if it is larger."""
    height, width = image.shape[:2]
    scale = _PANEL_PX / max(height, width)
    if scale >= 1:
        return image.copy()
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return _to_image(small[0].round())
