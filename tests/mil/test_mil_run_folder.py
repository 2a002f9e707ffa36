"""What `mil train` may write over: its own RUNs, and never what another command made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError, InputError
from cytofm_cli.mil.run_folder import METRICS, may_write
from cytofm_cli.runs.folder import CONFIG

RECORD = {"mil": {"method": "abmil", "protocol": "cv"}, "task": {"splits_digest": "ab"}}


@pytest.mark.parametrize("overwrite", [False, True])
def test_may_write__a_run_of_another_command_stays(tmp_path: Path, *, overwrite: bool) -> None:
    (tmp_path / CONFIG).write_text("[evaluate]\nseed = 0\n")
    (tmp_path / METRICS).write_text("{}")
    with pytest.raises(ConfigMismatchError, match="not a RUN of `cytofm mil train`"):
        may_write(tmp_path, RECORD, overwrite=overwrite)


@pytest.mark.parametrize("text", [None, "", "[mil"])
def test_may_write__a_run_without_settings_is_made_anew_when_asked(
    tmp_path: Path, text: str | None
) -> None:
    (tmp_path / METRICS).write_text("{}")
    if text is not None:
        (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ConfigMismatchError, match=r"config\.toml is gone or damaged") as error:
        may_write(tmp_path, RECORD, overwrite=False)
    assert error.value.hint == "`--overwrite` makes it anew; or choose another -o"
    assert may_write(tmp_path, RECORD, overwrite=True)


def made_with(run: Path, protocol: str, digest: str) -> Path:
    mil = f'[mil]\nmethod = "abmil"\nprotocol = "{protocol}"\n'
    (run / CONFIG).write_text(f'{mil}\n[task]\nsplits_digest = "{digest}"\n')
    return run


def test_may_write__other_settings_are_named_unless_overwritten(tmp_path: Path) -> None:
    run = made_with(tmp_path, "column", "cd")
    said = r"settings: mil\.protocol: 'column' → 'cv'; task\.splits_digest: 'cd' → 'ab'\."
    with pytest.raises(ConfigMismatchError, match=said):
        may_write(run, RECORD, overwrite=False)
    assert may_write(run, RECORD, overwrite=True)


def test_may_write__by_what_words_the_same_folds_were_drawn_is_no_difference(
    tmp_path: Path,
) -> None:
    run = made_with(tmp_path, "column", "ab")
    with pytest.raises(InputError, match="lacks 'folds'"):  # past the settings, to its models
        may_write(run, RECORD, overwrite=False)
