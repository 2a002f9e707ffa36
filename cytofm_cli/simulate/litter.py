"""Where small dirt lies: drawn square by square, so that any square can be had alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate import sprites
from cytofm_cli.simulate.lattice import Plane, clouds_at
from cytofm_cli.simulate.preset import Dirt, Preset
from cytofm_cli.simulate.strands import REACH_PX, Strand, strand

BLOCK_PX: Final = 1024
REACH: Final = REACH_PX
_GATHER_UM: Final = (30.0, 150.0)  # bacteria and debris lie in patches of these sizes
_STRANDS: Final[tuple[Strand, ...]] = ("mucus", "streak", "fibre")
# Slides differ: sd of the log of each rate from slide to slide.
_SLIDE_SD: Final = {"bacteria": 1.6, "debris": 0.7, "mucus": 0.8, "streak": 0.8}


@dataclass(frozen=True)
class Glass:
    """What the litter of a slide has in common; it can be a key of a cache.

    Attributes:
        seed: of the slide.
        mpp: µm/px.
        dirt: rates, the slide's own.
        angle: direction of the smear, radians.
        colours: optical densities (dark field: colours emitted) of each sort of dirt.
    """

    seed: int
    mpp: float
    dirt: Dirt
    angle: float
    colours: tuple[tuple[str, tuple[float, float, float]], ...]


@dataclass(frozen=True, eq=False)
class Litter:
    """Items of a square: n boxes, their pictures and colours, in the order of painting.

    Attributes:
        corners: int64 (n, 4): x0, y0, x1, y1, level-0 px.
        pictures: n pictures, float32 or uint8 (255 is 1).
        densities: float32 (n, 3).
    """

    corners: NDArray[np.int64]
    pictures: tuple[Plane | NDArray[np.uint8] | tuple[Strand, int], ...]
    densities: Plane


def glass(preset: Preset, seed: int, amount: float) -> Glass:
    """Return what a slide's litter has in common: its own rates, direction and colours."""
    rng = np.random.default_rng([seed, 3])
    dirt, factor = preset.dirt, {}
    for name, sd in _SLIDE_SD.items():
        factor[name] = amount * float(np.exp(rng.normal(0, sd) - sd * sd / 2))
    own = Dirt(
        debris_per_mm2=dirt.debris_per_mm2 * factor["debris"],
        bacteria_per_mm2=dirt.bacteria_per_mm2 * factor["bacteria"],
        mucus_per_mm2=dirt.mucus_per_mm2 * factor["mucus"],
        streaks_per_mm2=dirt.streaks_per_mm2 * factor["streak"],
        fibres_per_mm2=dirt.fibres_per_mm2 * amount,
        dust_per_mm2=dirt.dust_per_mm2 * amount,
    )
    angle = float(rng.uniform(0, np.pi))
    return Glass(seed, preset.mpp, own, angle, _colours(preset, rng))


def stained(preset: Preset, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the colour (3,) that dirt takes up from the dyes; its largest channel is 1."""
    dyes = np.array([dye.od for dye in preset.dyes.values()], np.float64)
    taken = [preset.dirt.dyes.get(name, 0.0) for name in preset.dyes] if preset.dirt.dyes else 1.0
    share = np.maximum(0.7 * np.broadcast_to(taken, len(dyes)), 1e-3)
    colour: NDArray[np.float64] = rng.dirichlet(share) @ dyes
    return colour / max(float(colour.max()), 1e-6)


def _colours(
    preset: Preset, rng: np.random.Generator
) -> tuple[tuple[str, tuple[float, float, float]], ...]:
    stain = {name: stained(preset, rng) for name in ("bacteria", "granule", "mucus")}
    plain = np.ones(3) if preset.illumination == "bright-field" else stained(preset, rng)
    yellow = plain * (0.5, 0.6, 1.0)
    mixed = {
        "bacteria": 0.45 * (0.45 * stain["bacteria"] + 0.55 * plain * (0.8, 0.95, 0.9)),
        "speck": 0.9 * plain,
        "granule": 0.35 * (0.7 * stain["granule"] + 0.3 * plain),
        "crystal": 0.30 * yellow,
        "dust": 0.05 * plain,
        "mucus": 0.22 * (0.7 * stain["mucus"] + 0.3 * plain),
        "streak": 0.05 * yellow,
        "fibre": 0.35 * plain * rng.uniform(0.3, 1.0, 3),
    }
    return tuple((name, (float(r), float(g), float(b))) for name, (r, g, b) in mixed.items())


@lru_cache(maxsize=64)
def litter(slide: Glass, row: int, column: int) -> Litter:
    """Return the items whose middles lie in one square of `BLOCK_PX`."""
    rng = np.random.default_rng([slide.seed, 4, row & 0xFFFFFFFF, column & 0xFFFFFFFF])
    dirt, colours = slide.dirt, dict(slide.colours)
    corner = np.array([row, column]) * BLOCK_PX
    boxes: list[NDArray[np.int64]] = []
    pictures: list[Plane | NDArray[np.uint8] | tuple[Strand, int]] = []
    densities: list[NDArray[np.float64]] = []

    def put(at: NDArray[np.int64], bank: sprites.Bank, name: str, sd: float) -> None:
        chosen = [bank[i] for i in rng.integers(len(bank), size=len(at)).tolist()]
        size = np.array([picture.shape for picture in chosen], np.int64).reshape(-1, 2)
        first = (at - size // 2)[:, ::-1]
        boxes.append(np.concatenate([first, first + size[:, ::-1]], axis=1))
        pictures.extend(chosen)
        tone = rng.normal(0, sd, (len(at), 1)) + rng.normal(0, 0.08, (len(at), 3))
        densities.append(np.array(colours[name]) * np.exp(tone))

    for name, rate in zip(
        _STRANDS, (dirt.mucus_per_mm2, dirt.streaks_per_mm2, dirt.fibres_per_mm2), strict=True
    ):
        for y, x in corner + _places(rng, rate, slide):
            shape_seed = int(rng.integers(1 << 62))
            left, top, drawn = strand(name, shape_seed, slide.angle, slide.mpp)
            h, w = drawn.shape
            boxes.append(np.array([[x + left, y + top, x + left + w, y + top + h]], np.int64))
            pictures.append((name, shape_seed))
            densities.append(np.array([colours[name]]) * np.exp(rng.normal(0, 0.4)))
    debris = _gathered(rng, corner + _places(rng, 3 * dirt.debris_per_mm2, slide), slide, 5)
    sort = rng.choice(4, size=len(debris), p=(0.12, 0.78, 0.03, 0.07))
    put(debris[sort == 0], sprites.specks(slide.mpp), "speck", 0.7)
    put(debris[sort == 1], sprites.granules(slide.mpp), "granule", 0.6)
    put(debris[sort == 2], sprites.crystals(slide.mpp), "crystal", 0.4)
    put(debris[sort == 3], sprites.rods(slide.mpp), "granule", 0.4)
    rods = _gathered(rng, corner + _places(rng, 3 * dirt.bacteria_per_mm2, slide), slide, 6)
    put(rods, sprites.rods(slide.mpp), "bacteria", 0.35)
    put(corner + _places(rng, dirt.dust_per_mm2, slide), sprites.dust(slide.mpp), "dust", 0.6)
    return Litter(
        np.concatenate(boxes),
        tuple(pictures),
        np.concatenate(densities).astype(np.float32),
    )


def _places(rng: np.random.Generator, per_mm2: float, slide: Glass) -> NDArray[np.int64]:
    """Return (n, 2) places (y, x) in a square, n as a Poisson process has it."""
    n = rng.poisson(per_mm2 * (BLOCK_PX * slide.mpp / 1000) ** 2)
    return rng.integers(0, BLOCK_PX, (n, 2))


def _gathered(
    rng: np.random.Generator, at: NDArray[np.int64], slide: Glass, which: int
) -> NDArray[np.int64]:
    """Keep about one in three places: more where the slide's clouds are dense."""
    chance = np.ones(len(at), np.float32)
    for i, size_um in enumerate(_GATHER_UM):
        step = max(2, round(size_um / slide.mpp))
        cloud = clouds_at(slide.seed * 64 + which * 2 + i, at[:, 0], at[:, 1], step)
        chance *= np.float32(2.3) * cloud * cloud
    return at[rng.random(len(at)) * 3 < chance]
