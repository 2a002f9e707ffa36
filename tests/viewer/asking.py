"""A client of the viewer of some stores.

Import as `from .asking import …` (tests of this folder only).
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.viewer.marks import MarksFile
from cytofm_cli.viewer.server import Viewer, make_app
from cytofm_cli.viewer.shelf import Shelf

pytest.importorskip("starlette")
from starlette.testclient import TestClient

TOKEN = "a-token"


class Asking:
    """A client of the viewer of some stores."""

    def __init__(self, stores: list[Path], marks: Path, runs: tuple[str, ...] = ()) -> None:
        self._open = ExitStack()
        shelf = self._open.enter_context(Shelf(stores))
        kept = self._open.enter_context(MarksFile(marks))
        app = make_app(Viewer(shelf, kept, runs), TOKEN)
        self.shelf = shelf
        self.client = TestClient(
            app, base_url="http://127.0.0.1:8000", raise_server_exceptions=True
        )

    def get(self, path: str, **more: Any) -> Any:
        return self.client.get(f"/{TOKEN}/{path}", **more)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def picture(self, path: str) -> np.ndarray:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    def post(self, path: str, body: Any) -> Any:
        return self.client.post(f"/{TOKEN}/{path}", json=body)

    def close(self) -> None:
        self._open.close()


def stores_of(folder: Path) -> list[Path]:
    return sorted((folder / "stores").glob("*.zarr"))
