"""Settings: one declaration, four layers, clear refusals."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli import config
from cytofm_cli.config import option
from cytofm_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Example(config.Settings):
    side_px: int = config.option(512, "Side.", low=16, high=4096)
    mpp: float | None = option(None, "Resolution.", low=0.05)
    how: Literal["all", "random"] = option("all", "How.")
    keep: bool = option(True, "Keep.")
    file: Path | None = option(None, "File.")
    scales: tuple[float, ...] = option((0.5, 1.0), "Scales.")
    threads: int = option(1, "Threads.", affects_result=False)


def test_resolve__later_layers_win() -> None:
    made = config.resolve(Example, "e", {"side_px": 64, "how": "random"}, {"side-px": "128"})
    assert made == Example(side_px=128, how="random")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"sidepx": 3}, "no setting 'sidepx'"),
        ({"side_px": "wide"}, "not of type int"),
        ({"side_px": 1.5}, "not of type int"),
        ({"side_px": True}, "not of type int"),
        ({"side_px": 8}, "at least 16"),
        ({"side_px": 8192}, "at most 4096"),
        ({"how": "some"}, "choose all, random"),
        ({"keep": "maybe"}, "not of type bool"),
        ({"mpp": float("nan")}, "at least 0.05"),
        ({"side_px": None}, "must not be empty"),
    ],
)
def test_resolve__refuses_with_the_name_of_the_setting(
    layer: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        config.resolve(Example, "e", layer)


def test_resolve__unknown_key_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        config.resolve(Example, "e", {"side_pxx": 3})
    assert caught.value.hint == "did you mean side_px?"


@given(
    side=st.integers(16, 4096),
    mpp=st.none() | st.floats(0.05, 5),
    keep=st.booleans(),
    scales=st.lists(st.floats(0.1, 2), min_size=1).map(tuple),
)
def test_toml__what_is_written_reads_back(
    side: int, mpp: float | None, keep: bool, scales: tuple[float, ...]
) -> None:
    made = Example(side_px=side, mpp=mpp, keep=keep, scales=scales)
    table = tomllib.loads(config.to_toml({"e": made}))["e"]
    assert config.resolve(Example, "e", table) == made


def test_digest__ignores_order_and_resources() -> None:
    one = config.as_record(Example(threads=1), results_only=True)
    many = config.as_record(Example(threads=8), results_only=True)
    assert config.digest(one) == config.digest(dict(reversed(many.items())))
    other = config.as_record(Example(side_px=64), results_only=True)
    assert config.digest(one) != config.digest(other)
    assert config.differences(one, other) == ["side_px: 512 → 64"]


def test_from_environment__reads_the_step_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTOFM_E_SIDE_PX", "64")
    monkeypatch.setenv("CYTOFM_F_SIDE_PX", "32")
    assert config.from_environment(Example, "e") == {"side_px": "64"}


def test_read_toml__says_which_file_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("a = = 1")
    with pytest.raises(UsageError, match=r"bad\.toml: not valid TOML"):
        config.read_toml(bad)
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        config.read_toml(tmp_path / "none.toml")
