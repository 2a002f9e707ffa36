"""Whom the server refuses, and what every answer forbids."""

from __future__ import annotations

import pytest

from .asking import TOKEN, Asking


@pytest.mark.parametrize(
    "path",
    [
        "/", "/start", "/static/viewer.js", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", f"/{TOKEN}",
        f"//{TOKEN}/", "/slides/0", "/%61-token", "/favicon.ico",
    ],
)  # fmt: skip
def test_token__without_it_nothing_is_answered(asking: Asking, path: str) -> None:
    answer = asking.client.get(path, follow_redirects=False)
    assert answer.status_code == 403
    assert "token" in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "static/../server.py", "static/..%2fserver.py", "static/%2e%2e/%2e%2e/guard.py",
        "static/index.html", "static//etc/passwd", "static/%2fetc%2fpasswd", "../../etc/passwd",
        "stores/p1_s1.zarr/zarr.json", "slides/p1_s1", "slides/-1", "slides/0/../../marks",
        "static/leaflet.js.map",
    ],
)  # fmt: skip
def test_paths__no_request_reaches_a_file(asking: Asking, path: str) -> None:
    assert asking.get(path).status_code in (403, 404)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost:9123", 200), ("[::1]:8000", 200), ("localhost", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("127.0.0.1.evil.example:8000", 421),
        ("localhost.evil.example", 421), ("", 421), ("127.0.0.1:8000@evil.example:1", 421),
    ],
)  # fmt: skip
def test_host__only_names_of_this_machine_are_answered(
    asking: Asking, host: str, status: int
) -> None:
    assert asking.get("start", headers={"host": host}).status_code == status


def test_answers__forbid_scripts_and_frames_of_others(asking: Asking) -> None:
    for answer in (asking.get(""), asking.client.get("/"), asking.get("slides/77")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


def test_page__has_no_script_in_it_and_asks_nobody_else(asking: Asking) -> None:
    page = asking.get("").text
    assert "http" not in page.replace("http-equiv", "")
    assert all("src=" in part.partition(">")[0] for part in page.split("<script")[1:])
    assert " on" + "click" not in page
    assert "style=" not in page
    for name in ("leaflet.js", "leaflet.css", "viewer.js", "viewer.css", "pane.js"):
        assert asking.get(f"static/{name}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "undo"), ("GET", "slides/0/mark"), ("POST", "start"), ("PUT", "name"),
     ("DELETE", "marks.csv"), ("POST", "slides/0")],
)  # fmt: skip
def test_methods__others_are_refused(asking: Asking, method: str, path: str) -> None:
    answer = asking.client.request(method, f"/{TOKEN}/{path}", content=b"{}")
    assert answer.status_code == 405


def test_body__that_is_long_or_of_unknown_length_is_refused(asking: Asking) -> None:
    url = f"/{TOKEN}/name"
    assert asking.client.post(url, content=b"x" * 70_000).status_code == 413
    assert asking.client.post(url, content=iter([b"x"])).status_code == 413
