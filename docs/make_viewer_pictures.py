"""Take the pictures of docs/viewer.md: the viewer in a headless Chromium, on a simulated cohort.

    python docs/make_viewer_pictures.py WORK

Makes the cohort, its stores and two RUNs in WORK once (minutes), then writes docs/viewer.jpg and
docs/viewer-two-runs.jpg. Needs what tests/browser.py needs.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

import cytofm_cli as cytofm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.browser import Browser, start  # noqa: E402

WIDTH, HEIGHT = 1400, 880
SETTLED = (
    "[...document.querySelectorAll('.pane:not([hidden]) .leaflet-tile')].every("
    "t => t.complete && t.naturalWidth) && "
    "[...document.querySelectorAll('#gallery img')].slice(0, 6).every(i => i.naturalWidth)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    prepare(work)
    driver = start()
    try:
        browser = Browser(driver)
        with viewing(work, "cells") as url:
            show(browser, url)
            near_a_cell(browser)
            save(browser, work, HERE / "viewer.jpg")
        with viewing(work, "cells", "tiles") as url:
            show(browser, url)
            browser.js("window.cytofm.panes[0].map.zoomIn(1);")
            save(browser, work, HERE / "viewer-two-runs.jpg")
    finally:
        driver.quit()


def prepare(work: Path) -> None:
    """Simulate, find nuclei, train a RUN on cells and one on tiles, score."""
    stores = work / "stores"
    if not (work / "labels.csv").exists():
        cytofm.simulate_slides(
            work, patients=24, slides_per_patient=1, size_px=2048, format="svs-like"
        )
    cytofm.tile(work / "slides", stores, tile_px=256)
    cytofm.detect(stores)
    for unit, run in (("cell", "cells"), ("tile", "tiles")):
        cytofm.embed(stores, encoder="handcrafted", unit=unit)
        cytofm.train(
            stores, work / "labels.csv", work / run, unit=unit, folds=3, seeds=1, epochs=40
        )
        cytofm.score(work / run, stores)


@contextmanager
def viewing(work: Path, *runs: str) -> Iterator[str]:
    """Run the viewer; give its address."""
    named = [word for run in runs for word in ("--run", str(work / run))]
    marks = work / "marks.jsonl"
    marks.unlink(missing_ok=True)
    words = [str(work / "stores"), *named, "--marks", str(marks), "--json", "-q"]
    command = [sys.executable, "-m", "cytofm_cli", "view", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def show(browser: Browser, url: str) -> None:
    """Open the first slide that the RUN calls abnormal."""
    browser.open(url, width=WIDTH, height=HEIGHT)
    browser.until("!!window.cytofm")
    for button in browser.find_all("#slide-list button"):
        button.click()
        name = button.text
        browser.until(f"document.getElementById('slide-name').textContent === {json.dumps(name)}")
        if "predicted abnormal" in browser.find("#pane-1 .said").text:
            break
    browser.until(SETTLED)


def near_a_cell(browser: Browser) -> None:
    """Go to the first cell of the gallery, mark some nuclei around it."""
    browser.find("#gallery button").click()
    browser.js("window.cytofm.panes[0].map.zoomOut(1);")
    browser.until(SETTLED)
    places: list[Any] = browser.js(
        "return [...document.querySelectorAll('#gallery button')].slice(0, 3)"
        ".map(b => b.dataset.x);"
    )
    for number, key in zip(range(len(places)), "554", strict=True):
        browser.js(f"document.querySelectorAll('#gallery button')[{number}].focus();")
        browser.keys(key)
        browser.until(
            f"document.getElementById('marks-count').textContent.startsWith('{number + 1} ')"
        )
    browser.js("document.activeElement.blur();")


def save(browser: Browser, work: Path, path: Path) -> None:
    """Write what is seen; a page that complains of anything is no picture."""
    browser.until(SETTLED)
    complaints = browser.console_errors()
    if complaints:
        raise SystemExit("\n".join(complaints))
    browser.screenshot(work / "shot.png")
    with Image.open(work / "shot.png") as shot:
        data = io.BytesIO()
        shot.convert("RGB").save(data, "JPEG", quality=82, optimize=True)
    path.write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
