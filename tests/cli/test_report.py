"""`cytofm report` and `cytofm gallery`: what they print, refuse and leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .mil_runs import train


@pytest.fixture
def run(here, bags: Path) -> Path:
    """Return a RUN on bag files, which have no stores."""
    done = train(here, bags)
    assert done.returncode == 0, done.stderr
    return bags.parent / "run"


def test_report__prints_its_page_and_warns_of_what_is_missing(here, run: Path) -> None:
    page = run.parent / "r.html"
    done = here("report", run, "-o", page)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{page}\n"
    assert "warning: no STORES are given" in done.stderr
    assert "report: 12 slides, 0 with pictures, " in done.stderr
    told = json.loads(here("report", run, "-o", page, "--overwrite", "--json").stdout)
    assert told["report"] == str(page)
    assert (told["slides"], told["pictured"], told["files"]) == (12, 0, None)
    assert told["bytes"] == page.stat().st_size


def test_report__a_page_that_is_there_is_kept(here, run: Path) -> None:
    page = run.parent / "r.html"
    page.write_text("mine")
    done = here("report", run, "-o", page)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {page}: exists. Hint: `--overwrite` replaces it; or choose another -o"
    ]
    assert page.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("gone",), 3, "gone: no such RUN."),
        (("RUN", "RUN"), 2, "is named twice."),
        (("RUN", "gone.zarr"), 3, "gone.zarr: no such store."),
        (("RUN", "--cells", 1000), 2, "must be at most 200"),
    ],
)
@pytest.mark.slow
def test_report__bad_words_are_one_line(
    here, run: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    page = run.parent / "r.html"
    done = here("report", *(run if word == "RUN" else word for word in words), "-o", page)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not page.exists()


def test_gallery__says_what_it_shows(here, detected: Path, tmp_path: Path) -> None:
    folder = tmp_path / "g"
    done = here("gallery", detected, "-o", folder, "--by", "area_um2,optical_density", "--top", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'index.html'}\n"
    assert "area_um2: 3 of " in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == [
        "01-area_um2-1.png", "02-optical_density-1.png", "cells.csv", "index.html",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--by", "size"), 2, "--by size: no such order."),
        (("--by", "outlier"), 3, "nothing to show of 4 store(s)"),
        (("--by", "attention"), 3, "holds no attention of cells."),
        (("--detector", "cellpose"), 3, "none of 4 store(s): "),
    ],
)
def test_gallery__bad_words_leave_nothing(
    here, detected: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = here("gallery", detected, "-o", tmp_path / "g", *words)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("Hint:") <= 1
    assert not (tmp_path / "g").exists()
