"""Whether the entropy-coded data of a JPEG stream are whole.

Decoders go on silently where the data are damaged: the rest of a tile comes back grey or
shifted. Two checks: `refuse_broken_scan` looks for markers that cannot be there (5 µs a tile),
`is_sound` decodes once, with one row of blocks more than the frame has. Data that end where
they should leave that row empty: grey from its second block on, and something in the first,
where the padding bits are taken for data. Data that end early leave the first empty as well;
data that are left over fill it. Damage that takes as many blocks as it gives is not seen.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import numpy as np

_SOS: Final = b"\xff\xda"
_EOI: Final = b"\xff\xd9"
# In a scan 0xFF is followed by 0 (a data byte), by a restart marker, or by fill bytes.
_MARKER: Final = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_RESTARTS: Final = re.compile(rb"\xff([\xd0-\xd7])", re.DOTALL)
_SEQUENTIAL: Final = (0xC0, 0xC1)
_SOF: Final = (*_SEQUENTIAL, 0xC2)
_DRI: Final = 0xDD
_EMPTY: Final = 128  # what a block without data decodes to
_BLEED_PX: Final = 2  # smooth upsampling of colour reaches this far into the next block


def refuse_broken_scan(stream: bytes) -> None:
    """Refuse a stream in whose scan there is a marker that cannot be there.

    Args:
        stream: a JPEG stream, complete or without its tables.

    Raises:
        ValueError: an end of image before the end, a restart out of turn, or another marker.
    """
    sof = _frame(stream)
    if sof < 0 or stream[sof + 1] not in _SEQUENTIAL:
        return  # a progressive stream has markers between its scans
    start = stream.find(_SOS, sof)
    end = stream.rfind(_EOI)
    # Most streams have data bytes only: two counts tell so, at a tenth of the search's cost.
    if stream.count(b"\xff", start + 2, end) == stream.count(b"\xff\0", start + 2, end):
        return
    marker = _MARKER.search(stream, start + 2, end)
    if marker is not None:
        code = marker[1][0]
        what = "ends" if code == _EOI[1] else f"has a marker {code:#x}"
        raise ValueError(f"its scan {what} in the middle")
    restarts = _RESTARTS.findall(stream, start + 2, end)
    if any(code[0] != 0xD0 + i % 8 for i, code in enumerate(restarts)):
        raise ValueError("its restart markers are out of turn")


def is_sound(stream: bytes, tables: bytes | None = None) -> bool:
    """Tell whether a baseline stream has as many blocks as its frame needs.

    Costs one decoding. Progressive streams are only decoded.

    Args:
        stream: complete, or with its tables in `tables`.
        tables: a stream of tables alone, as TIFF keeps them.
    """
    import imagecodecs

    sof = _frame(stream)
    if sof < 0:
        return False
    sequential = stream[sof + 1] in _SEQUENTIAL
    height, width, components = struct.unpack_from(">HHB", stream, sof + 5)
    factors = [stream[sof + 11 + 3 * i] for i in range(components)]
    block_w = 8 * max(f >> 4 for f in factors)
    block_h = 8 * max(f & 15 for f in factors)
    more = height + block_h if sequential and not height % block_h else height
    longer = stream[: sof + 5] + struct.pack(">H", more) + stream[sof + 7 :]
    try:
        refuse_broken_scan(stream)
        # Four components as they are: YCCK would turn the grey of an empty block into another.
        raw = {"colorspace": "CMYK", "outcolorspace": "CMYK"} if components == 4 else {}
        pixels = imagecodecs.jpeg8_decode(longer, tables=tables or None, **raw)
    except (ValueError, RuntimeError):
        return False
    row = pixels[height + _BLEED_PX :]
    if row.size == 0 or width % block_w:
        return True
    left_over = (row[:, block_w + _BLEED_PX :] != _EMPTY).any()
    # Behind a restart marker the first block may rightly be empty.
    short = not _has_restarts(stream, sof) and (row[:, : block_w - _BLEED_PX] == _EMPTY).all()
    return not left_over and not (short and bool(np.ptp(pixels[:height])))


def _frame(stream: bytes) -> int:
    """Return where the frame header starts, or -1."""
    place = 2
    while place + 4 <= len(stream) and stream[place] == 0xFF:
        if stream[place + 1] in _SOF:
            return place
        place += 2 + int(struct.unpack_from(">H", stream, place + 2)[0])
    return -1


def _has_restarts(stream: bytes, sof: int) -> bool:
    """Tell whether a restart interval is defined before the scan."""
    head = stream[: stream.find(_SOS, sof)]
    place = head.find(bytes([0xFF, _DRI, 0, 4]))
    return place >= 0 and head[place + 4 : place + 6] != b"\0\0"
