"""Every preset does what a preset must; what is wrong in one is said."""

from __future__ import annotations

import dataclasses

import pytest

from cytofm_cli.simulate.preset import FOLDER, load_preset, presets
from cytofm_cli.testing import presets as suite


def test_presets__are_those_of_the_issue() -> None:
    assert presets() == ["blood", "fluorescence", "giemsa", "lbc", "pap"]


@pytest.mark.parametrize("name", presets())
@pytest.mark.slow
def test_preset__passes_the_suite(name: str) -> None:
    suite.check_preset(name)
    suite.check_preset(str(FOLDER / f"{name}.toml"))


def test_pap__nuclei_stand_to_each_other_as_bethesda_says() -> None:
    kinds = load_preset("pap").kinds

    def nucleus(name: str) -> float:
        look = kinds[name].nucleus
        assert look
        return look.area_um2.median

    def share(name: str) -> float:
        body = kinds[name].cytoplasm
        assert body
        return nucleus(name) / body.area_um2.median

    normal = nucleus("intermediate")
    assert nucleus("superficial") < 0.7 * normal
    assert 2.5 <= nucleus("ascus") / normal <= 3
    assert min(nucleus("lsil"), nucleus("koilocyte")) > 3 * normal
    dark = {name: kinds[name].nucleus.density["haematoxylin"] for name in kinds if name != "red"}
    lesions = ("lsil", "koilocyte", "asch", "hsil", "scc", "scc-round")
    assert min(dark[name] for name in lesions) > dark["intermediate"]  # hyperchromasia
    assert share("hsil") > 0.5 > share("asch") > share("lsil") > share("intermediate")


def test_suite__says_what_is_wrong() -> None:
    pap = load_preset("pap")
    layout = dataclasses.replace(pap.layout, background={"intermediate": 0.9})
    with pytest.raises(AssertionError, match=r"layout\.background"):
        suite.shares_add_up(dataclasses.replace(pap, layout=layout))
    with pytest.raises(AssertionError, match="orangeophil"):
        suite.names_are_known(dataclasses.replace(pap, layout=layout))
    kinds = {**pap.kinds, "lsil": dataclasses.replace(pap.kinds["lsil"], source="")}
    with pytest.raises(AssertionError, match="lsil: source"):
        suite.names_are_known(dataclasses.replace(pap, kinds=kinds))
    unmarked = {**pap.kinds, "lsil": dataclasses.replace(pap.kinds["lsil"], marked=False)}
    with pytest.raises(AssertionError, match="unmarked"):
        suite.shares_add_up(dataclasses.replace(pap, kinds=unmarked))
