"""What zip archives that are no such, or are damaged, make of Python's `zipfile`."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from typing import Final

from cytofm_cli.errors import DAMAGE

# Besides what any damaged record does: a cut member, one of a later version, one that has become
# "encrypted" by a flipped bit (RuntimeError), one of another compression.
ZIP_DAMAGE: Final = (
    *DAMAGE,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # NotImplementedError is one
)
