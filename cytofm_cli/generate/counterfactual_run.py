"""Strips of cells that turn from normal to abnormal, drawn and scored.

Letters: C cells, N noises, F frames, R = C · N strips, E width of the encoder's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.config import as_record
from cytofm_cli.generate.asked import condition_encoder, read_like
from cytofm_cli.generate.counterfactual import (
    Floats,
    Scorer,
    probability,
    require_fit,
    walk,
    wanted_odds,
    way_of,
)
from cytofm_cli.generate.evaluate import features
from cytofm_cli.generate.file import Generator, read_generator
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sample import Start, draw_images
from cytofm_cli.generate.some_cells import levels_of, some_cells, store_of, vectors_of
from cytofm_cli.generate.strips import METRICS, Strips, flat, write_strips
from cytofm_cli.generate.synthetic import about_with_shapes
from cytofm_cli.generate.use_config import CounterfactualConfig
from cytofm_cli.generate.use_folder import made_by, make_folder
from cytofm_cli.runs.folder import Kind, RunReport
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.work.device import find_device

COMMAND: Final = "generate counterfactual"
SECTION: Final = CounterfactualConfig.SECTION
KIND: Final = Kind(f"cytofm {COMMAND}", frozenset({SECTION, "generator"}))
Images = NDArray[np.uint8]


def counterfactual_run(
    run: Path,
    out: Path,
    config: CounterfactualConfig,
    scorer: Scorer,
    like: Sequence[str],
    *,
    judge: Scorer | None = None,
    real: Sequence[Path] = (),
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunReport:
    """Show what cells would have to look like, into a folder, complete or not at all.

    Args:
        run: RUN of `generate train`, or its file.
        out: the folder.
        config: how.
        scorer: the head or classifier that conditions are moved by.
        like: STORE:NUMBER of the cells.
        judge: another one, which only sees the pictures.
        real: stores whose cells say how vectors differ; without, those of the cells.
        slides: folder where the slides lie now.
        overwrite: replace what is there.
        note: told what the user should know.
        progress: called with (images done, of how many).

    Raises:
        UsageError, InputError: see `require_fit`, `read_like` and `draw_images`.
        ConfigMismatchError: `out` holds something else.
    """
    file, out = generator_of(run), out.absolute()
    generator = read_generator(file, ema=config.ema, vae_ema=config.vae_ema)
    score = {"run": scorer.digest, "of_class": scorer.of_class}
    record = {
        SECTION: as_record(config, results_only=True),
        "generator": {"sha256": sha256_file(file), "like": list(like)},
        "score": score | {"judge": judge.digest if judge else ""},
    }
    about = about_with_shapes(generator)
    for line in (*require_fit(scorer, about), *generator.notes):
        note(line)

    def compute() -> Strips:
        making = _Making(generator, config, scorer, judge, slides, progress)
        strips = making.strips(like, real or sorted({store_of(word) for word in like}))
        for line in _shortfalls(strips, config):
            note(line)
        return strips

    def write(staging: Path, strips: Strips) -> None:
        write_strips(staging, strips, scorer, judge, made_by(COMMAND, record, SECTION))

    strips = make_folder(KIND, out, record, compute, write, overwrite=overwrite)
    return RunReport(out, KIND.read_json(out, METRICS), skipped=strips is None)


@dataclass(frozen=True, eq=False)
class _Making:
    generator: Generator
    config: CounterfactualConfig
    scorer: Scorer
    judge: Scorer | None
    slides: Path | None
    progress: Callable[[int, int], None]

    def strips(self, like: Sequence[str], real: Sequence[Path]) -> Strips:
        """Move conditions, draw and score the pictures."""
        config, about = self.config, about_with_shapes(self.generator)
        where = {"detector": config.detector, "slides": self.slides}
        encoder = condition_encoder(about, config.encoder)
        cell_C3HW = torch.cat([read_like(word, about, **where) for word in like])  # type: ignore[arg-type]
        real_N3HW = some_cells(real, about, config.real_cells, **where).image_N3HW  # type: ignore[arg-type]
        way = way_of(vectors_of(encoder, real_N3HW), config.along)
        own_CE = vectors_of(encoder, cell_C3HW)
        odds_of = [self.scorer.odds(store_of(word).stem) for word in like]
        own_C = np.array([odds(x[None])[0][0] for odds, x in zip(odds_of, own_CE, strict=True)])
        told_CFE = np.stack(
            [
                walk(odds, x_E, wanted_odds(float(own), config), way)
                for odds, x_E, own in zip(odds_of, own_CE, own_C, strict=True)
            ]
        )
        strip_R = np.repeat(np.arange(len(like)), config.n)
        told_RFE = told_CFE[strip_R]
        image_RFHWC = self._draw(told_RFE, cell_C3HW, strip_R)
        seen_RFE = features(encoder, flat(image_RFHWC)).reshape(told_RFE.shape)
        moved_RF = np.linalg.norm(told_RFE - told_RFE[:, :1], axis=2) / way.between
        asked_RF, shown_RF = (
            np.stack([odds_of[cell](x_FE)[0] for cell, x_FE in zip(strip_R, x_RFE, strict=True)])
            for x_RFE in (told_RFE, seen_RFE)
        )
        cell_CHWC = levels_of(cell_C3HW)
        judged = self._judged(like, strip_R, cell_CHWC, image_RFHWC)
        return Strips(
            tuple(like), cell_CHWC, image_RFHWC, own_C, asked_RF, shown_RF, moved_RF,
            _cosine(told_RFE, seen_RFE), *judged,
        )  # fmt: skip

    def _draw(self, told_RFE: Floats, cell_C3HW: Tensor, strip_R: NDArray[np.int64]) -> Images:
        n_strips, n_frames, width = told_RFE.shape
        frames = np.repeat(np.arange(n_strips), n_frames)  # all frames of a strip from one noise
        start = None
        if self.config.strength < 1:
            start = Start(cell_C3HW[strip_R[frames]], self.config.strength)
        made = draw_images(
            self.generator,
            torch.from_numpy(told_RFE.reshape(-1, width)).float(),
            len(frames),
            self.config,
            find_device(self.config.device),
            start=start,
            noises=frames.tolist(),
            progress=self.progress,
        )
        return made.reshape(n_strips, n_frames, *made.shape[1:])

    def _judged(
        self, like: Sequence[str], strip_R: NDArray[np.int64], cell_CHWC: Images, image: Images
    ) -> tuple[Floats | None, Floats | None]:
        if self.judge is None:
            return None, None
        encoder = FrozenEncoder(self.judge.word, grid=1)
        odds_of = [self.judge.odds(store_of(word).stem) for word in like]
        seen_RFE = features(encoder, flat(image)).reshape(*image.shape[:2], -1)
        own_CE = features(encoder, cell_CHWC)
        judged = [odds_of[cell](x_FE)[0] for cell, x_FE in zip(strip_R, seen_RFE, strict=True)]
        own_C = [odds(x_E[None])[0][0] for odds, x_E in zip(odds_of, own_CE, strict=True)]
        return np.stack(judged), np.array(own_C)


def _cosine(first: Floats, second: Floats) -> Floats:
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.asarray((first * second).sum(-1) / norms)


def _shortfalls(strips: Strips, config: CounterfactualConfig) -> list[str]:
    """Say where a score does not come to what was wanted."""
    said = []
    for number, (cell, own) in enumerate(zip(strips.cells, strips.own_C.tolist(), strict=True)):
        wanted = wanted_odds(own, config)[-1]
        reached = float(strips.asked_RF[number * config.n, -1])
        if abs(wanted - reached) > 0.05:
            said.append(
                f"warning: {cell}: on this way the score comes to {probability(reached):.3f}, not "
                f"to {probability(wanted):.3f}"
            )
    return said
