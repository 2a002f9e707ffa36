"""What is simulated: stains, kinds of cells, diagnoses, dirt and optics, as a TOML says them.

A preset is one TOML file in `presets/`, or one of the user's own (`--preset my.toml`). Lengths are
in µm, areas in µm², densities in optical density (base e) of one stain, rates per mm².
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from cytofm_cli.errors import UsageError

T = TypeVar("T")

FOLDER: Final = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A positive quantity that varies from cell to cell: log-normal.

    Attributes:
        median: its median.
        sd: standard deviation of its natural logarithm.
    """

    median: float
    sd: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Dye:
    """One stain.

    Attributes:
        od: optical density (base e) of one unit of it in red, green and blue; with dark-field
            illumination the colour that it emits, 0 to 1.
    """

    od: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """How a nucleus of a kind looks.

    Attributes:
        area_um2: its area.
        shape: round, lobed (neutrophils; `lobes` of them) or kidney (monocytes).
        lobes: how many lobes, with shape lobed; one more or less in some cells.
        eccentricity: mean eccentricity of its ellipse, 0 to 0.95.
        irregularity: roughness of its membrane, share of the radius.
        density: units of each dye, by the dye's name.
        granularity: fine chromatin texture, share of the density.
        clumps: coarse chromatin clumps, share of the density.
        clearing: how pale the chromatin is between clumps, 0 to 1.
        membrane: how much darker the nuclear membrane is, share of the density.
        nucleoli: mean number of nucleoli.
        nucleolus: how much denser a nucleolus is, share of the density; below 0 it is paler.
        count: mean number of nuclei more than one (0: always one), at most 3.
        offset: mean distance from the middle of the cell, share of its radius.
        tint: how far the density varies from nucleus to nucleus, standard deviation of the log.
    """

    area_um2: Spread
    density: dict[str, float]
    shape: Literal["round", "lobed", "kidney"] = "round"
    lobes: int = 3
    eccentricity: float = 0.5
    irregularity: float = 0.03
    granularity: float = 0.1
    clumps: float = 0.1
    clearing: float = 0.2
    membrane: float = 0.25
    nucleoli: float = 0.1
    nucleolus: float = 0.6
    count: float = 0.0
    offset: float = 0.12
    tint: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Cytoplasm:
    """How the cytoplasm of a kind looks.

    Attributes:
        area_um2: area of the whole cell, nucleus included.
        shape: polygonal (squames), round, columnar, spindle (with tails), biconcave (red cells).
        density: units of each dye, by the dye's name.
        centre: the same in the middle of the cell, where it differs from the border's (empty: it
            does not).
        ragged: roughness of its border, share of the radius.
        folds: mean number of folds and creases.
        dome: 0 flat as a squame, 1 a ball: thickness towards the middle.
        rim: how much darker its border is, share of the density.
        grain: texture, share of the density.
        granules: mean number of granules.
        granule: units of each dye of a granule (empty: of the first dye).
        vacuoles: mean number of vacuoles.
        halo: koilocytic clearing around the nucleus, 0 to 1.
        tint: how far the mix of dyes varies from cell to cell, standard deviation of the log.
    """

    area_um2: Spread
    density: dict[str, float]
    shape: Literal["polygonal", "round", "columnar", "spindle", "biconcave"] = "round"
    centre: dict[str, float] = dataclasses.field(default_factory=dict)
    ragged: float = 0.02
    folds: float = 0.0
    dome: float = 0.3
    rim: float = 0.15
    grain: float = 0.08
    granules: float = 0.0
    granule: dict[str, float] = dataclasses.field(default_factory=dict)
    vacuoles: float = 0.0
    halo: float = 0.0
    tint: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of cell.

    Attributes:
        group: class that `cells.csv` and labels speak of, e.g. a Bethesda class.
        source: where its measures are published.
        marked: False for what is no cell to classify (neutrophils, red cells, debris).
        nucleus: None for cells without one.
        cytoplasm: None for bare nuclei.
        sheet: mean number of cells that lie together in a sheet or cluster, 1 for single ones.
        crowding: how closely cells of a sheet lie, 1 touching, above it overlapping.
    """

    group: str
    source: str = ""
    marked: bool = True
    nucleus: Nucleus | None = None
    cytoplasm: Cytoplasm | None = None
    sheet: float = 1.0
    crowding: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A diagnosis of a patient: which cells are seen, and how a slide is called then.

    Attributes:
        label: label of the slide in `labels.csv`.
        weight: share of patients of this label that have it.
        kinds: shares of the abnormal cells by kind; they add up to 1 (empty: none).
        share: `--abnormal-share` times this is the share of abnormal cells.
    """

    label: str
    weight: float = 1.0
    kinds: dict[str, float] = dataclasses.field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many cells lie where.

    Attributes:
        cells_per_mm2: mean number of marked cells on covered glass.
        background: cells that every slide has: kind to share of the marked cells (adds up to 1).
        bystanders: unmarked kinds (neutrophils, red cells): kind to number per mm².
        clumping: 0 evenly spread, 1 strongly gathered in groups and empty glass.
        depth_um: standard deviation of a cell's height above the glass.
        monolayer: whole cells keep apart (blood films), not only their nuclei.
        atypical: share of cells of normal slides that look abnormal (kind to share): what makes
            the slide's label uncertain even for someone who knows every cell.
    """

    cells_per_mm2: float
    background: dict[str, float]
    bystanders: dict[str, float] = dataclasses.field(default_factory=dict)
    clumping: float = 0.5
    depth_um: float = 1.0
    monolayer: bool = False
    atypical: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dirt:
    """What lies on the glass besides cells; rates per mm² of glass, or chances a slide.

    Attributes:
        debris_per_mm2: specks and granular debris.
        bacteria_per_mm2: short rods.
        mucus_per_mm2: strands of mucus.
        bubbles: chance of an air bubble a slide.
        pen: chance of pen strokes a slide.
        coverslip: chance of a coverslip's edge a slide.
        streaks_per_mm2: faint straight traces of smearing and of the cleaning of the glass.
        fibres_per_mm2: hairs and lint.
        film: optical density of the pale granular film that dried between cells, where it lies.
        dust_per_mm2: blurred dust above the coverslip.
        gradient: uneven illumination, largest relative change over the slide.
        dyes: how readily film, mucus and debris take up each dye, by its name (empty: alike).
    """

    debris_per_mm2: float = 0.0
    bacteria_per_mm2: float = 0.0
    mucus_per_mm2: float = 0.0
    bubbles: float = 0.0
    pen: float = 0.0
    coverslip: float = 0.0
    streaks_per_mm2: float = 0.0
    fibres_per_mm2: float = 0.0
    film: float = 0.0
    dust_per_mm2: float = 0.0
    gradient: float = 0.0
    dyes: dict[str, float] = dataclasses.field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Optics:
    """From density to pixels.

    Attributes:
        psf_um: standard deviation of the point spread in focus.
        depth_um: defocus that widens the point spread by sqrt 2.
        white: mean colour of empty glass, 0 to 255 (dark field: of the black).
        white_sd: its standard deviation over patients, each channel.
        noise: standard deviation of the sensor's noise, grey levels at white.
        grain: how unevenly each dye has taken, in grains of 1.4 px, share of its density.
        glare: share of the white light that is scattered all over the picture: no nucleus is
            darker (bright field).
        sharpen: how strongly the camera sharpens: share of a detail's contrast that is added.
        fringe: lateral colour: the red picture is larger than the green one by this share, the
            blue one smaller by 1.6 times it. Of fields of view; scanners correct it.
        stain_sd: how much the amount of each dye varies over patients, sd of the log.
        batch_sd: the same over batches of eight patients.
        hue_sd: how much a dye's colour turns over batches, sd of the log of its channels.
        jpeg_quality: quality of the files written.
        jpeg_colour: resolution of their colour: 4:4:4 full, 4:2:2 half across, 4:2:0 half.
    """

    psf_um: float = 0.25
    depth_um: float = 1.5
    white: tuple[float, float, float] = (249.0, 251.0, 253.0)
    white_sd: float = 2.0
    noise: float = 1.5
    grain: float = 0.0
    glare: float = 0.0
    sharpen: float = 0.0
    fringe: float = 0.0
    stain_sd: float = 0.15
    batch_sd: float = 0.1
    hue_sd: float = 0.05
    jpeg_quality: int = 92
    jpeg_colour: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that is simulated; see the TOML files in `presets/`.

    Attributes:
        summary: one line for listings.
        illumination: bright-field (dyes absorb) or dark-field (dyes emit).
        mpp: µm/px of level 0.
        negative: label of slides without the disease.
        dyes: by name, in the order of the channels of a canvas.
        kinds: by name.
        diagnoses: by name; at least one has the negative label.
    """

    summary: str
    negative: str
    dyes: dict[str, Dye]
    kinds: dict[str, Kind]
    diagnoses: dict[str, Diagnosis]
    layout: Layout
    illumination: Literal["bright-field", "dark-field"] = "bright-field"
    mpp: float = 0.25
    dirt: Dirt = Dirt()
    optics: Optics = Optics()

    def amounts(self, density: dict[str, float]) -> tuple[float, ...]:
        """Return units of every dye, in the order of `dyes`, of what a part of a cell holds."""
        return tuple(density.get(name, 0.0) for name in self.dyes)


def presets() -> list[str]:
    """Return the names of the presets that come with cytofm."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_preset(name: str) -> Preset:
    """Return a preset by its name, or from a TOML file.

    Raises:
        UsageError: there is none, or the file is not a preset; says which key.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if path.parent == FOLDER and path.stem not in presets():
        raise UsageError(
            f"--preset {name}: there is none.",
            hint=f"choose {', '.join(presets())}, or a TOML file",
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a preset: {error}.") from error
    return _make(Preset, table, str(path))


def _make(cls: type[T], table: Any, where: str) -> T:
    """Return a dataclass from a table of TOML; every key must be one of its fields."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: must be a table.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise UsageError(f"{where}: no such key: {', '.join(unknown)}.", hint=", ".join(hints))
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        missing = [
            field.name
            for field in dataclasses.fields(cls)  # type: ignore[arg-type]
            if field.name not in table
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        raise UsageError(f"{where}: misses {', '.join(missing)}.") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a value of TOML as the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # X | None
        return _value(next(arg for arg in args if arg is not types.NoneType), value, where)
    if dataclasses.is_dataclass(hint):
        return _make(typing.cast("type[Any]", hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: must be a table.")
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(args):
            raise UsageError(f"{where}: must be {len(args)} numbers.")
        return tuple(_value(arg, item, where) for arg, item in zip(args, value, strict=True))
    if origin is Literal:
        if value not in args:
            raise UsageError(f"{where} = {value!r}: choose {', '.join(args)}.")
        return value
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[hint]
    if not isinstance(value, accepted) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{where} = {value!r}: must be of type {hint.__name__}.")
    return hint(value)
