"""What the viewer answers: the page, squares of slides and layers, orders, marks.

A request names a slide by its number in the list that the command was given, layers and orders by
their numbers in the slide's facts. No path comes from a request, so none can lead elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli.errors import CytofmError, StoreError, UsageError
from cytofm_cli.pictures.files import jpeg_bytes, png_bytes
from cytofm_cli.viewer import marks, pages
from cytofm_cli.viewer.guard import Guard
from cytofm_cli.viewer.kept import Kept
from cytofm_cli.viewer.marks import MarksFile
from cytofm_cli.viewer.shelf import Shelf
from cytofm_cli.work.cpus import cpu_count

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_MOST_NAMES: Final = 200
_AS_TILED: Final = -1  # the number of no focal plane
_MOST_RANKED: Final = 500
_CROP_PX: Final = 112
_QUALITY: Final = 88
# Addresses are new with every start of the server, so that what a browser keeps is never old.
_KEEP: Final = {"cache-control": "private, max-age=3600"}
_DO_NOT_KEEP: Final = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Viewer:
    """What the server shows.

    Attributes:
        shelf: the slides.
        marks: of the reviewer.
        runs: names of the RUNs to show first, at most one a pane.
    """

    shelf: Shelf
    marks: MarksFile
    runs: tuple[str, ...] = ()


def make_app(viewer: Viewer, token: str) -> Guard:
    """Return the ASGI application."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    answers = _Answers(viewer)
    routes = [
        Route("/", answers.page),
        Route("/static/{name}", answers.static),
        Route("/start", answers.start),
        Route("/slides", answers.slides),
        Route("/slides/{slide:int}", answers.facts),
        Route("/slides/{slide:int}/square/{zoom:int}/{column:int}/{row:int}.jpg", answers.square),
        Route(
            "/slides/{slide:int}/layer/{name}/{zoom:int}/{column:int}/{row:int}.png", answers.layer
        ),
        Route("/slides/{slide:int}/top/{number:int}", answers.top),
        Route("/slides/{slide:int}/crop.jpg", answers.crop),
        Route("/slides/{slide:int}/marks.geojson", answers.geojson),
        Route("/slides/{slide:int}/mark", answers.mark, methods=["POST"]),
        Route("/marks.csv", answers.csv),
        Route("/undo", answers.undo, methods=["POST"]),
        Route("/name", answers.name, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), token)


class _Answers:
    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._kept = Kept()
        # Few: each keeps a region of every level that it has read.
        self._pool = ThreadPoolExecutor(max(2, min(4, cpu_count())), "cytofm-view")
        self._pool.submit(self._open_first)

    async def page(self, _request: Request) -> Response:
        """Return the page."""
        return _response(pages.read("index.html"), "text/html", _DO_NOT_KEEP)

    async def static(self, request: Request) -> Response:
        """Return a script or style sheet."""
        name = request.path_params["name"]
        kind = pages.KINDS.get(name)
        if kind is None:
            return _told(404, "No such file.")
        return _response(pages.read(name), kind, _KEEP)

    async def start(self, _request: Request) -> Response:
        """Return what the page needs before any slide."""

        def answer() -> Response:
            legend = self._viewer.marks.ask(lambda book: dict(book.legend))
            return _json(
                {
                    "n_slides": len(self._viewer.shelf.names),
                    "runs": self._viewer.runs,
                    "marks_file": str(self._viewer.marks.path),
                    "keys": [
                        {"key": key, "name": legend.get(key, ""), "colour": _key_colour(key)}
                        for key in marks.KEYS
                    ],
                }
            )

        return await self._run(answer)

    async def slides(self, request: Request) -> Response:
        """Return the names of some slides."""

        def answer() -> Response:
            first = _number(request, "first", 0, low=0)
            count = int(_number(request, "count", _MOST_NAMES, low=1, high=_MOST_NAMES))
            words = request.query_params.get("words", "")
            total, some = self._viewer.shelf.find(words, int(first), count)
            slides = [{"number": number, "name": name} for number, name in some]
            return _json({"n": total, "slides": slides})

        return await self._run(answer)

    async def facts(self, request: Request) -> Response:
        """Return what is known of a slide, and its marks."""

        def answer() -> Response:
            with self._slide(request) as view:
                return _json({**view.facts(), "marks": self._marks_of(view.store.slide_id)})

        return await self._run(answer)

    async def square(self, request: Request) -> Response:
        """Return a square of a slide as JPEG."""
        where = request.path_params

        def answer() -> Response:
            asked = int(_number(request, "plane", _AS_TILED, low=_AS_TILED))
            plane = None if asked == _AS_TILED else asked

            def make() -> bytes:
                with self._slide(request) as view:
                    pixels = view.square(where["zoom"], where["column"], where["row"], plane)
                    return jpeg_bytes(pixels, _QUALITY)

            return self._picture(("square", plane, *where.values()), make)

        return await self._run(answer)

    async def layer(self, request: Request) -> Response:
        """Return a square of a layer as PNG."""
        where = request.path_params

        def answer() -> Response:
            number, column = (int(_number(request, key, 0, low=0)) for key in ("number", "of"))

            def make() -> bytes:
                with self._slide(request) as view:
                    region = view.zooms.region(where["zoom"], where["column"], where["row"])
                    canvas = view.layer(where["name"], region, number, column)
                    return png_bytes(canvas, effort=1)

            return self._picture(("layer", number, column, *where.values()), make)

        return await self._run(answer)

    async def top(self, request: Request) -> Response:
        """Return the first cells or tiles of an order."""

        def answer() -> Response:
            count = int(_number(request, "count", 60, low=1, high=_MOST_RANKED))
            lowest = request.query_params.get("lowest") == "1"
            with self._slide(request) as view:
                return _json(view.top(request.path_params["number"], count, lowest=lowest))

        return await self._run(answer)

    async def crop(self, request: Request) -> Response:
        """Return the picture of a cell or tile as JPEG."""

        def answer() -> Response:
            x, y = (_number(request, key, math.nan) for key in "xy")
            unit = request.query_params.get("unit", "cell")

            def make() -> bytes:
                with self._slide(request) as view:
                    return jpeg_bytes(view.crop(x, y, unit, _CROP_PX), _QUALITY)

            return self._picture(("crop", request.path_params["slide"], x, y, unit), make)

        return await self._run(answer)

    async def mark(self, request: Request) -> Response:
        """Mark the nucleus under a point, or the point."""
        body = await _body(request)

        def answer() -> Response:
            with self._slide(request) as view:
                x, y = float(body["x"]), float(body["y"])
                if not (math.isfinite(x) and math.isfinite(y)):
                    raise UsageError("not marked: no place on a slide.")
                if body.get("snap", True):
                    x, y = view.snap(x, y, int(body.get("nuclei", 0)))
                slide_id = view.store.slide_id
            done = {"do": "mark", "slide_id": slide_id, "x": x, "y": y, "key": body["key"]}
            mark = self._viewer.marks.do(done)
            assert mark is not None, "what `mark` does"
            return _json({"mark": marks.as_json([mark])[0], "marks": self._marks_of(slide_id)})

        return await self._run(answer)

    async def undo(self, _request: Request) -> Response:
        """Take back the last mark."""

        def answer() -> Response:
            undone = self._viewer.marks.do({"do": "undo"})
            if undone is None:
                return _json({"undone": None})
            names = self._viewer.shelf.names
            return _json(
                {
                    "undone": marks.as_json([undone])[0],
                    "slide": names.index(undone.slide_id) if undone.slide_id in names else None,
                    "marks": self._marks_of(undone.slide_id),
                }
            )

        return await self._run(answer)

    async def name(self, request: Request) -> Response:
        """Name the class of a key."""
        body = await _body(request)

        def answer() -> Response:
            self._viewer.marks.do({"do": "name", "key": body["key"], "name": body["name"]})
            return _json({"key": body["key"], "name": body["name"]})

        return await self._run(answer)

    async def csv(self, _request: Request) -> Response:
        """Return all marks as a table."""

        def answer() -> Response:
            return _download(self._viewer.marks.ask(marks.csv_text), "text/csv", "marks.csv")

        return await self._run(answer)

    async def geojson(self, request: Request) -> Response:
        """Return the marks of a slide as GeoJSON."""

        def answer() -> Response:
            with self._slide(request) as view:
                slide_id, corner = view.store.slide_id, view.origin_px0()
            text = self._viewer.marks.ask(lambda of: marks.geojson_text(of, slide_id, corner))
            return _download(text, "application/geo+json", "marks.geojson")

        return await self._run(answer)

    def _open_first(self) -> None:
        """Open the first slide while the browser gets the page: it is what will be asked for."""
        with contextlib.suppress(CytofmError), self._viewer.shelf.use(0) as view:
            jpeg_bytes(view.square(0, 0, 0), _QUALITY)
            view.facts()

    def _marks_of(self, slide_id: str) -> list[dict[str, Any]]:
        return self._viewer.marks.ask(lambda book: marks.as_json(book.marks(slide_id)))

    def _slide(self, request: Request) -> Any:
        return self._viewer.shelf.use(request.path_params["slide"])

    def _picture(self, key: tuple[Any, ...], make: Callable[[], bytes]) -> Response:
        data = self._kept.get(key, make)
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return _response(data, kind, _KEEP)

    async def _run(self, answer: Callable[[], Response]) -> Response:
        """Answer in a thread of the pool; an error becomes one line that the page shows."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, answer)
        except UsageError as error:
            return _told(400, error.one_line())
        except StoreError as error:
            return _told(409, error.one_line())
        except CytofmError as error:
            return _told(503, error.one_line())
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return _told(400, f"not understood: {type(error).__name__} {error}")


def _response(content: bytes, kind: str, headers: Mapping[str, str], status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(content, status, dict(headers), kind)


def _json(value: Any, status: int = 200) -> Response:
    # ASCII: names of files may hold what is no UTF-8.
    text = json.dumps(value, allow_nan=False).encode("ascii")
    return _response(text, "application/json", _DO_NOT_KEEP, status)


def _told(status: int, text: str) -> Response:
    return _json({"error": text}, status)


def _download(text: str, kind: str, name: str) -> Response:
    headers = {**_DO_NOT_KEEP, "content-disposition": f'attachment; filename="{name}"'}
    return _response(text.encode("utf-8", "backslashreplace"), kind, headers)


def _key_colour(key: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*marks.colour_of(key))


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _number(
    request: Request, key: str, default: float, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return a number of the query.

    Raises:
        UsageError: it is none, or out of range.
    """
    text = request.query_params.get(key)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f"{key}={text}: no number from {low:g} to {high:g}.")
    return value
