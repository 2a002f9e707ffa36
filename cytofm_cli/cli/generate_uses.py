"""`cytofm generate counterfactual` and `restain`: what generators are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.options import CommonOptions, SlidesNow
from cytofm_cli.cli.out import out
from cytofm_cli.generate.use_config import CounterfactualConfig, RestainConfig

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Made by `generate train`, or its file.")]


def counterfactual(
    run_folder: Run,
    score: Annotated[
        Path,
        typer.Option(
            metavar="RUN", help="Of `cells train` (linear, mlp) or `mil train`: moves conditions."
        ),
    ],
    like: Annotated[
        list[str],
        typer.Option(metavar="STORE:NUMBER", help="A cell, counted from 0; repeat for more."),
    ],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the strips.")],
    judge: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another RUN of `cells train` that scores the pictures."),
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORES", help="Whose cells say how vectors differ [default: the cells' own]."
        ),
    ] = None,
    slides: SlidesNow = None,
    *,
    config: CounterfactualConfig,
    run: CommonOptions,
) -> None:
    """Show cells on their way from normal to abnormal, with the score under each picture.

    A cell's condition is moved along the gradient of a model's score; each picture is
    encoded and scored again, so that it is seen whether it followed.

    Examples:

      cytofm generate counterfactual run --score cells --like a.zarr:12 -o out

      cytofm generate counterfactual run --score mil --like a.zarr:12 -n 4 -o s
    """
    from cytofm_cli.api.generate_uses import make_counterfactual, scorer_of
    from cytofm_cli.generate.run_folder import generator_of

    if run.dry_run:
        generator_of(run_folder)
        scorer = scorer_of(score, config.towards)
        n = len(like) * config.n * config.frames
        out.note(f"would make {n} images towards {scorer.of_class} of {scorer.said}")
        return
    with out.progress_bar("generate counterfactual", 1, "runs", "images") as bar:
        report = make_counterfactual(
            run_folder,
            score,
            folder,
            config,
            like=like,
            judge=judge,
            real=real,
            slides=slides,
            overwrite=run.overwrite,
            note=out.note,
            progress=lambda done, total: bar.part("sampling", done, total),
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    said = report.metrics["followed"]
    slope = "nan" if said["slope"] is None else f"{said['slope']:.3f}"
    line = (
        f"{report.metrics['class']}: conditions moved {said['moved_asked']:.2f} in log-odds, "
        f"pictures {said['moved_shown']:+.2f} (slope {slope})"
    )
    out.data(line, {"folder": str(folder), **report.metrics})
    out.note(f"see {folder / 'strip.png'}")


def restain(
    run_folder: Run,
    like: Annotated[
        list[str],
        typer.Option(
            metavar="STORE[:NUMBER]", help="A cell, counted from 0, or some of a store; repeatable."
        ),
    ],
    stain: Annotated[
        list[str],
        typer.Option(
            metavar="STORE[:NUMBER]", help="The other slide, or one of its cells; repeatable."
        ),
    ],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")],
    slides: SlidesNow = None,
    *,
    config: RestainConfig,
    run: CommonOptions,
) -> None:
    """Show cells in the stain of another slide, and measure what stayed and what changed.

    Examples:

      cytofm generate restain run --like a.zarr --stain b.zarr -o out

      cytofm generate restain run --like a.zarr:12 --stain b.zarr:3 -o out
    """
    from cytofm_cli.api.generate_uses import restain_cells
    from cytofm_cli.generate.run_folder import generator_of

    if run.dry_run:
        generator_of(run_folder)
        out.note(f"would draw {', '.join(like)} in the stain of {', '.join(stain)}")
        return
    with out.progress_bar("generate restain", 1, "runs", "images") as bar:
        report = restain_cells(
            run_folder,
            stain,
            folder,
            config,
            like=like,
            slides=slides,
            overwrite=run.overwrite,
            note=out.note,
            progress=lambda done, total: bar.part("sampling", done, total),
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    for how, row in report.metrics["rows"].items():
        overlap = "none" if row["dice"] is None else f"{row['dice']:.3f}"
        line = f"{how}: Dice of the nucleus {overlap}, colours {row['colour']:.2f} from the stain"
        out.data(line, {"how": how, "folder": str(folder), **row})
    out.note(f"see {folder / 'restained.png'}")
