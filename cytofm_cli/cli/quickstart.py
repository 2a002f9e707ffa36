"""`cytofm quickstart`: the whole pipeline by the commands a user types."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cytofm_cli.cli import quickstart_report as report
from cytofm_cli.cli.options import OutputOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError, InputError, UsageError

_RUNS: Final = (("mean", "tile"), ("mean", "cell"), ("abmil", "cell"))
_BEST = "run-abmil-cell"  # the RUN whose cells are shown
_UNITS: Final = ("tile", "cell")
# Many abnormal cells: two dozen patients teach a head something then.
_COHORT: Final = shlex.split(
    "--patients 24 --slides-per-patient 2 --size-px 1024 --abnormal-share 0.4 --seed 0"
)
_PROBED: Final = ("handcrafted", "cytofm-tiny")


class _StepFailedError(CytofmError):
    """One of the commands failed; it has said why."""


@dataclass(frozen=True, kw_only=True)
class _Cohort:
    """What is worked on.

    Attributes:
        slides: folder of slides.
        labels: table of their labels.
        resolution: flags that say the resolution of files that do not.
        truth: folder of the simulated cohort; None for the user's own slides.
    """

    slides: Path
    labels: Path
    resolution: tuple[object, ...] = ()
    truth: Path | None = None


def quickstart(
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything made.")] = Path(
        "cytofm-quickstart"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder of slides of your own, instead of simulated ones.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Their labels: slide_id,label,group (with --data).")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="Their µm/px, if the files state none (with --data).")
    ] = None,
    *,
    run: OutputOptions,
) -> None:
    """Simulate a cohort, tile, detect, embed, train, score, report: the whole way, in minutes.

    The cells are simulated, so everything found is judged against the truth. Nothing is fetched.
    With --data and --labels the same runs on your own slides.

    Examples:

      cytofm quickstart

      cytofm quickstart --data slides --labels labels.csv -o try
    """
    start, flags = time.monotonic(), _passed_on(run)
    _check(data, labels, slide_mpp)
    if data is not None and labels is not None:
        mpp = () if slide_mpp is None else ("--slide-mpp", slide_mpp)
        cohort = _Cohort(slides=data, labels=labels, resolution=mpp)
    else:
        cohort = _simulate(folder / "cohort", flags)
    runs = _run_all(cohort, folder, flags)
    best = folder / _BEST
    found: dict[str, Any] = {}
    if cohort.truth is not None:
        probe = _probe(cohort.truth, folder, flags)
        found = report.against_truth(cohort.truth, folder / "stores", probe)
    metrics = {name: report.metrics_of(path) for name, path in runs.items()}
    out.data(
        report.table(metrics, found).splitlines(),
        {"metrics": metrics, "folder": str(folder), **found},
    )
    seconds = time.monotonic() - start
    _say(report.where(folder, best, seconds, simulated=cohort.truth is not None))


def _check(data: Path | None, labels: Path | None, slide_mpp: float | None) -> None:
    """Refuse a half-named cohort before anything runs."""
    if (data is None) != (labels is None):
        given, missing = ("--data", "--labels") if labels is None else ("--labels", "--data")
        raise UsageError(
            f"{given} is given without {missing}.",
            hint="cytofm quickstart --data SLIDES --labels labels.csv (slide_id,label,group)",
        )
    if data is None and slide_mpp is not None:
        raise UsageError("--slide-mpp is given without --data.", hint="name your slides: --data")
    for path in (data, labels):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder.", hint="check the path")


def _simulate(folder: Path, flags: list[str]) -> _Cohort:
    _say("48 fields of 24 patients, simulated: no real cell is in them. What cytofm does on real")
    _say("ones stands in docs/nuclei.md, docs/cytofm-tiny.md and docs/mil-benchmark.md.")
    _say("Question: does the patient have a lesion (ASC-US or worse)? Grouped cross-validation.")
    _run("simulate", "-o", folder, *_COHORT, *flags)
    return _Cohort(slides=folder / "slides", labels=folder / "labels.csv", truth=folder)


def _run_all(cohort: _Cohort, folder: Path, flags: list[str]) -> dict[str, Path]:
    """Run the commands; return the RUNs by what they are called in the table."""
    stores = folder / "stores"
    tiles = ("--tile-px", 256, *cohort.resolution)
    _run("tile", cohort.slides, "-o", stores, *tiles, "--preview", folder / "preview", *flags)
    _run("detect", stores, *flags)
    for unit in _UNITS:
        _run("embed", stores, "--unit", unit, *flags)
    runs = {}
    for head, unit in _RUNS:
        path = runs[f"{head}, {unit} bags"] = folder / f"run-{head}-{unit}"
        _run(
            *("mil", "train", "--bags", stores, "--labels", cohort.labels, "--method", head),
            *("--unit", unit, "--seeds", 1, "-o", path, *flags),
        )
    best = folder / _BEST
    _run("mil", "score", best, stores, "-o", folder / "scores.csv", *flags)
    page, pictures = folder / "report.html", folder / "gallery"
    others = [path for path in runs.values() if path != best]
    _run("report", best, *others, stores, "-o", page, "--overwrite", *flags)
    _run("gallery", stores, "-o", pictures, "--overwrite", *flags)
    return runs


def _probe(truth: Path, folder: Path, flags: list[str]) -> Path:
    """Judge encoders on the true cells; return the RUN."""
    points, path = folder / "points.csv", folder / "probe"
    report.write_points(truth, points)
    _say(f"\n{points}: the true cells, one a row, at their nuclei")
    encoders = [word for name in _PROBED for word in ("--encoder", name)]
    _run(
        *("evaluate", "probe", truth / "slides", "--points", points),
        *("--groups", truth / "labels.csv", "--task", "abnormal", *encoders, "--draws", 2),
        *("-o", path, *flags),
    )
    return path


def _passed_on(run: OutputOptions) -> list[str]:
    """Return the flags by which the steps print as much as this command does."""
    flags = {"--quiet": run.quiet, "--verbose": run.verbose, "--no-progress": run.no_progress}
    return [flag for flag, wanted in flags.items() if wanted]


def _run(*words: object) -> None:
    command = [str(word) for word in words]
    _say(f"\n$ cytofm {shlex.join(command)}")
    # Data of the steps goes to stderr here: stdout is for the numbers at the end.
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [sys.executable, "-P", "-m", "cytofm_cli", *command], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise _StepFailedError(
            f"`cytofm {command[0]}` ended with exit code {done.returncode}; see above.",
            hint="run the printed command by itself.",
        )


def _say(text: str) -> None:
    out.note(text.splitlines())


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "quickstart", quickstart)
