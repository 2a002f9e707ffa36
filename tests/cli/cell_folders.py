"""A folder of cut-out cells of two patients, with its table, for `tile --cells`."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"P1": [(30, 20), (22, 26), (17, 31)], "P2": [(24, 24), (45, 30)]}


def cut_out(width: int, height: int, seed: int) -> np.ndarray:
    """Return a cell of noise on black."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[4:-4, 4:-4] = rng.integers(80, 200, (height - 8, width - 8, 3))
    return image


IMAGES = {
    f"{patient}/{number}.png": cut_out(*size, seed=10 * number + len(patient))
    for patient, sizes in SIZES.items()
    for number, size in enumerate(sizes)
}
LABELS = dict(zip(IMAGES, ["b", "a", "b", "a", "b"], strict=True))


def write_cells(parent: Path) -> Path:
    """Write five cells of two patients, with `cells.csv`; return their folder."""
    for name, image in IMAGES.items():
        path = parent / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    write_table(parent / "data")
    return parent / "data"


def write_table(folder: Path, names: tuple[str, ...] = tuple(IMAGES), head: str = "") -> Path:
    rows = [f"{name},{name.split('/')[0]},{LABELS[name]}" for name in names]
    path = folder / "cells.csv"
    path.write_text("\n".join([head or "file,slide_id,label", *rows]) + "\n")
    return path


def as_tar(folder: Path) -> Path:
    path = folder.parent / "images.tar"
    with tarfile.open(path, "w") as archive:
        for name in IMAGES:
            archive.add(folder / name, name)
    return path


def as_zip(folder: Path) -> Path:
    path = folder.parent / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in IMAGES:
            archive.write(folder / name, name)
    return path


def pasted(image: np.ndarray, side: int) -> np.ndarray:
    tile = np.zeros((side, side, 3), np.uint8)
    height, width = image.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = image
    return tile


def content(stores: Path) -> dict[str, bytes]:
    """Return every file of the stores but what tells the time and the place."""
    files = (path for path in stores.glob("*.zarr/**/*") if path.is_file())
    return {
        path.relative_to(stores).as_posix(): path.read_bytes()
        for path in files
        if path.name != "zarr.json"
    }
