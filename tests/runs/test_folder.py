"""The protocol of RUN folders: what lies there, what it was made with, whether it is whole."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from cytofm_cli.errors import ConfigMismatchError, InputError, OutputError
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import CONFIG, STOPPED, Kind
from cytofm_cli.work.claim import ClaimHeldError

KIND = Kind(
    "cytofm bake",
    frozenset({"oven", "dough"}),
    beside=frozenset({"flour"}),
    files=frozenset({"loaf", "crumbs*.csv"}),
)
RECORD = {"oven": {"degrees": 220}, "dough": {"rye": 0.5}}
TEXT = "[oven]\ndegrees = 220\n\n[dough]\nrye = 0.5\n"


def test_former__nothing_yet(tmp_path: Path) -> None:
    assert KIND.former(tmp_path / "run") is None
    (tmp_path / "run" / "flour").mkdir(parents=True)
    assert KIND.former(tmp_path / "run") is None


def test_former__what_a_run_was_made_with(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(TEXT)
    assert KIND.former(tmp_path) == RECORD
    assert KIND.read_config(tmp_path) == RECORD
    assert KIND.is_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("thesis.tex", "years of work"), (CONFIG, "[oven]\ndegrees = 220\n"), (CONFIG, "")],
)
def test_former__something_else_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigMismatchError, match="exists and is not a RUN of `cytofm bake`"):
        KIND.former(tmp_path)
    assert not KIND.is_run(tmp_path)


def test_former__a_file_and_a_damaged_record_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: is a file, no folder"):
        KIND.former(tmp_path / "file")
    (tmp_path / CONFIG).write_text(TEXT[:-1] + "5 = \n")
    with pytest.raises(InputError, match=r"config\.toml: damaged \("):
        KIND.former(tmp_path)


@pytest.mark.parametrize("text", [None, "", '{"share": '])
def test_read_json__of_no_finished_run_says_whose(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "bread.json").write_text(text)
    with pytest.raises(InputError, match="not a finished RUN of `cytofm bake`"):
        KIND.read_json(tmp_path, "bread.json")
    (tmp_path / "bread.json").write_text('{"share": 1}')
    assert KIND.read_json(tmp_path, "bread.json") == {"share": 1}


def test_refuse_changes__names_them_and_what_overwrite_does(tmp_path: Path) -> None:
    folder.refuse_changes(tmp_path, [], overwrite="bakes anew")
    with pytest.raises(ConfigMismatchError, match=r"other settings: a: 1 → 2; b: 3 → 4\.") as error:
        folder.refuse_changes(tmp_path, ["a: 1 → 2", "b: 3 → 4"], overwrite="bakes anew")
    assert error.value.hint == "`--overwrite` bakes anew; or choose another -o"


def test_holding__one_command_at_a_time_and_no_trace_of_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with (
        folder.holding(out),
        pytest.raises(ClaimHeldError),
        folder.holding(out),
    ):
        raise AssertionError
    assert list(out.parent.iterdir()) == []


def test_staging__stays_for_the_same_settings_only(tmp_path: Path) -> None:
    out = tmp_path / "run"
    staging = folder.staging_of(out, RECORD)
    (staging / "half").touch()
    assert not (folder.staging_of(out, RECORD) / "half").exists()  # of unknown settings
    (staging / "half").touch()
    (staging / CONFIG).write_text(TEXT)
    assert (folder.staging_of(out, RECORD) / "half").exists()
    other = RECORD | {"dough": {"rye": 1.0}}
    assert list(folder.staging_of(out, other).iterdir()) == []


def test_publish__replaces_all_of_the_former_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for new in ("first", "second"):
        staging = folder.staging_of(out, RECORD)
        (staging / new).touch()
        folder.publish(staging, out)
        assert [path.name for path in out.iterdir()] == [new]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_begin__goes_on_or_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder.begin(out, RECORD, overwrite=False, torch="2.0")
    record = KIND.former(out)
    made = record.pop("made")
    assert record == RECORD
    assert list(made) == ["cytofm", "torch", "utc"] and made["torch"] == "2.0"
    (out / "loaf").touch()
    folder.mark_stopped(out, "SIGTERM")
    assert (out / STOPPED).read_text() == "SIGTERM\n"
    folder.begin(out, RECORD | {"dough": {"rye": 1.0}}, overwrite=False)
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, "loaf"]
    assert KIND.former(out)["dough"] == {"rye": 0.5}
    folder.begin(out, RECORD | {"dough": {"rye": 1.0}}, overwrite=True)
    assert [path.name for path in out.iterdir()] == [CONFIG]
    assert KIND.former(out)["dough"] == {"rye": 1.0}


def test_forget_false_start__only_what_holds_nothing_but_settings_goes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder.begin(out, RECORD, overwrite=False)
    (out / "tins").mkdir()
    folder.forget_false_start(out)
    assert out.exists()
    folder.forget_false_start(out, empty=("tins",))
    assert not out.exists()


def test_digests__of_what_is_there_and_what_was_exchanged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    recorded = folder.digests(tmp_path, ("a", "b", "gone"))
    assert recorded == {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")}
    assert folder.exchanged(tmp_path, recorded | {"gone": "0" * 64}) == []
    (tmp_path / "b").write_text("B")
    new, old = (hashlib.sha256(text).hexdigest()[:12] for text in (b"B", b"b"))
    assert folder.exchanged(tmp_path, recorded) == [f"b (SHA-256 {new}…, recorded {old}…)"]
    assert not folder.is_whole(tmp_path / "b", recorded["b"])
    assert folder.is_whole(tmp_path / "b") and folder.is_whole(tmp_path / "a", recorded["a"])
    (tmp_path / "b").write_text("")
    assert not folder.is_whole(tmp_path / "b")
    assert not folder.is_whole(tmp_path / "gone")


def test_former__half_written_files_of_a_killed_command_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "flour").mkdir()
    (tmp_path / ".config.toml.host-1-0123456789abcd.partial").touch()
    assert KIND.former(tmp_path) is None


@pytest.mark.parametrize("config", [None, "[oven]\ndegrees = "])
def test_former__what_is_left_of_a_run_is_known_by_its_other_files(
    tmp_path: Path, config: str | None
) -> None:
    if config is not None:
        (tmp_path / CONFIG).write_text(config)
    for name in ("loaf", "crumbs1.csv", STOPPED):
        (tmp_path / name).touch()
    with pytest.raises(ConfigMismatchError, match=r"config\.toml is gone or damaged") as error:
        KIND.former(tmp_path)
    assert error.value.hint == "`--overwrite` makes it anew; or choose another -o"
    assert KIND.former(tmp_path, overwrite=True) is None
    (tmp_path / "thesis.tex").touch()  # something of the user's
    with pytest.raises((ConfigMismatchError, InputError), match=r"not a RUN|damaged \("):
        KIND.former(tmp_path, overwrite=True)


def test_former__one_file_alone_says_little(tmp_path: Path) -> None:
    (tmp_path / "loaf").touch()
    with pytest.raises(ConfigMismatchError, match="exists and is not a RUN"):
        KIND.former(tmp_path, overwrite=True)


def failing(change: str, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the `at`-th call of a method of Path fail, from 0 on."""
    plain, calls = getattr(Path, change), iter(range(1000))

    def fail(self: Path, *arguments: object, **more: object) -> object:
        if next(calls) == at:
            raise OSError("the power fails")
        return plain(self, *arguments, **more)

    monkeypatch.setattr(Path, change, fail)


@pytest.mark.parametrize("at", [0, 1])
def test_publish__that_ends_in_the_middle_leaves_the_former_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out = tmp_path / "run"
    folder.begin(out, RECORD, overwrite=False)
    staging = folder.staging_of(out, RECORD)
    (staging / "loaf").touch()
    failing("rename", monkeypatch, at)
    with pytest.raises(OSError, match="the power fails"):
        folder.publish(staging, out)
    monkeypatch.undo()
    assert KIND.former(out)["oven"] == {"degrees": 220}
    assert (staging / "loaf").is_file()
    folder.publish(staging, out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in out.iterdir()] == ["loaf"]


def test_restore__of_a_command_killed_before_it_made_anything_only_its_claim_goes(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cytofm_cli.runs.folder import holding\n"
        "with holding(Path(sys.argv[1])):\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".run.claim"]
    folder.restore(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_begin__that_ends_in_the_middle_leaves_the_former_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    folder.begin(out, RECORD, overwrite=False)
    (out / "loaf").touch()
    failing("mkdir", monkeypatch, 0)
    with pytest.raises(OSError, match="the power fails"):
        folder.begin(out, RECORD, overwrite=True)
    monkeypatch.undo()
    with folder.holding(out):  # another command is at it: its own affair
        folder.restore(out)
        assert not out.exists()
    assert KIND.former(out)["oven"] == {"degrees": 220}
    assert (out / "loaf").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("text", ["[]", "3", "null", '"share"'])
def test_read_json__of_another_kind_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bread.json").write_text(text)
    with pytest.raises(InputError, match=r"not a finished RUN .*: bread\.json is damaged \(") as e:
        KIND.read_json(tmp_path, "bread.json")
    assert e.value.exit_code == 3
    with pytest.raises(InputError, match=r"of `cytofm bake`: it has no rolls\.json\."):
        KIND.read_json(tmp_path, "rolls.json")


def test_reading__what_code_stumbles_over_is_the_files_fault_and_ours_passes(
    tmp_path: Path,
) -> None:
    for stumble in (lambda: {}["a"], lambda: ()[len("a")], lambda: None + 1, lambda: float("x")):
        with (
            pytest.raises(InputError, match=r"bread\.json is damaged"),
            KIND.reading(tmp_path, "bread.json"),
        ):
            stumble()
    with pytest.raises(OutputError, match="ours"), KIND.reading(tmp_path, "bread.json"):
        raise OutputError("ours")
