"""Draw the pictures of docs/simulate.md: every kind of cell, and every preset on its glass.

    python docs/make_simulate_sheets.py

Writes docs/simulate-cells.jpg and docs/simulate-presets.jpg.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.cohort import Slide, make_cohort
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.optics import expose, look
from cytofm_cli.simulate.paint import paint
from cytofm_cli.simulate.preset import Dirt, Preset, load_preset
from cytofm_cli.simulate.render import Scene, render
from cytofm_cli.simulate.shapes import grow

HERE = Path(__file__).parent
PRESETS = ("pap", "lbc", "blood", "giemsa", "fluorescence")
DEFOCUS_UM = 4.0
GAP, LINE = 8, 18  # between pictures, and for a line of text, px
CELL_PX, PANEL_PX, A_ROW = 200, 152, 5  # of the slide, of the sheet
CROP_PX, WHOLE_PX, REDUCED = 384, 3072, 8
# The font of Pillow has no Greek: um is µm.
PAPER, INK = (255, 255, 255), (20, 20, 20)


def main() -> None:
    presets = {name: load_preset(name) for name in PRESETS}
    save(cells_sheet(presets), HERE / "simulate-cells.jpg")
    save(presets_sheet(presets), HERE / "simulate-presets.jpg")


def save(sheet: Image.Image, path: Path) -> None:
    sheet.save(path, quality=82, optimize=True)


def cells_sheet(presets: dict[str, Preset]) -> Image.Image:
    """Draw each kind of cell twice: in focus, and out of it."""
    block_w, block_h = 2 * PANEL_PX + GAP, PANEL_PX + LINE + GAP
    rows = {name: -(-len(preset.kinds) // A_ROW) for name, preset in presets.items()}
    height = sum(LINE + GAP + n * block_h for n in rows.values()) + GAP
    sheet = Image.new("RGB", (A_ROW * block_w + GAP, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), GAP
    for name, preset in presets.items():
        title = f"{name}, {CELL_PX * preset.mpp:g} um a side: {preset.summary}"
        title += f" (left in focus, right {DEFOCUS_UM:g} um out of it)"
        write(draw, (GAP, y), title, 15)
        y += LINE + GAP
        for i, (kind, of) in enumerate(preset.kinds.items()):
            x, top = GAP + i % A_ROW * block_w, y + i // A_ROW * block_h
            write(draw, (x, top), kind if kind == of.group else f"{kind} ({of.group})", 12)
            for side, focus_um in enumerate((0.0, DEFOCUS_UM)):
                picture = one_cell(preset, kind, seed=i, focus_um=focus_um)
                sheet.paste(picture, (x + side * PANEL_PX, top + LINE))
        y += rows[name] * block_h
    return sheet


def one_cell(preset: Preset, kind: str, seed: int, focus_um: float) -> Image.Image:
    """Draw one cell alone on clean glass."""
    side = CELL_PX
    cell = Cell(x=side / 2, y=side / 2, kind=kind, angle=0.4, z_um=0.0, seed=1000 + seed)
    patch = paint(cell, grow(cell, preset), preset, focus_um=focus_um)
    reach = 4 * side  # room for what is larger than the panel
    amounts = np.zeros((len(preset.dyes), side + 2 * reach, side + 2 * reach), np.float32)
    h, w = patch.amounts.shape[1:]
    top, left = reach + patch.y0, reach + patch.x0
    amounts[:, top : top + h, left : left + w] = patch.amounts
    amounts = amounts[:, reach : reach + side, reach : reach + side]
    usual = look(preset, 0, 0, 0)
    clean = np.zeros((3, side, side), np.float32)
    rgb = expose(amounts, clean, usual, preset, (0, 0, side, side), 0)
    return Image.fromarray(rgb).resize((PANEL_PX - 2, PANEL_PX - 2), Image.Resampling.LANCZOS)


def presets_sheet(presets: dict[str, Preset]) -> Image.Image:
    """Draw each preset on clean and dirty glass, out of focus, and with what may lie across."""
    columns: dict[str, Callable[[Preset], Image.Image]] = {
        "clean glass": lambda preset: crop(replace(preset, dirt=Dirt()), plane=1),
        "its own dirt": lambda preset: crop(preset, plane=1),
        f"the same, {DEFOCUS_UM:g} um out of focus": lambda preset: crop(preset, plane=2),
        f"bubble, pen and edge, at 1/{REDUCED}": whole,
    }
    step = CROP_PX + GAP
    size = (len(columns) * step + GAP, len(presets) * (step + LINE) + LINE + 2 * GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        write(draw, (GAP + column * step, GAP), title, 15)
    for row, (name, preset) in enumerate(presets.items()):
        y = LINE + 2 * GAP + row * (step + LINE)
        bar = round(10 / preset.mpp)
        write(draw, (GAP + bar + GAP, y), f"10 um; {name}, {preset.mpp:g} um/px", 13)
        draw.line([(GAP, y + 9), (GAP + bar, y + 9)], fill=INK, width=3)
        for column, make in enumerate(columns.values()):
            sheet.paste(make(preset), (GAP + column * step, y + LINE))
    return sheet


def crop(preset: Preset, plane: int) -> Image.Image:
    slide = positive(preset, 1024)
    box = (320, 320, 320 + CROP_PX, 320 + CROP_PX)
    return Image.fromarray(render(slide, preset, box, plane))


def whole(preset: Preset) -> Image.Image:
    marks = replace(preset.dirt, bubbles=1.0, pen=1.0, coverslip=1.0)
    scene = Scene(positive(preset, WHOLE_PX), replace(preset, dirt=marks))
    return Image.fromarray(scene.pixels((0, 0, WHOLE_PX, WHOLE_PX), 1)).reduce(REDUCED)


def positive(preset: Preset, size_px: int) -> Slide:
    """Return a slide of a patient with many abnormal cells, of three planes."""
    config = SimulateConfig(
        patients=8, slides_per_patient=1, size_px=size_px, planes=3, plane_um=DEFOCUS_UM,
        abnormal_share=0.3, seed=1,
    )  # fmt: skip
    cohort = make_cohort(config, preset)
    return max(cohort, key=lambda slide: (slide.label != preset.negative, slide.share))


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int) -> None:
    draw.text(at, text, fill=INK, font=ImageFont.load_default(size))


if __name__ == "__main__":
    main()
