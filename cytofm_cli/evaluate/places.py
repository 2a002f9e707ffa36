"""Which cells or tiles are compared, and which slides show the same ones.

Legend: N places.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, LabelError, UsageError
from cytofm_cli.evaluate import features
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.condition_config import RobustnessConfig
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, read_points
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.records import is_part
from cytofm_cli.tables import match_slide, read_table
from cytofm_cli.words import named

_SLIDE_A = ("slide_a", "a", "first")
_SLIDE_B = ("slide_b", "b", "second")
_HEADER = "the header must be slide_a,slide_b[,group]"


@dataclass(frozen=True)
class Pair:
    """Two slides that show the same places.

    Attributes:
        first, second: their ids.
        group: what differs between them, as `inter-scanner`; "" if it is not said.
    """

    first: str
    second: str
    group: str


def read_pairs(path: Path, slide_ids: Collection[str]) -> list[Pair]:
    """Read `slide_a,slide_b[,group]`.

    Raises:
        InputError: unreadable, a slide that is not given, a slide with itself, a pair twice, or
            a single pair, which has no spread.
    """
    table = read_table(path, (*_SLIDE_A, *_SLIDE_B, "group"))
    columns = [table.need(*names, hint=_HEADER) for names in (_SLIDE_A, _SLIDE_B)]
    groups = table.find("group")
    pairs: list[Pair] = []
    for row in range(len(table)):
        slides: list[str] = []
        for column in columns:
            word = table.columns[column][row]
            slide = match_slide(word, slide_ids)
            if slide is None:
                raise InputError(
                    f"{table.place(row, column)}: slide {word!r} is not given.",
                    hint=f"the slides given are {named(slide_ids)}",
                )
            slides.append(slide)
        if slides[0] == slides[1]:
            raise InputError(f"{table.place(row)}: slide {slides[0]} is paired with itself.")
        if any({pair.first, pair.second} == set(slides) for pair in pairs):
            raise InputError(f"{table.place(row)}: {' and '.join(slides)} are a pair already.")
        group = table.columns[groups[0]][row] if groups else ""
        pairs.append(Pair(slides[0], slides[1], group))
    if len(pairs) < 2:
        raise InputError(
            f"{path}: one pair: how much pairs differ cannot be said.", hint="give at least two"
        )
    return pairs


def find_places(
    config: RobustnessConfig, sources: Sequence[Source], points: Path | None
) -> tuple[Points, list[Source]]:
    """List the cells or tiles of slides, in each from top to bottom and left to right.

    Args:
        config: unit and detector.
        sources: slides or stores.
        points: table of cells; None: the nuclei, or tiles, that stores hold.

    Returns:
        the places, `tile_N` being their rows in the stores if they come from there; and the
        sources of their slides.

    Raises:
        UsageError: slides without a table of cells, or tiles by a table of cells.
        LabelError, StoreError: see `read_points`, `locate`, `Store.nuclei_xy_px0`.
    """
    if points is not None and config.unit == "tile":
        raise UsageError("--points are cells, and --unit tile takes the tiles of stores.")
    if points is not None:
        cells, _ = read_points(points, {source.slide_id for source in sources})
        used = [source for source in sources if source.slide_id in set(cells.slides)]
        cells, _ = features.locate(cells, used, mpp=config.slide_mpp, slides=config.slides)
        return _in_order(cells), used
    slides: list[str] = []
    corners, rows = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
    for source in sorted(sources, key=lambda source: source.slide_id):
        xy_px0 = _stored_xy(config, source)
        slides += [source.slide_id] * len(xy_px0)
        corners.append(xy_px0)
        rows.append(np.arange(len(xy_px0)))
    blank = ("",) * len(slides)
    xy_N2 = np.concatenate(corners)
    return _in_order(Points(tuple(slides), xy_N2, blank, blank, np.concatenate(rows))), [*sources]


def some(points: Points, most: int, seed: int, *, of_each_slide: bool) -> Points:
    """Draw places: of all, or of each slide, where those with as many places get the same."""
    if not of_each_slide:
        return points.take(_drawn(len(points), most, seed))
    rows = [points.of_slide(slide) for slide in dict.fromkeys(points.slides)]
    return points.take(np.concatenate([of[_drawn(len(of), most, seed)] for of in rows]))


def check_pairs(pairs: Sequence[Pair], points: Points) -> None:
    """Refuse pairs whose slides do not show the same places.

    Raises:
        InputError: names the pair, and what differs.
    """
    xy_of = {slide: points.xy_px0[points.of_slide(slide)] for slide in set(points.slides)}
    none = np.zeros((0, 2))
    for pair in pairs:
        first, second = (xy_of.get(slide, none) for slide in (pair.first, pair.second))
        if len(first) != len(second):
            raise InputError(
                f"slides {pair.first} and {pair.second} have {len(first)} and {len(second)} "
                "places: not the same.",
                hint="`cytofm tile --foreground none` for both; or give both the same --points",
            )
        if apart := int((np.round(first) != np.round(second)).any(1).sum()):
            raise InputError(
                f"slides {pair.first} and {pair.second}: {apart} of {len(first)} places lie at "
                "other coordinates.",
                hint="register the slides first, and give both the same tiles or --points",
            )


def stored_features(
    config: RobustnessConfig, points: Points, sources: Sequence[Source], choice: Choice
) -> NDArray[np.float32] | None:
    """Return what the stores hold of an encoder, float32 (N, D); None unless all do.

    Raises:
        InputError: values that are not finite.
        StoreError: they are out of date.
    """
    if points.tile_N is None:
        return None
    key, parts = features.store_key_of(choice.name), []
    for source in sources:
        rows = points.of_slide(source.slide_id)
        store = source.store
        if not len(rows):
            continue
        if store is None or not _fits(config, choice, store, key):
            return None
        parts.append(store.embeddings(key, config.unit).values[points.tile_N[rows]])
    values_ND = np.concatenate(parts).astype(np.float32)
    features.check_finite(values_ND, points, choice.label)
    return values_ND


def _fits(config: RobustnessConfig, choice: Choice, store: Store, key: str) -> bool:
    step = schema.embedding_step(key, config.unit)
    record = store.embedding_records(config.unit).get(step)
    if record is None or choice.weights_sha256 not in (None, record.weights_sha256):
        return False
    if is_part(record.regions):  # its rows are not those of the tiles or nuclei
        return False
    if config.unit == "cell":
        nuclei = schema.nuclei_step(store.which_detector(config.detector))
        if nuclei not in (record.made_from or {}) or config.crop_um not in (None, record.cell_um):
            return False
    return config.pooling in (None, record.pooling)


def _stored_xy(config: RobustnessConfig, source: Source) -> NDArray[np.float64]:
    store = source.store
    if store is None:
        raise UsageError(
            f"{source.path}: a slide: which {config.unit}s are to be compared?",
            hint="--points points.csv, or stores of `cytofm tile` and `cytofm detect`",
        )
    if config.unit == "tile":
        return store.tile_xy_px0.astype(np.float64)
    return store.nuclei_xy_px0(config.detector).astype(np.float64)


def _in_order(points: Points) -> Points:
    if not len(points):
        raise LabelError("the stores hold no places to compare.", hint="detect nuclei first")
    x, y = points.xy_px0.T
    number = np.unique(np.array(points.slides), return_inverse=True)[1]
    return points.take(np.lexsort((x, y, number)))


def _drawn(n: int, most: int, seed: int) -> NDArray[Any]:
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng((seed, n)).choice(n, most, replace=False))
