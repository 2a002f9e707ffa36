"""What is known of weights from elsewhere, what is only assumed, and how that is said.

A weight file holds no preprocessing. What the user states comes first, then what the catalogue or
the file says, then the size that absolute positions are laid out for; the rest is assumed as the
architecture has it, said once and recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli.encoders import weights
from cytofm_cli.encoders.base import EncoderRequest, EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

    from cytofm_cli.encoders import layouts

_ASSUMED: Final = ("input_px", "mean", "std", "interpolation", "pooling")


def settle(request: EncoderRequest, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the spec, and in `assumed` those that nobody states.

    Args:
        request: what the user, the catalogue and the file say.
        usual: what the architecture has if nothing is said.
    """
    pooling = {} if request.pooling is None else {"pooling": request.pooling}
    said = request.expects | request.stated | pooling
    if request.weights is None:
        return {**usual, "licence": "unknown"} | said
    return {
        **usual,
        "licence": weights.stated_licence(request.weights) or "unknown",
        "assumed": tuple(name for name in _ASSUMED if name not in said),
    } | said


def with_positions(
    request: EncoderRequest, state: Mapping[str, Tensor] | None, outline: Any
) -> EncoderRequest:
    """Let the input be the one that a file's absolute positions are laid out for.

    The request stays if the size is known, or the file has no square grid of positions.

    Args:
        request: names the file.
        state: all its entries; None: no file.
        outline: the network, without memory for its weights.
    """
    patch = getattr(getattr(outline, "patch_embed", None), "patch_size", None)
    if state is None or patch is None or "input_px" in request.expects | request.stated:
        return request
    from cytofm_cli.encoders import layouts

    where, key = str(request.weights), request.weights_key
    side = layouts.positions_side(outline, state, where=where, key=key)
    if not side:
        return request
    return replace(request, expects=request.expects | {"input_px": side * int(patch[0])})


def notes(spec: EncoderSpec, report: layouts.LoadReport | None) -> tuple[str, ...]:
    """Return what the user should be told of an encoder, a line each."""
    lines = [] if report is None or report.choice is None else [f"{spec.name}: {report.choice}"]
    if spec.positions is not None:
        lines.append(
            f"warning: {spec.name}: its positions were resized, {spec.positions} patches, for an "
            f"input of {spec.input_px} px."
        )
    if {"input_px", "mean", "std"} & set(spec.assumed):
        mean, std = (" ".join(f"{x:.3g}" for x in values) for values in (spec.mean, spec.std))
        values = {
            "input_px": f"input {spec.input_px} px",
            "mean": f"mean {mean}",
            "std": f"std {std}",
            "interpolation": spec.interpolation,
            "pooling": f"pooling {spec.pooling}",
        }
        assumed = ", ".join(values[name] for name in spec.assumed)
        lines.append(
            f"warning: {spec.name}: its weight file does not say how images are prepared; it sees "
            f"{spec.input_px} px; assumed: {assumed}; resolution: {_resolution(spec)}; licence: "
            f"{spec.licence}. --input-px, --mean and --std state others, or FILE.toml beside it."
        )
    return tuple(lines)


def _resolution(spec: EncoderSpec) -> str:
    return "unknown" if spec.mpp is None else f"{spec.mpp:g} µm/px"
