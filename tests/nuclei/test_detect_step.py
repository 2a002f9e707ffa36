"""The detect step on stores: nothing found, too little memory, a resolution far off."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli import registry
from cytofm_cli.errors import ConfigMismatchError, InputError, OutOfMemoryError
from cytofm_cli.nuclei import survey
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.nuclei.run import Detection, DetectJob
from cytofm_cli.store import schema
from cytofm_cli.store.io import open_store


def slide(path: Path, *, nuclei: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(228, 1, (512, 1024, 3))
    if nuclei:
        yy, xx = np.mgrid[:512, :1024]
        for x in range(0, 1024, 128):  # the first and the last lie on the border
            soft = 1 / (1 + np.exp(np.minimum(np.hypot(xx - x, yy - 256) - 13, 60) / 1.2))
            image += soft[..., None] * (np.array([80, 60, 120]) - image)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    (folder / "images").mkdir()
    slide(folder / "images" / "full.png", nuclei=True)
    slide(folder / "images" / "bare.png", nuclei=False)
    for mpp, name in ((0.25, "stores"), (2.0, "coarse")):
        words = ["tile", folder / "images", "-o", folder / name, "--mpp", mpp, "--tile-px", 512]
        command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "--foreground", "none"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def detect(store: Path):
    notes: list[str] = []
    job = DetectJob(slide_id=store.stem, path=str(store), config=DetectConfig(), overwrite=True)
    status, facts = Detection().detect(job, lambda *_: None, notes.append)
    return status, facts, notes


def test_no_nuclei__is_done_with_none_and_said(stores):
    store = stores / "stores" / "bare.zarr"
    status, facts, notes = detect(store)
    assert (status, facts["n"]) == ("done", 0)
    assert notes == [
        "warning: bare: no nuclei found in 0.033 mm² of foreground; look at them: `cytofm views "
        "STORE -o sheets --preview 4`"
    ]
    assert len(open_store(store).nuclei()) == 0


def test_nuclei_on_the_border__are_found_once(stores):
    store = stores / "stores" / "full.zarr"
    _, facts, notes = detect(store)
    xy = open_store(store).nuclei().xy_px0
    assert facts["n"] == 8 and not notes and "n_quartered" not in facts
    columns = open_store(store).nuclei().columns
    assert set(columns) == set(schema.NUCLEI_COLUMNS)
    # (80, 60, 120) has optical densities of 0.50, 0.62 and 0.33, 0.48 in the mean; the slope of
    # the drawn edge takes some of it. The border cuts the first nucleus.
    assert ((columns["optical_density"][1:] > 0.35) & (columns["optical_density"] < 0.48)[1:]).all()
    np.testing.assert_allclose(columns["ring_density"][1:], 0.06, atol=0.03)
    assert ((columns["hue_blue"][1:] > 0.1) & (columns["hue_blue"][1:] < 0.18)).all()
    # 512 is the seam of two tiles; of the first nucleus only the right half is on the slide.
    np.testing.assert_allclose(np.sort(xy[:, 0])[1:], np.arange(128, 1024, 128) + 0.5, atol=1.5)


def test_too_little_memory__is_quartered_counted_and_the_same(stores, monkeypatch):
    store = stores / "stores" / "full.zarr"
    detect(store)
    expected = open_store(store).nuclei().xy_px0
    plain = ClassicalDetector.detect

    def small(self, image, mpp):
        # Both tiles are one block; a quarter of it with its halo has 297 216 pixels.
        if image.shape[0] * image.shape[1] > 300_000:
            raise OutOfMemoryError("too little memory")
        return plain(self, image, mpp)

    monkeypatch.setattr(ClassicalDetector, "detect", small)
    _, facts, notes = detect(store)
    assert facts["n_quartered"] == 1
    assert notes == ["warning: full: too little memory; 1 parts quartered"]
    assert open_store(store).nuclei_record().n_quartered == 1
    found = open_store(store).nuclei().xy_px0
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_resolution__far_from_the_detectors_is_refused_and_nothing_is_left(stores):
    store = stores / "coarse" / "full.zarr"
    with pytest.raises(
        InputError, match=r"full\.zarr: detector 'classical' works from 0\.05 to 1\.05 µm/px; these"
    ):
        detect(store)
    assert not any(step.startswith("nuclei/") for step in open_store(store).steps)


def smear(path: Path, *, n: int, glass=(243, 242, 240), nucleus=(95, 60, 140)) -> None:
    """Draw n nuclei at random places, apart from each other, on 960 x 960 px."""
    rng = np.random.default_rng(2)
    image = np.full((960, 960, 3), glass, np.float64)
    yy, xx = np.mgrid[:960, :960]
    places: list[np.ndarray] = []
    while len(places) < n:
        place = rng.uniform(20, 940, 2)
        if all(np.hypot(*(place - other)) > 50 for other in places):
            places.append(place)
            gap = np.hypot(xx - place[0], yy - place[1])
            image += np.clip((16 - gap) / 2 + 0.5, 0, 1)[..., None] * (np.array(nucleus) - image)
    image += rng.normal(0, 2, image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)


def tiled(image: Path, name: str, *words: object) -> Path:
    folder = image.parent / name
    line = ["tile", image, "-o", folder, "--mpp", 0.25, *words]
    subprocess.run(
        [sys.executable, "-m", "cytofm_cli", *map(str, line)], check=True, capture_output=True
    )
    return folder / f"{image.stem}.zarr"


@pytest.mark.slow
def test_isolated_tiles__find_what_the_whole_field_has_and_nothing_else(tmp_path):
    image = tmp_path / "field.png"
    smear(image, n=120)
    whole = tiled(image, "whole", "--tile-px", 960, "--foreground", "none")
    gaps = tiled(image, "gaps", "--tile-px", 200, "--stride-px", 320, "--foreground", "none")
    _, facts, _ = detect(whole)
    assert facts["n"] == 120
    everywhere = open_store(whole).nuclei().xy_px0
    corners = open_store(gaps).read("tiles/xy_px0")
    inside = [
        tuple(xy) for xy in everywhere if ((xy >= corners) & (xy < corners + 200)).all(1).any()
    ]

    detect(gaps)
    found = open_store(gaps).nuclei().xy_px0
    np.testing.assert_allclose(found, sorted(inside, key=lambda xy: (xy[1], xy[0])), atol=0.1)
    record = open_store(gaps).nuclei_record()
    assert record.beyond_tiles == ("slide",) and record.n_cut == 0

    image.unlink()  # nobody knows what lies between the tiles now
    _, _, notes = detect(gaps)
    alone = open_store(gaps).nuclei().xy_px0
    gap = np.linalg.norm(alone[:, None] - everywhere, axis=2).min(1)
    assert gap.max() < 6 and 0.7 * len(inside) < len(alone) <= len(inside)
    record = open_store(gaps).nuclei_record()
    assert record.beyond_tiles == ("mirror",) and record.n_cut > 0
    assert f"{record.n_cut} nuclei at the ends of tiles left out" in notes[0]


@pytest.mark.parametrize("stride", [64, 240])
def test_nucleus__larger_than_its_tile_is_completed_from_the_slide_or_that_is_said(
    tmp_path, stride
):
    # Nuclei 24 µm wide with coarse chromatin; tiles of 16 µm, side by side, or apart, of
    # which four lie in the middle of a nucleus each.
    rng = np.random.default_rng(0)
    image = np.full((660, 660, 3), (243, 242, 240), np.float64)
    yy, xx = np.mgrid[:660, :660]
    centres = [(x, y) for y in (272, 512) for x in (272, 512)]
    for x, y in centres:
        inside = np.clip((48 - np.hypot(xx - x, yy - y)) / 2 + 0.5, 0, 1)[..., None]
        image += inside * (np.array([110, 80, 150]) - image)
        for cx, cy in np.array([x, y]) + rng.uniform(-30, 30, (12, 2)):
            clump = np.clip(4 - np.hypot(xx - cx, yy - cy) + 0.5, 0, 1)[..., None]
            image += 0.5 * clump * inside * (np.array([60, 40, 110]) - image)
    path = tmp_path / "giant.png"
    noisy = image + rng.normal(0, 2, image.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    words = ("--tile-px", 64, "--stride-px", stride, "--foreground", "none")
    store = tiled(path, "stores", *words)

    _, facts, notes = detect(store)
    assert facts["n"] == 4 and not any("narrower" in note for note in notes)
    table = open_store(store).nuclei()
    gap = np.linalg.norm(table.xy_px0[:, None] - np.array(centres) - 0.5, axis=2)
    assert gap.min(0).max() < 3
    np.testing.assert_allclose(table.area_um2, np.pi * 12**2, rtol=0.08)

    path.unlink()
    _, facts, notes = detect(store)
    if stride == 64:  # together the tiles hold everything
        assert facts["n"] == 4 and not any("narrower" in note for note in notes)
    else:
        said = "16 of 16 groups of tiles are narrower than a large nucleus (30 µm)"
        assert any(said in note for note in notes)


def test_dark_field__is_known_from_the_tiles(tmp_path):
    smear(tmp_path / "dapi.png", n=40, glass=(2, 2, 4), nucleus=(10, 10, 230))
    store = tiled(tmp_path / "dapi.png", "stores", "--tile-px", 240, "--min-foreground", 0.001)
    assert open_store(store).tile.illumination == "dark-field"
    _, facts, notes = detect(store)
    assert facts["n"] == 40 and not notes
    assert open_store(store).nuclei_record().other["nuclei"] == "bright"


def test_magenta__stain_is_recorded(tmp_path):
    smear(tmp_path / "mgg.png", n=40, nucleus=(235, 10, 190))
    store = tiled(tmp_path / "mgg.png", "stores", "--tile-px", 240, "--min-foreground", 0.001)
    assert detect(store)[1]["n"] == 40
    record = open_store(store).nuclei_record()
    assert record.other["stain"]["name"] == "mgg" and record.other["stain"]["axis"][1] == 1
    assert record.config["version"] == 5 and record.config["stain"] == "auto"


@pytest.mark.parametrize(
    ("n", "area", "said"),
    [
        (0, 0.0, "no nuclei found"),
        (0, 0.02, "no nuclei found in 0.02 mm² of foreground; look at them: `cytofm views"),
        (4, 0.5, "hardly any nuclei found: 4 in 0.5 mm²"),
        (5, 0.5, ""),
        (1, 0.04, ""),  # too little to say
        (7500, 0.5, ""),
        (7501, 0.5, "7501 nuclei found in 0.5 mm² of foreground, more than fit"),
        (1000, 0.04, ""),  # bare nuclei: the foreground is they
    ],
)
def test_number__that_is_odd_for_the_foreground_is_said(monkeypatch, n, area, said):
    monkeypatch.setattr(survey, "foreground_mm2", lambda store: area)
    lines = survey.doubts(n, None)
    assert len(lines) == bool(said)
    assert not said or lines[0].startswith(said)


def test_foreground__is_the_share_of_the_tiles(stores):
    # Two tiles of 512 px at 0.25 µm/px: 0.128 mm each side.
    area = survey.foreground_mm2(open_store(stores / "stores" / "full.zarr"))
    assert area == pytest.approx(2 * 0.128**2)


def test_nuclei__of_the_former_version_are_recognised_and_stay_readable(stores, monkeypatch):
    store = stores / "stores" / "full.zarr"
    detect(store)
    plugin = registry.detectors.load("classical")
    with monkeypatch.context() as old:
        old.setattr(registry.Registry, "load", lambda *_: dataclasses.replace(plugin, version=1))
        detect(store)
    assert "version" not in open_store(store).steps["nuclei/classical"].config
    assert len(open_store(store).nuclei()) == 8
    job = DetectJob(slide_id="full", path=str(store), config=DetectConfig())
    with pytest.raises(ConfigMismatchError, match="version: 1 → 5"):
        Detection().detect(job, lambda *_: None, print)
