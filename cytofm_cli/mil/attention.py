"""Attention of the instances of a slide, kept in its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.artefacts import ModelCard
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.run_folder import run_digest
from cytofm_cli.mil.score import Ensemble, SlideScore, choose_models, score_kind
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, lineage, schema
from cytofm_cli.store.lineage import Steps
from cytofm_cli.store.records import AttentionRecord


def write_attention(
    store: Path,
    steps: Steps,
    run: Path,
    card: ModelCard,
    bag: Bag,
    result: SlideScore,
) -> None:
    """Put attention and scores of the instances under `/attention/<run>/<unit>`.

    Args:
        store: where to.
        steps: the store's records from before the bag was read: if it is embedded anew
            meanwhile, the attention shows as made from what is gone.
        run: folder of the RUN.
        card: what its models share.
        bag: what was scored.
        result: the score.

    Raises:
        ConfigMismatchError: another RUN of that name has written there.
    """
    step = schema.attention_step(run.name, card.unit)
    bag_step = origins.bag_step(bag.encoder, card.unit)
    mark = steps[bag_step].mark
    facts = {"run": run_digest(run), "method": card.method, "columns": list(result.columns)}
    there = io.open_store(store).attention_record(run.name, card.unit)
    try:
        done = commit.is_finished(store, step, config=facts, input_fingerprint=mark)
        # --groups may tell by now that other models of the RUN must be asked.
        if done and there is not None and there.basis == result.basis:
            commit.settle(store, step)
            return
    except ConfigMismatchError as error:
        # The same RUN on embeddings that were made anew may replace its own attention.
        if there is None or there.config != facts:
            raise ConfigMismatchError(
                f"{store}: keeps the {step} of another RUN named {run.name}.",
                hint="rename the RUN folder to keep both, or use --no-attention.",
            ) from error
    record = AttentionRecord(
        **provenance.stamp(facts, input_fingerprint=mark),
        run_folder=str(run),
        n=len(result.instances_NK),
        dim=len(result.columns),
        basis=result.basis,
        predicted=result.predicted,
        differs=tuple(result.differs),
        made_from=lineage.made_from(steps, bag_step),
    )
    with (
        io.claim_step(store.parent, bag.slide_id, step),
        io.staging(store.parent, bag.slide_id, step) as staged,
    ):
        columns = {"columns": list(result.columns)}
        arrays.write(staged, schema.ATTENTION, result.instances_NK, columns)
        commit.commit_group(staged, store, step, record)


def read_attention(
    store: io.Store, bag_step: str, run: Path, ensemble: Ensemble
) -> SlideScore | None:
    """Return what `write_attention` has stored, if it is what scoring would give now.

    Probabilities of the slide are not stored: they are NaN.

    Args:
        store: of the slide.
        bag_step: what the RUN's models read.
        run: folder of the RUN.
        ensemble: its models.

    Returns:
        None: the store holds none of this RUN, or of other instances, or of other models than
        may judge the slide.
    """
    there = store.attention_record(run.name, ensemble.card.unit)
    step = schema.attention_step(run.name, ensemble.card.unit)
    if there is None or store.why_stale(step) is not None:
        return None
    chosen, basis = choose_models(ensemble, store.slide_id)
    same = there.config.get("run") == run_digest(run) and there.basis == basis
    if not same or there.input_fingerprint != store.steps[bag_step].mark:
        return None
    unknown_C = np.full(len(ensemble.card.classes), np.nan)
    return SlideScore(
        slide_id=store.slide_id,
        p_C=unknown_C,
        spread_C=unknown_C,
        predicted=there.predicted or "",
        n_models=len(chosen),
        basis=basis,
        columns=there.columns,
        instances_NK=store.read(f"{step}/values"),
        score_kind=score_kind(ensemble),
        differs=there.differs,
    )
