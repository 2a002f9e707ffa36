"""Files of generators: ours, and those of REPA-E, read strictly and without running anything.

A RUN's `generator.safetensors` has the entries of upstream's checkpoints under upstream's names:

    ema.…        running mean of the SiT, with the statistics of the latents
    model.…      the SiT itself
    vae.…        the autoencoder itself
    vae_ema.…    its running mean, which upstream has not

and metadata: `format` "cytofm-generator-1", and `about`, JSON of `Generator.about`. Of a file of
others (`.pt` of REPA-E: {model, ema, vae, …}) sizes are read off the shapes; what is not known is
what it was trained on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cytofm_cli.encoders import weights
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.latents import LatentNorm
from cytofm_cli.generate.sit import SiT, SitShape
from cytofm_cli.generate.vae import Resting, Vae, VaeShape
from cytofm_cli.work.files import plain, replacing

FORMAT: Final = "cytofm-generator-1"
_PARTS: Final = ("ema", "model", "vae", "vae_ema")
_HEADS_OF_64: Final = 64  # width of a head of S, B and L; XL, of width 1152, has 16 heads
_XL: Final = 1152


@dataclass(frozen=True)
class Generator:
    """Networks ready to sample.

    Attributes:
        sit: with the statistics of the latents.
        vae: that decodes.
        about: what is known of it: `vae`, `sit` (sizes), `encoder`, `classes`, `has_null`, `mpp`,
            `unit`, `side_um`, `licence`.
        notes: what loading did, one line each.
    """

    sit: SiT
    vae: Vae
    about: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeyReport:
    """How the entries of a file met those of a network.

    Attributes:
        missing, unknown: names.
        shapes: "NAME (theirs, ours)".
    """

    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)

    def __str__(self) -> str:
        parts = []
        for word, names in (
            ("missing", self.missing),
            ("unknown", self.unknown),
            ("of another shape", self.shapes),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{len(names)} {word}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


def write_generator(path: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Any) -> None:
    """Write a generator; equal weights give equal bytes.

    Args:
        path: ends in `.safetensors`; replaced atomically.
        parts: state dicts, by the names above.
        about: plain JSON values.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{part}.{name}": x.detach().cpu().contiguous().clone()
        for part, state in parts.items()
        for name, x in state.items()
    }
    # One entry: safetensors writes several in a random order.
    text = json.dumps({"format": FORMAT, "about": about}, sort_keys=True)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"cytofm": text})


def read_generator(
    path: Path, *, ema: bool = True, vae_ema: bool = True, about: Mapping[str, Any] | None = None
) -> Generator:
    """Read a generator of ours or of REPA-E; every entry must fit.

    Args:
        path: `.safetensors` of a RUN, or a `.pt` of REPA-E.
        ema: the SiT's running mean.
        vae_ema: the autoencoder's, where there is one.
        about: what the user knows of a file that does not say.

    Raises:
        WeightsError: missing, damaged, unsafe, or entries that do not fit: they are named.
        UsageError: a running mean is asked for that is not there.
    """
    told = _told(path)
    parts = _parts(path)
    which = "ema" if ema else "model"
    if which not in parts:
        raise UsageError(
            f"{path}: holds no {'running mean' if ema else 'raw weights'} of the SiT ({which}.…).",
            hint="--no-ema" if ema else "--ema",
        )
    if vae_ema and "vae_ema" not in parts and told:
        raise UsageError(f"{path}: holds no running mean of the autoencoder.", hint="--no-vae-ema")
    decoder = "vae_ema" if vae_ema and "vae_ema" in parts else "vae"
    if decoder not in parts:
        raise WeightsError(f"{path}: holds no autoencoder (vae.…): nothing decodes its latents.")
    sit, decode = parts[which], parts[decoder]
    about = {**(about or {}), **told}
    shapes = (_vae_shape(about, decode, path), _sit_shape(about, sit, path))
    network, vae = SiT(shapes[1]), Vae(shapes[0])
    for name, module, state in ((which, network, sit), (decoder, vae, decode)):
        report = key_report(module, state)
        if report:
            raise WeightsError(f"{path}: {name} does not fit: {report}.")
        module.load_state_dict(state)
    n = len(sit) + len(decode)
    notes = (f"{path}: all {n} entries of {which} and {decoder} fit",)
    return Generator(network.eval(), vae.eval(), dict(about), notes)


def read_autoencoder(path: Path) -> Resting:
    """Read the autoencoder of a generator, its running mean where there is one, and the statistics
    of its latents.

    Raises:
        WeightsError: as of `read_generator`; or there are none.
    """
    told, parts = _told(path), _parts(path)
    which = "vae_ema" if "vae_ema" in parts else "vae"
    sit = parts.get("ema", parts.get("model", {}))
    norm = {name[len("bn.") :]: x for name, x in sit.items() if name.startswith("bn.")}
    if which not in parts or not norm:
        raise WeightsError(f"{path}: holds no autoencoder with the statistics of its latents.")
    vae = Vae(_vae_shape(told, parts[which], path))
    for name, module, state in (
        (which, vae, parts[which]),
        ("bn", LatentNorm(vae.shape.latent), norm),
    ):
        if report := key_report(module, state):
            raise WeightsError(f"{path}: {name} does not fit: {report}.")
    vae.load_state_dict(parts[which])
    return Resting(vae.eval(), norm)


def key_report(module: nn.Module, state: Mapping[str, Tensor]) -> KeyReport:
    """Say how the entries of a file meet those of a network."""
    own = module.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    return KeyReport(
        tuple(name for name in own if name not in state),
        tuple(sorted(state.keys() - own.keys())),
        tuple(shapes),
    )


def about_of(vae: VaeShape, sit: SitShape, **more: Any) -> dict[str, Any]:
    """Return what a file says of its networks."""
    return {"vae": asdict(vae), "sit": asdict(sit), **more}


def _told(path: Path) -> dict[str, Any]:
    """Return what a file of ours says; {} of others.

    Raises:
        WeightsError: it is of a later version, or damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(plain(path), framework="pt") as file:
            text = (file.metadata() or {}).get("cytofm")
        said = {} if text is None else json.loads(text)
        if said and said["format"] != FORMAT:
            raise WeightsError(f"{path}: is of format {said['format']}, and this reads {FORMAT}.")
        return dict(said.get("about", {}))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: damaged generator ({error}).") from error


def _parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a file, without prefixes of data-parallel wrappers."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, x in weights.read_state(path).items():
        part, _, rest = name.partition(".")
        if part in _PARTS:
            parts.setdefault(part, {})[rest.removeprefix("module.")] = x
    if not parts:
        raise WeightsError(
            f"{path}: no generator: none of its entries begins with {', '.join(_PARTS)}.",
            hint="a generator.safetensors of `cytofm generate train`, or a .pt of REPA-E",
        )
    for part, state in parts.items():
        for name, x in state.items():
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise WeightsError(
                    f"{path}: {part}.{name} is not finite.", hint="its training diverged"
                )
    return parts


def _vae_shape(about: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> VaeShape:
    if "vae" in about:
        said = dict(about["vae"])
        return VaeShape(**said | {"multipliers": tuple(said["multipliers"])})
    try:
        base = len(state["encoder.conv_in.weight"])
        levels = _count(state, r"encoder\.down\.(\d+)\.")
        blocks = _count(state, r"encoder\.down\.0\.block\.(\d+)\.")
        widths = [len(state[f"encoder.down.{at}.block.0.conv1.weight"]) for at in range(levels)]
        latent = state["post_quant_conv.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(f"{path}: its autoencoder lacks {error}.") from error
    return VaeShape(
        base=base, multipliers=tuple(w // base for w in widths), blocks=blocks, latent=latent
    )


def _sit_shape(about: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> SitShape:
    if "sit" in about:
        said = dict(about["sit"])
        return SitShape(**said | {"condition": ConditionShape(**said["condition"])})
    try:
        width, latent, patch, _ = state["x_embedder.proj.weight"].shape
        grid = math.isqrt(state["pos_embed"].shape[1])
        table = state.get("y_embedder.embedding_table.weight")
        projector = state.get("projectors.0.0.weight")
        aligned = state.get("projectors.0.4.weight")
        depth = _count(state, r"blocks\.(\d+)\.")
    except KeyError as error:
        raise WeightsError(f"{path}: its SiT lacks {error}.") from error
    return SitShape(
        side=grid * patch,
        latent=latent,
        depth=depth,
        width=width,
        heads=16 if width == _XL else max(1, width // _HEADS_OF_64),
        patch=patch,
        aligned_depth=min(8, depth),
        aligned=0 if aligned is None else len(aligned),
        projector=0 if projector is None else len(projector),
        condition=_condition(state, table),
    )


def _condition(state: Mapping[str, Tensor], table: Tensor | None) -> ConditionShape:
    if table is not None:
        return ConditionShape(kind="class", classes=len(table) - 1)
    linear = state.get("y_embedder.proj.weight")
    if linear is not None:
        return ConditionShape(kind="encoder", dim=linear.shape[1])
    return ConditionShape()


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbers a pattern finds in the names, from 0 on."""
    found = {int(hit[1]) for name in state if (hit := re.match(pattern, name))}
    return len(found)
