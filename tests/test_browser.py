"""What tests of pages rest on: complaints and requests of a page are seen."""

from __future__ import annotations

from pathlib import Path

from .browser import Browser

PAGE = """<!doctype html><title>page</title><p id="here">words</p><script>
console.error("broken"); document.getElementById("here").textContent = "changed";
document.addEventListener("keydown", event => { window.pressed = event.key; });
document.addEventListener("mousemove", event => { window.at = [event.clientX, event.clientY]; });
</script><img src="https://elsewhere.example/picture.png">"""


def test_browser__tells_what_a_page_complains_of_and_whom_it_asks(
    browser: Browser, tmp_path: Path
) -> None:
    page, quiet = tmp_path / "page.html", tmp_path / "quiet.html"
    page.write_text(PAGE)
    quiet.write_text("<!doctype html><title>quiet</title>")
    browser.open(page)
    assert browser.find("#here").text == "changed"
    assert any("broken" in line for line in browser.console_errors())
    assert browser.hosts() == {"elsewhere.example"}
    browser.open(quiet)
    assert (browser.console_errors(), browser.hosts()) == ([], set())


def test_browser__has_keys_a_mouse_and_a_size(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE)
    browser.open(page, width=640, height=480)
    browser.keys("7")
    assert browser.until("window.pressed") == "7"
    browser.point_at("#here", 3, 4)
    left, top = browser.js(
        "const b = document.querySelector('#here').getBoundingClientRect();return [b.left, b.top];"
    )
    assert browser.until("window.at") == [round(left + 3), round(top + 4)]
    browser.screenshot(tmp_path / "shot.png")
    from PIL import Image

    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (640, 480)
