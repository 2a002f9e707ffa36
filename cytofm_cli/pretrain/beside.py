"""What a run does beside its steps: the log, the probe, the pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cytofm_cli.pictures.files import save_png
from cytofm_cli.pretrain import attention, run_folder
from cytofm_cli.pretrain.base import Method
from cytofm_cli.pretrain.loop import Hooks, Trainer
from cytofm_cli.pretrain.monitor import RunLog

if TYPE_CHECKING:
    from cytofm_cli.evaluate.online import CellProbe
    from cytofm_cli.pretrain.plan import Plan

_SHOWN = 4  # tiles in a picture


class Beside:
    """The log, the probe and the pictures of a run; close it, or use it in a `with`.

    Args:
        plan: the run.
        trainer: at the step where it goes on.
        writes: whether this process writes.
        slides: folder where the slides lie now.
        note: told what the user should know.
    """

    def __init__(
        self,
        plan: Plan,
        trainer: Trainer[Method],
        *,
        writes: bool,
        slides: Path | None,
        note: Callable[[str], None],
    ) -> None:
        self._plan, self._trainer, self._slides = plan, trainer, slides
        self._writes, self._note = writes, note
        self._log = None
        if writes:
            log, board = trainer.run / run_folder.LOG, trainer.run / run_folder.BOARD
            self._log = RunLog(log, step=trainer.step, tensorboard=board)
            for line in self._log.notes:
                note(line)
        # Sharded weights are gathered by all, so then all must probe and draw.
        self._joins = writes or plan.config.parallel == "fsdp"

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log:
            self._log.close()

    def hooks(self, progress: Callable[[int, float], None]) -> Hooks:
        """Return what the loop calls."""
        config = self._plan.config
        return Hooks(
            log=self._line,
            probe=self._probe() if config.probe and self._joins else None,
            picture=self._pictures() if config.attention_every and self._joins else None,
            progress=progress,
            probe_every=config.probe_every if config.probe else 0,
            picture_every=config.attention_every,
        )

    def _line(self, step: int, values: dict[str, float]) -> None:
        if self._log:
            self._log.write(step, values)

    def _probe(self) -> Callable[[int], dict[str, float]]:
        from cytofm_cli.evaluate.online import CellProbe

        config, index = self._plan.config, self._plan.index
        recipe = self._plan.recipe
        assert config.probe is not None
        cells = CellProbe.load(
            config.probe,
            {slide.slide_id: slide.path for slide in index.slides},
            crop_um=config.probe_um,
            px=recipe.views[0].size_px,
            mean=_triple(recipe.mean),
            std=_triple(recipe.std),
            groups=config.probe_groups,
            folder=self._slides,
        )
        for line in cells.notes:
            self._note(f"warning: {line}")
        return lambda step: self._judge(cells)

    def _judge(self, cells: CellProbe) -> dict[str, float]:
        with _at_rest(self._trainer) as encode:
            scores: dict[str, Any] = cells.score(encode)
        return {name: float(value) for name, value in scores.items() if value is not None}

    def _pictures(self) -> Callable[[int], None]:
        recipe, folder = self._plan.recipe, self._trainer.run / "attention"
        tiles = attention.choose_tiles(self._plan.index, _SHOWN, self._plan.config.seed)

        def draw(step: int) -> None:
            picture = attention.draw_attention(
                self._trainer.method.encoder(),
                tiles,
                mean=recipe.mean,
                std=recipe.std,
                size_px=recipe.views[0].size_px,
            )
            if picture is None:
                self._note("attention: this trunk has none to look at")
            elif self._writes:
                save_png(folder / f"step-{step:08d}.png", picture)

        return draw


@contextlib.contextmanager
def _at_rest(trainer: Trainer[Method]) -> Any:
    """Give the encoder in evaluation mode; it trains on afterwards as if nothing had been."""
    trunk = trainer.method.encoder()
    was = trunk.training
    trunk.eval()

    def encode(x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            vectors: Tensor = trunk(x_BCHW.to(trainer.device)).cls_BD.float()
        return vectors

    try:
        yield encode
    finally:
        trunk.train(was)


def _triple(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
