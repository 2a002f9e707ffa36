"""What one finished store holds: typed records, whole tables, lazy arrays."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import DAMAGE, StoreError
from cytofm_cli.registry import detectors
from cytofm_cli.store import fresh, lineage, schema
from cytofm_cli.store.budget import refuse_claim
from cytofm_cli.store.checksum import read_node
from cytofm_cli.store.records import (
    AttentionRecord,
    ClassesRecord,
    EmbeddingRecord,
    NucleiRecord,
    SlideRecord,
    StepRecord,
    TileRecord,
)
from cytofm_cli.store.rows import Rows
from cytofm_cli.store.tables import Embeddings, NucleusTable, Tiles
from cytofm_cli.work.closing import Closes
from cytofm_cli.work.files import require_plain

if TYPE_CHECKING:
    import zarr

R = TypeVar("R", bound=StepRecord)


@dataclass(frozen=True)
class Store(Closes):
    """One slide's store, opened for reading: `with open_store(path) as store`.

    Records are read when it is opened, arrays when they are asked for. It keeps no file open
    between two calls, so leaving the `with` has nothing to close, and it can be read afterwards.

    Attributes:
        path: the `.zarr` folder.
        slide: facts of the slide.
        steps: what every step says of itself, by the step's name; `tile`, `nuclei_record`,
            `embedding_record` and `attention_record` give what only those steps say.
    """

    path: Path
    slide: SlideRecord
    steps: Mapping[str, StepRecord]
    _seen: dict[tuple[type, str], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def close(self) -> None:
        """Do nothing: no file is open. Closing twice is allowed."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.path.name.removesuffix(schema.STORE_SUFFIX)

    @cached_property
    def tile(self) -> TileRecord:
        """Where the tiles come from.

        Raises:
            StoreError: the store has none.
        """
        if schema.TILE_STEP not in self.steps:
            raise StoreError(f"{self.path}: has no tiles.", hint="make them with `cytofm tile`.")
        return self._typed(TileRecord, schema.TILE_STEP)

    def nuclei_record(self, detector: str | None = None) -> NucleiRecord:
        """Return where nuclei come from; None and errors as in `which_detector`."""
        return self._typed(NucleiRecord, schema.nuclei_step(self.which_detector(detector)))

    def embedding_record(self, encoder: str | None = None, unit: str = "tile") -> EmbeddingRecord:
        """Return where a bag comes from; None and errors as in `which_encoder`."""
        step = schema.embedding_step(self.which_encoder(encoder, unit), unit)
        return self._typed(EmbeddingRecord, step)

    def embedding_records(self, unit: str) -> dict[str, EmbeddingRecord]:
        """Return the record of every bag of a unit, out of date or not, by the step's name."""
        return {
            step: self._typed(EmbeddingRecord, step)
            for step in self.steps
            if step.startswith("embeddings/") and step.endswith(f"/{unit}")
        }

    def attention_record(self, run: str, unit: str) -> AttentionRecord | None:
        """Return where the attention of a RUN comes from; None if there is none."""
        step = schema.attention_step(run, unit)
        return self._typed(AttentionRecord, step) if step in self.steps else None

    def classes_record(self, run: str | None = None) -> ClassesRecord:
        """Return where the classes of nuclei come from; None and errors as in `which_classes`."""
        return self._typed(ClassesRecord, schema.classes_step(self.which_classes(run)))

    def which_classes(self, run: str | None = None) -> str:
        """Return the key of the RUN whose classes of nuclei are meant.

        Raises:
            StoreError: not there, or several and none named.
        """
        there = sorted(s.partition("/")[2] for s in self.steps if s.startswith("classes/"))
        if run is None and len(there) == 1:
            return there[0]
        if run is None or schema.node_name(run) not in there:
            what = f"no classes by RUN {run!r}" if run else "no classes of nuclei"
            if there and run is None:
                what = f"classes by {len(there)} RUNs ({', '.join(there)})"
            hint = f"name one: {there[0]}" if there else "make them with `cytofm cells apply`."
            raise StoreError(f"{self.path}: holds {what}.", hint=hint)
        return schema.node_name(run)

    def which_detector(self, detector: str | None = None) -> str:
        """Return whose nuclei are meant; None means the only ones there are.

        Raises:
            StoreError: not there, or several and none named.
        """
        there = sorted(s.partition("/")[2] for s in self.steps if s.startswith("nuclei/"))
        if detector not in there:  # else there is no need to look for plug-ins, which takes a while
            detector = detectors.key(detector) if detector else None
        if detector is None and len(there) == 1:
            return there[0]
        if detector is None or detector not in there:
            what = f"no nuclei of {detector!r}" if detector else "no nuclei"
            if there and detector is None:
                what = f"nuclei of {len(there)} detectors"
            hint = f"--detector {there[0]}" if there else "find them with `cytofm detect`."
            raise StoreError(f"{self.path}: holds {what}.", hint=hint)
        return detector

    def which_encoder(self, encoder: str | None = None, unit: str = "tile") -> str:
        """Return the key of the encoder whose embeddings are meant.

        Args:
            encoder: its name or key; None takes the only one there is.
            unit: "tile" or "cell".

        Raises:
            StoreError: no such embedding, or several and none named.
        """
        there = sorted(step.split("/")[1] for step in self.embedding_records(unit))
        if encoder is None:
            if len(there) != 1:
                hint = f"--encoder {there[0]}" if there else "make some with `cytofm embed`."
                what = f"{len(there)} encoders ({', '.join(there)})" if there else "no embeddings"
                raise StoreError(f"{self.path}: holds {what} for unit {unit}.", hint=hint)
            return there[0]
        key = schema.node_name(encoder)
        if key not in there:
            hint = f"it holds {', '.join(there)}." if there else "make them with `cytofm embed`."
            raise StoreError(
                f"{self.path}: no {unit} embeddings of encoder {encoder!r}.", hint=hint
            )
        return key

    def has(self, array: str) -> bool:
        """Tell whether the store holds an array."""
        return (self.path / array / "zarr.json").is_file()

    def array(self, array: str) -> zarr.Array[Any]:
        """Return an array as zarr opens it: a slice of it reads and decodes what it covers.

        Args:
            array: path inside the store, e.g. "tiles/pixels".

        Raises:
            StoreError: it is not there or damaged.
        """
        import zarr

        try:
            refuse_claim(self.path / array, read_node(self.path / array))
            require_plain(self.path / array)
            return zarr.open_array(self.path / array, mode="r")
        except (*DAMAGE, RuntimeError) as error:
            raise self._damaged(array, error) from error

    def read(self, array: str) -> NDArray[Any]:
        """Read a whole array into memory.

        Raises:
            StoreError: it is not there or damaged.
        """
        with self.rows(array) as rows:
            return rows.read()

    def shape(self, array: str) -> tuple[int, ...]:
        """Return the shape of an array.

        Raises:
            StoreError: it is not there or damaged.
        """
        try:
            return tuple(map(int, read_node(self.path / array).get("shape", ())))
        except DAMAGE as error:
            raise self._damaged(array, error) from error

    def rows(self, array: str) -> Rows:
        """Open an array, to read it in blocks of rows: `with store.rows(…) as rows`.

        Raises:
            StoreError: it is not there or damaged; `read` raises it too.
        """
        return Rows(self.path / array, functools.partial(self._damaged, array))

    @property
    def tile_xy_px0(self) -> NDArray[np.int32]:
        """Top-left corners of the tiles, int32 (n, 2), level-0 pixels."""
        return self.read(schema.TILE_XY.path)

    def tiles(self) -> Tiles:
        """Read what is known of each tile.

        Raises:
            StoreError: no tiles, or damaged.
        """
        regions = self.tile.regions or {}
        kinds = (schema.TILE_XY, schema.TILE_FOREGROUND, schema.TILE_FOCUS)
        xy_px0, foreground, focus = (self.read(kind.path) for kind in kinds)
        quality = {
            name: self.read(kind.path)
            for name, kind in schema.TILE_QUALITY.items()
            if self.has(kind.path)
        }
        plane, label = (
            self.read(kind.path) if self.has(kind.path) else None
            for kind in (schema.TILE_PLANE, schema.TILE_REGION)
        )
        return Tiles(
            xy_px0=xy_px0,
            foreground=foreground,
            focus=focus,
            plane=plane,
            quality=quality,
            label=label,
            labels=tuple(regions.get("label", ())),
        )

    def files(self) -> tuple[str, ...] | None:
        """Return the name of the image that each tile was made of; None: tiles of a slide.

        Raises:
            StoreError: damaged.
        """
        if self.tile.apart is None:
            return None
        text = self.read(schema.TILE_FILE.path).tobytes()
        start = self.read(schema.TILE_FILE_START.path).tolist()
        return tuple(text[a:b].decode("utf-8", "replace") for a, b in itertools.pairwise(start))

    def nuclei(self, detector: str | None = None) -> NucleusTable:
        """Read nuclei.

        Args:
            detector: whose; None takes the only ones there are.

        Raises:
            StoreError: none, several and none named, or they were found on other tiles.
        """
        step = schema.nuclei_step(self.which_detector(detector))
        self.require_fresh(step)
        names = ("xy_px0", "area_um2", "probability", "class", "contour_px0", "contour_start")
        xy, area, probability, class_id, contour, start = (
            self.read(f"{step}/{name}") for name in names
        )
        return NucleusTable(
            xy_px0=xy,
            area_um2=area,
            probability=probability,
            class_id=class_id,
            contour_px0=contour,
            contour_start=start,
            classes=self._typed(NucleiRecord, step).classes,
            columns={
                name: self.read(f"{step}/{name}")
                for name in schema.NUCLEI_COLUMNS
                if self.has(f"{step}/{name}")
            },
        )

    def nuclei_xy_px0(self, detector: str | None = None) -> NDArray[np.float32]:
        """Read the centres of nuclei alone, (m, 2); argument and errors as of `nuclei`."""
        step = schema.nuclei_step(self.which_detector(detector))
        self.require_fresh(step)
        centres: NDArray[np.float32] = self.read(f"{step}/xy_px0")
        return centres

    def embeddings(self, encoder: str | None = None, unit: str = "tile") -> Embeddings:
        """Read a bag.

        Args:
            encoder: name of the encoder; None takes the only one there is.
            unit: "tile" or "cell".

        Raises:
            StoreError: no such embedding, several and none named, or what it was made from is
                not what the store holds now.
        """
        key = self.which_encoder(encoder, unit)
        step = schema.embedding_step(key, unit)
        self.require_fresh(step)
        return Embeddings(
            values=self.read(f"{step}/values"),
            xy_px0=self.read(f"{step}/xy_px0"),
            encoder=key,
            record=self._typed(EmbeddingRecord, step),
        )

    def why_stale(self, step: str) -> str | None:
        """Say why a step does not belong to what it was made from; None if it does."""
        return fresh.why_stale(self.path, self.steps, step)

    def all_stale(self) -> dict[str, str]:
        """Say of each step that is out of date why, as `why_stale` says of one."""
        return fresh.all_stale(self.path, self.steps)

    def require_fresh(self, step: str) -> None:
        """Refuse a step that was made from something else than the store holds now.

        Raises:
            StoreError: it is stale; says how to make it again.
        """
        if (why := self.why_stale(step)) is not None:
            raise StoreError(
                f"{self.path}: {step} is out of date: {why}.",
                hint=fresh.again(self.path, self.slide, self.steps, step),
            )

    def require_all_rows(self, step: str) -> None:
        """Refuse a bag that holds only what lies in regions, where each tile or nucleus counts.

        Raises:
            StoreError: it is one.
        """
        if lineage.in_regions(self.steps, step):
            raise StoreError(
                f"{self.path}: {step} holds only what lies in regions, and this needs a row for "
                "each tile or nucleus.",
                hint="embed without --regions; `tile` and `detect` take it",
            )

    def _typed(self, kind: type[R], step: str) -> R:
        """Return what only steps of its kind say: looked at once, for it is asked often."""
        if (record := self._seen.get((kind, step))) is None:
            told = self.steps[step].to_json()
            record = kind.from_json(told, f"{self.path}: the record of {step}")
            self._seen[kind, step] = record
        return record

    def _damaged(self, array: str, error: Exception) -> StoreError:
        step = next(
            (group for group in self.steps if array.startswith(f"{group}/")), schema.TILE_STEP
        )
        return StoreError(
            f"{self.path}: {array} cannot be read ({type(error).__name__}: {error}).",
            hint="the store is damaged; " + fresh.again(self.path, self.slide, self.steps, step),
        )
