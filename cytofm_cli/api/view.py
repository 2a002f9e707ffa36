"""Look at slides and stores in a browser, and mark cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cytofm_cli.api.given import PathLike, Paths, path_of, words_of
from cytofm_cli.api.inputs import find_stores
from cytofm_cli.errors import InputError, MissingPackageError, UsageError
from cytofm_cli.runs.folder import CONFIG

MOST_RUNS = 2


def view(
    stores: Paths,
    runs: Paths | None = None,
    *,
    slides: PathLike | None = None,
    marks: PathLike | None = None,
    port: int = 0,
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the viewer on loopback until a signal ends it (Ctrl-C).

    Args:
        stores: stores, or folders of stores: one or several.
        runs: RUNs whose attention is shown: none, one, or two side by side. Without one, those
            that have scored a store can be chosen in the page.
        slides: folder where the slides lie now, if they were moved.
        marks: file for the reviewer's marks; None: `marks_path`.
        port: to listen on; 0: a free one.
        started: called with the address, which holds the token, when it answers.

    Raises:
        MissingPackageError: starlette, uvicorn or Leaflet is not installed.
        UsageError: the port is in use, more than two RUNs, two stores of one name.
        InputError: no stores, no RUN, or a file of marks that is none.
    """
    folders = check_runs(words_of(runs))
    paths = find_stores(words_of(stores))
    _need_packages()
    from cytofm_cli.viewer import guard, serve, server
    from cytofm_cli.viewer.marks import MarksFile
    from cytofm_cli.viewer.shelf import Shelf

    token = guard.new_token()
    with (
        Shelf(paths, path_of(slides)) as shelf,
        MarksFile(path_of(marks) or marks_path(paths, folders)) as kept,
        serve.listen(port) as sock,
    ):
        url = f"http://{guard.LOOPBACK}:{sock.getsockname()[1]}/{token}/"
        names = tuple(folder.name for folder in folders)
        app = server.make_app(server.Viewer(shelf, kept, names), token)
        serve.serve(app, sock, lambda: started(url))


def export_marks(
    stores: Paths, out: PathLike, runs: Paths | None = None, *, marks: PathLike | None = None
) -> list[Path]:
    """Write what a reviewer has marked.

    Args:
        stores: stores, or folders of stores, as given to `view`.
        out: `FILE.csv` for a table `slide_id,x,y,label`, which `evaluate probe --points` and
            `cells train` read; else a folder, for one GeoJSON file a slide, which QuPath opens.
        runs: as given to `view`.
        marks: the file of marks; None: `marks_path`.

    Returns:
        The files.

    Raises:
        InputError: there are no marks, or the file is none of marks.
        OutputError: a file cannot be written.
    """
    from cytofm_cli.nuclei.place import BOUNDS, place_of
    from cytofm_cli.store.io import open_store
    from cytofm_cli.viewer.marks import csv_text, geojson_text, read_book
    from cytofm_cli.work.files import write_text

    paths = find_stores(words_of(stores))
    path = path_of(marks) or marks_path(paths, check_runs(words_of(runs)))
    book = read_book(path)
    if not book.marks():
        raise InputError(f"{path}: holds no marks.", hint="mark cells with `cytofm view`")
    out = Path(out)
    if out.suffix.lower() == ".csv":
        write_text(out, csv_text(book))
        return [out]
    written = []
    for slide in map(open_store, paths):
        if book.marks(slide.slide_id):
            corner = place_of(slide, lambda _: None).frame(BOUNDS)[:2]
            written.append(out / f"{slide.slide_id}.geojson")
            write_text(written[-1], geojson_text(book, slide.slide_id, corner))
    return written


def _need_packages() -> None:
    """Refuse to begin where the extra `view` is not installed.

    Raises:
        MissingPackageError: names what is missing.
    """
    from cytofm_cli.viewer import pages

    try:
        import starlette.applications  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        what = f"the viewer needs the package {error.name}."
        raise MissingPackageError(what, hint=pages.HINT) from error
    pages.read("leaflet.js")


def marks_path(stores: Sequence[Path], runs: Sequence[Path] = ()) -> Path:
    """Return where marks are kept: `RUN.marks.jsonl` beside the first RUN, else beside the stores.

    Never in the RUN: what trains it anew throws away what it held.
    """
    beside = (runs[0] if runs else stores[0].absolute().parent).absolute()
    return beside.parent / f"{beside.name}.marks.jsonl"


def check_runs(words: Sequence[str]) -> list[Path]:
    """Return the folders of RUNs.

    Raises:
        UsageError: more than two.
        InputError: one is no RUN.
    """
    if len(words) > MOST_RUNS:
        raise UsageError(f"{len(words)} RUNs: two can be seen side by side.")
    for word in words:
        if not (Path(word) / CONFIG).is_file():
            raise InputError(f"{word}: is no RUN.", hint="give what -o of `mil train` named")
    return [Path(word) for word in words]
