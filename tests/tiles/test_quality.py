"""Made pictures of known answers: each column of quality fires on its own and on no other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cytofm_cli.errors import NoForegroundError, UsageError
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.tiles.foreground import find_foreground
from cytofm_cli.tiles.narrow import within_limits
from cytofm_cli.tiles.quality import COLUMNS, find_signs

MPP, SIDE = 4.0, 512  # a picture of 2 mm; every test draws on it
GLASS = 235
TILE = 128.0


def glass(seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3))
    return np.clip(GLASS + noise, 0, 255).astype(np.uint8)


def distance(x: float, y: float) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(columns - x, rows - y)


def cells(image: NDArray[np.uint8], n: int = 150, colour: tuple = (130, 110, 160)) -> None:
    """Draw nuclei, 16 µm wide, with pale cytoplasm of 40 µm."""
    rng = np.random.default_rng(1)
    for x, y in rng.integers(8, SIDE - 8, (n, 2)):
        far = distance(x, y)
        image[(far < 5) & (image[..., 0] > 190)] = (200, 205, 215)
        image[far < 2] = colour


def columns_of(image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    seen = find_foreground(image, MPP)
    xy = np.array([(x, y) for y in range(0, SIDE, 128) for x in range(0, SIDE, 128)], np.int32)
    return find_signs(image, seen, MPP).measure((1.0, 1.0), xy, TILE)


def worst(columns: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    return {name: float(column.max()) for name, column in columns.items() if name != "blank"}


def test_good_field__has_nothing() -> None:
    image = glass()
    cells(image)
    columns = columns_of(image)
    assert tuple(columns) == COLUMNS
    assert worst(columns) == {"pen": 0, "edge": 0, "clump": 0, "saturation": 0}
    assert all(column.dtype == np.float32 for column in columns.values())
    assert 0.3 < columns["blank"].mean() < 0.97


def test_blank_glass__is_blank() -> None:
    columns = columns_of(glass())
    assert worst(columns) == {"pen": 0, "edge": 0, "clump": 0, "saturation": 0}
    assert columns["blank"].min() > 0.99


def test_pen__is_the_share_under_the_stroke() -> None:
    image = glass()
    cells(image)
    image[:, 160:224] = (30, 40, 160)  # 64 px of the second column of tiles, 20 µm margin each side
    columns = columns_of(image)
    margin = 2 * round(20 / MPP)
    assert columns["pen"].reshape(4, 4)[:, 1] == pytest.approx((64 + margin) / TILE, abs=0.02)
    assert columns["pen"].reshape(4, 4)[:, [0, 2, 3]].max() == 0
    assert columns["clump"].max() == columns["edge"].max() == columns["saturation"].max() == 0


def stroke(image: NDArray[np.uint8], width: int, ink: tuple[int, int, int]) -> None:
    """Draw a fine stroke of three parts, its sides mixed with the glass."""
    for x0, y0, x1, y1 in ((40, 60, 90, 90), (90, 90, 130, 50), (130, 50, 180, 80)):
        for t in np.linspace(0, 1, 400):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            image[int(y) : int(y) + width, int(x) : int(x) + width] = ink


@pytest.mark.parametrize("ink", [(30, 50, 140), (170, 30, 40), (20, 110, 60), (25, 25, 30)])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.slow
def test_pen__may_be_fine(ink: tuple[int, int, int], width: int) -> None:
    image = glass()
    cells(image, n=60)
    stroke(image, width, ink)
    columns = columns_of(image)
    under = (image == ink).all(2)
    share = under.reshape(4, 128, 4, 128).mean((1, 3)).ravel()
    assert (columns["pen"][share > 0] > 2 * share[share > 0]).all()  # with its margin
    assert columns["pen"][share == 0].max() < 0.02


def test_grey_thread__is_no_pen() -> None:
    image = glass()
    stroke(image, 2, (110, 112, 110))
    assert columns_of(image)["pen"].max() == 0


def test_row_of_stained_cells__is_no_pen() -> None:
    image = glass()
    for x in range(30, 480, 7):  # nuclei and cytoplasm of two colours, end to end
        image[distance(x, 200) < 4] = (150, 190, 140)
    for x in range(30, 480, 7):
        image[distance(x, 200) < 2.5] = (90, 50, 130)
    assert columns_of(image)["pen"].max() == 0


def test_edge__is_the_rim_of_a_bubble_and_not_its_inside() -> None:
    image = glass()
    cells(image)
    rim = np.abs(distance(256, 256) - 120) < 1.5
    image[rim] = 90
    columns = columns_of(image)
    edge = columns["edge"].reshape(4, 4)
    width = 5 + 2 * round(16 / MPP)  # the ring, and its margin
    area = 2 * math.pi * 120 * width
    assert edge.sum() * TILE**2 == pytest.approx(area, rel=0.2)
    assert edge[0, 0] == edge[3, 3] == 0 and edge[1, 1] > 0.03
    assert columns["clump"].max() == columns["pen"].max() == 0


def test_edge__is_the_coverslips_also_where_it_is_pale_and_upright() -> None:
    image = glass()
    cells(image)
    image[:, 60:62] -= 40
    columns = columns_of(image)
    edge = columns["edge"].reshape(4, 4)
    assert edge[:, 0] == pytest.approx((4 + 2 * round(16 / MPP)) / TILE, rel=0.1)
    assert edge[:, 1:].max() == columns["pen"].max() == 0


def test_clump__is_a_thick_group_and_no_single_cell() -> None:
    image = glass()
    cells(image)
    blob = distance(64, 64) < 12  # 96 µm across
    rng = np.random.default_rng(2)
    image[blob] = np.clip(90 + rng.normal(0, 25, (int(blob.sum()), 3)), 40, 110).astype(np.uint8)
    columns = columns_of(image)
    assert columns["clump"][0] == pytest.approx(math.pi * 144 / TILE**2, rel=0.25)
    assert columns["clump"][1:].max() == 0
    assert columns["saturation"].max() == 0


def test_saturation__is_a_share_of_the_foreground() -> None:
    image = glass()
    cells(image, colour=(6, 4, 8))
    black = (image.max(-1) < 12).reshape(4, 128, 4, 128).sum((1, 3)).ravel()
    seen = find_foreground(image, MPP)
    of = seen.mask_HW.reshape(4, 128, 4, 128).sum((1, 3)).ravel()
    columns = columns_of(image)
    np.testing.assert_allclose(columns["saturation"], black / of, atol=1e-5)
    assert columns["saturation"].min() > 0.05
    assert columns["clump"].max() == columns["pen"].max() == 0


def test_dark_field__has_no_ink_and_counts_what_is_too_bright() -> None:
    image = 255 - glass()
    for x, y in np.random.default_rng(1).integers(8, SIDE - 8, (80, 2)):
        image[distance(x, y) < 2] = 255
    columns = columns_of(image)
    assert columns["pen"].max() == 0 and columns["clump"].max() == 0
    assert columns["saturation"].min() > 0.5


def test_limits__take_away_what_is_beyond_and_count_it() -> None:
    columns = {"focus": np.array([0.1, 0.5, 0.3, 0.5]), "pen": np.array([0, 0.2, 0.3, 0.1])}
    rows, facts = within_limits(columns, {"focus": 0.3, "pen": 0.1}, "s")  # type: ignore[arg-type]
    assert rows.tolist() == [3]  # a limit itself is within
    assert facts == {
        "limits": {"focus": 0.3, "pen": 0.1},
        "removed": {"focus": 1, "pen": 2},
        "n_removed": 3,
    }
    assert within_limits(columns, {}, "s")[1] is None  # type: ignore[arg-type]
    with pytest.raises(NoForegroundError, match=r"s: .* none of 4 tiles: focus 1, pen 4") as left:
        within_limits(
            {"focus": columns["focus"], "pen": columns["pen"] + 1}, {"focus": 0.3, "pen": 0.1}, "s"
        )  # type: ignore[arg-type]
    assert "loosen" in str(left.value.hint)


def test_limits__are_off_unless_asked_for() -> None:
    assert TileConfig().limits() == {}
    assert TileConfig(max_pen=0.0, min_focus=0.1).limits() == {"focus": 0.1, "pen": 0.0}
    with pytest.raises(UsageError, match="at most 1"):
        TileConfig(max_blank=1.5)
