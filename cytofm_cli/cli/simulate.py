"""`cytofm simulate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import show
from cytofm_cli.simulate.config import SimulateConfig


def simulate(
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the cohort.")],
    *,
    config: SimulateConfig,
    run: SlideOptions,
) -> None:
    """Simulate slides whose truth is known: every cell, its outline, its class; every label.

    Writes slides/, labels.csv, cells.csv, truth/ (GeoJSON, label images) and posterior.csv: how
    surely the cells of a slide tell its label, which no model can beat.

    Examples:

      cytofm simulate -o cohort

      cytofm simulate -o needles --size-px 20480 --abnormal-share 0.001
    """
    from cytofm_cli.api.simulate import simulate_slides

    show("simulate", run, functools.partial(simulate_slides, folder, config))
    if not run.dry_run:
        _tell(folder)


def _tell(folder: Path) -> None:
    """Say what the cohort is, once it is complete."""
    from cytofm_cli.simulate.tables import read_summary

    summary = read_summary(folder)
    if summary is None:
        return
    ceiling = summary["bayes_auc"]
    told = f"{summary['n_slides']} slides, {summary['n_positive']} positive"
    told += f", {summary['n_cells']} cells, all simulated"
    if ceiling is not None:
        told += f"; no model can be better than AUC {ceiling:.3f} in the mean"
    out.note(f"simulate: {told}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "simulate", simulate)
