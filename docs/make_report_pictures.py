"""Draw the pictures of README.md and docs/report.md, of simulated slides alone.

    cytofm quickstart -o WORK/quickstart
    python docs/make_report_pictures.py WORK/quickstart

Writes docs/report.jpg (part of a report, as a browser shows it: Debian's chromium and
chromium-driver) and docs/gallery.jpg (part of a sheet).
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import cytofm_cli as cytofm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import Browser, start  # noqa: E402 - of the tests

WIDTH, ROWS = 1330, 3
# Of the whole page: its head, the curves, and the first rows of the table.
SHOWN = """
for (const id of ["warnings", "cohort", "metrics", "comparison", "provenance"]) {
  const part = document.getElementById(id); if (part) part.hidden = true;
}
for (const part of document.querySelectorAll("nav, footer, #pager, .facts")) part.remove();
document.querySelectorAll(".plot").forEach((plot, at) => { plot.hidden = at > 2; });
document.querySelectorAll("#slides > p").forEach((line) => line.remove());
const rows = document.querySelectorAll("#table tbody");
rows.forEach((row, at) => { if (at >= arguments[0]) row.remove(); });
"""


def main(work: Path) -> None:
    """Make report and gallery, and take their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        runs = [work / "run-abmil-cell", work / "run-mean-cell"]
        cytofm.make_report(runs, work / "stores", page, cells=8, title="Report of two heads")
        _save(_screenshot(page), HERE / "report.jpg")
        gallery = cytofm.make_gallery(
            work / "stores", Path(folder) / "gallery", by="outlier", per_slide=2, top=30
        )
        with Image.open(gallery.page.parent / "01-outlier-1.png") as sheet:
            _save(sheet.convert("RGB"), HERE / "gallery.jpg")


def _screenshot(page: Path) -> Image.Image:
    driver = start()
    try:
        browser = Browser(driver)
        browser.open(page, width=WIDTH, height=800)
        browser.js(SHOWN, ROWS)
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            browser.screenshot(Path(file.name), whole=True)
            data = Path(file.name).read_bytes()
    finally:
        driver.quit()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    used = np.flatnonzero((np.asarray(picture) != 255).any((1, 2)))
    return picture.crop((0, 0, picture.width, int(used[-1]) + 12))


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=84, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
