"""`cytofm attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytofm_cli.api.attention import Attention
from cytofm_cli.api.attention import attention as measure
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import show
from cytofm_cli.errors import UsageError
from cytofm_cli.maps.config import AttentionConfig


def attention(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    folder: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the tables and pictures.")
    ],
    encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE|NAME=FILE", help="Repeat for more [default: cytofm-tiny]."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weight file of the one encoder that needs one.")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option(help="Random weights for encoders that name no file.")
    ] = False,
    *,
    config: AttentionConfig,
    run: SlideOptions,
) -> None:
    """Show what the heads of an encoder's last layer look at: nucleus, cytoplasm, other.

    Tables say how much of each head's attention lies on detected nuclei, against the area that
    they cover, with intervals over slides; a picture shows it (PNG and SVG). Files are replaced.

    Examples:

      cytofm attention stores -o attention --control

      cytofm attention stores -o out --encoder encoder.safetensors --unit tile
    """
    if run.shard is not None:
        raise UsageError("--shard: intervals are over all slides together.", hint="leave it away")
    made: list[Attention] = []

    def step(**manner: Any) -> Outcomes:
        manner = {key: value for key, value in manner.items() if key not in ("overwrite", "shard")}
        made.append(
            measure(
                stores,
                folder,
                config,
                encoders=encoder or ["cytofm-tiny"],
                weights=weights,
                random_weights=random_weights,
                **manner,
            )
        )
        return made[-1].outcomes

    def sums(outcomes: Outcomes, *, planned: bool) -> str:
        n = len(outcomes.of("done"))
        return f"{n} slides would be looked at" if planned else f"{n} of {len(outcomes)} slides"

    try:
        show("attention", run, step, parts="images", sums=sums)
    finally:
        _tell(made)


def _tell(made: list[Attention]) -> None:
    """Print the share of nuclei, head by head, and the files."""
    for result in made:
        for label, rows in result.rows.items():
            for row in (row for row in rows if row.compartment == "nucleus"):
                of, head = row.enrichment, "mean" if row.head == "mean" else f"head {row.head}"
                out.note(
                    f"{label}: {head}: {row.mass.value:.1%} of the attention on nuclei, which "
                    f"cover {row.area.value:.1%}: × {of.value:.2f} [{of.low:.2f}, {of.high:.2f}]; "
                    f"its mean map alone × {row.place.value:.2f}"
                )
        for path in result.files:
            out.data(str(path), {"file": str(path)})


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "attention", attention)
