"""Features and places in the HDF5 files of CLAM, TRIDENT and STAMP.

HDF5 has links to other files, data that lie in other files, and shapes that no byte stands for: a
file of a kilobyte may claim gigabytes, or name any file of this machine. What is read is a plain
dataset of numbers in the file itself, and no larger than what is stored of it can be.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.mil.foreign import h5_origin
from cytofm_cli.mil.origin import Origin
from cytofm_cli.store.budget import MOST_RATIO
from cytofm_cli.work.budget import refuse_size

if TYPE_CHECKING:
    import h5py

FEATURE_KEYS: Final = ("features", "feats")  # CLAM and TRIDENT; STAMP
_MOST_LINKS: Final = 8


def read_h5(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None, Origin]:
    """Return features, coordinates if there are any in pixels, and what is said of them.

    Raises:
        InputError: it is no HDF5 file, is damaged, holds no features, or what it holds lies in
            another file or is far larger than the file.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            names = set(file)  # `in` would follow a link, and open what it leads to
            key = next((key for key in FEATURE_KEYS if key in names), None)
            if key is None:
                raise InputError(f"{path}: no dataset `features` (found: {', '.join(names)}).")
            features = _dataset(path, file, key)[()]
            # STAMP's coordinates are micrometres, not level-0 pixels: left out.
            in_um = str(file.attrs.get("unit", "")) == "um"
            has_xy = "coords" in names and not in_um
            xy = _dataset(path, file, "coords")[()] if has_xy else None
            origin = h5_origin(file, key)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}).") from error
    if xy is not None and np.ndim(xy) == 2:
        xy = xy[:, :2]  # some tools add the level or the size
    return features, xy, origin


def _dataset(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """Return a dataset whose numbers lie in this file, before any is read."""
    import h5py

    node = _node(path, file, key)
    if not isinstance(node, h5py.Dataset):
        kind = "group" if isinstance(node, h5py.Group) else "named type"
        raise InputError(f"{path}: `{key}` is a {kind}, no dataset.")
    if node.is_virtual or node.external:
        raise _elsewhere(path, key)
    if node.dtype.kind not in "biuf":
        raise InputError(f"{path}: `{key}` holds {node.dtype}, expected numbers.")
    sizes = [math.prod(shape) for shape in (node.shape or (), node.chunks or ())]
    try:
        stated = max(sizes) * node.dtype.itemsize
        refuse_size(stated, node.id.get_storage_size(), ratio=MOST_RATIO)
    except ValueError as error:
        raise InputError(f"{path}: `{key}`: {error}.") from error
    return node


def _node(path: Path, file: h5py.File, name: str) -> Any:
    """Return what a name stands for; a link inside of the file is followed, none out of it."""
    import h5py

    group, words = file, [word for word in name.split("/") if word]
    for _ in range(_MOST_LINKS):
        if not words:  # a link to the group it lies in, or to the root
            return group
        link = group.get(words[0], getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise _elsewhere(path, name)
        if isinstance(link, h5py.SoftLink):
            onward = [word for word in link.path.split("/") if word]
            group = file if link.path.startswith("/") else group
            words = onward + words[1:]
            continue
        node, words = group[words[0]], words[1:]
        if not words:
            return node
        group = node
    raise InputError(f"{path}: `{name}` is a chain of more than {_MOST_LINKS} links.")


def _elsewhere(path: Path, key: str) -> InputError:
    return InputError(
        f"{path}: `{key}` lies in another file, which is not opened.",
        hint="write the features into the file itself",
    )
