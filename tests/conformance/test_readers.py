"""The suite of readers also on real slides, which the wheel does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cytofm_cli.registry import Sample, readers
from cytofm_cli.testing import readers as suite
from cytofm_cli.testing.suite import Case, Check, run_check

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
WSI = "data/wsi"
SVS, NDPI, DICOM, BOXES = (
    "cmu-1-small-region.svs", "test3-DAPI-2-(387).ndpi", "dicom_jpeg/jpeg.dicom", "boxes.tiff",
)  # fmt: skip
READS = {
    "openslide": (SVS, NDPI, DICOM, BOXES),
    "tiffslide": (SVS,),
    "tifffile": (SVS, BOXES),
    "vips": (SVS, BOXES),
}
PAIRS = [
    pytest.param((reader, slide), marks=pytest.mark.needs_shared(f"{WSI}/{slide}"))
    for reader, slides in READS.items()
    for slide in slides
]


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    reader, slide = request.param
    path = SHARED / WSI / slide
    plugin, folder = readers.load(reader), tmp_path_factory.mktemp("slide")
    sample = Sample(
        settings={"path": str(path)}, traits={"interpolates": True} if reader == "openslide" else {}
    )
    opened = suite.SUITE.prepare(reader, plugin, sample, folder)
    yield Case(name=reader, plugin=plugin, sample=sample, first=True, folder=folder, thing=opened)
    opened.close()


@pytest.mark.parametrize("check", suite.SUITE.checks, ids=lambda check: check.__name__)
def test_reader__does_on_real_slides_what_it_must(case: Case, check: Check) -> None:
    run_check(check, case)
