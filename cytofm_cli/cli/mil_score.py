"""`cytofm mil score`: the answers of a RUN for slides, as table, attention and maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytofm_cli.cli.inputs import take_shard
from cytofm_cli.cli.out import out
from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    InputError,
    OutputError,
    SomeSlidesFailedError,
)
from cytofm_cli.store.schema import STORE_SUFFIX

if TYPE_CHECKING:
    from cytofm_cli.mil.bags import Bag
    from cytofm_cli.mil.score import Ensemble, SlideScore
    from cytofm_cli.signals import StopFlag


def score(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Made by `mil train`.")],
    stores: Annotated[
        list[str], typer.Argument(metavar="STORES", help="Stores, or a folder of h5 or pt files.")
    ],
    table: Annotated[Path, typer.Option("-o", "--out", help="Table of scores to write.")] = Path(
        "scores.csv"
    ),
    *,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    attention: Annotated[
        bool, typer.Option(help="Also write attention of every instance into the stores.")
    ] = True,
    geojson: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write maps for QuPath, a file a slide."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Score the i-th of n parts, i/n from 0/n, into a table of its own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only data and errors.")] = False,
) -> None:
    """Score slides with the ensemble of a RUN; needs no labels.

    A slide that the RUN was trained on is scored by the models that never saw it.

    Examples:

      cytofm mil score run stores -o scores.csv

      cytofm mil score run new-stores -o new.csv --no-attention --geojson maps
    """
    from cytofm_cli.mil.score import load_run, scores_csv
    from cytofm_cli.store.io import output_errors

    out.json, out.quiet = as_json, quiet
    ensemble = load_run(run_folder)
    paths = take_shard(_find(stores, ensemble.card.encoder), shard, key=lambda path: path.stem)
    if shard:
        table = table.with_name(f"{table.stem}.{shard.replace('/', '-of-')}{table.suffix}")
    if table.is_dir():
        raise OutputError(f"{table}: is a folder.", hint=f"-o {table / 'scores.csv'}")
    with output_errors(table):
        table.parent.mkdir(parents=True, exist_ok=True)
    scores, failures, stop = _score_all(
        paths, run_folder, ensemble, device, attention=attention, geojson=geojson
    )
    if not scores and (stop or failures):
        raise stop.error() if stop else _all_failed(failures)
    with output_errors(table):
        partial = table.with_name(f".{table.name}.partial")
        partial.write_text(scores_csv(scores, ensemble.card.classes), encoding="utf-8")
        partial.replace(table)
    out.data(str(table), {"scores": str(table), "slides": len(scores)})
    if stop and len(scores) + len(failures) < len(paths):
        raise type(stop.error())(
            f"stopped by a signal after {len(scores) + len(failures)} of {len(paths)} slides; "
            f"those that are done are in {table}.",
            hint="run the same command again for all of them.",
        )
    if failures:
        raise SomeSlidesFailedError(
            f"{len(failures)} of {len(paths)} slides failed, the others are in {table}.",
            hint="mend them, or leave them out, and score again.",
        )


def _score_all(
    paths: Sequence[Path],
    run: Path,
    ensemble: Ensemble,
    device: str,
    *,
    attention: bool,
    geojson: Path | None,
) -> tuple[list[SlideScore], list[CytofmError], StopFlag]:
    """Score slides until a signal asks to stop; the slide at hand is finished."""
    from cytofm_cli.mil.pool import stop_requests

    scores: list[SlideScore] = []
    failures: list[CytofmError] = []
    with stop_requests() as stop, out.progress_bar("score", len(paths)) as bar:
        for path in paths:
            if stop:
                break
            try:
                found = _score_one(
                    path, run, ensemble, device, attention=attention, geojson=geojson
                )
                scores.append(found)
            except CytofmError as error:
                failures.append(error)
                if len(paths) > 1:  # the only slide's error is raised, and printed, at the end
                    out.error(error)
            bar.finish(path.stem)
    return scores, failures, stop


def _find(words: list[str], encoder: str) -> list[Path]:
    """List the stores or bag files to score, each once."""
    from cytofm_cli.mil.bags import find_bags

    found = {path: None for word in words for path in find_bags(Path(word), encoder or None)}
    return list(found)


def _score_one(
    path: Path,
    run: Path,
    ensemble: Ensemble,
    device: str,
    *,
    attention: bool,
    geojson: Path | None,
) -> SlideScore:
    """Score a slide; attention that cannot be written is no reason to lose the score."""
    from cytofm_cli.mil.bags import load_bags
    from cytofm_cli.mil.score import score_bag

    (bag,) = load_bags(path, ensemble.card.encoder or None, ensemble.card.unit)
    result = score_bag(ensemble, bag, device=device)
    if attention and path.suffix == STORE_SUFFIX:
        try:
            _write_attention(path, run.absolute(), ensemble, bag, result)
        except CytofmError as error:
            out.warn(error.one_line())
    if geojson is not None:
        _write_map(geojson, path, ensemble.card.unit, bag, result)
    return result


def _write_map(folder: Path, path: Path, unit: str, bag: Bag, result: SlideScore) -> None:
    from cytofm_cli.mil.maps import write_geojson
    from cytofm_cli.store import io, schema

    side = None
    if path.suffix == STORE_SUFFIX and unit == "tile":
        side = float(io.open_store(path).steps[schema.TILE_STEP]["tile_px0"])
    try:
        write_geojson(folder, bag, result, side)
    except InputError as error:
        out.warn(error.one_line())


def _all_failed(failures: Sequence[CytofmError]) -> CytofmError:
    first = failures[0]
    if len(failures) == 1:
        return first
    return type(first)(f"none of {len(failures)} slides could be scored.", hint=first.hint)


def _write_attention(
    store: Path, run: Path, ensemble: Ensemble, bag: Bag, result: SlideScore
) -> None:
    """Put attention and scores of the instances under `/attention/<run>/<unit>`.

    Raises:
        ConfigMismatchError: another RUN of that name has written there.
    """
    from cytofm_cli import provenance
    from cytofm_cli.mil.score import run_digest
    from cytofm_cli.store import io, lineage, schema
    from cytofm_cli.store.zarr3 import write_array

    card = ensemble.card
    step = schema.attention_step(run.name, card.unit)
    steps = io.open_store(store).steps
    bag_step = schema.embedding_step(str(bag.encoder), card.unit)
    source = steps[bag_step]
    mark = f"{source['config_hash']}-{source['input_fingerprint']}"
    facts = {"run": run_digest(run), "method": card.method, "columns": list(result.columns)}
    try:
        if io.is_finished(store, step, config=facts, input_fingerprint=mark):
            return
    except ConfigMismatchError as error:
        # The same RUN on embeddings that were made anew may replace its own attention.
        if steps[step]["config"] != facts:
            raise ConfigMismatchError(
                f"{store}: keeps the {step} of another RUN named {run.name}.",
                hint="rename the RUN folder to keep both, or use --no-attention.",
            ) from error
    record = provenance.record(
        facts,
        input_fingerprint=mark,
        run_folder=str(run),
        n=len(result.instances_NK),
        dim=len(result.columns),
        basis=result.basis,
        predicted=result.predicted,
        made_from=lineage.made_from(steps, bag_step),
    )
    with (
        io.claim_step(store.parent, bag.slide_id, step),
        io.staging(store.parent, bag.slide_id, step) as staged,
    ):
        kind = schema.ATTENTION
        told = kind.attributes | {"columns": list(result.columns)}
        write_array(staged / "values", result.instances_NK, axes=kind.axes, attributes=told)
        io.commit_group(staged, store, step, record)
