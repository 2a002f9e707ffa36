"""The page in a real browser, served by the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytofm_cli.store.io import open_store
from cytofm_cli.viewer.marks import read_book

from ..browser import Browser  # noqa: TID252 - the folders of tests are no packages
from ..nodes import put_node  # noqa: TID252 - of all tests

pytestmark = pytest.mark.slow

Serve = Callable[..., "Served"]
NAMED = "document.getElementById('plane-name').textContent === arguments[0]"
X0 = "<img src=x onerror=alert(1)>"


class Served:
    """A running `cytofm view`."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, "-m", "cytofm_cli", "view", *map(str, words), "--json", "-q"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.stdout.close()  # type: ignore[union-attr]
        return self.process.wait(60)


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[Served] = []

    def begin(*words: object) -> Served:
        running.append(Served(*words))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def shown(browser: Browser, served: Served, place: str = "") -> None:
    """Open the page and wait until it has shown the first slide with all that is seen of it."""
    browser.open(served.url + place)
    browser.until("!!window.cytofm")
    settled(browser)


def settled(browser: Browser) -> None:
    """Wait until every square and picture in view is there."""
    browser.until(
        "[...document.querySelectorAll('.pane:not([hidden]) .leaflet-tile')].every("
        "t => t.classList.contains('leaflet-tile-loaded')) "
        "&& document.querySelectorAll('.leaflet-tile-loaded').length > 0"
    )


def sources(browser: Browser, part: str, pane: int = 1) -> int:
    """Count the squares in a pane whose address has something in it."""
    found: int = browser.js(
        "return [...document.querySelectorAll(arguments[0] + ' .leaflet-tile')]"
        ".filter(t => t.src.includes(arguments[1])).length;",
        f"#pane-{pane}",
        part,
    )
    return found


def centre(browser: Browser, pane: int = 0) -> list[float]:
    """Return the middle of a pane in level-0 pixels, and its zoom."""
    place: list[float] = browser.js(
        "const p = window.cytofm.panes[arguments[0]], c = p.place(p.map.getCenter());"
        "return [c.x, c.y, p.map.getZoom()];",
        pane,
    )
    return place


def on_pane(browser: Browser, x_px0: float, y_px0: float) -> None:
    """Move the mouse to a point of the slide in the first pane."""
    at: Any = browser.js(
        "const p = window.cytofm.panes[0], "
        "c = p.map.latLngToContainerPoint(p.at(arguments[0], arguments[1])); return [c.x, c.y];",
        x_px0,
        y_px0,
    )
    browser.point_at("#pane-1 .map", at[0], at[1])


def axe_finds(browser: Browser) -> dict[str, Any]:
    """Return what axe finds wrong with the page, by rule."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script})
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(r => done(r.violations))"
    )
    return {each["id"]: [node["target"] for node in each["nodes"]] for each in found}


def test_page__shows_the_slide_without_complaint_and_asks_nobody_else(
    browser: Browser, serve: Serve, work: Path
) -> None:
    served = serve(work / "stores", "--run", work / "model")
    shown(browser, served)
    assert browser.find("#slide-name").text == "p1_s1"
    assert "1600 × 1600 px" in browser.find("#slide-facts").text
    assert [b.text for b in browser.find_all("#slide-list button")] == ["p1_s1", "p2_s1"]
    assert sources(browser, "/square/") > 0
    assert browser.find("#pane-1 .said").text.startswith("model: attention for the slide's answer")
    assert not browser.find("#planes").is_displayed()  # one focal plane: nothing to choose
    browser.until(
        "[...document.querySelectorAll('#gallery img')].slice(0, 3)"
        ".every(i => i.naturalWidth === 112)"
    )
    browser.find_all("#slide-list button")[1].click()
    browser.until("document.getElementById('slide-name').textContent === 'p2_s1'")
    settled(browser)
    assert "No nuclei" in browser.find("#notes").text
    assert "RUN model has left no attention here" in browser.find("#notes").text
    assert not browser.find("#show-nuclei").is_enabled()
    assert browser.console_errors() == []
    assert browser.hosts() == {served.url.split("/")[2]}


def test_layers__are_shown_and_hidden_by_box_and_key_and_have_opacity(
    browser: Browser, serve: Serve, work: Path
) -> None:
    shown(browser, serve(work / "stores"))
    for name, key in [("foreground", "f"), ("tiles", "t"), ("map", "a"), ("nuclei", "n")]:
        part = f"/layer/{name}/"
        was = browser.find(f"#show-{name}").is_selected()
        assert (sources(browser, part) > 0) == was == (name == "nuclei")
        browser.keys(key)
        browser.wait(lambda part=part, was=was: (sources(browser, part) > 0) != was, name)
        browser.find(f"#show-{name}").click()
        browser.wait(lambda part=part, was=was: (sources(browser, part) > 0) == was, name)
    settled(browser)
    browser.js(
        "const r = document.getElementById('opacity-nuclei'); r.value = 30;"
        "r.dispatchEvent(new Event('input'));"
    )
    assert browser.until(
        "[...document.querySelectorAll('.leaflet-layer')].some(l => l.style.opacity === '0.3')"
    )
    assert browser.console_errors() == []


def test_gallery__a_click_moves_the_view_to_the_cell(
    browser: Browser, serve: Serve, work: Path
) -> None:
    shown(browser, serve(work / "stores"))
    table = open_store(work / "stores" / "p1_s1.zarr").nuclei()
    browser.js(
        "const s = document.getElementById('ranking');"
        "s.selectedIndex = [...s.options].findIndex(o => o.text === 'classical: area, µm²');"
        "s.dispatchEvent(new Event('change'));"
    )
    largest = table.xy_px0[int(np.argmax(table.area_um2))]
    first = "document.querySelector('#gallery button')"
    browser.until(f"{first} && Math.abs({first}.dataset.x - {largest[0]}) < 0.01")
    before = centre(browser)
    browser.find("#gallery button").click()
    after = centre(browser)
    assert after[2] > before[2]
    assert abs(after[0] - largest[0]) <= 1
    assert abs(after[1] - largest[1]) <= 1
    settled(browser)
    assert browser.console_errors() == []


def test_panes__two_runs_stand_side_by_side_and_move_as_one(
    browser: Browser, serve: Serve, work: Path
) -> None:
    shown(browser, serve(work / "stores", "--run", work / "model", "--run", work / "other"))
    said = [browser.find(f"#pane-{n} .said").text.split(":")[0] for n in (1, 2)]
    assert said == ["model", "other"]
    settled(browser)
    assert sources(browser, "/layer/map/", 1)
    assert sources(browser, "/layer/map/", 2)
    browser.js("const p = window.cytofm.panes[1]; p.map.setView(p.at(300, 900), 2);")
    assert centre(browser, 0) == centre(browser, 1) == [300, 900, 2]
    browser.find("#pane-1 .map").click()
    browser.keys("+")
    browser.wait(lambda: centre(browser, 1)[2] == 3, "zoomed by a key")
    assert np.allclose(centre(browser, 0), centre(browser, 1), atol=1)
    kept = centre(browser, 0)
    browser.keys("c")
    assert not browser.find("#pane-2").is_displayed()
    browser.keys("c")
    assert np.allclose([centre(browser, 0), centre(browser, 1)], kept, atol=1)  # half a pixel
    assert browser.console_errors() == []


@pytest.mark.slow
def test_marks__survive_a_kill_and_a_restart_and_are_undone(
    browser: Browser, serve: Serve, work: Path
) -> None:
    words = (work / "stores", "--run", work / "model")
    xy = open_store(work / "stores" / "p1_s1.zarr").nuclei_xy_px0().astype(float)
    inside = xy[((xy > 200) & (xy < 1400)).all(1)]
    served = serve(*words)
    shown(browser, served)
    for n, key, (x, y) in zip((1, 2), "52", inside[[0, -1]], strict=True):
        browser.js(
            "const p = window.cytofm.panes[0]; p.map.setView(p.at(arguments[0], arguments[1]), 2);",
            float(x),
            float(y),
        )
        on_pane(browser, x + 2, y + 2)
        browser.keys(key)
        # The status still says "saved" of the mark before; the count is of what was answered.
        browser.until(f"document.getElementById('marks-count').textContent.startsWith('{n} ')")
    assert "saved" in browser.find("#status").text
    served.end(signal.SIGKILL)
    kept = read_book(work / "model.marks.jsonl").marks()
    assert [(m.slide_id, m.key) for m in kept] == [("p1_s1", 5), ("p1_s1", 2)]
    assert np.allclose([(m.x, m.y) for m in kept], inside[[0, -1]], atol=0.01)

    browser.find("body")
    browser.keys("3")
    browser.until("document.getElementById('status').textContent.includes('has ended')")

    served = serve(*words)
    shown(browser, served)
    assert browser.find("#marks-count").text.startswith("2 on this slide")
    browser.find("#undo").click()
    browser.until("document.getElementById('marks-count').textContent.startsWith('1 ')")
    browser.keys("u")
    browser.until("document.getElementById('marks-count').textContent.startsWith('0 ')")
    assert read_book(work / "model.marks.jsonl").marks() == []
    assert served.end() == 0
    done = subprocess.run(
        [sys.executable, "-m", "cytofm_cli", "view", *map(str, words), "--export-marks", "m.csv"],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "holds no marks" in done.stderr


def test_marks__by_keyboard_alone_and_on_the_gallery(
    browser: Browser, serve: Serve, work: Path
) -> None:
    shown(browser, serve(work / "stores"))
    book = work / "stores.marks.jsonl"
    browser.until("document.querySelector('#gallery button')")
    x, y = browser.js(
        "const b = document.querySelector('#gallery button'); b.focus();"
        "return [Number(b.dataset.x), Number(b.dataset.y)];"
    )
    browser.keys("4")
    browser.until("document.getElementById('status').textContent.includes('saved')")
    browser.js("document.querySelector('#pane-1 .map').focus();")
    browser.js("const p = window.cytofm.panes[0]; p.map.setView(p.at(5, 5), 2);")
    browser.keys("6")
    browser.until("document.getElementById('marks-count').textContent.startsWith('2 ')")
    first, second = read_book(book).marks()
    assert first.key == 4
    assert np.hypot(first.x - x, first.y - y) < 1  # places of cells are rounded
    assert second.key == 6
    assert np.hypot(second.x - 5, second.y - 5) < 40
    name = browser.find("#legend input")
    browser.js("document.querySelector('#legend input').select();")
    name.send_keys("benign 1\t")  # a digit in a field is no mark
    browser.wait(lambda: read_book(book).name(1) == "benign 1", "the name")
    assert len(read_book(book).marks()) == 2
    assert browser.console_errors() == []


def test_names__of_slides_and_classes_stay_text(browser: Browser, serve: Serve, work: Path) -> None:
    store = work / "stores" / "p1_s1.zarr"
    for node in (store / "zarr.json", store / "nuclei" / "classical" / "zarr.json"):
        put_node(node, node.read_text().replace('"nucleus"', json.dumps(X0)))
    hostile = store.with_name(f"{X0}.zarr")
    store.rename(hostile)
    shown(browser, serve(work / "stores"))
    assert browser.find("#slide-name").text == X0
    assert browser.find("#slide-list button").text == X0
    browser.wait(lambda: X0 in browser.find("#classes").text, "the class")
    browser.until("document.querySelector('#gallery button')")
    browser.js("document.querySelector('#gallery button').focus();")
    name = browser.find("#legend input")
    browser.js("document.querySelector('#legend input').select();")
    name.send_keys(f"{X0}\t")
    browser.until("document.getElementById('status').textContent.includes('onerror')")
    assert browser.js("return document.querySelectorAll('img[onerror], img[src=x]').length;") == 0
    assert browser.console_errors() == []


def test_list__of_many_slides_has_pages_and_a_filter_and_tells_what_cannot_be_shown(
    browser: Browser, serve: Serve, work: Path
) -> None:
    real = work / "stores" / "p2_s1.zarr"
    root = (real / "zarr.json").read_text()
    for number in range(250):
        folder = real.with_name(f"x{number:03d}.zarr")
        folder.mkdir()
        put_node(folder / "zarr.json", root.replace('"schema": 1', '"schema": 99'))
    shown(browser, serve(work / "stores"))
    assert browser.find("#slide-count").text == "252 in all"
    assert len(browser.find_all("#slide-list button")) == 100
    browser.find("#later").click()
    browser.until("document.getElementById('slide-range').textContent === '101–200'")
    browser.find("#words").send_keys("X24")
    browser.until("document.getElementById('slide-count').textContent === '10 found'")
    browser.find("#slide-list button").click()
    browser.until("document.getElementById('status').textContent.includes('store schema 99')")
    assert browser.find("#slide-name").text == "x240"
    assert sources(browser, "/square/") == len(browser.find_all("#gallery button")) == 0
    browser.keys("5")  # marks nothing, least of all the slide before
    assert not (work / "stores.marks.jsonl").exists()
    browser.find("#words").clear()
    browser.find("#words").send_keys("p1")
    browser.until("document.getElementById('slide-count').textContent === '1 found'")
    browser.find("#slide-list button").click()
    browser.until("document.getElementById('slide-name').textContent === 'p1_s1'")
    assert browser.find("#status").text == ""


def test_place__is_kept_in_the_address(browser: Browser, serve: Serve, work: Path) -> None:
    served = serve(work / "stores")
    shown(browser, served, "#slide=1&z=2&x=700&y=500")
    assert browser.find("#slide-name").text == "p2_s1"
    assert centre(browser) == [700, 500, 2]
    browser.js("const p = window.cytofm.panes[0]; p.map.setView(p.at(640, 512), 1);")
    assert browser.js("return location.hash;") == "#slide=1&z=1&x=640&y=512"


def test_page__axe_finds_nothing(browser: Browser, serve: Serve, work: Path) -> None:
    shown(browser, serve(work / "stores", "--run", work / "model"))
    browser.until("document.querySelector('#gallery button')")
    assert axe_finds(browser) == {}
    browser.keys("c")
    assert axe_finds(browser) == {}


def test_planes__by_slider_and_by_keyboard(browser: Browser, serve: Serve, stacked: Path) -> None:
    shown(browser, serve(stacked))
    assert browser.find("#planes").is_displayed()
    assert browser.find("#plane-tiled-name").text == "Best: sharpest plane of each tile"
    assert (sources(browser, "/square/"), sources(browser, "plane=")) == (1, 0)
    browser.keys(".")  # the one at which the slider stands
    browser.until(
        "document.getElementById('plane-name').textContent === 'plane 1 of 0 to 2, 1.5 µm'"
    )
    settled(browser)
    assert sources(browser, "plane=1") == 1
    browser.keys(".")
    browser.keys(".")  # there are no more
    browser.until(NAMED, "plane 2 of 0 to 2, 3 µm")
    browser.keys(",")
    settled(browser)
    assert sources(browser, "plane=1") == 1
    browser.keys("b")
    settled(browser)
    assert (sources(browser, "/square/"), sources(browser, "plane=")) == (1, 0)
    browser.js(
        "const s = document.getElementById('plane'); s.value = 0;"
        "s.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    settled(browser)
    assert sources(browser, "plane=0") == 1
    assert not browser.find("#plane-tiled").is_selected()
    browser.keys("c")
    settled(browser)
    assert sources(browser, "plane=0", pane=2) == 1
    assert axe_finds(browser) == {}
    assert browser.console_errors() == []
