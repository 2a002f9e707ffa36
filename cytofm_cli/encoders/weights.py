"""Read and write weight files without ever running what is in them.

safetensors, or pickles through PyTorch's weights-only reader with a short list of harmless
extras (NumPy scalars and `argparse.Namespace`, which iBOT and DINO checkpoints hold).

A file that `cytofm pretrain` writes names its own architecture in its safetensors metadata
(`write_encoder`), so that it opens as `--encoder FILE`. Keys, all strings:

    format         "cytofm-encoder-1"
    name           what the encoder is called in stores
    arch           a name that `load_encoder` knows: "sr-vit-tiny", "timm/vit_small_patch16_224"
    config         JSON: keyword arguments for the architecture
    mean, std      JSON: three numbers each, RGB in [0, 1]
    input_px, resize_px, mpp   JSON: a number or null
    cell_um        likewise; absent in files before it was known
    interpolation, pooling, licence

A file of updates of low rank (`--lora-rank`) describes the network that they and their base make in
the same keys; it opens together with that base alone. It has format "cytofm-updates-1" and

    updates        JSON: rank, alpha, targets; base and base_sha256, the file they were trained on
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from cytofm_cli.encoders.base import EncoderSpec, Interpolation, Pooling
from cytofm_cli.errors import WeightsError
from cytofm_cli.named_files import absent
from cytofm_cli.work.files import replacing
from cytofm_cli.work.unpickle import load_pickle

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = "cytofm-encoder-1"
UPDATES: Final = "cytofm-updates-1"
SUFFIXES: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
_JSON_FIELDS: Final = ("mean", "std", "input_px", "resize_px", "mpp", "cell_um")
_LENGTHS: Final = ("input_px", "resize_px", "mpp", "cell_um")
_TEXT_FIELDS: Final = ("interpolation", "pooling", "licence")
# What training scripts save beside networks.
_NO_NETWORKS: Final = ("optim", "opt", "scheduler", "lr_scheduler", "scaler", "callbacks", "loops")
_DEEPEST: Final = 5  # dicts in dicts
_HEADER_LIMIT_BYTES: Final = 10**8


@dataclass(frozen=True, kw_only=True)
class SelfDescription:
    """What a weight file says about itself."""

    name: str
    arch: str
    config: dict[str, Any]
    expects: dict[str, Any]
    updates: Updates | None = None


@dataclass(frozen=True, kw_only=True)
class Updates:
    """What updates of low rank are, and of which weights (see `encoders.lora`).

    Attributes:
        rank: r.
        alpha: α.
        targets: names of the updated layers.
        base: name of the file that they were trained on.
        base_sha256: its digest.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str
    base_sha256: str


def holds_updates(path: Path) -> bool:
    """Tell whether a file holds updates of low rank, which need their base beside them.

    Raises:
        WeightsError: no such file, or a damaged one.
    """
    safe = path.suffix == ".safetensors"
    return safe and _safetensors_metadata(path).get("format") == UPDATES


def read_description(path: Path) -> SelfDescription:
    """Read how a weight file describes its own architecture; loads no weights, no torch.

    Raises:
        WeightsError: no such file, or it does not say.
    """
    metadata = _safetensors_metadata(path) if path.suffix == ".safetensors" else {}
    _require_file(path)
    if metadata.get("format") not in (FORMAT, UPDATES):
        raise WeightsError(
            f"{path}: does not name its architecture.",
            hint=f"--encoder NAME --weights {path}; `cytofm encoders` lists the names",
        )
    try:
        config = json.loads(metadata["config"])
        metadata = {"cell_um": "null"} | metadata
        expects = {key: json.loads(metadata[key]) for key in _JSON_FIELDS}
        expects |= {key: metadata[key] for key in _TEXT_FIELDS}
        for key in ("mean", "std"):
            red, green, blue = (float(value) for value in expects[key])
            expects[key] = (red, green, blue)
        _check_description(metadata["name"], config, expects)
        return SelfDescription(
            name=metadata["name"],
            arch=metadata["arch"],
            config=config,
            expects=expects,
            updates=_updates(metadata),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its description is damaged ({error}).") from error


def _updates(metadata: Mapping[str, str]) -> Updates | None:
    if metadata["format"] != UPDATES:
        return None
    stated = json.loads(metadata["updates"])
    updates = Updates(**stated | {"targets": tuple(stated["targets"])})
    if not (updates.rank >= 1 and updates.alpha > 0):
        raise ValueError(f"rank {updates.rank}, alpha {updates.alpha}")
    return updates


def _check_description(name: str, config: Any, expects: Mapping[str, Any]) -> None:
    """Refuse what no `write_encoder` writes; a name becomes a folder in stores."""
    if not re.fullmatch(r"\w[\w.+@-]*(/\w[\w.+@-]*)*", name):
        raise ValueError(f"name {name!r}")
    if not isinstance(config, dict):
        raise TypeError("config is not an object")
    for key in _LENGTHS:
        kinds = (int,) if key.endswith("_px") else (int, float)
        if expects[key] is not None and not (type(expects[key]) in kinds and expects[key] > 0):
            raise ValueError(f"{key} {expects[key]!r}")
    for key, choices in (("interpolation", Interpolation), ("pooling", Pooling)):
        if expects[key] not in get_args(choices):
            raise ValueError(f"{key} {expects[key]!r}")


def write_encoder(
    path: Path,
    state: Mapping[str, Tensor],
    spec: EncoderSpec,
    *,
    arch: str,
    config: Mapping[str, Any],
    updates: Updates | None = None,
) -> None:
    """Write weights with the description that `load_encoder(path)` needs; replaces atomically.

    Args:
        path: ends in `.safetensors`.
        state: the trunk's state dict, without training heads.
        spec: `name`, normalisation, sizes, pooling and licence are kept.
        arch: a name that `load_encoder` knows.
        config: keyword arguments for the architecture, plain JSON values.
        updates: `state` holds these alone, not the weights they are for.

    Equal weights and descriptions give equal bytes, in every process: a digest of the file then
    stands for its content.
    """
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, "name": spec.name, "arch": arch, "config": json.dumps(config)}
    if updates is not None:
        metadata |= {"format": UPDATES, "updates": json.dumps(asdict(updates))}
    metadata |= {key: json.dumps(getattr(spec, key)) for key in _JSON_FIELDS}
    metadata |= {key: getattr(spec, key) for key in _TEXT_FIELDS}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata=metadata)
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which its library writes in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:  # the tensors behind it would be overwritten
            raise AssertionError("a sorted header is longer than the header")
        file.seek(8)
        file.write(text.ljust(size))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read all entries of a weight file, on the CPU, under one flat list of names.

    The dicts of a training checkpoint become prefixes: `teacher.backbone.norm.weight`; which
    network to take is for `networks.pick`. Optimisers and the like are left out. Nothing in the
    file is ever executed.

    Raises:
        WeightsError: missing, damaged, unsafe, or without weights.
    """
    _require_file(path)
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error
    content = load_pickle(
        path,
        kind=WeightsError,
        hint="convert it to safetensors on a machine where you trust it",
        mapped=True,
    )
    state = dict(_entries(content))
    if not state:
        held = (
            list(map(str, content))[:6]
            if isinstance(content, Mapping)
            else [type(content).__name__]
        )
        raise WeightsError(
            f"{path}: no weights among its entries ({', '.join(held)}).",
            hint="expected plain weights, or a training checkpoint that holds them",
        )
    return state


def stated_licence(path: Path) -> str | None:
    """Return the licence that a safetensors file states in its metadata, None if it does not."""
    if not _looks_like_safetensors(path):
        return None
    metadata = _safetensors_metadata(path)
    return metadata.get("licence") or metadata.get("license")


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    _require_file(path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of weights that came from no single file: names, types, shapes, values."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: {absent(path)}; a weight file was expected.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty.", hint="fetch or copy it again")


def _safetensors_metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    _require_file(path)
    try:
        with safe_open(path, framework="numpy") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as handle:
        start = handle.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < _HEADER_LIMIT_BYTES


def _entries(content: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts, each under the names that lead to it."""
    import torch

    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            yield name, value
        elif not (str(key) in _NO_NETWORKS or str(key).startswith("optim")):
            yield from _entries(value, f"{name}.", depth + 1)
