"""From dyes to pixels: stain and white of a patient, exposure, noise of the sensor.

Bright field follows Beer and Lambert: light that passes is white * exp(-density). Dark field adds
up what the dyes emit. All is computed pixel by pixel and noise is taken by absolute place, so a
box that is exposed alone equals the same box of the whole slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate.lattice import Corners, Plane, box_of, cells_of, cut, overlap, uniform
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.units import Box

CELL_PX: Final = 256  # noise is drawn anew for each square of this size
_BANK_PX: Final = 512
# Demosaicing smears a sensor's noise: neighbours of empty glass in photographs of Pap smears
# correlate by 0.6, those two pixels apart by 0.1 to 0.2, and channels by 0.2 to 0.65.
_SMEAR_PX: Final = 0.7
_COMMON: Final = 0.35
_GRAIN_PX: Final = 1.4  # size of the grain of stain
# Noise of each channel, and sd of the log of blue's over batches: blue sees the least light, and
# white balance makes up for it (1.2 to 2.9 times green's noise in photographs of Pap smears).
_CHANNEL_SD: Final = (1.9, 0.9, 1.5)
_BLUE_SD: Final = 0.35
# Photons are counted: their noise has a variance that grows with the light, with dark field from
# this share on. Cameras of bright field write gamma 1/2.2, after which it is nearly constant.
_FLOOR: Final = 0.2
_BATCH: Final = 0.7  # share of the variance of white that patients of one batch have in common
_STEPS: Final = 1024  # of the table of exp, for each unit of optical density
_RANGE: Final = (-0.5, 8.0)
_WHITE: Final = (128.0, 262.0)  # above 255: overexposed glass, as some cameras' users like it
_DARK_SCALE: Final = 255.0
_EDGE_PX: Final = 16  # the most that `Lens.edge` can be
_BLUE_FRINGE: Final = -1.6  # of red's: between 1.4 and 2 times it in photographs of Pap smears


@dataclass(frozen=True, eq=False)
class Look:
    """How the slides of a patient are stained and lit.

    Attributes:
        dyes: float64 (K, 3): optical density (dark field: colour emitted) of one unit of each dye.
        white: float64 (3,): grey levels of empty glass.
        noise: of each channel, in units of the preset's.
    """

    dyes: NDArray[np.float64]
    white: NDArray[np.float64]
    noise: tuple[float, float, float] = _CHANNEL_SD


@dataclass(frozen=True)
class Lens:
    """How far the pictures of the colours differ in size.

    Attributes:
        fringe: the red one is larger by this share than the green one.
        size_px: side of the field; they agree in its middle.
    """

    fringe: float = 0.0
    size_px: int = 0

    @property
    def edge(self) -> int:
        """Return how many pixels around a box are needed to expose it."""
        if not self.fringe:
            return 0
        furthest = abs(_BLUE_FRINGE * self.fringe) * self.size_px / 2
        return min(_EDGE_PX, int(furthest) + 2)

    def shifted(self, density: Plane, box: Box) -> Plane:
        """Return the density (3, h, w) of a box from that with `edge` more on all sides."""
        if not self.edge:
            return density
        cropped = np.empty((3, box.h, box.w), np.float32)
        for channel, share in enumerate((self.fringe, 0.0, _BLUE_FRINGE * self.fringe)):
            rows, down = self._sources(box.y, box.h, share)
            columns, right = self._sources(box.x, box.w, share)
            plane = density[channel]
            tall = plane[rows] + (plane[rows + 1] - plane[rows]) * down[:, None]
            step = tall[:, 1:] - tall[:, :-1]
            cropped[channel] = tall[:, columns] + step[:, columns] * right
        return cropped

    def _sources(
        self, start: int, length: int, share: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return where each pixel is taken from: the one before it, and the share of the next."""
        at = np.arange(start, start + length, dtype=np.float64)
        most = self.edge - 1
        shift = np.clip(-share * (at - (self.size_px - 1) / 2), -most, most)
        floor = np.floor(shift)
        first = (at + floor).astype(np.int64) - start + self.edge
        return first, (shift - floor).astype(np.float32)


def look(preset: Preset, seed: int, batch: int, patient: int) -> Look:
    """Return stain and white of a patient.

    Each dye's amount varies over batches and patients, and its hue over batches (log-normal); the
    white balance likewise. Patients of one batch share what is the batch's.
    """
    optics = preset.optics
    dyes = np.array([dye.od for dye in preset.dyes.values()], dtype=np.float64).reshape(-1, 3)
    of_batch = np.random.default_rng([seed, 1, batch])
    of_patient = np.random.default_rng([seed, 2, batch, patient])
    hue = optics.hue_sd * of_batch.standard_normal(dyes.shape)
    hue -= hue.mean(axis=1, keepdims=True)  # a turned hue is not more dye
    amount = optics.batch_sd * of_batch.standard_normal((len(dyes), 1))
    amount = amount + optics.stain_sd * of_patient.standard_normal((len(dyes), 1))
    shift = np.sqrt(_BATCH) * _tint(of_batch) + np.sqrt(1 - _BATCH) * _tint(of_patient)
    white = np.array(preset.optics.white) + optics.white_sd * shift
    blue = _CHANNEL_SD[2] * float(np.exp(_BLUE_SD * of_batch.standard_normal()))
    low, high = (0.0, 255.0) if preset.illumination == "dark-field" else _WHITE
    return Look(
        dyes=dyes * np.exp(hue + amount),
        white=np.clip(white, low, high),
        noise=(*_CHANNEL_SD[:2], blue),
    )


def _tint(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return three normal numbers that correlate by 0.6: brightness and white balance."""
    tint: NDArray[np.float64] = np.sqrt(0.6) * rng.standard_normal() + np.sqrt(
        0.4
    ) * rng.standard_normal(3)
    return tint


def expose(
    amounts: Plane,
    dirt_od: Plane,
    look: Look,
    preset: Preset,
    corners: Corners,
    seed: int,
    lens: Lens = Lens(),
) -> NDArray[np.uint8]:
    """Return the photograph of a box.

    Args:
        amounts: float32 (K, h, w), units of each dye; `lens.edge` more on all sides.
        dirt_od: float32 (3, h, w) of `glass.soil`, with the same edge; one number broadcast costs
            nothing.
        look: of the patient.
        preset: its illumination and noise.
        corners: where it lies, (x0, y0, x1, y1) in level-0 pixels.
        seed: of the slide's noise.
        lens: of the microscope.

    Returns:
        uint8 (h, w, 3), RGB.
    """
    box = box_of(corners)
    picture = np.empty((box.h, box.w, 3), np.uint8)
    dark, edge = preset.illumination == "dark-field", lens.edge
    for row, column in cells_of(box, CELL_PX):
        part = overlap(box, Box(column * CELL_PX, row * CELL_PX, CELL_PX, CELL_PX))
        if part is None:  # cannot be: the squares are the box's
            continue
        ys, xs = cut(part, box)
        wide = np.s_[:, ys.start : ys.stop + 2 * edge, xs.start : xs.stop + 2 * edge]
        grain = None
        if preset.optics.grain:
            grain = _window(_bank(_GRAIN_PX, 0.0), part, seed, row, column, edge)
            grain = grain * np.float32(preset.optics.grain)
        density = _density(amounts[wide], dirt_od[wide], look.dyes, grain)
        if density is not None:
            density = lens.shifted(density, part)
        noise = _window(_bank(_SMEAR_PX, _COMMON), part, seed, row, column)
        for channel in range(3):
            white = np.float32(look.white[channel])
            here = None if density is None else density[channel]
            grey = _emit(here, white) if dark else _pass(here, white, preset.optics.glare)
            rough = noise[channel] * np.float32(preset.optics.noise * look.noise[channel])
            lit = np.clip((rough * _photons(grey) if dark else rough) + grey, 0, 255)
            picture[ys, xs, channel] = lit + np.float32(0.5)
    return picture


def _density(
    amounts: Plane, dirt_od: Plane, dyes: NDArray[np.float64], grain: Plane | None
) -> Plane | None:
    """Return float32 (3, h, w) of dyes and dirt together, or None where there is nothing.

    Each dye has taken a little more here and less there (`grain`), on its own. No matrix product:
    its sums depend on the size of the block.
    """
    present = [k for k in range(len(dyes)) if amounts[k].any()]
    nothing = not any(dirt_od.strides[1:]) and not dirt_od[:, :1, :1].any()
    if nothing and not present:
        return None
    total = dirt_od.astype(np.float32)
    for k in present:
        taken = amounts[k] if grain is None else amounts[k] + amounts[k] * grain[k % len(grain)]
        for channel in range(3):
            if dyes[k, channel]:
                total[channel] += taken * np.float32(dyes[k, channel])
    return total


def _pass(density: Plane | None, white: np.float32, glare: float) -> Plane | np.float32:
    if density is None:
        return white
    at = (density - np.float32(_RANGE[0] - 0.5 / _STEPS)) * np.float32(_STEPS)  # to the nearest
    at = np.clip(at, 0, (_RANGE[1] - _RANGE[0]) * _STEPS)
    return np.asarray(np.take(_table(glare), at.astype(np.uint16)) * white)


@cache
def _table(glare: float) -> Plane:
    """Return the light that passes at each step, exactly 1 at 0: the same on every machine."""
    steps = np.arange(int((_RANGE[1] - _RANGE[0]) * _STEPS) + 1)
    return (glare + (1 - glare) * np.exp(-(steps / _STEPS + _RANGE[0]))).astype(np.float32)


def _emit(light: Plane | None, black: np.float32) -> Plane | np.float32:
    if light is None:
        return black
    return light * np.float32(_DARK_SCALE) + black


def _photons(grey: Plane | np.float32) -> Plane:
    """Return the noise's sd relative to that at white."""
    light = np.maximum(grey, np.float32(0)) * np.float32((1 - _FLOOR) / _DARK_SCALE)
    return np.asarray(np.sqrt(light + np.float32(_FLOOR)), np.float32)


def _window(bank: Plane, part: Box, seed: int, row: int, column: int, edge: int = 0) -> Plane:
    """Return a bank's noise for a part of one square: a window chosen by seed and square."""
    here = np.array([row]), np.array([column])
    dy = int(uniform(2 * seed, *here)[0] * _BANK_PX) + part.y - row * CELL_PX + _EDGE_PX - edge
    dx = int(uniform(2 * seed + 1, *here)[0] * _BANK_PX) + part.x - column * CELL_PX
    dx += _EDGE_PX - edge
    return bank[:, dy : dy + part.h + 2 * edge, dx : dx + part.w + 2 * edge]


@cache
def _bank(smear_px: float, common: float) -> Plane:
    """Return float32 (3, n, n) of noise of sd 1, smeared, `common` of it alike in all three."""
    fixed_seed = [16, round(100 * smear_px)]
    draws = np.random.default_rng(fixed_seed).standard_normal((4, _BANK_PX, _BANK_PX))
    reach = int(np.ceil(4 * smear_px))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * smear_px**2))
    taps /= np.sqrt((taps**2).sum())
    for axis in (1, 2):
        draws = sum(
            tap * np.roll(draws, shift, axis=axis)
            for tap, shift in zip(taps, range(-reach, reach + 1), strict=True)
        )
    mixed = np.sqrt(1 - common) * draws[:3] + np.sqrt(common) * draws[3]
    around = (_EDGE_PX, CELL_PX + _EDGE_PX)
    return np.pad(mixed.astype(np.float32), ((0, 0), around, around), mode="wrap")
