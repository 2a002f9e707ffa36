"""A real Hamamatsu slide states where its picture lies on the glass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.regions.read import read_regions
from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles.narrow import place_of_slide

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.mark.needs_shared("data/wsi")
def test_ndpa__on_a_real_ndpi(tmp_path: Path) -> None:
    (slide,) = (SHARED / "data" / "wsi").glob("*.ndpi")
    with open_slide(str(slide)) as reader:
        info = reader.info
    # As OpenSlide reports hamamatsu.XOffsetFromSlideCentre and YOffsetFromSlideCentre.
    assert info.centre_nm == (12_538_720.0, -96_063.0)
    assert info.mpp is not None
    place = place_of_slide(info, "s", info.mpp)
    side = 1000 * 1000 * info.mpp  # nm of 1000 px
    x, y = 12_538_720, -96_063  # the middle of the glass' part that was scanned
    corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
    points = "".join(f"<point><x>{a:.0f}</x><y>{b:.0f}</y></point>" for a, b in corners)
    (tmp_path / "s.ndpa").write_text(
        '<annotations><ndpviewstate id="1"><title>t</title><coordformat>nanometers</coordformat>'
        f'<annotation type="freehand"><closed>1</closed><pointlist>{points}</pointlist>'
        "</annotation></ndpviewstate></annotations>"
    )
    there = read_regions(tmp_path / "s.ndpa", place, lambda _: None)
    w, h = info.size_px0
    points_N2 = np.array([[w / 2 + 1, h / 2 + 1], [w / 2 + 999, h / 2 + 999], [w / 2 - 1, h / 2]])
    assert there.inside(["t"], points_N2).tolist() == [True, True, False]
