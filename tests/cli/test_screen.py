"""What a terminal, a pipe and a file see: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cytofm_cli.cli.out import Out
from cytofm_cli.cli.progress import BarProgress, LogProgress, Progress, duration
from cytofm_cli.errors import InputError

Run = Callable[..., subprocess.CompletedProcess[str]]


def on_a_terminal(words: list[object], stdout: object, columns: int = 80) -> tuple[int, str]:
    """Run `cytofm WORDS` with a pseudo-terminal on stderr; return exit code and what it showed."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *(str(word) for word in words)],
        stdout=stdout,  # type: ignore[arg-type]
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(), shown.decode()


def words_of(command: str, stores: Path, fields: Path, folder: Path) -> list[object]:
    return {
        "tile": ["tile", fields, "-o", folder / "s", "--mpp", 0.25, "--pixels", "none"],
        "detect": ["detect", stores, "--overwrite"],
        "embed": ["embed", stores, "--overwrite"],
        "info": ["info", stores],
        "export": ["export", stores, "-o", folder / "x", "--to", "pt"],
        "encoders": ["encoders"],
        "detectors": ["detectors"],
        "methods": ["methods"],
        "doctor": ["doctor"],
    }[command]


EVERY = ["tile", "detect", "embed", "info", "export", "encoders", "detectors", "methods", "doctor"]


FAST = ("tile", "info", "encoders")


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        pytest.param("tile", 200, marks=pytest.mark.slow),
        *(pytest.param(name, 80, marks=() if name in FAST else pytest.mark.slow) for name in EVERY),
    ],
)
def test_stdout__has_all_data_in_a_file_while_stderr_is_a_terminal(
    command: str, columns: int, stores: Path, fields: Path, tmp_path: Path
) -> None:
    for store in sorted(stores.glob("*.zarr"))[:2]:  # other tests have the fixture as it is
        shutil.copytree(store, tmp_path / "stores" / store.name)
    words = [*words_of(command, tmp_path / "stores", fields, tmp_path), "--json"]
    log = tmp_path / "log.jsonl"
    with log.open("wb") as handle:
        code, shown = on_a_terminal(words, handle, columns)
    assert code == 0, shown
    records = [json.loads(line) for line in log.read_text().splitlines()]
    least = {"tile": 4, "detect": 2, "embed": 2, "info": 2, "export": 2}.get(command, 5)
    assert len(records) >= least
    assert '{"' not in shown


def test_stdout__a_pipe_gets_plain_paths_while_stderr_is_a_terminal(
    fields: Path, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    words = ["tile", fields, "-o", tmp_path / "s", "--mpp", 0.25, "--pixels", "none"]
    code, shown = on_a_terminal(words, writing)
    os.close(writing)
    with os.fdopen(reading) as handle:
        lines = handle.read().splitlines()
    assert code == 0, shown
    assert sorted(lines) == sorted(str(path) for path in (tmp_path / "s").glob("*.zarr"))
    assert "4 done" in shown


def test_terminal__lines_stay_whole_beside_the_bar(fields: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ["tile", fields, "-o", tmp_path / "s", "--mpp", 0.25, "--pixels", "none"]
    code, _ = on_a_terminal(words, theirs)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    assert code == 0
    for store in (tmp_path / "s").glob("*.zarr"):
        assert f"{store}\r\n" in said


@pytest.mark.parametrize("kind", ["detectors", "methods", "encoders"])
def test_listing__shows_every_plug_in(kind: str, here: Run) -> None:
    plain, as_json = here(kind), here(kind, "--json")
    assert plain.returncode == as_json.returncode == 0
    names = [json.loads(line)["name"] for line in as_json.stdout.splitlines()]
    assert [line.split()[0] for line in plain.stdout.splitlines()] == names


def test_detectors__one_whose_package_is_missing_is_marked_with_what_to_install(
    here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("importlib.util").util.find_spec
    hide = lambda name, *more: None if name == "cellpose" else real(name, *more)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", hide)
    done = here("detectors")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("cellpose")]
    assert "pip install 'cytofm[cellpose]'" in line
    assert len(done.stdout.splitlines()) == 5
    settings = here("detectors", "cellpose")
    assert settings.returncode == 0
    assert "diameter_um" in settings.stdout
    assert "pip install 'cytofm[cellpose]'" in settings.stderr


def test_detectors__settings_of_one_by_the_word_that_users_type(here: Run) -> None:
    assert "min_probability" in here("detectors", "classical").stdout
    assert "scale" in here("detectors", "import").stdout
    wrong = here("detectors", "clasical")
    assert wrong.returncode == 2
    assert (
        wrong.stderr == "error: no detector is called 'clasical'. Hint: did you mean classical?\n"
    )


def test_embed__a_path_that_is_not_there_is_said_so(here: Run, stores: Path) -> None:
    wrong = stores.with_name(stores.name + "x")
    done = here("embed", wrong)
    assert done.returncode == 3
    assert f"{wrong}: no such file or folder." in done.stderr
    assert f"did you mean {stores}?" in done.stderr


def test_dry_run__names_no_file_of_failures_that_it_does_not_write(
    here: Run, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    done = here("tile", tmp_path, "-o", tmp_path / "s", "--dry-run")
    assert done.returncode == 3
    assert "failures" not in done.stderr
    assert not (tmp_path / "s").exists()


def clocked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_progress__slides_weigh_what_their_tiles_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocked(monkeypatch)
    bar = Progress("tile", 3)
    bar.part("big", 0, 900)
    bar.part("small", 0, 100)
    assert bar.left_s is None
    assert "time left unknown" in bar.details()
    now[0] += 10
    bar.part("small", 100, 100)
    bar.finish("small")
    # 100 of 900 + 100 + a third slide of the mean, 500.
    assert (bar.amount, bar.total) == (100, 1500)
    assert bar.left_s == pytest.approx(140)
    now[0] += 90
    bar.part("big", 900, 900)
    bar.finish("big")
    assert bar.left_s == pytest.approx(50)
    assert bar.details() == "10 tiles a second, 50 s left"


def test_progress__says_which_slide_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    bar = Progress("detect", 5)
    bar.part("s1", 3, 40)
    bar.part("s2", 1, 10)
    assert bar.counts() == "slides 0/5"
    assert bar.details().startswith("at s1 (3/40 tiles) and 1 more")


def test_progress__skipped_items_without_parts_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clocked(monkeypatch)
    bar = Progress("score", 4)
    now[0] += 2
    bar.finish("a")
    bar.finish("b")
    assert (bar.amount, bar.total, bar.left_s) == (2, 4, 2)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(2, "30 steps a minute, 7 min left"), (100, "36 steps an hour, 5 h 31 min left")],
)
def test_progress__a_run_that_goes_on_is_not_taken_for_a_fast_one(
    monkeypatch: pytest.MonkeyPatch, seconds: int, told: str
) -> None:
    now = clocked(monkeypatch)
    bar = Progress("pretrain dino", 1, "runs", "steps")
    now[0] += seconds
    bar.part("training", 801, 1000, "loss 3.2")
    assert bar.counts() == "steps 801/1000"
    assert bar.details() == f"loss 3.2, {told}"


def test_progress__a_run_without_a_finished_model_shows_its_passes() -> None:
    bar = Progress("train abmil", 1, "runs", "models")
    bar.say("pass 7/60, loss 0.536")
    assert bar.counts() == "at the first"
    assert bar.details() == "pass 7/60, loss 0.536, time left unknown"


def test_progress__a_run_may_call_its_stages_by_several_names() -> None:
    bar = Progress("generate evaluate", 1, "runs", "images")
    bar.part("sampling", 200, 200)
    bar.part("handcrafted", 1, 4)
    assert bar.counts() == "images 201/204"


def test_log__lines_carry_the_time_and_come_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = clocked(monkeypatch)
    bar = LogProgress("pretrain dino", 1, "runs", "steps")
    for step in range(1, 141):
        now[0] += 1
        bar.part("training", step, 1000, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # after 10, 70 and 130 seconds
    assert lines[0][:2] == "20"
    assert lines[0].endswith("pretrain dino: steps 10/1000, loss 10, 1 steps a second, 16 min left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (720, "12 min"), (3 * 3600 + 300, "3 h 5 min"), (2.2 * 86400, "2 d 4 h")],
)
def test_duration__reads_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bar__names_with_markup_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    with BarProgress("tile", 2) as bar:
        bar.part("[red]s[/red]", 1, 2)
        assert "[red]s[/red]" in bar.details()


def test_quiet__warnings_are_shown_and_notes_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(quiet=True)
    out.note("12 tiles")
    out.note("warning: unsure of the foreground")
    assert capsys.readouterr().err == "warning: unsure of the foreground\n"


def test_hint__that_many_slides_share_is_given_once(
    here: Run, fields: Path, tmp_path: Path
) -> None:
    done = here("tile", fields, "-o", tmp_path / "s", "--no-progress")
    assert done.stderr.count("the file states no resolution") == 4
    assert done.stderr.count("Hint: --slide-mpp 0.25") == 1
    log = (tmp_path / "s" / "failures.jsonl").read_text()
    assert log.count("--slide-mpp 0.25") == 4


def test_dry_run__prints_paths_as_a_real_run_does(here: Run, fields: Path, tmp_path: Path) -> None:
    done = here("tile", fields, "-o", tmp_path, "--slide-mpp", 0.25, "--dry-run")
    assert sorted(done.stdout.splitlines()) == [str(path) for path in sorted(fields.iterdir())]


def test_failures__beside_kept_slides_are_not_called_the_only_ones(
    here: Run, stores: Path, fields: Path, tmp_path: Path
) -> None:
    shutil.copytree(sorted(stores.glob("*.zarr"))[0], tmp_path / sorted(stores.iterdir())[0].name)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    first = sorted(fields.iterdir())[0]
    done = here(
        "tile", first, tmp_path / "bad.jpg", "-o", tmp_path, "--slide-mpp", 0.25, "--tile-px", 128
    )
    assert done.returncode == 4
    assert "1 of 2 slides failed, 1 are kept with other settings." in done.stderr
    assert "the others are done" not in done.stderr


def test_output__a_file_in_place_of_a_folder_is_named(
    here: Run, fields: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "labels.csv"
    taken.write_text("slide_id,label\n")
    done = here("tile", fields, "-o", taken, "--slide-mpp", 0.25)
    assert done.returncode == 2
    assert f"error: {taken}: is a file" in done.stderr
    assert taken.read_text() == "slide_id,label\n"


def test_help__of_a_group_cuts_no_line_short(here: Run) -> None:
    for words in (("mil", "--help"), ("evaluate", "--help"), ("--help",)):
        assert "..." not in here(*words).stdout.partition("Commands:")[2]


def test_methods__tell_which_command_they_serve(here: Run) -> None:
    lines = here("methods").stdout.splitlines()
    assert any(line.split()[:3] == ["abmil", "mil", "train"] for line in lines)
    assert any(line.split()[:2] == ["dino", "pretrain"] for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tile", "--reader", "opnslide"), "did you mean openslide?"),
        (("embed", "--reader", "opnslide"), "did you mean openslide?"),
        (("embed", "--device", "gpu"), "cpu, cuda or cuda:N"),
    ],
)
def test_slides__a_wrong_word_is_refused_before_any(
    here: Run, fields: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = here(words[0], fields, "-o", tmp_path / "s", "--slide-mpp", 0.25, *words[1:])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "s").exists()


def test_embed__the_folder_of_a_run_points_at_the_encoder_in_it(
    here: Run, stores: Path, tmp_path: Path
) -> None:
    (tmp_path / "encoder.safetensors").write_bytes(b"")
    done = here("embed", stores, "--encoder", tmp_path)
    assert done.returncode == 2
    assert f"did you mean {tmp_path / 'encoder.safetensors'}?" in done.stderr


def test_terminal__that_cannot_move_its_cursor_gets_lines_and_no_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for term, kind in (("dumb", LogProgress), ("xterm", BarProgress)):
        monkeypatch.setenv("TERM", term)
        with Out().progress_bar("tile", 2) as bar:
            assert type(bar) is kind


def test_error__a_word_of_a_megabyte_is_cut_between_where_and_what() -> None:
    error = InputError(f"a.csv:2: {'x' * 1_000_000} is no number.", hint="y" * 9_000)
    line = error.one_line()
    assert len(line) < 3_000
    assert line.startswith("a.csv:2: xxx")
    assert "xxx is no number. Hint: yyy" in line
    assert InputError("short", hint="h").one_line() == "short Hint: h"
