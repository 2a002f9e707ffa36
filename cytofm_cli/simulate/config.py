"""Settings of a simulated cohort; importing them loads no NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError

VERSION: Final = 2  # goes up when equal settings give other slides
FIELD_PX: Final = 4096  # up to here a picture is a field of view, above it a slide
COVERED: Final = 0.3  # of the glass of a slide, where not stated
PICTURE_PX: Final = 8192  # the largest side of a picture that is encoded in one piece

Format = Literal["ome-tiff", "svs-like", "jpeg", "png", "dicom"]
SUFFIXES: Final[dict[str, str]] = {
    "ome-tiff": ".ome.tiff",
    "svs-like": ".svs",
    "jpeg": ".jpg",
    "png": ".png",
    "dicom": "",  # a folder with a file of each level
}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(Settings):
    """Settings of `cytofm simulate`. The defaults make 48 fields of view in about a minute."""

    SECTION: ClassVar[str] = "simulate"

    preset: str = option("pap", "what is simulated: a preset's name, or a TOML file like theirs")
    patients: int = option(24, "number of patients; half of them are positive", low=1, high=99_999)
    slides_per_patient: int = option(2, "slides of each patient", low=1, high=999)
    size_px: int = option(1024, "side of a slide, px", low=64, high=262_144)
    planes: int = option(1, "focal planes: a z-stack (ome-tiff)", low=1, high=99)
    plane_um: float = option(1.5, "distance of focal planes, µm", low=0.01, high=100)
    abnormal_share: float = option(
        0.1, "mean share of abnormal cells on positive slides", low=0, high=1
    )
    covered: float | None = option(
        None,
        f"share of the glass that has cells (default: all up to {FIELD_PX} px, "
        f"{COVERED} of larger slides)",
        low=0.001,
        high=1,
    )
    dirt: float = option(
        1.0, "factor of all dirt and uneven light: 0 clean glass, 3 filthy", low=0, high=20
    )
    format: Format = option("ome-tiff", "kind of file")
    seed: int = option(0, "seed of everything", low=0)

    def check(self) -> None:
        """Refuse what a kind of file cannot hold."""
        if self.planes > 1 and self.format != "ome-tiff":
            raise UsageError(
                f"{self.said('planes')}: {self.format} holds one plane.", hint="--format ome-tiff"
            )
        if self.is_picture and self.size_px > PICTURE_PX:
            raise UsageError(
                f"{self.said('size_px')}: {self.format} is for fields of at most {PICTURE_PX} px.",
                hint="--format ome-tiff",
            )

    @property
    def is_field(self) -> bool:
        """Tell whether pictures are fields of view: cells everywhere, no glass left out."""
        return self.size_px <= FIELD_PX

    @property
    def is_picture(self) -> bool:
        """Tell whether a slide is one picture, no pyramid of tiles."""
        return self.format in {"jpeg", "png"}

    @property
    def share_covered(self) -> float:
        """Return the share of the glass that has cells."""
        if self.covered is not None:
            return self.covered
        return 1.0 if self.is_field else COVERED

    def slide_path(self, folder: Path, slide_id: str) -> Path:
        """Return where a slide lies in the folder of a cohort."""
        return folder / "slides" / f"{slide_id}{SUFFIXES[self.format]}"
