"""What a bag was made with, and whether a finished one answers what is asked for now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cytofm_cli.config import as_record, differences
from cytofm_cli.encoders.base import CELL_UM, EncoderSpec
from cytofm_cli.encoders.catalogue import resolve
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.errors import WeightsError
from cytofm_cli.regions import config as region_config
from cytofm_cli.runs import provenance
from cytofm_cli.store import io, schema
from cytofm_cli.store.records import EmbeddingRecord

_ABOUT_FOREIGN_WEIGHTS = ("input_px", "resize_px", "mean", "std", "weights_key", "arch_arg")

Note = Callable[[str], None]


def digest_of_weights(config: EmbedConfig) -> str | None:
    """Return the SHA-256 of the weights that the settings name, None without a file.

    Raises:
        WeightsError: it is not there, or what a file beside it states is wrong.
    """
    resolved = resolve(config.encoder, weights=config.weights)
    named = resolved.weights
    if named is None:
        return None
    if not named.is_file():
        raise WeightsError(f"{named}: no such weight file.", hint="check --weights.")
    sidecar(named)  # a mistake in it is one of all slides: said once
    return provenance.sha256_file(resolved.updates or named)


def settings_of(
    config: EmbedConfig, weights_sha256: str | None, regions_sha256: str | None = None
) -> dict[str, Any]:
    """Return the settings that change a value; files count by content, not by path."""
    record = as_record(config, results_only=True)
    for name in ("weights", *region_config.NAMES):
        record.pop(name)
    record |= region_config.acting(vars(config), regions_sha256)
    for name in ("region_label", *(["region_rule"] if config.unit == "cell" else [])):
        record.pop(name, None)  # rows get no labels, and the centre of a cell counts
    for name in _ABOUT_FOREIGN_WEIGHTS:
        value = record.pop(name)
        if value is not None:  # stores from before these settings have no such entry
            record[name] = list(value) if isinstance(value, tuple) else value
    if config.unit == "tile":
        record.pop("cell_um")
        record.pop("detector")
    if Path(config.encoder).is_file():
        record["encoder"] = Path(config.encoder).name
    named = resolve(config.encoder, weights=config.weights).weights
    for name, value in ({} if named is None else sidecar(named)).items():
        record[f"file_{name}"] = list(value) if isinstance(value, tuple) else value
    return record | {"weights_sha256": weights_sha256}


def warn_of_old_size(config: EmbedConfig, record: EmbeddingRecord, note: Note) -> None:
    """Tell where weights from elsewhere were run at timm's size, as before this was recorded."""
    foreign = config.encoder.startswith("timm/vit_") and config.weights is not None
    if foreign and record.assumed is None and config.input_px is None:
        note(
            f"warning: {record.encoder}: was embedded at {record.input_px} px before cytofm "
            "looked at what its weights are laid out for; --overwrite makes it anew."
        )


def input_mark(store: io.Store, config: EmbedConfig) -> str:
    """Return what the tiles, and the nuclei of a bag of cells, are known by."""
    mark = store.tile.mark
    if config.unit == "tile":
        return mark
    (nuclei,) = set(sources_of(store, config)) - {schema.TILE_STEP}
    return f"{mark}-{store.steps[nuclei].config_hash}"


def sources_of(store: io.Store, config: EmbedConfig) -> tuple[str, ...]:
    """Name the steps that a bag is made from."""
    if config.unit == "tile":
        return (schema.TILE_STEP,)
    return (schema.TILE_STEP, schema.nuclei_step(store.which_detector(config.detector)))


def find_finished(store: io.Store, unit: str, settings: Mapping[str, Any], mark: str) -> str | None:
    """Find a finished bag by its settings alone: a done slide needs no encoder loaded."""
    for step, record in store.embedding_records(unit).items():
        if (
            not differences(record.config, in_words_of(record, settings))
            and record.input_fingerprint == mark
            and store.why_stale(step) is None
        ):
            return step
    return None


def in_words_of(
    record: EmbeddingRecord | None, settings: Mapping[str, Any], spec: EncoderSpec | None = None
) -> dict[str, Any]:
    """Return settings in the words of a finished step, where both come to the same.

    A record keeps what was typed, and beside it what that came to (`cell_um`, `pooling`).

    Args:
        record: of the finished step, if there is one.
        settings: as typed now.
        spec: of the encoder, which supplies what is not typed; None while it is not loaded.
    """
    words = dict(settings)
    if record is None:
        return words
    defaults = {} if spec is None else asdict(spec) | {"cell_um": spec.cell_um or CELL_UM}
    for key in {*settings, *record.config}:
        then, now = record.config.get(key), settings.get(key)
        was = getattr(record, key, None) if then is None else then
        wanted = defaults.get(key) if now is None else now
        acts = {
            "seed": settings["random_weights"],
            "detector": then is not None and now is not None,  # else the input tells
            "encoder": spec is None or record.encoder != spec.name,
        }
        if not acts.get(key, True) or (was is not None and _plain(was) == _plain(wanted)):
            words[key] = then
    return {key: value for key, value in words.items() if key in record.config or value}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
