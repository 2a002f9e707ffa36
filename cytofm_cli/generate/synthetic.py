"""Samples as files: PNGs that say what they are, and a store that all other commands read.

DIR/images/00000.png …   each says in its metadata that it is synthetic, and how it was made
    grid.png             the first of them, unpicked
    cells.csv            file, label, slide_id, mpp, condition
    DIR's name.zarr      the store; its record of the slide says `synthetic`
    config.toml          settings, generator, conditions
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import as_record
from cytofm_cli.generate.asked import Asked, ask, size_of
from cytofm_cli.generate.config import SampleConfig
from cytofm_cli.generate.file import Generator, read_generator
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sample import draw_images
from cytofm_cli.generate.use_folder import made_by, make_folder, write_images
from cytofm_cli.nuclei.given import keep_given
from cytofm_cli.pictures.files import save_png
from cytofm_cli.pictures.sheet import grid
from cytofm_cli.runs.folder import Kind
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.slides.cell_images import ImagePlace
from cytofm_cli.tiles.cell_run import tile_cells
from cytofm_cli.tiles.cells import CellImage, CellsJob, Sheet
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.work.device import find_device
from cytofm_cli.work.files import write_text

KIND: Final = Kind("cytofm generate sample", frozenset({"generate_sample", "generator"}))
TABLE: Final = "cells.csv"
_SHOWN: Final = 64  # images of the grid


@dataclass(frozen=True)
class SampleReport:
    """Samples in a folder.

    Attributes:
        path: the folder.
        store: their store.
        n: how many.
        skipped: they were there already, made with the same settings.
    """

    path: Path
    store: Path
    n: int
    skipped: bool


def sample_run(
    run: Path,
    out: Path,
    config: SampleConfig,
    *,
    like: Sequence[str] = (),
    of_class: str | None = None,
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampleReport:
    """Sample a generator into a folder, complete or not at all.

    Args:
        run: RUN of `generate train`, its generator, or a file of REPA-E.
        out: the folder.
        config: how.
        like: STORE:NUMBER of cells to be like.
        of_class: class to be of.
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what loading did.
        progress: called with (images done, of how many).

    Raises:
        UsageError, InputError, WeightsError: see `file`, `asked` and `sample`.
        ConfigMismatchError: `out` holds other samples.
    """
    device = find_device(config.device)
    file, out = generator_of(run), out.absolute()
    known = {"side_um": config.side_um, "unit": config.unit}
    generator = read_generator(file, ema=config.ema, vae_ema=config.vae_ema, about=known)
    record = {
        "generate_sample": as_record(config, results_only=True),
        "generator": {
            "sha256": sha256_file(file), "like": list(like), "of_class": of_class,
        },
    }  # fmt: skip
    about = about_with_shapes(generator)

    def compute() -> tuple[Asked, NDArray[np.uint8]]:
        for line in generator.notes:
            note(line)
        asked = ask(
            about, config.n, like=like, of_class=of_class,
            encoder=config.encoder, detector=config.detector, slides=slides,
        )  # fmt: skip
        given = asked.given
        return asked, draw_images(generator, given, config.n, config, device, progress=progress)

    def write(staging: Path, drawn: tuple[Asked, NDArray[np.uint8]]) -> None:
        _write(staging, out, drawn[1], drawn[0], about, record)

    drawn = make_folder(KIND, out, record, compute, write, overwrite=overwrite)
    return SampleReport(out, out / f"{out.name}.zarr", config.n, skipped=drawn is None)


def about_with_shapes(generator: Generator) -> dict[str, Any]:
    """Return what is known of a generator, sizes of a file that does not say them included."""
    sizes = {"vae": asdict(generator.vae.shape), "sit": asdict(generator.sit.shape)}
    return {**generator.about, **sizes}


def _write(
    staging: Path,
    out: Path,
    images: NDArray[np.uint8],
    asked: Asked,
    about: Mapping[str, Any],
    record: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write everything but config.toml into the staging folder."""
    mpp = (about.get("side_um") or size_of(about)) / size_of(about)
    made = made_by("generate sample", record, "generate_sample")
    said = [f"image {number}, condition: {word}" for number, word in enumerate(asked.words)]
    files = write_images(staging, images, made, said)
    shown = list(images[:_SHOWN])
    save_png(staging / "grid.png", grid(shown, math.ceil(math.sqrt(len(shown)))))
    write_text(staging / TABLE, _table(files, asked, out.name, mpp))
    _store(staging, out, files, asked, about, mpp, made)


def _table(files: Sequence[str], asked: Asked, name: str, mpp: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labelled = any(asked.labels)
    columns = ["file", *(["label"] if labelled else []), "slide_id", "mpp", "condition"]
    writer.writerow(columns)
    for number, file in enumerate(files):
        label = [asked.labels[number]] if labelled else []
        writer.writerow([file, *label, name, f"{mpp:.6g}", asked.words[number]])
    return text.getvalue()


def _store(
    staging: Path,
    out: Path,
    files: Sequence[str],
    asked: Asked,
    about: Mapping[str, Any],
    mpp: float,
    made_by: Mapping[str, Any],
) -> None:
    """Write the store: each image a tile, and the cell in its middle."""
    classes = tuple(dict.fromkeys(label for label in asked.labels if label))
    labels = [classes.index(label) if label else None for label in asked.labels]
    cells = tuple(
        CellImage(file=file, place=ImagePlace(str(staging / file)), mpp=mpp, label=label)
        for file, label in zip(files, labels, strict=True)
    )
    sheet = Sheet(side_px=size_of(about), mpp=mpp, tolerance=0.01, apart="border", fill=255)
    job = CellsJob(
        slide_id=out.name,
        path=str(out / TABLE),
        stores=staging,
        cells=cells,
        classes=classes,
        sheet=sheet,
        config=TileConfig(),
        mpp_source="generator",
        synthetic=dict(made_by),
    )
    tile_cells(job, lambda done, total: None, lambda text: None)
    if about.get("unit", "cell") == "cell":
        keep_given(staging / f"{out.name}.zarr", labels, classes)
