"""A pack: many small images with tables beside them in one file, for machines without stores.

    8 bytes    `cytopack`
    8 bytes    where the header starts, 8 bytes its length, both uint64, little endian
    32 bytes   SHA-256 of the header
    8 bytes    zero
    images     one after the other, JPEG or PNG
    arrays     at multiples of 64 bytes
    header     JSON, UTF-8, to the end of the file

Nothing in it is ever executed. The header names each array (dtype, shape, place) and has the
SHA-256 of all of them; each image has a CRC-32, looked at whenever it is read. A file that is cut,
grown or changed is refused. It is read through a memory map: opening costs header and arrays.

Letters: N images, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, StoreError, blaming
from cytofm_cli.work.files import replacing
from cytofm_cli.work.opencv import opencv

Codec = Literal["jpeg", "png"]

VERSION: Final = 1
_MAGIC: Final = b"cytopack"
_PREFIX: Final = struct.Struct("<8sQQ32s8x")
_ALIGN: Final = 64
_STARTS, _SUMS = "image_start", "image_crc32"  # of the images, among the arrays


def is_pack(path: Path) -> bool:
    """Tell whether a file begins as a pack does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def encode(image_HWC: NDArray[np.uint8], codec: Codec, quality: int) -> bytes:
    """Compress an RGB image: PNG, or JPEG with colours at full resolution (4:4:4)."""
    cv2 = opencv()
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 6]
    if codec == "jpeg":
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    suffix = ".png" if codec == "png" else ".jpg"
    _, data = cv2.imencode(suffix, cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), settings)
    return bytes(data)


class PackWriter:
    """Writes the images of a pack, one after the other; see `writing_pack`."""

    def __init__(self, file: IO[bytes], codec: Codec, quality: int) -> None:
        self._file, self._codec, self._quality = file, codec, quality
        self._starts, self._sums = [_PREFIX.size], list[int]()
        file.write(bytes(_PREFIX.size))

    def add(self, image_HWC: NDArray[np.uint8]) -> None:
        """Write the next image, uint8 RGB."""
        data = encode(image_HWC, self._codec, self._quality)
        self._file.write(data)
        self._starts.append(self._starts[-1] + len(data))
        self._sums.append(zlib.crc32(data))

    def finish(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write what goes with the images, and what makes the file a pack.

        Args:
            header: plain JSON values.
            arrays: any names but those of the images' own.
        """
        starts = np.array(self._starts, np.int64)
        own = {_STARTS: starts, _SUMS: np.array(self._sums, np.uint32)}
        places, at, digest = {}, self._starts[-1], hashlib.sha256()
        for name, array in (*own.items(), *arrays.items()):
            at += self._file.write(bytes(-at % _ALIGN))
            data = np.ascontiguousarray(array)
            places[name] = {"dtype": data.dtype.str, "shape": list(data.shape), "start": at}
            digest.update(data.tobytes())
            at += self._file.write(data.tobytes())
        record = dict(header) | {
            "version": VERSION,
            "codec": self._codec,
            "arrays": places,
            "arrays_sha256": digest.hexdigest(),
        }
        text = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        self._file.write(text)
        self._file.seek(0)
        self._file.write(_PREFIX.pack(_MAGIC, at, len(text), hashlib.sha256(text).digest()))


@contextlib.contextmanager
def writing_pack(path: Path, *, codec: Codec, quality: int) -> Iterator[PackWriter]:
    """Give the writer of a pack, which is there when the block ends, complete or not at all."""
    with replacing(path) as partial, partial.open("r+b") as file:
        yield PackWriter(file, codec, quality)


@dataclass(frozen=True, eq=False)
class Pack:
    """An open pack; any thread may read.

    Attributes:
        path: of the file.
        header: its JSON.
        arrays: by name, read-only.
    """

    path: Path
    header: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    _bytes: NDArray[np.uint8]

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return an image, uint8 RGB (H, W, 3).

        Raises:
            StoreError: it is not what was packed.
        """
        start, stop = self.arrays[_STARTS][number : number + 2].tolist()
        data = self._bytes[start:stop]
        cv2 = opencv()
        pixels = None
        if zlib.crc32(data.data) == int(self.arrays[_SUMS][number]):
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if pixels is None:
            raise StoreError(f"{self.path}: image {number} is damaged.", hint="copy it again.")
        rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return rgb


def open_pack(path: Path) -> Pack:
    """Open a pack.

    Raises:
        InputError: it cannot be read, or is no pack.
        StoreError: it is cut or damaged, or of a version that is not known.
    """
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise InputError(f"{path}: cannot be read ({error}).") from error
    if data[: len(_MAGIC)].tobytes() != _MAGIC:
        raise InputError(f"{path}: is no pack.", hint="make one with `cytofm pack`.")
    prefix = data[: _PREFIX.size].tobytes().ljust(_PREFIX.size, b"\xff")
    _, start, length, wanted = _PREFIX.unpack(prefix)
    if start + length != len(data):
        raise StoreError(
            f"{path}: is cut or was changed: it has {len(data)} bytes and says {start + length}.",
            hint="copy it again.",
        )
    text = data[start:].tobytes()
    if hashlib.sha256(text).digest() != wanted:
        raise StoreError(f"{path}: its header is damaged.", hint="copy it again.")
    with blaming(lambda error: StoreError(f"{path}: its header is damaged ({error}).")):
        header = json.loads(text)
        if header["version"] != VERSION:
            raise StoreError(
                f"{path}: is a pack of version {header['version']}, this is {VERSION}.",
                hint="pack the stores again.",
            )
        return Pack(path, header, _arrays(path, header, data), data)


def _arrays(
    path: Path, header: Mapping[str, Any], data: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    arrays, digest = {}, hashlib.sha256()
    for name, place in header["arrays"].items():
        dtype, shape = np.dtype(place["dtype"]), tuple(place["shape"])
        stop = place["start"] + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        part = data[place["start"] : stop]
        digest.update(part.data)
        arrays[name] = part.view(dtype).reshape(shape)
    if digest.hexdigest() != header["arrays_sha256"]:
        raise StoreError(f"{path}: its tables are damaged.", hint="copy it again.")
    return arrays
