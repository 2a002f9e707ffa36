"""Mutations of JPEG, PNG and DICOM."""

from __future__ import annotations

import random
import struct
import zlib

from .of_any import BYTES


def jpeg(data: bytes, rng: random.Random) -> bytes:
    """Lie in one segment: its marker, length, frame size; drop or repeat it."""
    segments: list[tuple[int, int]] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((at, end))
        at = end
    if not segments:
        return rng.choice(BYTES)(data, rng)
    start, end = rng.choice(segments)
    out = bytearray(data)
    what = rng.choice(("marker", "length", "frame", "frame", "drop", "repeat", "body", "app"))
    if what == "marker":
        out[start + 1] = rng.choice((0xC0, 0xC2, 0xC3, 0xC9, 0xD8, 0xD9, 0xDB, 0xE1, 0xE2, 0xFE))
    elif what == "length":
        out[start + 2 : start + 4] = struct.pack(">H", rng.choice((0, 1, 2, 3, 0xFFFF)))
    elif what == "frame":
        frames = [at for at, _ in segments if data[at + 1] in (0xC0, 0xC1, 0xC2)]
        if frames:
            size = struct.pack(">H", rng.choice((0, 1, 65_500, 65_535)))
            spot = frames[0] + rng.choice((5, 7))
            out[spot : spot + 2] = size
            if rng.random() < 0.5:
                out[frames[0] + 5 : frames[0] + 9] = size * 2
    elif what == "drop":
        del out[start:end]
    elif what == "repeat":
        out[end:end] = data[start:end] * rng.choice((1, 500))
    elif what == "app":
        body = rng.choice((b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"JFIF\0\1\1\1\0\0\0\0\0\0", b""))
        out[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    elif end - start > 4:
        out[rng.randrange(start + 4, min(end, len(out)))] = rng.choice((0, 1, 255))
    return bytes(out)


def png(data: bytes, rng: random.Random) -> bytes:
    """Lie in one chunk, whose checksum is right again; add one that unpacks without end."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at + 12 <= len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    if not chunks:
        return rng.choice(BYTES)(data, rng)
    what = rng.choice(("size", "size", "header", "body", "drop", "repeat", "bomb"))
    which = rng.randrange(len(chunks))
    name, body = chunks[which]
    header = bytearray(chunks[0][1])
    if what == "size":
        at = rng.choice((0, 4))
        header[at : at + 4] = struct.pack(
            ">I", rng.choice((0, 1, 20_000, 200_000, 2**31 - 1, 2**32 - 1))
        )
    elif what == "header":
        header[rng.randrange(8, 13)] = rng.choice((0, 1, 3, 4, 6, 16, 255))
    elif what == "body":
        chunks[which] = name, rng.choice(BYTES)(body, rng)
    elif what == "drop":
        del chunks[which]
    elif what == "repeat":
        chunks.insert(which, (name, body))
    else:
        bomb = zlib.compress(bytes(1 << 24))
        extra = rng.choice(
            ((b"zTXt", b"x\0\0" + bomb), (b"iCCP", b"x\0\0" + bomb), (b"pHYs", b"\xff" * 9))
        )
        chunks.insert(1, extra)
    if what in ("size", "header"):
        chunks[0] = chunks[0][0], bytes(header)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def dicom(data: bytes, rng: random.Random) -> bytes:
    """Lie in one element of explicit VR: tag, VR, length or value."""
    long = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR")
    elements: list[tuple[int, int, int]] = []  # start, of the length, of the value
    at = 132
    while at + 12 <= len(data):
        is_long = data[at + 4 : at + 6] in long
        n = int.from_bytes(data[at + 8 : at + 12] if is_long else data[at + 6 : at + 8], "little")
        start = at + (12 if is_long else 8)
        elements.append((at, at + (8 if is_long else 6), start))
        if n == 0xFFFFFFFF or data[at + 4 : at + 6] == b"SQ":
            n = 8  # go on within the first item
        at = start + n
        if at < len(data) - 8 and not data[at + 4 : at + 6].isalpha():
            break
    if not elements:
        return rng.choice(BYTES)(data, rng)
    start, length, value = rng.choice(elements)
    out = bytearray(data)
    what = rng.choice(("tag", "vr", "length", "value", "value", "value"))
    if what == "tag":
        out[start : start + 4] = rng.choice(
            (b"\x28\0\x10\0", b"\x28\0\x08\0", b"\x48\0\6\0", b"\xe0\x7f\x10\0")
        )
    elif what == "vr":
        out[start + 4 : start + 6] = rng.choice((b"OB", b"SQ", b"US", b"IS", b"XX", b"UN", b"DS"))
    elif what == "length":
        out[length : length + 2] = rng.choice((b"\0\0", b"\1\0", b"\xff\xff", b"\xfe\xff"))
    else:
        text = rng.choice((b"\0\0", b"\xff\xff\xff\xff", b"-1", b"1e999", b"\\\\", b"99999999999"))
        out[value : value + len(text)] = text
    return bytes(out)
