"""Features of the same places under one condition after the other; kept in the RUN.

Legend: N places, B images at a time, D features.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.config import digest
from cytofm_cli.encoders.base import CELL_UM, Encoder, EncoderSpec
from cytofm_cli.evaluate import features, run_folder
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.condition_config import ConditionConfig
from cytofm_cli.evaluate.features import Report, Source
from cytofm_cli.evaluate.notes import check_scale
from cytofm_cli.evaluate.perturbation_names import UNCHANGED, Perturbation
from cytofm_cli.evaluate.perturbations import perturb
from cytofm_cli.evaluate.plan import marks_of
from cytofm_cli.evaluate.points import Points
from cytofm_cli.store import schema
from cytofm_cli.work.cpus import cpu_count

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
# Kept features of another number were made in another way by a cytofm of the same version.
_LAYOUT = 1


@dataclass(frozen=True, eq=False)
class Places:
    """What is encoded, again and again.

    Attributes:
        points: cells (centres), or tiles of stores (`tile_N`); sorted by slide.
        sources: slides or stores that hold their pixels.
        unit: "cell" or "tile".
        seed: of the stain and of random weights.
        config: how they are cut and encoded.
    """

    points: Points
    sources: Sequence[Source]
    unit: str
    seed: int
    config: ConditionConfig

    def marks(self) -> dict[str, str]:
        """Return digests of points and pixels, which kept features go by."""
        return marks_of(self.points, self.sources)


class Conditions:
    """The features of one encoder; it is loaded when first needed.

    Args:
        places: what is encoded.
        choice: the encoder.
        folder: where features are kept.
        progress: called with (encoder, images done, of how many).
        note: told what the user should know.

    Attributes:
        facts: of the encoder, once features were asked for.
    """

    def __init__(
        self, places: Places, choice: Choice, folder: Path, progress: Progress, note: Note
    ) -> None:
        self.facts: dict[str, Any] = {}
        self._places, self._choice, self._folder = places, choice, folder
        self._progress, self._note = progress, note
        self._marks = places.marks()
        self._encoder: Encoder | None = None

    def features(self, how: Perturbation | None) -> NDArray[np.float32]:
        """Return the features of all places under a condition, float32 (N, D).

        Args:
            how: what is done to the images; None: nothing.

        Raises:
            InputError: an encoder gives NaN or infinite values.
            WeightsError: see `Choice.load`.
        """
        kept = self._folder / self._name(how)
        known = run_folder.read_features(kept, len(self._places.points))
        if known is None:
            values_ND = self._compute(how)
            self._folder.mkdir(parents=True, exist_ok=True)
            run_folder.keep_features(kept, values_ND, self.facts)
            return values_ND
        self.facts = known[1]
        return known[0]

    def _name(self, how: Perturbation | None) -> str:
        places, config, choice = self._places, self._places.config, self._choice
        settings = {
            **choice.identity(),
            **self._marks,
            "unit": places.unit,
            "crop_um": config.crop_um if places.unit == "cell" else None,
            "mpp": config.slide_mpp,
            "pooling": config.pooling,
            "seed": places.seed if choice.random or (how and how.kind == "stain") else None,
            "condition": how.name if how else UNCHANGED,
            "cytofm": __version__,
            "layout": _LAYOUT,
        }
        name = schema.node_name(choice.label).replace(" ", "-")
        said = how.name.replace(":", "-") if how else UNCHANGED
        return f"{name}-{said}-{digest(settings)}.safetensors"

    def _load(self) -> Encoder:
        if self._encoder is None:
            places, config = self._places, self._places.config
            self._encoder = self._choice.load(
                device=config.device, seed=places.seed, pooling=config.pooling
            )
            for line in getattr(self._encoder, "notes", ()):
                self._note(line)
            spec = self._encoder.spec
            crop_um = None
            if places.unit == "cell":
                crop_um = config.crop_um or spec.cell_um or CELL_UM
                check_scale(spec, crop_um, self._note)
            self.facts = {"dim": spec.dim, "crop_um": crop_um, **spec.facts()}
        return self._encoder

    def _compute(self, how: Perturbation | None) -> NDArray[np.float32]:
        encoder = self._load()
        places, points = self._places, self._places.points
        values_ND = np.empty((len(points), encoder.spec.dim), dtype=np.float32)
        done = 0
        for source in places.sources:
            rows_R = points.of_slide(source.slide_id)
            if not len(rows_R):
                continue

            def tell(part: int, _: int, before: int = done) -> None:
                self._progress(self._choice.label, before + part, len(points))

            changed = encoder if how is None else self._changed(encoder, source, how)
            values_ND[rows_R] = self._of_slide(points.take(rows_R), source, changed, tell)
            done += len(rows_R)
        return values_ND

    def _of_slide(
        self, points: Points, source: Source, encoder: Encoder, report: Report
    ) -> NDArray[np.float32]:
        config = self._places.config
        how: dict[str, Any] = {
            "slides": config.slides,
            "device": config.device,
            "batch_size": config.batch_size,
            "threads": config.threads or cpu_count(),
            "report": report,
        }
        if self._places.unit == "tile":
            return features.tile_features(points, [source], encoder, **how)
        how |= {"crop_um": self.facts["crop_um"], "mpp": config.slide_mpp}
        return features.cell_features(points, [source], encoder, **how)

    def _changed(self, encoder: Encoder, source: Source, how: Perturbation) -> Encoder:
        config = self._places.config
        with features.open_source(source, mpp=config.slide_mpp, slides=config.slides) as (field, _):
            mpp = field.mpp
        # A slide is stained as a whole: what is drawn is drawn once for it.
        seed = (self._places.seed, zlib.crc32(source.slide_id.encode("utf-8", "replace")))
        return Changed(encoder, how, mpp=mpp, seed=seed)


class Changed:
    """An encoder that is shown perturbed images; it has all that the encoder has.

    Args:
        encoder: what looks at them.
        how: what is done to them.
        mpp: µm/px of the images.
        seed: see `perturb`.
    """

    def __init__(
        self, encoder: Encoder, how: Perturbation, *, mpp: float, seed: tuple[int, ...]
    ) -> None:
        self._encoder, self._how, self._mpp, self._seed = encoder, how, mpp, seed

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder expects and gives."""
        return self._encoder.spec

    def prepare(self, pixels_BHWC: NDArray[np.uint8]) -> Any:
        """Perturb images, then prepare them."""
        each = [
            perturb(image_HWC, self._how, mpp=self._mpp, seed=self._seed)
            for image_HWC in pixels_BHWC
        ]
        return self._encoder.prepare(np.stack(each))

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Return float32 (B, D) for what `prepare` gave."""
        return self._encoder.encode(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)
