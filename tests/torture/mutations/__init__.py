"""Mutations that know what a file is made of: pure functions of its bytes and a random state.

Each keeps most of a file whole and lies in one place, so that what reads it gets past the door.
"""

from __future__ import annotations

import random
from typing import Final

from .of_any import BYTES, CANARY, Mutation, flip
from .of_packed import h5, pickled, safetensors, zipped
from .of_pictures import dicom, jpeg, png
from .of_text import json_document, table, toml, xml
from .of_tiff import tiff, tiff_description

__all__ = ["BY_ENDING", "CANARY", "mutate", "png", "tiff"]

# By the ending of a file's name.
BY_ENDING: Final[dict[str, tuple[Mutation, ...]]] = {
    ".tif": (tiff, tiff, tiff, tiff_description, *BYTES),
    ".xml": (xml, xml, xml, *BYTES),
    ".json": (json_document,),
    ".csv": (table,),
    ".toml": (toml,),
    ".jpg": (jpeg, jpeg, jpeg, *BYTES),
    ".png": (png, png, png, *BYTES),
    ".dcm": (dicom, dicom, dicom, *BYTES),
    ".safetensors": (safetensors, safetensors, *BYTES, pickled),
    ".pt": (zipped, zipped, zipped, pickled, *BYTES),
    ".h5": (h5, h5, h5, *BYTES),
}
_SAME: Final = {
    ".tiff": ".tif", ".svs": ".tif", ".ndpi": ".tif", ".jpeg": ".jpg", ".dicom": ".dcm",
    ".geojson": ".json", ".pth": ".pt", ".ckpt": ".pt", ".npz": ".pt", ".h5ad": ".h5",
    ".ndpa": ".xml", ".md": ".csv", ".jsonl": ".json",
}  # fmt: skip


def mutate(name: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a file mutated once or twice, as its name's ending says, and the mutations' names.

    Args:
        name: of the file.
        data: what it holds.
        rng: decides; the same state gives the same bytes.
    """
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    mutations = BY_ENDING.get(_SAME.get(ending, ending), BYTES)
    said: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        mutation = rng.choice(mutations)
        try:
            data = mutation(data, rng)
        except (ValueError, OSError, LookupError, TypeError, RuntimeError, OverflowError):
            mutation = flip  # the second finds what the first has spoilt
            data = flip(data, rng)
        said.append(mutation.__name__)
    return data, "+".join(said)
