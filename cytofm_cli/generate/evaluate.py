"""What a generator's images are worth, beside what real ones are worth to each other.

The real images of a half of the slides are the reference, and the conditions; those of the other
half are the floor: what two sets of real images measure. Images are made one a condition. JPEG
versions of the reference are a second floor: how far a codec alone moves each number. What the
autoencoder alone gives back of the reference is the best that any sampler could reach.

All images are compared as they would be from PNG, uint8, at the generator's size; each encoder
resizes as its spec says. Features of encoders without weights are standardised by the reference,
as their columns have different units.

Letters: N images, C channels, H W pixels, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli import __version__
from cytofm_cli.config import as_record
from cytofm_cli.errors import InputError
from cytofm_cli.evaluate.condition_folder import Results, make_run
from cytofm_cli.evaluate.perturbations import jpeg
from cytofm_cli.evaluate.run_folder import FEATURES
from cytofm_cli.generate.asked import condition_encoder, open_like, plain_images, size_of
from cytofm_cli.generate.config import MeasureConfig
from cytofm_cli.generate.file import Generator, read_generator
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.measure_tables import table_of
from cytofm_cli.generate.measures import fidelity, frechet, manifold, nearest
from cytofm_cli.generate.plan import class_table
from cytofm_cli.generate.run_folder import generator_of
from cytofm_cli.generate.sample import draw_images, to_levels
from cytofm_cli.generate.synthetic import about_with_shapes
from cytofm_cli.pretrain.tile_index import TileIndex
from cytofm_cli.runs.folder import Kind, RunReport
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.views import draws
from cytofm_cli.work.device import find_device

KIND: Final = Kind(
    "cytofm generate evaluate", frozenset({"generate_evaluate"}), frozenset({FEATURES})
)
_STREAM: Final = 901  # what the seed is folded with for the choice of real images
_CHUNK: Final = 64
Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Real:
    """Real images.

    Attributes:
        image_NHWC: uint8.
        tile_N: their numbers in the index.
        slide_N: whose slide each is of.
    """

    image_NHWC: Images
    tile_N: NDArray[np.int64]
    slide_N: NDArray[np.int64]


def evaluate_run(
    run: Path,
    stores: Sequence[Path],
    out: Path,
    config: MeasureConfig,
    *,
    slides: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RunReport:
    """Judge a generator: metrics.json and table.md in a RUN of its own.

    Args:
        run: RUN of `generate train`, or its file.
        stores: of real cells, or tiles; slides that training has not seen say most.
        out: the folder.
        config: settings.
        slides: folder where the slides lie now.
        overwrite: judge anew.
        note: told what the reader should know.
        progress: called with (what, done, of how many).

    Raises:
        InputError: fewer than two slides, or too few images.
        ConfigMismatchError: `out` was made with other settings.
    """
    device = find_device(config.device)
    file = generator_of(run)
    generator = read_generator(file, vae_ema=config.vae_ema)
    about = about_with_shapes(generator)
    with contextlib.closing(open_like(stores, about, slides=slides)) as index:
        record = {
            "generate_evaluate": as_record(config, results_only=True),
            "generator": {"sha256": sha256_file(file)},
            "data": index.facts(),
        }

        def judge(_features: Path, _stop: object) -> Results:
            metrics = _judge(generator, index, config, device, note, progress)
            metrics["generator_sha256"] = record["generator"]["sha256"]
            return metrics, {"table.md": table_of(metrics)}

        return make_run(KIND, out, record, judge, overwrite=overwrite)


def _judge(
    generator: Generator,
    index: TileIndex,
    config: MeasureConfig,
    device: torch.device,
    note: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    about = about_with_shapes(generator)
    reference, floor = choose_real(index, config.n, config.seed, size_of(about))
    _require_enough(reference, config, index.unit)
    given = _conditions(about, index, reference)
    made = draw_images(
        generator, given, len(reference.tile_N), config, device,
        progress=lambda done, total: progress("sampling", done, total),
    )  # fmt: skip
    again = through_autoencoder(generator, reference.image_NHWC, config.batch_size, device)
    vectors = given.numpy() if given is not None and given.is_floating_point() else None
    metrics: dict[str, Any] = {
        "cytofm": __version__,
        "n_reference": len(reference.tile_N),
        "n_floor": len(floor.tile_N),
        "n_made": len(made),
        "codec": "PNG (lossless)",
        "image_px": size_of(about),
        "image_mpp": about.get("mpp"),
        "autoencoder_levels": float(np.abs(again - reference.image_NHWC.astype(float)).mean()),
        "jpeg": {"subsampling": "4:4:4", "qualities": list(config.qualities)},
        "spaces": {},
    }
    for word in config.encoder:
        encoder = FrozenEncoder(word, grid=1)
        progress(encoder.spec.name, len(made), len(made))
        own = about.get("encoder_sha256") == encoder.spec.weights_sha256 is not None
        space = _space(encoder, reference, floor, (made, again), vectors if own else None, config)
        metrics["spaces"][encoder.spec.name] = space
        if space["n"] <= space["dim"]:
            note(
                f"{encoder.spec.name}: {space['n']} images for {space['dim']} features: "
                "Fréchet distances are far from those of many images; read them beside the floor"
            )
    return metrics


def choose_real(index: TileIndex, n: int, seed: int, size_px: int) -> tuple[Real, Real]:
    """Return up to n images of every other slide, and as many of the slides between them.

    Slides are in the order of their names; of each half, images are chosen by the seed.

    Raises:
        InputError: fewer than two slides.
    """
    if len(index.slides) < 2:
        raise InputError(
            "one slide only: there is no other one to set a floor.",
            hint="name stores of several slides",
        )
    owner_N = np.repeat(np.arange(len(index.slides)), [s.n_tiles for s in index.slides])
    keys_N = draws.fold(draws.sample_keys(seed, _STREAM), np.arange(index.n_tiles))
    halves = []
    for half in (0, 1):
        mine = np.flatnonzero(owner_N % 2 == half)
        halves.append(np.sort(mine[np.argsort(keys_N[mine], kind="stable")][:n]))
    size = min(map(len, halves))
    first, second = (
        Real(_read(index, tiles[:size], size_px), tiles[:size], owner_N[tiles[:size]])
        for tiles in halves
    )
    return first, second


def _require_enough(reference: Real, config: MeasureConfig, unit: str) -> None:
    """Refuse what the measures could not tell, before anything is sampled.

    Raises:
        InputError: not more images than neighbours.
    """
    n, least = len(reference.tile_N), max(config.k, config.density_k) + 1
    if n < least:
        raise InputError(
            f"{n} {unit}s of every other slide are too few for --k {config.k} and --density-k "
            f"{config.density_k}: at least {least}.",
            hint="name more stores, or ask for fewer neighbours",
        )


def _read(index: TileIndex, tiles: NDArray[np.int64], size_px: int) -> Images:
    parts = []
    for first in range(0, len(tiles), _CHUNK):
        view_BCHW = plain_images(index, tiles[first : first + _CHUNK].tolist(), size_px)
        parts.append((view_BCHW * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _conditions(about: dict[str, Any], index: TileIndex, reference: Real) -> Tensor | None:
    """Return what the generator is asked for: the vectors, or classes, of the reference."""
    kind = about["sit"]["condition"]["kind"]
    if kind == "encoder":
        return torch.from_numpy(features(condition_encoder(about), reference.image_NHWC)).float()
    if kind == "none":
        return None
    names, class_N = class_table(index)
    trained = list(about.get("classes", []))
    numbers = [trained.index(name) if name in trained else len(trained) for name in names]
    return torch.tensor([*numbers, len(trained)])[torch.from_numpy(class_N[reference.tile_N])]


@torch.inference_mode()
def through_autoencoder(
    generator: Generator, image_NHWC: Images, batch_size: int, device: torch.device
) -> Images:
    """Return images as the autoencoder alone gives them back, uint8 (N, H, W, 3)."""
    vae, parts = generator.vae.to(device), []
    for first in range(0, len(image_NHWC), batch_size):
        some = torch.from_numpy(image_NHWC[first : first + batch_size]).permute(0, 3, 1, 2)
        parts.append(to_levels(vae.decode(vae.encode(some.to(device) / 127.5 - 1).mean_BChw)))
    return np.concatenate(parts)


def features(encoder: FrozenEncoder, image_NHWC: Images) -> NDArray[np.float64]:
    """Return an encoder's vectors of images, float64 (N, D)."""
    parts = []
    for first in range(0, len(image_NHWC), _CHUNK):
        some = torch.from_numpy(image_NHWC[first : first + _CHUNK]).permute(0, 3, 1, 2).float()
        parts.append(encoder(some / 255).vector_BV.double().numpy())
    return np.concatenate(parts)


def _space(
    encoder: FrozenEncoder,
    reference: Real,
    floor: Real,
    made: tuple[Images, Images],
    asked_ND: NDArray[np.floating[Any]] | None,
    config: MeasureConfig,
) -> dict[str, Any]:
    """Return all measures in the features of one encoder, of samples and of what the autoencoder
    gives back of the reference."""
    plain = encoder.spec.weights_sha256 is None
    real = features(encoder, reference.image_NHWC)
    centre, spread = (real.mean(0), real.std(0)) if plain else (0.0, 1.0)
    scale = np.where(np.asarray(spread) > 0, spread, 1.0)

    def seen(images: Images) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = (features(encoder, images) - centre) / scale
        return scaled

    real = (real - centre) / scale
    other, fake, again = seen(floor.image_NHWC), seen(made[0]), seen(made[1])
    near = nearest(
        np.concatenate([real, other]), fake, np.concatenate([reference.slide_N, floor.slide_N])
    )
    space: dict[str, Any] = {
        "encoder_sha256": encoder.spec.weights_sha256,
        "input_px": encoder.spec.input_px,
        "interpolation": encoder.spec.interpolation,
        "standardised": plain,
        "dim": real.shape[1],
        "n": len(real),
        "made": _set(real, fake, config),
        "floor": _set(real, other, config),
        "autoencoder": _set(real, again, config) | {"fidelity": asdict(fidelity(real, again))},
        "memorisation": {
            "copies": near.copies,
            "nearest_made": _quartiles(near.cosine_M),
            "nearest_real": _quartiles(near.real_N),
        },
        "jpeg": {},
    }
    if asked_ND is not None:
        space["fidelity"] = asdict(fidelity(asked_ND, fake))
    for quality in config.qualities:
        coded = seen(np.stack([jpeg(image, quality) for image in reference.image_NHWC]))
        space["jpeg"][str(quality)] = _set(real, coded, config) | {
            "fidelity": asdict(fidelity(real, coded))
        }
    return space


def _set(
    real: NDArray[np.float64], other: NDArray[np.float64], config: MeasureConfig
) -> dict[str, float]:
    overlap = manifold(real, other, k=config.k, density_k=config.density_k)
    return {"frechet": frechet(real, other), **asdict(overlap)}


def _quartiles(values: NDArray[np.float64]) -> list[float]:
    quarters: list[float] = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return quarters
