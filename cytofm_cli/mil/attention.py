"""Attention of the instances of a slide, kept in its store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytofm_cli.errors import ConfigMismatchError
from cytofm_cli.mil.artefacts import ModelCard
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.score import SlideScore, run_digest
from cytofm_cli.runs import provenance
from cytofm_cli.store import io, lineage, schema
from cytofm_cli.store.zarr3 import write_array


def write_attention(
    store: Path,
    steps: Mapping[str, dict[str, Any]],
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
    bag_step = schema.embedding_step(bag.encoder, card.unit)
    source = steps[bag_step]
    mark = f"{source['config_hash']}-{source['input_fingerprint']}"
    facts = {"run": run_digest(run), "method": card.method, "columns": list(result.columns)}
    there = io.open_store(store).steps.get(step, {})
    try:
        done = io.is_finished(store, step, config=facts, input_fingerprint=mark)
        # --groups may tell by now that other models of the RUN must be asked.
        if done and there.get("basis") == result.basis:
            return
    except ConfigMismatchError as error:
        # The same RUN on embeddings that were made anew may replace its own attention.
        if there.get("config") != facts:
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
        differs=list(result.differs),
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
