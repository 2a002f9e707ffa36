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

from cytofm_cli import __version__
from cytofm_cli.config import as_record
from cytofm_cli.generate.asked import Asked, ask, size_of
from cytofm_cli.generate.config import SampleConfig
from cytofm_cli.generate.file import Generator, read_generator
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sample import draw_images
from cytofm_cli.nuclei.given import keep_given
from cytofm_cli.pictures.files import png_bytes, save_png, with_text
from cytofm_cli.pictures.sheet import grid
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import Kind, refuse_changes
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.runs.record import changes, to_text
from cytofm_cli.slides.cell_images import ImagePlace
from cytofm_cli.tiles.cell_run import tile_cells
from cytofm_cli.tiles.cells import CellImage, CellsJob, Sheet
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.work.device import find_device
from cytofm_cli.work.files import output_errors, write_bytes, write_text

KIND: Final = Kind("cytofm generate sample", frozenset({"generate_sample", "generator"}))
IMAGES: Final = "images"
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
    store = out / f"{out.name}.zarr"
    with output_errors(out):
        former = KIND.former(out)
        if former is not None and not overwrite:
            plain = {name: of for name, of in former.items() if name != "made"}
            refuse_changes(out, changes(plain, record), overwrite="replaces it")
            return SampleReport(out, store, config.n, skipped=True)
        for line in generator.notes:
            note(line)
        asked = ask(
            about_with_shapes(generator), config.n, like=like, of_class=of_class,
            encoder=config.encoder, detector=config.detector, slides=slides,
        )  # fmt: skip
        images = draw_images(generator, asked.given, config.n, config, device, progress=progress)
        with folder.holding(out):
            staging = folder.staging_of(out, record)
            _write(staging, out, images, asked, generator, record)
            folder.publish(staging, out)
    return SampleReport(out, store, config.n, skipped=False)


def about_with_shapes(generator: Generator) -> dict[str, Any]:
    """Return what is known of a generator, sizes of a file that does not say them included."""
    sizes = {"vae": asdict(generator.vae.shape), "sit": asdict(generator.sit.shape)}
    return {**generator.about, **sizes}


def _write(
    staging: Path,
    out: Path,
    images: NDArray[np.uint8],
    asked: Asked,
    generator: Generator,
    record: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write everything into the staging folder; its config.toml is last."""
    about = about_with_shapes(generator)
    mpp = (about.get("side_um") or size_of(about)) / size_of(about)
    made_by = {
        "tool": f"cytofm {__version__} generate sample",
        "generator_sha256": record["generator"]["sha256"],
        **record["generate_sample"],
    }
    (staging / IMAGES).mkdir(exist_ok=True)
    files = [f"{IMAGES}/{number:05d}.png" for number in range(len(images))]
    for number, (file, image) in enumerate(zip(files, images, strict=True)):
        text = png_text(made_by, number, asked.words[number])
        write_bytes(staging / file, with_text(png_bytes(image), text))
    shown = list(images[:_SHOWN])
    save_png(staging / "grid.png", grid(shown, math.ceil(math.sqrt(len(shown)))))
    write_text(staging / TABLE, _table(files, asked, out.name, mpp))
    _store(staging, out, files, asked, about, mpp, made_by)
    versions = {"cytofm": __version__}
    write_text(staging / folder.CONFIG, to_text({**record, "made": versions}))


def png_text(made_by: Mapping[str, Any], number: int, condition: str) -> dict[str, str]:
    """Return what a PNG says of itself."""
    told = ", ".join(f"{key} {value}" for key, value in made_by.items() if key != "tool")
    return {
        "Software": str(made_by["tool"]),
        "Synthetic": "true",
        "Comment": "made by a generator, no photograph of a cell",
        "Source": f"{told}, image {number}, condition: {condition}",
    }


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
