"""What generators of cells are used for: counterfactuals by a head or classifier, other stains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import find_stores
from cytofm_cli.errors import InputError
from cytofm_cli.generate.use_config import CounterfactualConfig, RestainConfig

if TYPE_CHECKING:
    from cytofm_cli.generate.counterfactual import Odds, Scorer
    from cytofm_cli.runs.folder import RunReport


def make_counterfactual(
    run: PathLike,
    score: PathLike,
    out: PathLike,
    config: CounterfactualConfig | None = None,
    *,
    like: Paths,
    judge: PathLike | None = None,
    real: Paths | None = None,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> RunReport:
    """Show what cells would have to look like for a model to call them something else.

    Args:
        run: a RUN of `train_generator` with an encoder's vector as condition, or its file.
        score: a RUN of `train_cells` (linear or mlp), or of `train`, by which conditions move.
        out: folder of the strips.
        config: settings as a whole; instead, each may be given by its name (`to=0.9`).
        like: "STORE:NUMBER" of cells, one or several.
        judge: another RUN of `train_cells` that scores the pictures, of any encoder.
        real: stores whose cells say how vectors differ [default: those of the cells].
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what the user should know.
        progress: called with (images done, of how many).
        **settings: fields of `CounterfactualConfig`.

    Returns:
        `path` of the folder and its `metrics`.

    Raises:
        UsageError: no such class; a model without a gradient; a generator without vectors.
        InputError: no such cell or RUN; vectors of another encoder than the condition's.
        ConfigMismatchError: `out` holds something else.
    """
    from cytofm_cli.generate.counterfactual_run import counterfactual_run

    config = config_of(CounterfactualConfig, config, settings, "make_counterfactual")
    scorer = scorer_of(Path(score), config.towards)
    return counterfactual_run(
        Path(run),
        Path(out),
        config,
        scorer,
        words_of(like),
        judge=None if judge is None else scorer_of(Path(judge), scorer.of_class),
        real=find_stores(words_of(real)) if real else (),
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )


def scorer_of(run: Path, towards: str | None) -> Scorer:
    """Return the class of a RUN as a score with a slope.

    Raises:
        InputError: neither a RUN of cells train nor of mil train.
        UsageError: no such class; it has no slope.
    """
    from cytofm_cli.cells.run_folder import RUN as CELLS
    from cytofm_cli.mil.run_folder import RUN as MIL

    if CELLS.is_run(run):
        return _of_classifier(run, towards)
    if MIL.is_run(run):
        return _of_heads(run, towards)
    raise InputError(
        f"{run}: neither a RUN of `cytofm cells train` nor one of `cytofm mil train`.",
        hint="give what its -o named",
    )


def _of_classifier(run: Path, towards: str | None) -> Scorer:
    from cytofm_cli.cells.apply import basis_of
    from cytofm_cli.cells.run_folder import load_run
    from cytofm_cli.cells.slope import class_odds
    from cytofm_cli.generate.counterfactual import Scorer

    trained = load_run(run)
    card, choice = trained.card, trained.card.choice
    name, _ = class_odds(trained, towards, None)

    def odds(slide_id: str) -> Odds:
        return class_odds(trained, name, basis_of(card, slide_id, None)[0])[1]

    return Scorer(
        said=f"{run} (cells train, {card.model})",
        digest=trained.digest,
        of_class=name,
        encoder=choice.name,
        word=choice.word if choice.weights is None else f"{choice.word}={choice.weights}",
        weights_sha256=choice.weights_sha256,
        width=int(card.facts["dim"]),
        side_um=card.crop_um,
        odds=odds,
    )


def _of_heads(run: Path, towards: str | None) -> Scorer:
    from cytofm_cli.generate.counterfactual import Scorer
    from cytofm_cli.mil.run_folder import run_digest
    from cytofm_cli.mil.score import load_run
    from cytofm_cli.mil.slope import bag_odds

    ensemble = load_run(run)
    card, origin = ensemble.card, ensemble.origin
    name, _ = bag_odds(ensemble, towards, "")
    return Scorer(
        said=f"{run} (mil train, {card.method})",
        digest=run_digest(run),
        of_class=name,
        encoder=origin.encoder,
        word=origin.encoder,
        weights_sha256=origin.weights_sha256,
        width=card.n_features,
        side_um=origin.cell_um if origin.unit == "cell" else None,
        odds=lambda slide_id: bag_odds(ensemble, name, slide_id)[1],
    )


def restain_cells(
    run: PathLike,
    stain: Paths,
    out: PathLike,
    config: RestainConfig | None = None,
    *,
    like: Paths,
    slides: PathLike | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> RunReport:
    """Show cells of one slide in the stain of another, and measure what stayed and what changed.

    Args:
        run: a RUN of `train_generator` with an encoder's vector as condition, or its file.
        stain: store of the other slide, one or several; or "STORE:NUMBER" of one of its cells.
        out: folder of the images.
        config: settings as a whole; instead, each may be given by its name (`strength=(0.5,)`).
        like: "STORE:NUMBER" of cells, or stores, of which `n` are taken.
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what the user should know.
        progress: called with (images done, of how many).
        **settings: fields of `RestainConfig`.

    Returns:
        `path` of the folder and its `metrics`.

    Raises:
        UsageError: a generator without vectors.
        InputError: no such cell or store.
        ConfigMismatchError: `out` holds something else.
    """
    from cytofm_cli.generate.restain import restain_run

    return restain_run(
        Path(run),
        Path(out),
        config_of(RestainConfig, config, settings, "restain_cells"),
        words_of(like),
        words_of(stain),
        slides=path_of(slides),
        overwrite=overwrite,
        note=note,
        progress=progress,
    )
