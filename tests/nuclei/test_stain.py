"""The stain is told from the slide, and nuclei of every hue are found."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.errors import UsageError
from cytofm_cli.nuclei import stain
from cytofm_cli.nuclei.detectors.classical import ClassicalConfig, ClassicalDetector, choose_stain
from cytofm_cli.nuclei.stain import PAP, Stain

SIDE = 512
CENTRES = [(x, y) for y in range(64, SIDE, 128) for x in range(64, SIDE, 128)]


def field(nucleus, cell, glass=(250, 250, 252), *, radius=18, cells=CENTRES) -> np.ndarray:
    """Draw a nucleus in the middle of a paler cell around each centre, at 0.25 µm/px."""
    rng = np.random.default_rng(1)
    image = np.full((SIDE, SIDE, 3), glass, np.float64)
    yy, xx = np.mgrid[:SIDE, :SIDE] + 0.5
    for x, y in cells:
        gap = np.hypot(xx - x, yy - y)
        for edge, colour in ((45, cell), (radius, nucleus)):
            if colour is not None:
                inside = np.clip((edge - gap) / 2 + 0.5, 0, 1)[..., None]
                image += inside * (np.array(colour) - image)
    return (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)


def found_at(table) -> list[tuple[int, int]]:
    """Return the centres that have a nucleus within a micrometre, one each, and no others."""
    gap = np.linalg.norm(table.xy_px0[:, None] - np.array(CENTRES), axis=2)
    assert (gap.min(1) < 4).all()
    return sorted(CENTRES[i] for i in gap.argmin(1))


HUES = {
    # Density of red 0.74 and of blue 0.44 of that of green, as CRIC's least red group.
    "papanicolaou": ((80, 65, 125), (200, 225, 215)),
    "violet": ((95, 60, 140), (200, 225, 215)),
    "haematoxylin and eosin": ((80, 50, 140), (240, 160, 190)),
    "giemsa, violet": ((130, 40, 140), (190, 190, 225)),
    "giemsa, red-violet": ((200, 80, 190), (215, 205, 235)),
    "magenta": ((235, 10, 190), (250, 215, 245)),
    "red": ((230, 30, 60), (250, 230, 230)),
    "cyan": ((20, 230, 230), (225, 245, 245)),
    "blue": ((10, 10, 230), (220, 220, 245)),
    "yellow": ((240, 230, 20), (250, 248, 215)),
    "brown": ((150, 90, 50), (225, 225, 240)),
    "grey": ((60, 60, 60), (210, 210, 210)),
}


@pytest.mark.parametrize("hue", HUES)
def test_nuclei__of_every_hue_are_found_by_default(hue):
    assert found_at(ClassicalDetector().detect(field(*HUES[hue]), 0.25)) == sorted(CENTRES)


def test_nuclei__that_absorb_twice_as_much_red_as_green_are_not_taken_for_red_cells():
    # As in SIPaKMeD's parabasal cells. Parts of the cell's rim, as teal, are hardly likely.
    detector = ClassicalDetector(ClassicalConfig(min_probability=0.1))
    image = field((60, 130, 170), (140, 195, 215))
    assert found_at(detector.detect(image, 0.25)) == sorted(CENTRES)
    assert choose_stain(detector.config, [image], 0.25, None) == PAP


@pytest.mark.parametrize(
    ("nucleus", "cell", "glass"),
    [((10, 10, 230), (4, 4, 20), (2, 2, 4)), ((200, 200, 200), None, (12, 12, 12))],
)
def test_nuclei__bright_on_dark_are_found_by_default(nucleus, cell, glass):
    image = field(nucleus, cell, glass)
    assert found_at(ClassicalDetector().detect(image, 0.25)) == sorted(CENTRES)
    assert choose_stain(ClassicalConfig(), [image], 0.25, None).name == "fluorescence"


@pytest.mark.parametrize("hue", ["papanicolaou", "haematoxylin and eosin", "grey"])
def test_stain__that_absorbs_red_and_green_is_pap(hue):
    assert stain.find_stain(stain.contrasts(field(*HUES[hue]), 0.25)) == PAP


def test_stain__purple_nuclei_are_told_from_blue_cytoplasm_that_is_as_dark_in_red():
    nucleus, cell = (110, 60, 160), (100, 130, 200)
    found = stain.find_stain(stain.contrasts(field(nucleus, None), 0.25))
    # Against the glass: red ln(251/111) = 0.816, green ln(251/61) = 1.414, blue 0.452.
    np.testing.assert_allclose(found.axis, (0.577, 1, 0), atol=0.02)
    assert (found.name, found.level, found.doubt) == ("mgg", None, None)
    dark = found.darkness(stain.optical_density(np.array([[nucleus, cell]], np.float32)))
    # Red 0.835 and 0.930, green 1.435 and 0.670: with Papanicolaou's axis 0.835 and 0.670.
    np.testing.assert_allclose(dark, [[1.435, 0.670]], atol=0.05)


def test_stain__magenta_has_its_own_axis_and_level():
    found = stain.find_stain(stain.contrasts(field(*HUES["magenta"]), 0.25))
    # Optical densities against the cell: red 0.06, green 2.98, blue 0.25.
    np.testing.assert_allclose(found.axis, (0.02, 1, 0.085), atol=0.01)
    assert found.name == "mgg" and 2 < found.level < 3.2


def test_darkness__is_the_least_that_any_channel_allows():
    density = np.array([[[0.4, 0.9, 3.0], [0.2, 0.1, 0.0]]], np.float32)
    np.testing.assert_allclose(PAP.darkness(density), [[0.4, 0.1]])
    two = Stain("own", (0.5, 1.0, 0.1))
    np.testing.assert_allclose(two.darkness(density), [[0.8, 0.1]])  # 0.4 / 0.5 and 0.1 / 1
    np.testing.assert_allclose(Stain("own", (0.1, 1, 0.2)).darkness(density), [[0.9, 0.1]])


def test_darkness__of_fluorescence_is_the_light():
    inverted = np.full((1, 3, 3), 255, np.float32) - np.array([0, 64, 255])[None, :, None]
    density = stain.optical_density(inverted.astype(np.float32))
    light = stain.FLUORESCENCE.darkness(density)
    np.testing.assert_allclose(light, [[0, 64 / 256, 255 / 256]], atol=1e-6)


def test_stain__red_cells_alone_are_not_taken_for_nuclei():
    image = field((225, 150, 160), None, radius=15)  # densities 0.1, 0.5, 0.45
    assert stain.find_stain(stain.contrasts(image, 0.25)) == PAP
    assert len(ClassicalDetector().detect(image, 0.25)) == 0


@pytest.mark.parametrize(
    ("nucleus", "why"),
    [
        ((225, 150, 160), "is dark enough"),
        ((212, 100, 120), "the colour of red cells"),
        ((60, 60, 60), "has no colour"),
    ],
)
def test_stain__that_cannot_be_told_is_pap_and_that_is_said(nucleus, why):
    image = field(nucleus, None, radius=15)
    _, facts, notes = ClassicalDetector().for_slide([image], 0.25, "bright-field")
    assert facts["stain"]["name"] == "pap" and why in facts["stain"]["doubt"]
    assert len(notes) == 1 and why in notes[0] and "--set stain=" in notes[0]
    given = ClassicalDetector(ClassicalConfig(stain="pap"))
    assert given.for_slide([image], 0.25, "bright-field")[2] == []


def test_red_cells__beside_magenta_nuclei_are_left_out():
    red = field((235, 170, 200), None, radius=15, cells=CENTRES[::2])
    nuclei = field((200, 70, 190), None, cells=CENTRES[1::2])
    table = ClassicalDetector().detect(np.minimum(red, nuclei), 0.25)
    assert found_at(table) == sorted(CENTRES[1::2])


def test_stain__of_a_blank_image_is_pap_and_nothing_is_found():
    blank = field(None, None)
    assert stain.find_stain(stain.contrasts(blank, 0.25)) == PAP
    assert len(ClassicalDetector().detect(blank, 0.25)) == 0


def test_stain__set_is_taken():
    image = field(*HUES["magenta"])
    for name in ("pap", "he", "mgg", "fluorescence"):
        assert choose_stain(ClassicalConfig(stain=name), [image], 0.25, None).name == name
    with pytest.raises(UsageError, match="bright nuclei"):
        ClassicalDetector(ClassicalConfig(stain="fluorescence", nuclei="dark"))


def test_for_slide__follows_the_record_and_says_what_contradicts_it():
    image = field(*HUES["papanicolaou"])
    settled, facts, notes = ClassicalDetector().for_slide([image], 0.25, "bright-field")
    assert facts == {
        "stain": {"name": "pap", "axis": [1.0, 1.0, 0.0], "level": None},
        "nuclei": "dark",
    }
    assert not notes and found_at(settled.detect(image, 0.25)) == sorted(CENTRES)
    _, facts, notes = ClassicalDetector().for_slide([image], 0.25, "dark-field")
    assert facts["nuclei"] == "bright" and not notes
    against = ClassicalDetector(ClassicalConfig(nuclei="dark"))
    _, facts, notes = against.for_slide([image], 0.25, "dark-field")
    assert facts["nuclei"] == "dark"
    assert len(notes) == 1 and "recorded as dark-field" in notes[0]


def two_dyes(nucleus, cell) -> np.ndarray:
    """Draw nuclei in wide cells of another dye on black, light added up."""
    dark = field(None, None, (2, 2, 4)).astype(int)
    nuclei, cells = field(nucleus, None, (0, 0, 0)), field(cell, None, (0, 0, 0), radius=40)
    return (dark + nuclei + cells).clip(0, 255).astype(np.uint8)


def test_fluorescence__of_several_dyes_is_looked_at_in_blue_and_that_is_said():
    # The cell's green is brighter than the nucleus: the brightest channel has no nuclei.
    image = two_dyes((0, 0, 150), (0, 220, 0))
    detector, facts, notes = ClassicalDetector().for_slide([image], 0.25, "dark-field")
    assert facts["stain"]["axis"] == [0, 0, 1]
    assert len(notes) == 1 and "several channels (green, blue)" in notes[0]
    assert "are looked for in blue, as DAPI is shown; --set channel=" in notes[0]
    assert found_at(detector.detect(image, 0.25)) == sorted(CENTRES)
    table = detector.detect(image, 0.25)
    np.testing.assert_allclose(table.area_um2, np.pi * 4.5**2, rtol=0.08)

    given = ClassicalDetector(ClassicalConfig(channel="green"))
    detector, facts, notes = given.for_slide([image], 0.25, "dark-field")
    assert facts["stain"]["axis"] == [0, 1, 0] and not notes
    np.testing.assert_allclose(detector.detect(image, 0.25).area_um2, np.pi * 10**2, rtol=0.08)


@pytest.mark.parametrize(
    ("nucleus", "cell"),
    [((200, 200, 200), (0, 0, 0)), ((10, 10, 230), (4, 4, 20)), ((0, 30, 180), (0, 9, 0))],
)
def test_fluorescence__of_one_dye_is_the_brightest_channel(nucleus, cell):
    found = choose_stain(ClassicalConfig(), [two_dyes(nucleus, cell)], 0.25, "dark-field")
    assert found == stain.FLUORESCENCE and not found.several


def test_fluorescence__without_blue_is_the_brightest_channel_and_that_is_said():
    _, facts, notes = ClassicalDetector().for_slide(
        [two_dyes((150, 0, 0), (0, 220, 0))], 0.25, "dark-field"
    )
    assert facts["stain"]["axis"] == [1, 1, 1]
    assert "several channels (red, green)" in notes[0] and "the brightest" in notes[0]


def test_channel__is_refused_for_dark_nuclei():
    for other in ({"nuclei": "dark"}, {"stain": "pap"}):
        with pytest.raises(UsageError, match="is for bright nuclei"):
            ClassicalDetector(ClassicalConfig(channel="blue", **other))
    ClassicalConfig(channel="blue", nuclei="bright")
