"""What a MIL run is fixed to before the first model is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cytofm_cli import __version__
from cytofm_cli.config import as_record, digest
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil import splits, summary
from cytofm_cli.mil.bag import Bag, check_bags, fingerprint
from cytofm_cli.mil.bag import notes as bag_notes
from cytofm_cli.mil.bag_table import sharing_notes
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.config import MilConfig, MilSettings, check_classes
from cytofm_cli.mil.labels import Cohort, build_cohort, read_labels
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.tune import Candidate, make_candidates
from cytofm_cli.registry import mil_methods
from cytofm_cli.stats.folds import Fold, cross_validation, from_column, holdout, tested
from cytofm_cli.words import named
from cytofm_cli.work.device import find_device


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first model is trained.

    Attributes:
        config: the settings.
        recipe: `Recipe`, resolved.
        head: settings of the head, resolved.
        cohort: bags and labels.
        folds: outer folds.
        candidates: settings to choose from in each fold; one if there is no search.
        origin: what the bags are made from.
        record: sections of config.toml.
        notes: what a reader must know of cohort and bags.
    """

    config: MilConfig
    recipe: Any
    head: dict[str, Any]
    cohort: Cohort
    folds: list[Fold]
    candidates: list[Candidate]
    origin: Origin
    record: dict[str, dict[str, Any]]
    notes: list[str]


def make_plan(
    config: MilConfig,
    bags: Path | Sequence[Bag],
    labels: Path,
    head: Mapping[str, Any],
    *,
    tune: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
) -> Plan:
    """Load, check and decide everything before training; touches no file of the run.

    Arguments are those of `train_run`, and `cache`, the file for the features.
    """
    config = replace(config, device=str(find_device(config.device)))  # `auto` is no record
    tune = tune or {}
    search = _search(config, head, tune)
    cohort = _cohort(config, bags, labels, cache)
    check_classes(config, len(cohort.classes))
    of_slides = {bag.slide_id: bag.origin for bag in cohort.bags}
    origin, mixed = origins.common(of_slides, allow_mixed=config.allow_mixed)
    size = {"n_features": _width(cohort), "n_classes": len(cohort.classes)}
    (base,), candidates = search({}, **size), search(tune, **size)
    folds = make_folds(config, cohort)
    record = _record(config, base, cohort, folds, origin.encoder)
    record[origins.SECTION] = {**origin.record(), "mixed": mixed or None}
    if tune:
        record["tune"] = {k: list(dict.fromkeys(c.settings[k] for c in candidates)) for k in tune}
    notes = [
        *summary.cohort_notes(cohort, tested(folds)),
        *bag_notes(cohort.bags),
        *origins.notes(of_slides.values(), mixed),
        *mil_methods.load(config.method).make.notes(
            [candidate.head for candidate in candidates],
            {bag.slide_id: bag.features_ND for bag in cohort.bags},
        ),
    ]
    if config.bag_table is not None:
        group_of = dict(zip(cohort.slide_ids, cohort.groups, strict=True))
        notes += sharing_notes(config.bag_table, group_of)
    if config.splits is not None and (other := splits.unused(config.splits, cohort.slide_ids)):
        notes.append(f"{config.splits}: {len(other)} slide(s) not of this cohort: {named(other)}")
    return Plan(config, base.recipe, base.head, cohort, folds, candidates, origin, record, notes)


def _search(
    config: MilConfig, head: Mapping[str, Any], tune: Mapping[str, Sequence[str]]
) -> Callable[..., list[Candidate]]:
    """Return `make_candidates` with what preset and user set.

    Raises:
        UsageError: a setting is both set and tuned.
    """
    from cytofm_cli.mil.base import preset_settings

    of_user = config.recipe_overrides()
    recipe_preset, head_preset = preset_settings(config.method, config.preset)
    if twice := [key for key in tune if key in head or key in of_user]:
        raise UsageError(f"{twice[0]} is both set and tuned.", hint="leave one of the two out")
    return partial(
        make_candidates, config.method, {**recipe_preset, **of_user}, {**head_preset, **head}
    )


def _cohort(
    config: MilConfig, bags: Path | Sequence[Bag], labels: Path, cache: Path | None
) -> Cohort:
    table = read_labels(labels, label_column=config.label, group_column=config.group)
    if isinstance(bags, Path):
        counts = mil_methods.load(config.method).make.needs_classes
        encoder = config.encoder or (origins.CLASSES if counts else None)
        bags = load_bags(bags, encoder, config.unit, cache, table=config.bag_table)
    elif config.bag_table is not None:
        raise UsageError(
            "bag_table speaks of cells of stores, and the bags are given as objects.",
            hint="give the folder of the stores",
        )
    else:
        check_bags(bags)
    _refuse_no_classes(config, bags)
    return build_cohort(
        bags,
        table,
        classes=config.classes,
        positive=config.positive,
        allow_missing=config.allow_missing,
    )


def _refuse_no_classes(config: MilConfig, bags: Sequence[Bag]) -> None:
    """Refuse embeddings for a head that counts classes."""
    others = [bag.slide_id for bag in bags if not origins.is_classes(bag.encoder)]
    if others and mil_methods.load(config.method).make.needs_classes:
        raise InputError(
            f"--method {config.method} counts classes of cells; {len(others)} slide(s) have "
            f"embeddings: {named(others)}.",
            hint="--encoder cells:RUN --unit cell, after `cytofm cells apply`",
        )


def make_folds(config: MilSettings, cohort: Cohort) -> list[Fold]:
    """Make the outer folds that the settings ask for."""
    y, groups = cohort.y_N, cohort.groups
    if config.splits is not None:
        folds = splits.read_csv(config.splits, cohort.slide_ids, groups, y)
        splits.check_classes(folds, y, cohort.classes, config.splits)
        return folds
    protocol = config.protocol
    if protocol == "auto":
        protocol = "cv" if cohort.splits is None else "column"
    if protocol == "column":
        if cohort.splits is None:
            raise InputError("the table of labels has no `split` column.", hint="`--protocol cv`")
        return from_column(
            cohort.splits, y, groups, inner_folds=config.inner_folds, seed=config.seed
        )
    shared = {"inner_folds": config.inner_folds, "repeats": config.repeats, "seed": config.seed}
    if protocol == "holdout":
        return holdout(y, groups, test_fraction=config.test_fraction, **shared)
    return cross_validation(y, groups, folds=config.folds, classes=cohort.classes, **shared)


def _width(cohort: Cohort) -> int:
    return int(cohort.bags[0].features_ND.shape[1])


def _record(
    config: MilConfig, base: Candidate, cohort: Cohort, folds: Sequence[Fold], encoder: str
) -> dict[str, dict[str, Any]]:
    mil = as_record(config, results_only=True)
    mil["encoder"] = encoder or None  # named or found: the same run
    # What counts is what the folds, groups and classes are, not which option they came from.
    for implied in ("splits", "group", "positive"):
        mil.pop(implied)
    layout = splits.to_csv(folds, cohort.slide_ids, cohort.groups)
    gap = mil_methods.load(config.method).make.gap if config.preset == "official" else ""
    return {
        "mil": mil,
        "recipe": as_record(base.recipe),
        config.method: base.head,
        "task": {
            "classes": list(cohort.classes),
            "positive": cohort.classes[-1] if len(cohort.classes) == 2 else None,
            "slides": len(cohort.bags),
            "groups": len(set(cohort.groups)),
            "folds": len(folds),
            "features": _width(cohort),
            "encoder": encoder,
            "labels_digest": digest(
                {b: int(y) for b, y in zip(cohort.slide_ids, cohort.y_N, strict=True)}
            ),
            "bags_digest": fingerprint(cohort.bags),
            "splits_digest": digest({"splits": layout}),
            "differs_from_official": gap or None,
            "cytofm": __version__,
        },
    }
