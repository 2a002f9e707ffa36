"""Stores → files of other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cytofm_cli.api.given import PathLike, Paths, path_of, words_of
from cytofm_cli.api.inputs import find_stores
from cytofm_cli.errors import UsageError

if TYPE_CHECKING:
    from cytofm_cli.exporters.product import Product

BAGS = ("h5", "pt")
NUCLEI = ("geojson", "csv")


def export(
    stores: Paths,
    out: PathLike,
    to: str | Sequence[str] = "h5",
    *,
    layout: str = "trident",
    encoder: str | None = None,
    unit: str = "tile",
    detector: str | None = None,
    run: str | None = None,
    origin: str = "bounds",
    slides: PathLike | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write bags as h5 or pt files, nuclei as GeoJSON or CSV; files that are up to date stay.

    Args:
        stores: stores, or folders of stores: one or several.
        out: folder for the files.
        to: kinds of files: h5, pt, geojson, csv; one or several.
        layout: whose h5: trident or clam.
        encoder: which embeddings; None: the only ones.
        unit: bags of "tile" or "cell".
        detector: whose nuclei; None: the only ones.
        run: RUN whose attention of cells goes with the nuclei; None: the only one.
        origin: where GeoJSON counts from: "bounds", the scanned part, as QuPath; or "slide".
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: make finished files anew, also with other settings.

    Returns:
        The files, in the order of the stores.

    Raises:
        UsageError: no such kind of file.
        CytofmError: the first store that cannot be exported.
    """
    from cytofm_cli.exporters.product import make

    kinds = list(dict.fromkeys(words_of(to)))
    for kind in kinds:
        if kind not in BAGS + NUCLEI:
            raise UsageError(f"export(): to={kind!r}: choose {', '.join(BAGS + NUCLEI)}.")
    files: list[Path] = []
    for store in find_stores(words_of(stores)):
        of_bags = _bags(store, Path(out), kinds, layout, encoder, unit)
        of_nuclei = _nuclei(store, Path(out), kinds, detector, run, origin, path_of(slides))
        for product in (*of_bags, *of_nuclei):
            make(product, Path(out), overwrite=overwrite)
            files += product.files
    return files


def _bags(
    store: Path, out: Path, kinds: Sequence[str], layout: str, encoder: str | None, unit: str
) -> Iterator[Product]:
    from cytofm_cli.exporters import bags
    from cytofm_cli.store.io import open_store

    for kind in kinds:
        if kind in BAGS:
            form = layout if kind == "h5" else kind
            yield bags.product(open_store(store), out, form, encoder=encoder, unit=unit)


def _nuclei(
    store: Path,
    out: Path,
    kinds: Sequence[str],
    detector: str | None,
    run: str | None,
    origin: str,
    slides: Path | None,
) -> list[Product]:
    of_nuclei = [kind for kind in kinds if kind in NUCLEI]
    if not of_nuclei:
        return []
    from cytofm_cli.exporters import nuclei
    from cytofm_cli.store.io import open_store

    wanted = nuclei.Wanted(detector=detector, run=run, origin=origin, slides=slides)
    return nuclei.products(open_store(store), out, of_nuclei, wanted, lambda _: None)
