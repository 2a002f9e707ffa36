"""`cytofm generate`: train generators of cells, sample and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytofm_cli.cli.generate_uses import counterfactual, restain
from cytofm_cli.cli.options import CommonOptions, SlidesNow
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.generate.config import GenerateConfig, MeasureConfig, SampleConfig

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Made by `generate train`, or a file of REPA-E.")
]
Stores = Annotated[list[str], typer.Argument(help="Stores, folders of stores, or packs.")]


def train(
    stores: Stores,
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN.")],
    slides: SlidesNow = None,
    *,
    config: GenerateConfig,
    run: CommonOptions,
) -> None:
    """Train a generator of cells or tiles: autoencoder and SiT at once; resumes by itself.

    REPA-E (arXiv:2504.10483) as CytoSyn uses it: tokens of a frozen encoder guide both.
    With --autoencoder the SiT alone, at a fraction of the time an update.

    Examples:

      cytofm generate train stores -o run --steps 2000

      cytofm generate train stores -o run --condition class

      cytofm generate train stores -o second --autoencoder run --patch 1

      torchrun --nproc-per-node 4 -m cytofm_cli generate train stores -o run
    """
    from cytofm_cli.api.generate import train_generator

    if run.dry_run:
        _say_plan(config, stores, folder, slides)
        return
    with out.progress_bar("generate train", 1, "runs", "steps") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.part("training", done, total, f"loss {loss:.4g}")

        report = train_generator(
            stores,
            folder,
            config,
            slides=slides,
            overwrite=run.overwrite,
            note=out.note,
            progress=progress,
        )
    if not report.is_main:
        return
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    file = str(folder / report.generator.name)
    out.data(file, report.summary | {"run": str(folder), "generator_file": file})


def _say_plan(config: GenerateConfig, stores: list[str], folder: Path, slides: Path | None) -> None:
    """Say what would be trained."""
    from cytofm_cli.api.inputs import find_stores_and_packs
    from cytofm_cli.generate.plan import make_plan

    plan = make_plan(config, find_stores_and_packs(stores), slides=slides)
    out.data(str(folder), {name: dict(section) for name, section in plan.record.items()})
    length = plan.length
    epochs = length.n_steps * length.batch / plan.index.n_tiles
    out.note(
        f"would train preset {config.preset} for {length.n_steps} steps of {length.batch} "
        f"{plan.index.unit}s, {epochs:.1f} passes over {plan.index.n_tiles}"
    )


def sample(
    run_folder: Run,
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")],
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE:NUMBER", help="A cell, counted from 0, to be like; repeat for more."
        ),
    ] = None,
    of_class: Annotated[
        str | None, typer.Option("--class", help="A class of the training's cells to be of.")
    ] = None,
    slides: SlidesNow = None,
    *,
    config: SampleConfig,
    run: CommonOptions,
) -> None:
    """Make images with a generator: PNGs and a store, all marked as synthetic.

    Each image has a noise of its own, drawn from the seed and its number.

    Examples:

      cytofm generate sample run -n 64 -o fakes --like stores/a.zarr:12

      cytofm generate sample run -o fakes --class HSIL --guidance 2.5
    """
    from cytofm_cli.api.generate import sample_generator

    if run.dry_run:
        from cytofm_cli.generate.run_folder import generator_of

        out.note(f"would make {config.n} images with {generator_of(run_folder)}")
        return
    with out.progress_bar("generate sample", 1, "runs", "images") as bar:
        report = sample_generator(
            run_folder,
            folder,
            config,
            like=like,
            of_class=of_class,
            slides=slides,
            overwrite=run.overwrite,
            note=out.note,
            progress=lambda done, total: bar.part("sampling", done, total),
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    store = str(folder / report.store.name)
    out.data(store, {"folder": str(folder), "store": store, "n": report.n})


def evaluate(
    run_folder: Run,
    stores: Stores,
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the RUN to make.")],
    slides: SlidesNow = None,
    *,
    config: MeasureConfig,
    run: CommonOptions,
) -> None:
    """Judge a generator: Fréchet distance, precision, recall, memorisation, fidelity.

    Beside each number stand two floors: real images of other slides, and the same real images
    as JPEG of several qualities.

    Examples:

      cytofm generate evaluate run held-out-stores -o judged

      cytofm generate evaluate run stores -o judged --encoder cytofm-tiny
    """
    from cytofm_cli.api.generate import evaluate_generator

    if run.dry_run:
        from cytofm_cli.generate.run_folder import generator_of

        out.note(f"would judge {generator_of(run_folder)} in {', '.join(config.encoder)}")
        return
    with out.progress_bar("generate evaluate", 1, "runs", "images") as bar:
        report = evaluate_generator(
            run_folder,
            stores,
            folder,
            config,
            slides=slides,
            overwrite=run.overwrite,
            note=out.warn,
            progress=lambda what, done, total: bar.part("run", done, total, what),
        )
    if report.skipped:
        out.note(f"{folder}: done before, skipped")
    for name, space in report.metrics["spaces"].items():
        made, floor = space["made"], space["floor"]
        line = (
            f"{name}: Fréchet {made['frechet']:.4g} (real images of other slides "
            f"{floor['frechet']:.4g}), precision {made['precision']:.3f}, recall "
            f"{made['recall']:.3f}"
        )
        out.data(line, {"encoder": name, "run": str(folder), **space})
    out.note(f"see {folder / 'table.md'}")


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Train generators of cells and tiles, make images with them, judge these.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.callback()(_group)
    register_command(group, "train", train)
    register_command(group, "sample", sample)
    register_command(group, "evaluate", evaluate)
    register_command(group, "counterfactual", counterfactual)
    register_command(group, "restain", restain)
    app.add_typer(group, name="generate")


def _group() -> None:
    """Train generators of cells and tiles, make images with them, judge these."""
