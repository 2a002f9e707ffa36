"""The structure of a cell in the stain of another slide, and what that costs.

A cell is noised half-way (SDEdit, Meng et al., arXiv:2108.01073) and drawn again under another
condition. Its own vector is moved by the difference of the slides' mean vectors, so that it stays
the cell it is on a slide of the other kind; or a certain cell of the other slide is the condition.

What stayed: Dice of the nucleus before and after. What changed: distance of the colours to the
other slide's. Beside each strength stand the cell as it is, and its colours moved only
(`likeness.in_colours_of`), which costs nothing; the other slide's cells against each other are
the least that a distance can be.

DIR/restained.png    a row a cell: itself, each strength, colours moved only, a cell of the other
    images/00000.png the images, marked as synthetic
    cells.csv        of each image: Dice, distance of colours
    metrics.json

Letters: C cells, S strengths, E width of the encoder's vector.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cytofm_cli.config import as_record
from cytofm_cli.errors import UsageError
from cytofm_cli.generate.asked import condition_encoder, read_like, size_of
from cytofm_cli.generate.file import Generator, read_generator
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.likeness import Mask, colour_distance, dice, in_colours_of, nucleus_of
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sample import Start, draw_images
from cytofm_cli.generate.some_cells import (
    Cells,
    Floats,
    Images,
    is_numbered,
    levels_of,
    some_cells,
    store_of,
    vectors_of,
)
from cytofm_cli.generate.synthetic import about_with_shapes
from cytofm_cli.generate.use_config import RestainConfig
from cytofm_cli.generate.use_folder import made_by, make_folder, png_text, write_images
from cytofm_cli.pictures.files import png_bytes, with_text
from cytofm_cli.pictures.sheet import below, beside
from cytofm_cli.pictures.strip import captioned, enlarged
from cytofm_cli.runs.folder import Kind, RunReport
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.work.device import find_device
from cytofm_cli.work.files import write_bytes, write_text

COMMAND: Final = "generate restain"
SECTION: Final = RestainConfig.SECTION
KIND: Final = Kind(f"cytofm {COMMAND}", frozenset({SECTION, "generator"}))
METRICS: Final = "metrics.json"
_SHOWN: Final = 8
_SHOWN_PX: Final = 128


@dataclass(frozen=True, eq=False)
class Restained:
    """What was made.

    Attributes:
        cells: STORE:NUMBER of each.
        cell_CHWC: themselves, uint8.
        image_SCHWC: at each strength, uint8.
        recoloured_CHWC: the cells with their colours moved only.
        own_NHWC: cells of the same slides, which stand for their colours.
        other_NHWC: cells of the other slide.
    """

    cells: tuple[str, ...]
    cell_CHWC: Images
    image_SCHWC: Images
    recoloured_CHWC: Images
    own_NHWC: Images
    other_NHWC: Images


def restain_run(
    run: Path,
    out: Path,
    config: RestainConfig,
    like: Sequence[str],
    stain: Sequence[str],
    *,
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunReport:
    """Draw cells in the stain of another slide, into a folder, complete or not at all.

    Args:
        run: RUN of `generate train`, or its file.
        out: the folder.
        config: how.
        like: STORE:NUMBER of cells, or STORE.
        stain: stores of the other slide, or STORE:NUMBER of one of its cells.
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what the user should know.
        progress: called with (images done, of how many).

    Raises:
        UsageError: the generator takes no vectors; several cells as one stain.
        InputError, StoreError: no such store or cell.
        ConfigMismatchError: `out` holds something else.
    """
    file, out = generator_of(run), out.absolute()
    generator = read_generator(file, ema=config.ema, vae_ema=config.vae_ema)
    record = {
        SECTION: as_record(config, results_only=True),
        "generator": {"sha256": sha256_file(file), "like": list(like), "stain": list(stain)},
    }
    _require_vectors(about_with_shapes(generator), stain)
    for line in generator.notes:
        note(line)

    def compute() -> Restained:
        return _restain(generator, config, like, stain, slides, progress)

    def write(staging: Path, made: Restained) -> None:
        _write(staging, made, config, about_with_shapes(generator), record)

    made = make_folder(KIND, out, record, compute, write, overwrite=overwrite)
    return RunReport(out, KIND.read_json(out, METRICS), skipped=made is None)


def _require_vectors(about: Mapping[str, Any], stain: Sequence[str]) -> None:
    kind = about["sit"]["condition"]["kind"]
    if kind != "encoder":
        raise UsageError(
            f"a stain is given as an encoder's vectors, and this generator's condition is {kind}.",
            hint="`cytofm generate train --condition encoder`",
        )
    if len(stain) > 1 and any(map(is_numbered, stain)):
        raise UsageError(
            "--stain: one cell (STORE:NUMBER), or whole stores.", hint="--stain stores/b.zarr"
        )


def _restain(
    generator: Generator,
    config: RestainConfig,
    like: Sequence[str],
    stain: Sequence[str],
    slides: Path | None,
    progress: Callable[[int, int], None],
) -> Restained:
    about = about_with_shapes(generator)
    where: dict[str, Any] = {"detector": config.detector, "slides": slides}
    encoder = condition_encoder(about, config.encoder)
    chosen = _cells_of(like, about, config.n, where)
    stores = sorted({store_of(word) for word in chosen.words})
    own = {store: some_cells([store], about, config.real_cells, **where) for store in stores}
    other = some_cells(
        sorted({store_of(word) for word in stain}), about, config.real_cells, **where
    )
    if is_numbered(stain[0]):
        told_E = vectors_of(encoder, read_like(stain[0], about, **where))[0]
        told_CE = np.tile(told_E, (len(chosen.words), 1))
    else:
        mean_of = {store: vectors_of(encoder, of.image_N3HW).mean(0) for store, of in own.items()}
        from_CE = np.stack([mean_of[store_of(word)] for word in chosen.words])
        told_CE = swapped(encoder, chosen.image_N3HW, from_CE, other.image_N3HW)
    cell_CHWC, other_NHWC = levels_of(chosen.image_N3HW), levels_of(other.image_N3HW)
    own_NHWC = np.concatenate([levels_of(of.image_N3HW) for of in own.values()])
    images = [
        draw_images(
            generator,
            torch.from_numpy(told_CE).float(),
            len(told_CE),
            config,
            find_device(config.device),
            start=Start(chosen.image_N3HW, strength),
            progress=lambda done, total, at=at: progress(  # type: ignore[misc]
                at * total + done, len(config.strength) * total
            ),
        )
        for at, strength in enumerate(config.strength)
    ]
    recoloured = in_colours_of(cell_CHWC, own_NHWC, other_NHWC)
    return Restained(chosen.words, cell_CHWC, np.stack(images), recoloured, own_NHWC, other_NHWC)


def _cells_of(
    like: Sequence[str], about: Mapping[str, Any], n: int, where: Mapping[str, Any]
) -> Cells:
    parts = [
        Cells(read_like(word, about, **where), (word,))
        if is_numbered(word)
        else some_cells([Path(word)], about, n, **where)
        for word in like
    ]
    words = tuple(word for part in parts for word in part.words)
    return Cells(torch.cat([part.image_N3HW for part in parts]), words)


def swapped(
    encoder: FrozenEncoder, cell_C3HW: Tensor, from_CE: Floats, other_N3HW: Tensor
) -> Floats:
    """Return the vectors of cells, moved from the mean of their slide to that of another."""
    to_E = vectors_of(encoder, other_N3HW).mean(0)
    return np.asarray(vectors_of(encoder, cell_C3HW) - from_CE + to_E)


def metrics_of(made: Restained, config: RestainConfig, mpp: float) -> dict[str, Any]:
    """Return what metrics.json says."""
    before = [nucleus_of(image, mpp, config.nucleus) for image in made.cell_CHWC]
    rows = {
        "as it is": _measured(made.cell_CHWC, before, made.other_NHWC, config, mpp),
        "colours moved only": _measured(made.recoloured_CHWC, before, made.other_NHWC, config, mpp),
    }
    for strength, images in zip(config.strength, made.image_SCHWC, strict=True):
        rows[f"{strength:g}"] = _measured(images, before, made.other_NHWC, config, mpp)
    return {
        "cells": len(made.cells),
        "with_nucleus": sum(mask is not None for mask in before),
        "nucleus": config.nucleus,
        "other_cells": len(made.other_NHWC),
        "floor": colour_distance(made.other_NHWC[::2], made.other_NHWC[1::2]),
        "slides_apart": colour_distance(made.own_NHWC, made.other_NHWC),
        "rows": rows,
    }


def _measured(
    images: Images,
    before: Sequence[Mask | None],
    other_NHWC: Images,
    config: RestainConfig,
    mpp: float,
) -> dict[str, Any]:
    after = [nucleus_of(image, mpp, config.nucleus) for image in images]
    there = [(a, b) for a, b in zip(before, after, strict=True) if a is not None]
    overlaps = [dice(a, b) for a, b in there]
    return {
        "dice": float(np.mean(overlaps)) if overlaps else None,
        "lost": float(np.mean([b is None for _, b in there])) if there else None,
        "colour": colour_distance(images, other_NHWC),
        "dice_of": [None if a is None else dice(a, b) for a, b in zip(before, after, strict=True)],
        "colour_of": [colour_distance(image[None], other_NHWC) for image in images],
    }


def _write(
    staging: Path,
    made: Restained,
    config: RestainConfig,
    about: Mapping[str, Any],
    record: Mapping[str, Mapping[str, Any]],
) -> None:
    mpp = (about.get("side_um") or size_of(about)) / size_of(about)
    told = made_by(COMMAND, record, SECTION)
    stain = ", ".join(record["generator"]["stain"])
    names = [
        f"{cell} in the stain of {stain}, strength {strength:g}"
        for strength in config.strength
        for cell in made.cells
    ]
    flat = made.image_SCHWC.reshape(-1, *made.image_SCHWC.shape[2:])
    files = write_images(staging, flat, told, names)
    metrics = metrics_of(made, config, mpp)
    write_text(staging / "cells.csv", _table(made, config, files, metrics))
    for row in metrics["rows"].values():
        del row["dice_of"], row["colour_of"]
    shown = f"cells in the stain of {stain}; first and last of each row are photographs"
    picture = with_text(png_bytes(_picture(made, config)), png_text(told, shown))
    write_bytes(staging / "restained.png", picture)
    write_text(staging / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False))


def _table(
    made: Restained, config: RestainConfig, files: Sequence[str], metrics: Mapping[str, Any]
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "cell", "how", "dice", "colour"])
    n = len(made.cells)
    file_of = {f"{s:g}": files[at * n : (at + 1) * n] for at, s in enumerate(config.strength)}
    for how, row in metrics["rows"].items():
        for at, cell in enumerate(made.cells):
            overlap = row["dice_of"][at]
            said = "" if overlap is None else f"{overlap:.6g}"
            file = file_of[how][at] if how in file_of else ""
            writer.writerow([file, cell, how, said, f"{row['colour_of'][at]:.6g}"])
    return text.getvalue()


def _picture(made: Restained, config: RestainConfig) -> Images:
    rows = []
    for at in range(min(_SHOWN, len(made.cells))):
        other = made.other_NHWC[at * len(made.other_NHWC) // _SHOWN]
        shown = [
            ("the cell", made.cell_CHWC[at]),
            *(
                (f"strength {strength:g}", images[at])
                for strength, images in zip(config.strength, made.image_SCHWC, strict=True)
            ),
            ("colours moved only", made.recoloured_CHWC[at]),
            ("of the other slide", other),
        ]
        rows.append(
            beside([captioned(enlarged(image, _SHOWN_PX), [word]) for word, image in shown])
        )
    return below(rows)
