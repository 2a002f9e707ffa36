"""`cytofm run`."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import show
from cytofm_cli.cli.plugin_settings import StainWord, parse_settings, with_stain
from cytofm_cli.config import option
from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.mil.config import ScoreConfig
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.regions.config import NAMES
from cytofm_cli.registry import exporters
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.work.batch import Outcome

# The settings of the steps that are flags here; all others stand in --config and environment.
_FLAGS: Final = {
    "detect": ("detector", "device", *NAMES),
    "embed": (
        *("encoder", "weights", "download", "random_weights", "unit", "cell_um", "device"),
        *NAMES,
    ),
    "export": ("to",),
    "score": (),
}


@dataclass(frozen=True, kw_only=True)
class BagsConfig(EmbedConfig):
    """The settings of [embed] for one bag a slide, or for one of each unit."""

    unit: Literal["tile", "cell", "both"] = option(  # type: ignore[assignment]
        "cell", "A bag with a row a nucleus (cell), a row a tile, or one of each (both)."
    )

    def __post_init__(self) -> None:
        encoder = self.encoder
        super().__post_init__()
        if self.unit == "both":  # `auto` is another encoder for each
            object.__setattr__(self, "encoder", encoder)

    def bags(self) -> list[EmbedConfig]:
        """Return the settings of each bag."""
        units = ("tile", "cell") if self.unit == "both" else (self.unit,)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [EmbedConfig(**{**values, "unit": unit}) for unit in units]


@dataclass(frozen=True, kw_only=True)
class FilesConfig(ExportConfig):
    """The settings of [export], which writes nothing unless it is told what."""

    to: tuple[str, ...] = option(
        (), f"Also write files of each slide to OUT/export: {', '.join(exporters.words())}."
    )

    def asked(self) -> ExportConfig | None:
        """Return the settings of the export, None if no files are wanted."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ExportConfig(**values) if self.to else None


def run(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Slides, folders, globs, or - for a list on stdin.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for everything: stores, scores, files.")
    ] = Path("out"),
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] instead of, or besides, inputs.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the mask and the chosen tiles.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="RUN of `mil train` that scores each slide.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the detector; repeat for more."
        ),
    ] = None,
    stain: StainWord = None,
    *,
    tile: TileConfig,
    detect: DetectConfig,
    embed: BagsConfig,
    score: ScoreConfig,
    export: FilesConfig,
    run: RunOptions,
) -> None:
    """Tile, detect, embed: all steps, slide by slide; then scores and files if you like.

    The stores, in OUT/stores, are those of the single commands. What is finished is skipped. The
    steps' other settings stand in the tables [tile], [detect], [embed], [mil_score] and [export]
    of --config FILE.

    Examples:

      cytofm run slides/ -o out

      cytofm run fields/*.jpg -o out --slide-mpp 0.25 --unit both

      cytofm run slides/ -o out --config steps.toml --model RUN --to geojson
    """
    from cytofm_cli.api.run import run as run_all

    step = functools.partial(
        run_all,
        inputs,
        folder,
        tile=tile,
        detect=detect,
        embed=embed.bags(),
        model=model,
        score=score,
        export=export.asked(),
        manifest=manifest,
        preview=preview,
        detector_settings=with_stain(parse_settings(settings), stain),
    )
    show("run", run, step, sums=_sums, line=_line)


def _line(outcome: Outcome, *, planned: bool) -> str:
    """Say what became of the steps of a slide, and what they made."""
    steps: Mapping[str, Any] = outcome.facts["steps"]
    told = ", ".join(f"{name} {_word(of['status'], planned)}" for name, of in steps.items())
    made = _made([outcome])
    return f"{told}{': ' if made else ''}{made}"


def _sums(outcomes: Outcomes, *, planned: bool) -> str:
    """Say how many slides ended how, and what all hold."""
    counts: Counter[str] = Counter(outcome.status for outcome in outcomes)
    words = {
        "done": _word("done", planned),
        "skipped": "skipped (done before)",
        "held": "held by other processes",
        "refused": "kept with other settings",
        "failed": "failed",
    }
    told = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    made = _made(outcomes)
    return f"{', '.join(told)}{': ' if made else ''}{made}"


def _word(status: str, planned: bool) -> str:
    return "planned" if planned and status == "done" else status


def _made(outcomes: Iterable[Outcome]) -> str:
    """Add up what slides hold: tiles, nuclei, rows of bags, files."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        for name, of in outcome.facts.get("steps", {}).items():
            if "n" in of:
                totals["nuclei" if name == "detect" else f"{name.split()[-1]} rows"] += of["n"]
            totals["tiles"] += of["n_tiles"] if name == "tile" else 0
            totals["files"] += len(of.get("files", ()))
    return ", ".join(f"{count} {what}" for what, count in totals.items() if count)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "run", run, _FLAGS)
