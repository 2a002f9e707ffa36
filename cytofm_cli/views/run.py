"""The views of stored tiles, dumped to Zarr slide by slide.

A dump is one plain Zarr v3 group a slide, `<DIR>/<slide_id>.views.zarr`, without cytofm
readable by anything that reads Zarr. For n tiles, V views and k pairs of a tile and a nucleus:

| array | | |
|---|---|---|
| `view_00`, `view_01`, … | uint8 (n, S, S, 3) | the views, global ones first, not normalised |
| `tile` | int32 (n,) | row of the tile in the store |
| `boxes_px` | int32 (n, V, 4) | crops x, y, w, h in tile pixels, over its edges too |
| `centres_px` | float32 (n, V, 2) | the nucleus each view is centred on (x, y); NaN: none |
| `clean` | uint8 (n, V) | 1 where a view is not perturbed |
| `nucleus_start` | int64 (n + 1,) | where the nuclei of each tile start in the next two |
| `nucleus` | int32 (k,) | row in the store's `nuclei/<detector>` |
| `kept` | uint8 (k, V) | 1 where a nucleus survives in a view |

The root's attributes hold the provenance record under `cytofm_views`. It appears by one rename.

Letters: B tiles, V views, M nuclei, C colours, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.config import as_record, differences, field_types
from cytofm_cli.errors import ConfigMismatchError, InputError, StoreError
from cytofm_cli.runs import provenance
from cytofm_cli.store import io, lineage, schema
from cytofm_cli.store.checksum import read_node
from cytofm_cli.store.staging import aside_of, placed, step_claim
from cytofm_cli.store.zarr3 import (
    BYTES,
    ZSTD,
    ShardedArrayWriter,
    write_array,
    write_group,
    zstd_encode,
)
from cytofm_cli.tiles.canvas import open_canvases
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ordered_map
from cytofm_cli.views.config import VERSION, ViewsConfig
from cytofm_cli.views.make import make_views
from cytofm_cli.views.plan import ViewPlan
from cytofm_cli.views.recipes import Recipe, ncp_of, recipe_of, same_views
from cytofm_cli.views.sheet import to_rgb
from cytofm_cli.views.stored import (
    TileNuclei,
    draw_lots,
    margin_for,
    open_nuclei,
    read_batch,
    tile_keys,
)
from cytofm_cli.work.batch import Status
from cytofm_cli.work.claim import refuse_lost
from cytofm_cli.work.files import put_in_place

Report = Callable[[int, int], None]
Note = Callable[[str], None]

SUFFIX: Final = ".views.zarr"
ATTRIBUTES_KEY: Final = "cytofm_views"
_STEP: Final = "views"
_CENTRES: Final = "nucleus a view is centred on; whole numbers are centres of pixels; NaN: none"
_BATCH: Final = 8  # tiles a thread works on at a time: their views take 17 MB as float32


@dataclass(frozen=True, kw_only=True)
class ViewsJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        folder: where the dump goes.
        config: the settings of the views.
        detector: whose nuclei; None takes the only ones there are.
        seed: seed of all draws.
        max_tiles: at most so many tiles, chosen at random; None for all.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: replace a finished dump.
        dry_run: write nothing.
        threads: threads for this slide.
    """

    slide_id: str
    path: str
    folder: Path
    config: ViewsConfig
    detector: str | None = None
    seed: int = 0
    max_tiles: int | None = None
    slides: Path | None = None
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1

    @property
    def target(self) -> Path:
        """Where the dump lies."""
        return self.folder / f"{self.slide_id}{SUFFIX}"


def dump_views(job: ViewsJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
    """Write the views of one slide.

    Returns:
        ("done" or "skipped", facts).

    Raises:
        CytofmError: the slide cannot be done; nothing half-written is left.
    """
    store = io.open_store(Path(job.path))
    detector, nuclei = open_nuclei(store, job.detector)
    settings = _settings(job, detector)
    mark = store.nuclei_record(detector).mark
    made_from = lineage.made_from(store.steps, schema.TILE_STEP, schema.nuclei_step(detector))
    if _is_done(job, settings, mark, made_from):
        io.tidy(job.folder, job.slide_id, _STEP)
        return "skipped", _facts(job)
    tiles, n_without = _choose(job, nuclei, store.tile.n_tiles)
    if job.dry_run:
        return "done", {"store": str(job.target), "n_tiles": len(tiles)}
    with io.claim_step(job.folder, job.slide_id, _STEP):
        if _is_done(job, settings, mark, made_from):
            return "skipped", _facts(job)
        with io.staging(job.folder, job.slide_id, _STEP) as staged:
            n_mirrored = _write(staged, job, store, nuclei, tiles, report)
            record = provenance.record(
                settings,
                input_fingerprint=mark,
                source=str(store.path),
                mpp=plan_of(store).mpp,
                n_tiles=len(tiles),
                n_without_nuclei=n_without,
                n_views=len(recipe_of(job.config).views),
                margin_px=margin_for(ncp_of(job.config), plan_of(store).tile_px),
                n_mirrored=n_mirrored,
                made_from=made_from,
            )
            write_group(staged, {ATTRIBUTES_KEY: record})
            refuse_lost(step_claim(io.store_path(job.folder, job.slide_id), _STEP))
            target = placed(job.target)
            put_in_place(staged, target, aside_of(target))
    note(_summary(job, record))
    return "done", _facts(job)


def _settings(job: ViewsJob, detector: str) -> dict[str, Any]:
    """Return everything that decides a view, with the preset spelt out."""
    return {
        "version": VERSION,
        **as_record(job.config),
        **as_record(ncp_of(job.config)),
        "detector": detector,
        "seed": job.seed,
        "max_tiles": job.max_tiles,
    }


def _is_done(job: ViewsJob, settings: dict[str, Any], mark: str, made_from: dict[str, str]) -> bool:
    if job.overwrite or not job.target.exists():
        return False
    done = _record(job)
    words = settings
    if same_views(done["config"], settings):
        words = settings | {key: done["config"].get(key) for key in field_types(ViewsConfig)}
    differing = differences(done["config"], words)
    # Dumps of earlier versions do not say what they were made from.
    if done["input_fingerprint"] != mark or done.get("made_from", made_from) != made_from:
        differing.append("the nuclei themselves have changed")
    if differing:
        raise ConfigMismatchError(
            f"{job.target}: was made with other settings: {'; '.join(differing)}.",
            hint="--overwrite makes it anew, another -o keeps both.",
        )
    return True


def _record(job: ViewsJob) -> dict[str, Any]:
    try:
        node = read_node(job.target)
        record: dict[str, Any] = node["attributes"][ATTRIBUTES_KEY]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{job.target}: is no dump of `cytofm views`.", hint="--overwrite replaces it."
        ) from error
    return record


def _facts(job: ViewsJob) -> dict[str, Any]:
    record = _record(job)
    facts = {key: record[key] for key in ("n_tiles", "n_views", "n_without_nuclei")}
    return {"store": str(job.target), "detector": record["config"]["detector"], **facts}


def _summary(job: ViewsJob, record: dict[str, Any]) -> str:
    text = f"{job.slide_id}: {record['n_views']} views of each of {record['n_tiles']} tiles"
    if n_without := record["n_without_nuclei"]:
        drop = ncp_of(job.config).without_nuclei == "drop"
        text += f"; {n_without} without nuclei {'left out' if drop else 'have plain views'}"
    if n_mirrored := record["n_mirrored"]:
        text += f"; {n_mirrored} reach past the slide or what is at hand of it: mirrored"
    return text


def _choose(job: ViewsJob, nuclei: TileNuclei, n_tiles: int) -> tuple[NDArray[np.int64], int]:
    """Return the tiles to do, ascending, and how many without nuclei are among or left out."""
    tiles = np.arange(n_tiles)
    bare = np.array([not len(nuclei.rows(tile)) for tile in range(n_tiles)], bool)
    drop = ncp_of(job.config).without_nuclei == "drop"
    left = tiles[~bare] if drop else tiles
    if not len(left):
        raise InputError(
            f"{job.path}: no tile has a nucleus, and tiles without are to be left out.",
            hint="--without-nuclei plain makes ordinary views of them.",
        )
    if job.max_tiles is not None:
        order = np.argsort(draw_lots(job.seed, job.slide_id, left), kind="stable")
        left = np.sort(left[order[: job.max_tiles]])
    return left, int(bare.sum() if drop else bare[left].sum())


@dataclass(frozen=True)
class _Made:
    """Views of a batch, encoded.

    Attributes:
        chunks: of each view, the chunks of the tiles.
        plan: what was drawn.
        rows: of each tile, its nuclei.
    """

    chunks: list[list[bytes]]
    plan: ViewPlan
    rows: list[NDArray[np.intp]]


def _write(
    folder: Path,
    job: ViewsJob,
    store: io.Store,
    nuclei: TileNuclei,
    tiles: NDArray[np.int64],
    report: Report,
) -> int:
    """Write all arrays; return how many tiles had to be mirrored."""
    recipe, ncp = recipe_of(job.config), ncp_of(job.config)
    margin_px = margin_for(ncp, plan_of(store).tile_px)

    def make(part: Sequence[int]) -> _Made:
        batch = read_batch(source, nuclei, part, ncp, margin_px)
        views = make_views(
            batch.tile_BCHW, batch.xy_BM2, batch.valid_BM, recipe=recipe, ncp=ncp,
            mpp=plan_of(store).mpp, keys_B=tile_keys(job.seed, job.slide_id, part),
            label_BHW=batch.label_BHW, margin_px=margin_px,
        )  # fmt: skip
        chunks = [[zstd_encode(to_rgb(one, recipe).tobytes()) for one in v] for v in views.views]
        return _Made(chunks, views.plan, batch.rows)

    parts = [tiles[i : i + _BATCH].tolist() for i in range(0, len(tiles), _BATCH)]
    # A thread works on tiles of its own: torch's threads would cut single views instead.
    alone = partial(torch.set_num_threads, 1)
    with (
        open_canvases(store, slides=job.slides) as source,
        ThreadPoolExecutor(job.threads, initializer=alone) as pool,
    ):
        made = ordered_map(pool, make, parts, window=2 * job.threads)
        drawn = list(_write_pixels(folder, recipe, len(tiles), made, report))
    _write_plan(folder, tiles, drawn, margin_px)
    return source.n_mirrored


def _write_pixels(
    folder: Path, recipe: Recipe, n_tiles: int, made: Iterable[_Made], report: Report
) -> Iterator[_Made]:
    """Write the views shard by shard; yield what was drawn, without the pixels."""
    per_shard = schema.tiles_per_shard(n_tiles)
    writers = [
        ShardedArrayWriter(
            folder / f"view_{v:02d}",
            shape=(n_tiles, spec.size_px, spec.size_px, 3),
            dtype="uint8",
            rows_per_shard=per_shard,
            chunk=(1, spec.size_px, spec.size_px, 3),
            codecs=[BYTES, ZSTD],
            axes=("tile", "y", "x", "c"),
            attributes={"description": "a view of each tile, RGB, not normalised"},
        )
        for v, spec in enumerate(recipe.views)
    ]
    waiting: list[list[bytes]] = [[] for _ in writers]
    done = 0
    for part in made:
        done += len(part.rows)
        for chunks, new in zip(waiting, part.chunks, strict=True):
            chunks.extend(new)
        # A batch divides a shard, so shards fill up exactly.
        if done % per_shard == 0 or done == n_tiles:
            for writer, chunks in zip(writers, waiting, strict=True):
                writer.write_shard((done - 1) // per_shard, chunks)
                chunks.clear()
        report(done, n_tiles)
        yield _Made([], part.plan, part.rows)


def _write_plan(
    folder: Path, tiles: NDArray[np.int64], drawn: Sequence[_Made], margin_px: int
) -> None:
    shift = np.array([margin_px, margin_px, 0, 0])  # the canvas starts before the tile
    boxes = np.concatenate([made.plan.boxes_BV4 for made in drawn]) - shift
    centres = np.concatenate([made.plan.centre_BV2 for made in drawn]) - margin_px
    clean = np.concatenate([made.plan.clean_BV for made in drawn])
    rows = [some for made in drawn for some in made.rows]
    kept = [
        made.plan.kept_BVM[b, :, : len(some)].T
        for made in drawn
        for b, some in enumerate(made.rows)
    ]
    start = np.cumsum([0, *(len(some) for some in rows)])
    for name, values, axes, doc in (
        ("tile", tiles.astype(np.int32), ("row",), "row of the tile in the store"),
        (
            "boxes_px",
            boxes.astype(np.int32),
            ("row", "view", "xywh"),
            "crop, pixels of the tile",
        ),
        ("centres_px", centres.astype(np.float32), ("row", "view", "xy"), _CENTRES),
        ("clean", clean.astype(np.uint8), ("row", "view"), "1 where a view is not perturbed"),
        ("nucleus_start", start.astype(np.int64), ("row+1",), "start of each tile in `nucleus`"),
        ("nucleus", np.concatenate(rows).astype(np.int32), ("nucleus",), "row in the store"),
        ("kept", np.concatenate(kept).astype(np.uint8), ("nucleus", "view"), "1 where it survives"),
    ):
        write_array(folder / name, values, axes=axes, attributes={"description": doc})
