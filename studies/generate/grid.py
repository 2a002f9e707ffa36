"""Unpicked samples beside the cells of held-out patients that they were asked to be like.

    python grid.py RUN OUT COLLECTION ...

Of each class of a COLLECTION (a folder of stores), EACH cells of as many slides as may be, drawn by
SEED, and one sample a cell from the public command. OUT/<collection>-<class>/ is what that command
wrote; OUT/grid.png has real cells above samples, OUT/<collection>.png and .jpg samples alone:
malaria_nih.jpg is docs/generate-red-cells.jpg.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cytofm_cli.api.generate import sample_generator
from cytofm_cli.generate.asked import read_like
from cytofm_cli.generate.file import read_generator
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.pictures.files import jpeg_bytes, save_png
from cytofm_cli.pictures.sheet import below, beside, labelled
from cytofm_cli.store.io import open_store

SEED: Final = 0
EACH: Final = 10
STEPS: Final = 50
ZOOM: Final = 2
Pixels = NDArray[np.uint8]


def main() -> None:
    """Sample every class, and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("collections", type=Path, nargs="+")
    asked = parser.parse_args()
    about = read_generator(generator_of(asked.run)).about
    both: list[Pixels] = []
    for collection in asked.collections:
        alone: list[Pixels] = []
        for of_class, words in chosen(collection):
            folder = asked.out / f"{collection.name}-{of_class}"
            sample_generator(
                asked.run, folder, like=words, n=len(words), seed=SEED, steps=STEPS, overwrite=True
            )
            real = [levels(read_like(word, about)) for word in words]
            made = [np.asarray(Image.open(path)) for path in sorted(folder.glob("images/*.png"))]
            both += [labelled(strip(real), f"{collection.name}, {of_class}: real"), strip(made)]
            alone.append(labelled(strip(made), f"{of_class}: made"))
        sheet = below(alone)
        save_png(asked.out / f"{collection.name}.png", sheet)
        (asked.out / f"{collection.name}.jpg").write_bytes(jpeg_bytes(sheet))
    save_png(asked.out / "grid.png", below(both))


def chosen(collection: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each class with the STORE:NUMBER of EACH of its cells, drawn by the seed: one of every
    slide, then a second one of every slide, and so on."""
    tables = {path: open_store(path).nuclei("given") for path in sorted(collection.glob("*.zarr"))}
    for of_class in sorted({name for table in tables.values() for name in table.classes}):
        rng = np.random.default_rng(SEED)
        ranked = []
        for path, table in tables.items():
            own = np.flatnonzero(np.array(table.classes)[table.class_id] == of_class)
            place = rng.random()  # of the slide among the others
            ranked += [(at, place, f"{path}:{i}") for at, i in enumerate(rng.permutation(own))]
        yield of_class, [word for _, _, word in sorted(ranked)[:EACH]]


def levels(image_1CHW: Any) -> Pixels:
    """Return an image in [0, 1] as uint8 (H, W, 3)."""
    pixels: Pixels = (image_1CHW[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels


def strip(images: list[Pixels]) -> Pixels:
    """Return images side by side, enlarged."""
    return beside([image.repeat(ZOOM, 0).repeat(ZOOM, 1) for image in images])


if __name__ == "__main__":
    main()
