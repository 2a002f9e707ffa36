"""The measures of a generator as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMNS = ("frechet", "precision", "recall", "density", "coverage")


def table_of(metrics: Mapping[str, Any]) -> str:
    """Return table.md: of each feature space the made images, the floor and the codec's floor."""
    lines = [
        f"{metrics['n_made']} made images, {metrics['n_reference']} real ones as reference and "
        f"{metrics['n_floor']} of other slides as floor; {metrics['image_px']} px, "
        f"{metrics['codec']}.",
    ]
    for name, space in metrics["spaces"].items():
        lines += ["", f"## {name}", "", *_space(space)]
    return "\n".join(lines) + "\n"


def _space(space: Mapping[str, Any]) -> list[str]:
    scaled = ", standardised by the reference" if space["standardised"] else ""
    lines = [
        f"{space['n']} images a set, {space['dim']} features{scaled}.",
        "",
        "| against the reference | Fréchet | precision | recall | density | coverage |",
        "|---|---|---|---|---|---|",
        _row("made", space["made"]),
        _row("real, other slides", space["floor"]),
        _row("the reference through the autoencoder", space["autoencoder"]),
        *(_row(f"the reference as JPEG {q}", of) for q, of in space["jpeg"].items()),
        "",
    ]
    memory = space["memorisation"]
    made, real = memory["nearest_made"][1], memory["nearest_real"][1]
    lines.append(
        f"Nearest real image, median cosine: {made:.3f} of made ones, {real:.3f} of real ones "
        f"among other slides; {memory['copies']:.1%} of the made are nearer than 99 % of the real."
    )
    if "fidelity" in space:
        said = space["fidelity"]
        lines.append(
            f"Condition: cosine {said['cosine']:.3f}; its own is the nearest of {said['n']} for "
            f"{said['retrieval']:.1%} (chance {said['chance']:.1%})."
        )
    return lines


def _row(name: str, of: Mapping[str, float]) -> str:
    values = [f"{of[key]:.4g}" if key == "frechet" else f"{of[key]:.3f}" for key in _COLUMNS]
    return f"| {name} | {' | '.join(values)} |"
