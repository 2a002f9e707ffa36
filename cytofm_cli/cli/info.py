"""`cytofm info`: what slides and stores hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cytofm_cli.api.info import describe_slides
from cytofm_cli.api.inputs import find_slides, list_slides
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError, SomeSlidesFailedError
from cytofm_cli.slides import ngff
from cytofm_cli.slides.folders import join_series
from cytofm_cli.store.io import Store, is_store, list_arrays, open_store
from cytofm_cli.store.schema import STORE_SUFFIX
from cytofm_cli.units import human_bytes
from cytofm_cli.work.batch import Outcome


def info(
    paths: Annotated[list[str], typer.Argument(help="Slides, stores, or folders of them.")],
) -> None:
    """Say what slides and stores hold.

    Examples:

      cytofm info slide.svs

      cytofm info stores/slide.zarr

      cytofm info stores --json
    """
    errors: list[CytofmError] = []
    named, unknown = list[Path | str](), list[CytofmError]()
    for word in paths:
        try:
            named += _things(word)
        except CytofmError as error:
            unknown.append(error)
    slides = join_series(
        [slide_or_store for slide_or_store in named if isinstance(slide_or_store, str)]
    )
    stores = [slide_or_store for slide_or_store in named if isinstance(slide_or_store, Path)]
    n_inputs = len(stores) + len(slides) + len(unknown)

    def fail(error: CytofmError) -> None:
        if n_inputs == 1:
            raise error
        out.error(error)
        errors.append(error)

    for of_a_word in unknown:
        fail(of_a_word)
    for path in stores:
        try:
            _tell_store(open_store(path))
        except CytofmError as error:
            fail(error)

    def hear(event: object) -> None:
        if isinstance(event, Outcome) and event.error is not None:
            fail(event.error)
        elif isinstance(event, Outcome):
            _tell_slide(event.facts)

    if slides:
        describe_slides(slides, hear)
    if errors:
        raise SomeSlidesFailedError(f"{len(errors)} of {n_inputs} cannot be read; see above.")


def _things(word: str) -> list[Path | str]:
    """List the stores (as paths) or slides (as words) that a word names."""
    path = Path(word)
    if is_store(path):
        return [path]
    if path.is_dir() and path.name.endswith(STORE_SUFFIX) and not ngff.is_image(path):
        return [path]  # damaged
    stores = [each for each in sorted(path.glob(f"*{STORE_SUFFIX}")) if not ngff.is_image(each)]
    if path.is_dir() and stores and not ngff.is_image(path):
        return list(stores)
    slides = [ref.path for ref in list_slides([word])]  # names need not differ to be described
    return list(slides) or [ref.path for ref in find_slides([word])]


def _tell_store(store: Store) -> None:
    slide, lines = store.slide, [str(store.path)]
    w, h = slide.size_px0
    lines.append(
        f"  slide   {slide.path}  {w} × {h} px  {slide.mpp:.4g} µm/px ({slide.mpp_source})"
        f"  {_kind(slide.format, slide.codec)}, read by {slide.reader}"
    )
    if slide.synthetic is not None:
        lines.append(f"  synthetic: made by {slide.synthetic.get('tool', 'a generator')}")
    why = store.all_stale()
    for step in sorted(store.steps):
        stale = f"; out of date: {why[step]}" if step in why else ""
        lines.append(f"  {step}  {_step_line(store, step)}{stale}")
        lines += [f"    {line}" for line in _narrowed(store, step)]
    arrays = list_arrays(store.path)
    record = {
        "store": str(store.path),
        "slide": slide.to_json(),
        "steps": {step: record.to_json() for step, record in store.steps.items()},
        "out_of_date": why,
        "arrays": arrays,
    }
    lines += [f"    {a['path']}  {a['dtype']} {tuple(a['shape'])}" for a in arrays]
    out.data(lines, record)


def _kind(form: str, codec: str) -> str:
    """Name format and codec, once where they are one: a JPEG field is a JPEG."""
    return form if form == codec else f"{form}, {codec}"


def _step_line(store: Store, step: str) -> str:
    when = f"{store.steps[step].tool}, {store.steps[step].time_utc}"
    if step == "tile":
        tile = store.tile
        return (
            f"{tile.n_tiles} of {tile.n_grid} tiles of {tile.tile_px} px at "
            f"{tile.mpp:.4g} µm/px, pixels {tile.store_codec} "
            f"({human_bytes(tile.pixel_bytes)}); {when}"
        )
    return f"{_held(store, step)}; {when}"


def _narrowed(store: Store, step: str) -> list[str]:
    """Say what regions and limits of quality did in a step, and how good its tiles are."""
    from cytofm_cli.tiles.told import narrowed_lines, quality_means

    if step == "tile":
        means = quality_means(store.tiles())
        told = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        quality = [f"quality, mean of the tiles: {told}"] if told else []
        return [*narrowed_lines(store.tile), *quality]
    regions = store.steps[step].to_json().get("regions")
    if not regions:
        return []
    return [
        f"regions of {regions['file']} ({regions['rule']}): {regions['n_outside']} lay outside, "
        f"{regions['n_excluded']} in excluded ones"
    ]


def _held(store: Store, step: str) -> str:
    """Say what a step's arrays hold, in its own words."""
    kind, name, unit = (*step.split("/"), "", "")[:3]
    if kind == "nuclei":
        nuclei = store.nuclei_record(name)
        classes = f" of classes {', '.join(nuclei.classes)}" if nuclei.classes else ""
        stain = nuclei.other.get("stain")
        stained = f", stain {stain['name']}" if isinstance(stain, dict) and "name" in stain else ""
        return _counted(nuclei.n, f"nuclei{classes}{stained}")
    if kind == "embeddings":
        bag = store.embedding_record(name, unit)
        return _counted(bag.n, f"embeddings of {bag.dim} numbers")
    if kind == "classes":
        of = store.classes_record(name)
        unsure = f", {of.n_abstained} abstained" if of.n_abstained else ""
        return _counted(of.n, f"nuclei as {', '.join(of.classes)} by {of.model}{unsure}")
    attention = store.attention_record(name, unit) if kind == "attention" else None
    if attention is None:  # of a newer version
        return "what this version does not know"
    wide = f" of {attention.dim} numbers" if attention.dim else ""
    return _counted(attention.n, f"rows of attention{wide}")


def _counted(n: int | None, what: str) -> str:
    return "a count is not recorded" if n is None else f"{n} {what}"


def _tell_slide(facts: Mapping[str, Any]) -> None:
    """Print what `cytofm_cli.api.info.facts_of` returns."""
    stated = f"{facts['mpp']:.4g} µm/px ({facts['mpp_source']})" if facts["mpp"] else ""
    w, h = facts["size_px0"]
    levels = ", ".join(f"1/{level['downsample']:g}" for level in facts["levels"])
    kind = _kind(facts["format"], facts["codec"])
    lines = [
        facts["path"],
        f"  {w} × {h} px, {stated or 'resolution not stated'}, {kind}, read by {facts['reader']}",
        f"  levels {levels}",
        *(f"  {note}" for note in facts["notes"]),
    ]
    out.data(lines, dict(facts))


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "info", info)
