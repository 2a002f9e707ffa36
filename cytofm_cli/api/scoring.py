"""The answer of a RUN for one store or bag file: score, attention in the store, map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cytofm_cli.api.cohort import WARNING
from cytofm_cli.errors import CytofmError, InputError, UsageError
from cytofm_cli.exporters.maps import write_geojson
from cytofm_cli.mil.attention import write_attention
from cytofm_cli.mil.bag import Bag, check_bags, notes
from cytofm_cli.mil.bag_table import table_bags
from cytofm_cli.mil.bags import find_bags, load_bags, read_bag
from cytofm_cli.mil.describe import positive_line
from cytofm_cli.mil.origin import unstated
from cytofm_cli.mil.score import Ensemble, SlideScore, score_bag
from cytofm_cli.nuclei.place import BOUNDS, place_of
from cytofm_cli.store import io, schema
from cytofm_cli.store.records import TRAINING
from cytofm_cli.words import named

Say = Callable[[str], None]


@dataclass
class Scoring:
    """How slides are scored.

    Attributes:
        run: folder of the RUN.
        ensemble: its models.
        encoder: what the user says of files that do not say whose features they hold.
        device: where to compute.
        allow_mixed: score features that are made in another way.
        attention: write attention of every instance into stores.
        geojson: folder for maps; None: none.
        unstated: counts what bags do not tell of their origin.
    """

    run: Path
    ensemble: Ensemble
    encoder: str | None = None
    device: str = "cpu"
    allow_mixed: bool = False
    attention: bool = True
    geojson: Path | None = None
    unstated: Counter[str] = field(default_factory=Counter)


def slide_of(item: Path | Bag) -> str:
    """Return the slide of a store, a bag file or a bag."""
    return item.slide_id if isinstance(item, Bag) else item.stem


def score_one(item: Path | Bag, how: Scoring, *, note: Say) -> SlideScore:
    """Score a slide; attention that cannot be written is no reason to lose the score.

    Args:
        item: a store, a bag file, or a bag that a table has put together: that has no place in a
            store, so its attention is written nowhere.
        how: what to ask, and what else to write.
        note: told where a map begins, and, after "warning: ", what the user should look at.

    Raises:
        InputError: the bag is missing, or the models cannot read it.
    """
    if isinstance(item, Bag):
        return _answer(item, how, note)
    path, unit = item, how.ensemble.card.unit
    is_store = path.suffix == schema.STORE_SUFFIX
    encoder = how.ensemble.origin.encoder if is_store else None  # chooses; the file itself tells
    steps = io.open_store(path).steps if is_store else {}
    (bag,) = load_bags(path, how.encoder or encoder or None, unit)
    result = _answer(bag, how, note)
    if how.attention and is_store:
        try:
            write_attention(path, steps, how.run, how.ensemble.card, bag, result)
        except CytofmError as error:
            note(WARNING + error.one_line())
    if how.geojson is not None:
        try:
            _write_map(how.geojson, path, unit, bag, result, note)
        except InputError as error:
            note(WARNING + error.one_line())
    return result


def _answer(bag: Bag, how: Scoring, note: Say) -> SlideScore:
    result = score_bag(how.ensemble, bag, device=how.device, allow_mixed=how.allow_mixed)
    how.unstated.update(unstated(bag.origin))
    for line in notes([bag]):
        note(WARNING + line)
    return result


def _write_map(
    folder: Path, path: Path, unit: str, bag: Bag, result: SlideScore, note: Say
) -> None:
    side, origin_px0 = None, (0, 0)
    if path.suffix == schema.STORE_SUFFIX:
        store = io.open_store(path)
        origin_px0 = place_of(store, note).frame(BOUNDS)[:2]
        if unit == "tile":
            side = float(store.tile.tile_px0)
    write_geojson(folder, bag, result, side, origin_px0=origin_px0)


def remarks(scores: Sequence[SlideScore], how: Scoring) -> Iterator[str]:
    """Tell what scores rest on that cannot be seen from them."""
    yield f"{len(scores)} slides scored by {how.run.name}"
    yield positive_line(how.ensemble.card.classes)
    for what, count in Counter(what for score in scores for what in score.differs).items():
        yield f"{WARNING}{count} slide(s) scored with --allow-mixed: {what}"
    if missing := unstated(how.ensemble.origin):
        yield f"not checked, because the RUN does not remember it: {', '.join(missing)}"
    elif how.unstated:
        told = ", ".join(f"{what} ({count} slides)" for what, count in how.unstated.items())
        yield f"not checked, because the bags do not state it: {told}"
    known = how.ensemble.known
    lacking = [score.slide_id for score in scores if known.lacks(score.slide_id)]
    if lacking and (known.grouped or known.table):
        yield (
            f"patients of {len(lacking)} slide(s) are not known ({named(lacking)}): if the RUN was "
            "trained on other slides of theirs, they are not out-of-fold; --groups TABLE tells"
        )
    trained = [score.slide_id for score in scores if score.basis.startswith(TRAINING)]
    if trained:
        yield (
            f"{WARNING}all models were trained on {len(trained)} slide(s) or on their patients: "
            f"{named(trained)}; do not judge the RUN by them"
        )


def encoder_of(ensemble: Ensemble, said: str | None) -> str | None:
    """Check what the user says of the features against what the RUN learnt.

    Raises:
        UsageError: it learnt others.
    """
    said, learnt = (said or "").replace("/", "."), ensemble.origin.encoder
    if said and learnt and said != learnt:
        raise UsageError(
            f"--encoder {said}: the RUN learnt features of {learnt}.",
            hint="score features of that encoder",
        )
    return said or None


def find_all(words: Sequence[str], encoder: str) -> list[Path]:
    """List the stores or bag files to score, each once.

    Raises:
        UsageError: two of them are of one slide.
    """
    paths = list(dict.fromkeys(p for word in words for p in find_bags(Path(word), encoder or None)))
    first: dict[str, Path] = {}
    for path in paths:
        if first.setdefault(path.stem, path) != path:
            raise UsageError(
                f"slide {path.stem} comes twice: {first[path.stem]} and {path}.",
                hint="score them into tables of their own: -o",
            )
    return paths


def bags_of_table(paths: Sequence[Path], table: Path, how: Scoring) -> list[Bag]:
    """Put the bags of a table together.

    Raises:
        UsageError: attention or maps are asked for, which such bags have no place for.
        InputError: see `cytofm_cli.mil.bag_table.table_bags`.
    """
    if how.geojson is not None:
        raise UsageError("--geojson and --bag-table: cells of a bag lie nowhere together.")
    ensemble = how.ensemble
    encoder = how.encoder or ensemble.origin.encoder or None
    unit = ensemble.card.unit
    bags = list(table_bags(paths, table, lambda path: read_bag(path, encoder, unit)))
    check_bags(bags)
    return bags
