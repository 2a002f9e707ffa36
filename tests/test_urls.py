"""Which addresses are opened, and what of them is written down."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.api.failures import FailureLog
from cytofm_cli.errors import SlideError, visible, without_secrets
from cytofm_cli.slides.open import open_slide
from cytofm_cli.slides.tiff import read_directories
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.source import open_tiles
from cytofm_cli.urls import check_url, of_given
from cytofm_cli.work.batch import Outcome


@pytest.mark.parametrize(
    "url",
    ["s3://b/k/x.tif", "https://host/x.tif?sig=1", "gs://b/x", "memory://a/b.tif", "HTTP://h/x"],
)
def test_check_url__plain_storage_passes(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://user:password@host/x.tif", "ftp://host/x.tif: addresses of 'ftp' are not opened"),
        ("ssh://host/x", "'ssh'"),
        ("reference://x", "'reference'"),
        ("zip://a.tif::https://host/x.zip", "a chain"),
        ("simplecache::s3://b/x", "a chain"),
        ("filecache::file:///x", "a chain"),
        ("https://host/{{ 7*7 }}.tif", "braces"),
        ("https://host/a\nb", "control"),
    ],
)
def test_check_url__everything_else_is_refused_before_fsspec_sees_it(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.open", lambda *_args, **_kwargs: pytest.fail("opened"))
    with pytest.raises(SlideError, match=told) as refused:
        check_url(url)
    assert "password" not in str(refused.value)
    for reader in ("auto", "tiffslide", "tifffile"):
        with pytest.raises(SlideError, match=told):
            open_slide(url, reader=reader)
    with pytest.raises(SlideError, match=told):
        read_directories(url)


@pytest.mark.parametrize(
    ("given", "stored", "opened"),
    [
        ("s3://b/x.tif", "s3://b/x.tif", "s3://b/x.tif"),
        ("s3:/b/x.tif", "s3://b/x.tif", "s3://b/x.tif"),  # through a Path
        ("s3://b", "s3://b/k/x.tif", "s3://b/k/x.tif"),
        ("https://me:pw@h/d/", "https://h/d/x.tif", "https://me:pw@h/d/x.tif"),
        ("https://h/x.tif?sig=abc", "https://h/x.tif", "https://h/x.tif?sig=abc"),
        ("https://h/x.tif", "https://u:p@h/x.tif?t=1", "https://h/x.tif"),  # of an old store
        ("s3://b/k", "s3://b/k2/x.tif", None),
        ("s3://b", "s3://c/x.tif", None),
        ("https://h/d", "https://h/d/../e/x.tif", None),
        ("/a/folder", "s3://b/x.tif", None),
    ],
)
def test_of_given__opens_what_the_user_names_and_nothing_else(
    given: str, stored: str, opened: str | None
) -> None:
    assert of_given(given, stored) == opened


def test_secrets__are_in_no_error_no_list_of_failures_and_no_line(tmp_path: Path) -> None:
    url = "https://me:secret@host:8/a/x.tif?X-Amz-Signature=secret&b=secret"
    assert without_secrets(f"({url}) and s3://b/k") == "(https://host:8/a/x.tif and s3://b/k"
    assert without_secrets("a@b.c is mail, 3://4, C:/x") == "a@b.c is mail, 3://4, C:/x"
    error = SlideError(f"{url}: cannot be read ('{url}').", hint=f"try {url}")
    assert "secret" not in pickle.loads(pickle.dumps(error)).one_line()
    log = FailureLog(tmp_path, "tile", None)
    log.update(Outcome("x", url, "failed", facts={"traceback": f"at {url}"}, error=error))
    text = (tmp_path / "failures.jsonl").read_text()
    assert json.loads(text)["path"] == "https://host:8/a/x.tif"
    assert "secret" not in text


def test_visible__spells_out_what_a_terminal_obeys() -> None:
    assert visible("a\x1b[2Jb\n\x07\u202ec\x9b") == "a\\x1b[2Jb\\n\\x07\\u202ec\\x9b"
    assert visible("päper 😐 名.svs") == "päper 😐 名.svs"
    assert SlideError("a\x1b]0;t\x07 b").one_line() == "a\\x1b]0;t\\x07 b"


@pytest.fixture
def remote(tmp_path: Path) -> tuple[str, Path]:
    """A slide behind a URL, and its store, which holds no pixels."""
    import fsspec

    pixels = np.random.default_rng(0).integers(90, 200, (512, 512, 3), dtype=np.uint8)
    picture = tmp_path / "a.tif"
    Image.fromarray(pixels).save(picture)
    with fsspec.open("memory://slides/a.tif", "wb") as handle:
        handle.write(picture.read_bytes())
    url = "memory://slides/a.tif"
    how = {"pixels": "none", "tile_px": 256, "slide_mpp": 0.25, "foreground": "none"}
    made = cytofm.tile([url], tmp_path / "stores", **how)
    return url, made.stores[0]


def test_store__its_url_is_opened_only_if_the_user_gives_it_again(
    remote: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = remote
    store = open_store(path)
    with open_tiles(store, slides=Path("memory://slides")) as tiles:
        assert tiles.read(0).shape == (256, 256, 3)
    with open_tiles(store, slides=Path(url)) as tiles:
        assert tiles.read(0).shape == (256, 256, 3)
    monkeypatch.setattr("fsspec.open", lambda *_args, **_kwargs: pytest.fail("opened"))
    for slides in (None, path.parent, Path("memory://other")):
        with (
            pytest.raises(SlideError, match=r"its slide is at memory://slides/a\.tif") as refused,
            open_tiles(store, slides=slides),
        ):
            pass
    assert "--slides" in str(refused.value.hint)


def test_run__reads_a_slide_behind_a_url_in_every_step(
    remote: tuple[str, Path], tmp_path: Path
) -> None:
    url, _ = remote
    done = cytofm.run(
        [url],
        tmp_path / "out",
        tile={"pixels": "none", "tile_px": 256, "slide_mpp": 0.25, "foreground": "none"},
        embed={"unit": "tile", "encoder": "handcrafted"},
        listen=lambda _event: None,
    )
    assert [outcome.error for outcome in done] == [None]
    assert open_store(done.stores[0]).embeddings().values.shape[0] == 4
