"""`cytofm quickstart`: the whole pipeline on real Pap fields, by the commands a user types."""

from __future__ import annotations

import json
import shlex
import site
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import cytofm_cli
from cytofm_cli.cli.options import OutputOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.errors import CytofmError, InputError

_HEADS = ("abmil", "mean")
_UNITS = ("tile", "cell")


class _StepFailedError(CytofmError):
    """One of the commands failed; it has said why."""


def quickstart(
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything made.")] = Path(
        "cytofm-quickstart"
    ),
    *,
    run: OutputOptions,
) -> None:
    """Tile, detect, embed, train, score: the whole pipeline on real Pap fields, in minutes.

    The fields ship with cytofm (CRIC Cervix, CC BY 4.0). Nothing is fetched.

    Examples:

      cytofm quickstart

      cytofm quickstart -o /tmp/try
    """
    fields = example_fields()
    start = time.monotonic()
    _say(f"31 Pap-smear fields from {fields} (CRIC Cervix, CC BY 4.0)")
    _say("Question: does a field hold a cell that is LSIL or worse? Grouped cross-validation.")
    runs = _run_all(fields, folder, _passed_on(run))
    metrics = {name: _metrics(path) for name, path in runs.items()}
    out.data(_table(metrics), {"metrics": metrics, "folder": str(folder)})
    _say(_where(folder, time.monotonic() - start))


def _run_all(fields: Path, folder: Path, flags: list[str]) -> dict[str, Path]:
    """Run the commands; return the RUNs by what they are called in the table."""
    stores, labels = folder / "stores", fields / "labels.csv"
    resolution = ("--slide-mpp", 0.25, "--tile-px", 256)
    _run("tile", fields, "-o", stores, *resolution, "--preview", folder / "preview", *flags)
    _run("detect", stores, *flags)
    for unit in _UNITS:
        _run("embed", stores, "--unit", unit, *flags)
    runs = {}
    for unit in _UNITS:
        for head in _HEADS:
            path = runs[f"{head}, {unit} bags"] = folder / f"run-{head}-{unit}"
            _run(
                *("mil", "train", "--bags", stores, "--labels", labels),
                *("--method", head, "--unit", unit, "-o", path, *flags),
            )
    _run("mil", "score", folder / "run-abmil-cell", stores, "-o", folder / "scores.csv", *flags)
    return runs


def _passed_on(run: OutputOptions) -> list[str]:
    """Return the flags by which the steps print as much as this command does."""
    flags = {"--quiet": run.quiet, "--verbose": run.verbose, "--no-progress": run.no_progress}
    return [flag for flag, wanted in flags.items() if wanted]


def example_fields() -> Path:
    """Return the folder of the fields that ship with cytofm.

    Raises:
        InputError: this installation lacks them.
    """
    installed = [Path(base) / "share" / "cytofm" for base in (sys.prefix, site.getuserbase())]
    in_clone = Path(cytofm_cli.__file__).parents[1] / "examples"
    for folder in (in_clone, *installed):
        if (folder / "pap_fields" / "labels.csv").exists():
            return folder / "pap_fields"
    raise InputError(
        f"{installed[0]}: the example fields are missing.", hint="install cytofm again."
    )


def _run(*words: object) -> None:
    command = [str(word) for word in words]
    _say(f"\n$ cytofm {shlex.join(command)}")
    # Data of the steps goes to stderr here: stdout is for the numbers at the end.
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [sys.executable, "-m", "cytofm_cli", *command], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise _StepFailedError(
            f"`cytofm {command[0]}` ended with exit code {done.returncode}; see above.",
            hint="run the printed command by itself.",
        )


def _metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return {name: content[name] for name in ("auc", "accuracy", "recall")}


def _table(metrics: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'head':<18}{'AUC':<22}{'accuracy':<22}{'recall':<22}"]
    for head, values in metrics.items():
        cells = [
            f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
            for m in (values["auc"], values["accuracy"], values["recall"])
        ]
        lines.append(f"{head:<18}" + "".join(f"{cell:<22}" for cell in cells))
    lines.append(
        "95 % intervals by bootstrap over groups. 31 fields are few: the intervals say so."
    )
    return "\n".join(lines)


def _where(folder: Path, seconds: float) -> str:
    return f"""
Done in {seconds:.0f} s. Look at:
  {folder}/preview/      foreground and chosen tiles of every field, as pictures
  {folder}/stores/       one Zarr store a field: tiles, nuclei, embeddings, attention
  {folder}/run-*/        splits, predictions, metrics, models, settings
  {folder}/scores.csv    probabilities of the ensemble

On your own slides:
  cytofm info SLIDES/                                   what is there, at which resolution
  cytofm tile SLIDES/ -o stores                         any format; --slide-mpp 0.25 if a file
                                                        states no resolution (40×)
  cytofm detect stores                                  nuclei, for cell bags (--unit cell)
  cytofm export stores -o qupath --to geojson           look at them in QuPath
  cytofm embed stores --encoder timm/vit_small_patch16_224 --weights FILE
  cytofm mil train --bags stores --labels labels.csv -o run     labels.csv: slide_id,label,group
  cytofm mil score run stores -o scores.csv
"""


def _say(text: str) -> None:
    out.note(text)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "quickstart", quickstart)
