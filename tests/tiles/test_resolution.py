"""Who states the resolution of a slide, and which level is read for the wanted one."""

from __future__ import annotations

import pytest

from cytofm_cli.errors import MissingMppError, SlideError
from cytofm_cli.slides.base import Level, SlideInfo
from cytofm_cli.tiles.read import plan_reading, resolve_mpp
from cytofm_cli.units import Size


def info(
    mpp: float | None = None,
    objective: float | None = None,
    downsamples: tuple[float, ...] = (1.0,),
    notes: tuple[str, ...] = (),
) -> SlideInfo:
    levels = tuple(Level(size_px=Size(4096, 4096), downsample=by) for by in downsamples)
    return SlideInfo(
        path="a.svs",
        reader="toy",
        format="toy",
        levels=levels,
        mpp=mpp,
        mpp_source="toy.MPP" if mpp else None,
        objective=objective,
        notes=notes,
    )


def stated(of: SlideInfo, manifest=None, slide=None, tile=None) -> tuple[float, str, str]:
    found = resolve_mpp(of, manifest_mpp=manifest, slide_mpp=slide, tile_mpp=tile)
    return found.mpp, found.source, found.warning


def test_resolution__manifest_file_objective_slide_mpp_and_mpp_in_this_order() -> None:
    everything = info(mpp=0.3, objective=20.0)
    assert stated(everything, 0.2, 0.4, 0.5) == (0.2, "manifest", "")
    assert stated(everything, None, 0.4, 0.5) == (0.3, "file (toy.MPP)", "")
    assert stated(info(objective=20.0), None, 0.5, 0.25) == (0.5, "objective", "")
    assert stated(info(), None, 0.4, 0.5) == (0.4, "--slide-mpp", "")
    mpp, source, warning = stated(info(), None, None, 0.5)
    assert (mpp, source) == (0.5, "--mpp")
    assert "--slide-mpp 0.5" in warning


@pytest.mark.parametrize(
    ("objective", "mpp"), [(40.0, 0.25), (20.0, 0.5), (100.0, 0.1), (2.0, 5.0)]
)
def test_resolution__ten_over_the_objective(objective: float, mpp: float) -> None:
    assert stated(info(objective=objective), tile=0.5) == (mpp, "objective", "")


@pytest.mark.parametrize("objective", [0.0, -40.0, 1.0, 400.0])
def test_resolution__an_objective_that_no_microscope_has_does_not_count(objective: float) -> None:
    assert stated(info(objective=objective), slide=0.25) == (0.25, "--slide-mpp", "")


def test_resolution__slide_mpp_that_contradicts_the_objective_is_not_used_and_said() -> None:
    mpp, source, warning = stated(info(objective=40.0), slide=0.5)
    assert (mpp, source) == (0.25, "objective")
    assert "--slide-mpp 0.5 is not used" in warning
    assert "40×" in warning
    assert stated(info(objective=40.0), slide=0.2501)[2] == ""


def test_resolution__an_objective_beside_a_resolution_that_cannot_be_is_said() -> None:
    odd = "The pixels are not square (0.2 x 0.5 µm/px): pass the resolution."
    mpp, source, warning = stated(info(objective=40.0, notes=(odd,)))
    assert (mpp, source) == (0.25, "objective")
    assert odd in warning


def test_resolution__nobody_states_it_and_the_hint_names_both_ways_out() -> None:
    with pytest.raises(MissingMppError, match="states no resolution") as caught:
        stated(info())
    assert "--slide-mpp 0.25" in str(caught.value.hint)
    assert "--manifest" in str(caught.value.hint)


def plan(target: float, tolerance: float = 0.05, slide: float = 0.25) -> tuple[int, float, float]:
    of = info(downsamples=(1.0, 2.0, 4.0))
    made = plan_reading(of, slide_mpp=slide, target_mpp=target, tile_px=256, tolerance=tolerance)
    return made.level, pytest.approx(made.scale), pytest.approx(made.mpp)


@pytest.mark.parametrize(
    ("target", "tolerance", "level", "scale", "mpp"),
    [
        (0.25, 0.05, 0, 1.0, 0.25),  # the level itself
        (0.5, 0.05, 1, 1.0, 0.5),
        (0.4, 0.05, 0, 1.6, 0.4),  # between levels: the finer one is reduced
        (0.51, 0.05, 1, 1.0, 0.5),  # 2 % off: read as it is
        (0.48, 0.05, 1, 1.0, 0.5),  # 4 % coarser than asked: read as it is
        (0.48, 0.0, 0, 1.92, 0.48),  # no tolerance: never a coarser level
        (0.51, 0.0, 1, 1.02, 0.51),
        (3.0, 0.05, 2, 3.0, 3.0),  # beyond the pyramid
    ],
)
def test_level__coarsest_that_is_fine_enough(
    target: float, tolerance: float, level: int, scale: float, mpp: float
) -> None:
    assert plan(target, tolerance) == (level, scale, mpp)


def test_level__at_the_edge_of_the_tolerance_nothing_is_enlarged() -> None:
    assert plan(0.25, 0.05, slide=0.25 * 1.05) == (0, 1.0, 0.2625)
    assert plan(0.2, 0.2, slide=0.24) == (0, 1.0, 0.24)


def test_level__a_coarser_slide_is_refused_with_both_values_and_the_way_out() -> None:
    with pytest.raises(SlideError, match=r"a\.svs: has 0\.5 µm/px, coarser.* 0\.25") as caught:
        plan(0.25, slide=0.5)
    assert "--mpp 0.5 for all slides" in str(caught.value.hint)
    assert "--manifest" in str(caught.value.hint)
