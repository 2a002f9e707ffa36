"""The pages in a real browser: they ask for nothing, complain of nothing, sort, filter, print."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.report.output import write_page
from cytofm_cli.report.report import report_page

from .made_up import evidence_of, many, run_of

pytestmark = pytest.mark.slow

HOSTILE = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"


def shown(browser) -> list[str]:
    """Return the names of the slides of the page of the table that is seen."""
    return browser.js(
        "return Array.from(document.querySelectorAll('#table tbody.slide')).filter("
        "row => row.offsetHeight > 0).map(row => row.rows[0].cells[0].textContent)"
    )


def write(folder: Path, n: int, *, pictured: int = 4) -> Path:
    """Write the report of a RUN of n slides, some of them with pictures."""
    run = many(n)
    names = run.answers.slide_ids
    seen = {name: evidence_of(name) for name in names[:pictured]}
    made = report_page([run, many(n, 1)], seen, ReportConfig(), "report_files")
    path = folder / "report.html"
    write_page(path, made.html, made.files)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), 30)


def test_report_page__asks_for_nothing_and_complains_of_nothing(browser, small: Path) -> None:
    browser.open(small)
    assert browser.console_errors() == []
    assert browser.hosts() == set()
    assert browser.js(
        "return Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"
    )
    assert len(browser.find_all("svg.chart")) == 7


def test_report_page__sorts_by_button_and_key(browser, small: Path) -> None:
    browser.open(small)
    p = [
        float(cell.text)
        for cell in browser.find_all("tbody.slide > tr:first-child > td:nth-child(6)")
    ]
    assert p == sorted(p, reverse=True)
    browser.js("document.querySelectorAll('.sort')[0].focus()")
    browser.keys("\ue007")
    assert shown(browser) == [f"s{i:05}" for i in range(30)]
    assert browser.find("#table thead th:first-child").get_attribute("aria-sort") == "ascending"
    browser.keys("\ue007")
    assert shown(browser) == [f"s{i:05}" for i in reversed(range(30))]
    assert browser.find("#table thead th:first-child").get_attribute("aria-sort") == "descending"


def test_report_page__what_is_not_known_comes_last_either_way(browser, small: Path) -> None:
    browser.open(small)
    button = next(b for b in browser.find_all(".sort") if b.text.startswith("nuclei"))
    for _ in range(2):
        button.click()
        assert set(shown(browser)[:4]) == {f"s{i:05}" for i in range(4)}


def test_report_page__filters_by_text_and_by_answer(browser, small: Path) -> None:
    browser.open(small)
    browser.find("#find").send_keys("s0000")
    assert sorted(shown(browser)) == [f"s{i:05}" for i in range(10)]
    assert browser.find("#count").text == "10 of 30 slides"
    browser.find("#find").clear()
    browser.js("const s = document.getElementById('only'); s.value = 'wrong';"
               "s.dispatchEvent(new Event('change'))")  # fmt: skip
    run = many(30)
    wrong = run.predicted_S != run.answers.y_S
    expected = {run.answers.slide_ids[s] for s in np.flatnonzero(wrong)}
    assert set(shown(browser)) == expected
    assert 0 < len(expected) < 30


def test_report_page__a_slide_opens_to_its_cells_and_outlines_can_go(browser, small: Path) -> None:
    browser.open(small)
    browser.find("#close-all").click()
    assert browser.js("return document.querySelectorAll('.cells').length") == 4
    assert not any(one.is_displayed() for one in browser.find_all(".cells"))
    button = browser.find(".open")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    detail = browser.driver.find_element("id", button.get_attribute("aria-controls"))
    assert detail.find_element("css selector", ".cells").is_displayed()
    assert len(detail.find_elements("css selector", ".large img")) == 2
    outline = detail.find_element("css selector", ".outline")
    assert outline.is_displayed()
    browser.find("#outlines").click()
    assert not outline.is_displayed()


@pytest.mark.slow
def test_report_page__two_thousand_slides_are_paged_and_searched(browser, tmp_path: Path) -> None:
    path = write(tmp_path, 2000)
    assert path.stat().st_size < 10_000_000
    browser.open(path)
    assert len(shown(browser)) == 100
    assert browser.find("#page").text == "page 1 of 20"
    browser.find("#next").click()
    assert browser.find("#page").text == "page 2 of 20"
    browser.find("#find").send_keys("s01999")
    assert shown(browser) == ["s01999"]
    assert browser.console_errors() == []


def test_report_page__scripts_in_names_never_run(browser, tmp_path: Path) -> None:
    slides = [f"{HOSTILE}{i}" for i in range(6)]
    p = np.linspace(0.1, 0.9, 6)
    run = run_of(
        np.column_stack([1 - p, p]), [0, 1, 0, 1, 0, 1], name=HOSTILE,
        classes=(HOSTILE, f"b{HOSTILE}"), slides=slides,
    )  # fmt: skip
    seen = {name: evidence_of(name, warnings=(HOSTILE,)) for name in slides}
    path = tmp_path / "report.html"
    write_page(path, report_page([run], seen, ReportConfig(title=HOSTILE), "x").html, {})
    browser.open(path)
    assert browser.js("return window.hit === undefined")
    assert browser.js("return document.title") == HOSTILE
    assert browser.console_errors() == []
    assert browser.hosts() == set()
    # What is put into the page afterwards is shut out by its policy.
    browser.js("const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
               "document.body.append(s)")  # fmt: skip
    assert browser.js("return window.hit === undefined")


def test_report_page__prints_to_a4_without_its_controls(browser, small: Path) -> None:
    browser.open(small)
    asked = {"preferCSSPageSize": True, "printBackground": True}
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", asked)
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    box = pdf.partition(b"/MediaBox [")[2].partition(b"]")[0].split()
    assert [round(float(n)) for n in box] == [0, 0, 595, 842]
    browser.open(small, width=703)  # 186 mm, what the margins leave
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not browser.find("#controls").is_displayed()
        assert len(shown(browser)) == 30
        assert browser.js("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_pictures_beside_the_page__are_shown(browser, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cytofm_cli.report.page.MOST_BYTES", 1000)
    path = write(tmp_path, 8, pictured=2)
    assert (tmp_path / "report_files").is_dir()
    browser.open(path)
    assert browser.js("return document.images.length") >= 8
    browser.until("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
    assert browser.console_errors() == []


def test_gallery_page__opens_and_asks_for_nothing(browser, trained, tmp_path: Path) -> None:
    made = cytofm.make_gallery(trained.stores, tmp_path / "g", top=20, min_probability=0)
    browser.open(made.page, height=2400)
    assert browser.console_errors() == []
    assert browser.hosts() == set()
    browser.until("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)")
    assert len(browser.find_all("h2")) == 3
    browser.find("#outlines").click()
    assert not browser.find(".outline").is_displayed()


@pytest.mark.parametrize("kind", ["report", "gallery"])
def test_pages__axe_finds_nothing(browser, trained, small: Path, tmp_path: Path, kind: str) -> None:
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    path = small
    if kind == "gallery":
        path = cytofm.make_gallery(trained.stores, tmp_path / "g", top=5, min_probability=0).page
    browser.open(path)
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": script})
    found = browser.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(r => done(r.violations))"
    )
    told = {one["id"]: [n["target"] for n in one["nodes"]][:3] for one in found}
    assert told == {}
