"""Change a node of a store by hand, as a store of an earlier version or a user's editor has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cytofm_cli.store.checksum import ATTRIBUTE


def put_node(file: Path, node: dict[str, Any] | str) -> None:
    """Write a `zarr.json` without the checksum that a changed one would fail."""
    content = json.loads(node) if isinstance(node, str) else node
    content.get("attributes", {}).pop(ATTRIBUTE, None)
    file.write_text(json.dumps(content))
