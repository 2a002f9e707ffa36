"""Look into a TorchScript file, without running any of it, for what reaches out of it.

TorchScript has no imports, and no files or processes of its own, but operators of PyTorch: some
write or map files, some call other machines. They are refused by name, whatever name the script
calls them under; of operators that are not PyTorch's own only those are let through that detectors
need. The rest still computes what it likes, as long and in as much memory as it likes, and PyTorch
does not check every index: this is no sandbox.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cytofm_cli.errors import WeightsError
from cytofm_cli.work.zips import ZIP_DAMAGE

# Of all namespaces; those of PyTorch 2.7 to 2.15 that touch files, processes or the network.
_REACHING: Final = frozenset(
    "save from_file write_file read_file load_tensor rpc_async rpc_sync rpc_remote "
    "IgnoredPythonOp PythonOp".split()
)
_OPERATORS: Final = frozenset(("aten", "prim", "prims", "quantized", "torchvision"))
_CLASSES: Final = frozenset(("quantized",))
_MOST_CODE_BYTES: Final = 64 << 20
_TOKEN: Final = re.compile(
    r"""\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\#[^\n]*|[A-Za-z_]\w*|[^\s\\]""",
    re.DOTALL,
)


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is an archive with code, as `torch.jit.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except ZIP_DAMAGE:
        return False


def refuse_reaching(path: Path) -> None:
    """Refuse a TorchScript file whose code names an operator that reaches out of it.

    Raises:
        WeightsError: it does; or its code is damaged, or more than 64 MB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".py")]
            if sum(member.file_size for member in members) > _MOST_CODE_BYTES:
                raise WeightsError(f"{path}: more than 64 MB of code.", hint="is it a model?")
            named = {
                operator
                for member in members
                for operator in reaching(archive.read(member).decode("utf-8", "replace"))
            }
    except WeightsError:
        raise
    except ZIP_DAMAGE as error:
        raise WeightsError(f"{path}: damaged TorchScript file ({error}).") from error
    if named:
        raise WeightsError(
            f"{path}: its code calls {', '.join(sorted(named))}, which can write files or reach "
            "other machines; it was not loaded.",
            hint="no detector needs that: do not trust this file",
        )


def reaching(code: str) -> Iterator[str]:
    """Yield the operators and classes of a script that are refused."""
    words = [word for word in _TOKEN.findall(code) if word[0] not in "#\"'"]
    padded = [*words, "", "", "", ""]
    for at, word in enumerate(words):
        attribute = at > 0 and words[at - 1] == "."
        if attribute and word in _REACHING:
            yield word
        if word == "ops" and not attribute and padded[at + 1] != ".":
            yield "ops by another name"
        if word == "ops" and padded[at + 1] == "." and padded[at + 2] not in _OPERATORS:
            yield f"ops.{padded[at + 2]}.{padded[at + 4]}"
        if padded[at : at + 4 : 2] == ["torch", "classes"] and padded[at + 4] not in _CLASSES:
            yield f"torch.classes.{padded[at + 4]}"
