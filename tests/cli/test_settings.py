"""Settings of all commands: flags, files, environment, help, completion."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cytofm_cli.cli.app import COMMANDS, PAGES, build
from cytofm_cli.cli.command import Command, long_flag
from cytofm_cli.config import SECTIONS, kinds_of, variable
from cytofm_cli.kinds import Kind

ROOT = Path(__file__).resolve().parents[2]


def tree() -> Iterator[tuple[str, Command, Any]]:
    """Yield (words, command, context) of every command."""
    for name in COMMANDS:
        root = typer.main.get_command(build([name]))
        context = root.make_context("cytofm", [name], resilient_parsing=True)
        command = root.commands[name]
        inside = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "commands"):
            for sub in command.commands:
                one = command.commands[sub]
                yield f"{name} {sub}", one, type(context)(one, info_name=sub, parent=inside)
        else:
            yield name, command, inside


ALL = list(tree())
IDS = [name for name, _, _ in ALL]
# Commands that are made by `register`, with what their settings are declared in.
REGISTERED = [
    (
        "run",
        (
            "cytofm_cli.tiles.config.TileConfig",
            "cytofm_cli.cli.run.BagsConfig",
            "cytofm_cli.mil.config.ScoreConfig",
            "cytofm_cli.cli.run.FilesConfig",
        ),
    ),
    ("tile", ("cytofm_cli.tiles.config.TileConfig",)),
    ("detect", ("cytofm_cli.nuclei.config.DetectConfig",)),
    ("views", ("cytofm_cli.views.config.ViewsConfig",)),
    (
        "pretrain",
        ("cytofm_cli.pretrain.config.PretrainConfig", "cytofm_cli.pretrain.config.PretrainViews"),
    ),
    ("embed", ("cytofm_cli.encoders.config.EmbedConfig", "cytofm_cli.tiles.config.TileConfig")),
    ("generate train", ("cytofm_cli.generate.config.GenerateConfig",)),
    ("evaluate probe", ("cytofm_cli.evaluate.config.ProbeConfig",)),
    ("mil train", ("cytofm_cli.mil.config.MilConfig",)),
    ("mil score", ("cytofm_cli.mil.config.ScoreConfig",)),
    ("mil compare", ("cytofm_cli.mil.config.CompareConfig",)),
]


def options(command: Command, context: Any) -> list[Any]:
    params = command.get_params(context)
    return [
        p for p in params if p.param_type_name == "option" and p.name != "help" and not p.hidden
    ]


@pytest.mark.parametrize(("name", "command", "context"), ALL, ids=IDS)
def test_every_option__has_help_and_a_variable_that_the_help_names(
    name: str, command: Command, context: Any
) -> None:
    for option in options(command, context):
        _, text = option.get_help_record(context)
        assert text.strip()[:1] not in ("", "["), f"{name} --{long_flag(option)} has no help"
        steps = ("detect", "embed", "export") if name == "run" else ()
        sections = (*name.split()[:1], "_".join(name.split()), "run", "tile", "views", *steps)
        mine = {variable(section, long_flag(option)) for section in sections}
        assert any(f"env var: {one}" in text for one in mine), (name, long_flag(option), text)


@pytest.mark.parametrize(("name", "command", "context"), ALL, ids=IDS)
def test_every_command__says_each_thing_once(name: str, command: Command, context: Any) -> None:
    found = options(command, context)
    flags = [flag for option in found for flag in (*option.opts, *option.secondary_opts)]
    assert len(flags) == len(set(flags))
    longs = {long_flag(option) for option in found}
    # --seed is the first of the seeds, --seeds how many; --labels a table, --label its column.
    assert {f"{flag}s" for flag in longs} & longs <= {"seeds", "labels"}
    helps = [option.help.partition("[env var")[0].strip() for option in found]
    assert len(helps) == len(set(helps)), [text for text in helps if helps.count(text) > 1]


@pytest.mark.parametrize(("name", "command", "context"), ALL, ids=IDS)
@pytest.mark.parametrize("columns", [80, 200])
def test_every_help__has_headings_and_ends_with_a_page_that_is_there(
    name: str, command: Command, context: Any, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command.get_help(context)
    assert "\nOptions:" not in text
    if any(long_flag(option) == "out" for option in options(command, context)):
        assert "\nInput and output:\n" in text
    assert "\nWhat is printed:\n" in text
    lines = [line.strip() for line in str(command.help).partition("Examples:")[2].splitlines()]
    examples = [line for line in lines if line]
    assert [line for line in examples if f"    {line}\n" not in text] == []  # none is wrapped
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text
    pages = text.strip().splitlines()[-1].strip().removeprefix("More: ").split(", ")
    assert [page for page in pages if not (ROOT / page).is_file()] == []
    assert name.split(maxsplit=1)[0] in PAGES


@pytest.mark.parametrize(("name", "command", "context"), ALL, ids=IDS)
def test_every_command__prints_as_much_as_it_is_told_by_the_same_flags(
    name: str, command: Command, context: Any
) -> None:
    found = {long_flag(option): option for option in options(command, context)}
    for flag in ("json", "quiet", "verbose", "no-progress", "config"):
        _, text = found[flag].get_help_record(context)
        assert f"env var: {variable('run', flag)}" in text
    settings = set(found) - {"json", "quiet", "verbose", "no-progress", "config", "out"}
    if name == "quickstart":  # what it works on; the settings are those of the steps it calls
        settings -= {"data", "labels", "slide-mpp"}
    if name == "verify":  # how it is run; it finds the same whatever they say
        settings -= {"shard", "timeout-s", "workers"}
    assert ("print-config" in found) == bool(settings)


def other_value(field: dataclasses.Field[Any], kind: Kind) -> str:
    """Return a value of a setting that is not its default, as a variable spells it."""
    if kind.choices:
        return next(c for c in kind.choices if c != field.default)
    if kind.base is bool:
        return "no" if field.default else "yes"
    if kind.many:
        return {int: "1,2", float: "0.25,0.5,0.75"}.get(kind.base, "a,b")
    if kind.base in (int, float):
        low, high = field.metadata["low"] or 0, field.metadata["high"]
        near = (field.default or low) + 1
        return str(near if high is None or near <= high else (low + high) / 2)
    return {"focus": "plane:2"}.get(field.name, "word")


def test_every_command__has_its_table_in_a_configuration_file() -> None:
    for name, kinds in REGISTERED:
        for path in kinds:
            module, _, kind = path.rpartition(".")
            section = getattr(importlib.import_module(module), kind).SECTION
            assert section in SECTIONS, name


@pytest.mark.parametrize(("name", "kinds"), REGISTERED, ids=[name for name, _ in REGISTERED])
def test_every_setting__is_read_from_its_variable(
    here, name: str, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, dict[str, str]] = {}
    for path in kinds:
        module, _, kind = path.rpartition(".")
        config = getattr(importlib.import_module(module), kind)
        kinds = kinds_of(config)
        for field in dataclasses.fields(config):
            value = other_value(field, kinds[field.name])
            if (name, field.name) == ("detect", "detector"):
                value = "import"  # the one that reads --nuclei,
            if field.name == "region_exclude":
                value = "c,d"  # others than are included
            if field.name == "region_rule":
                value = "fraction>=0.25"
            if field.name == "lora_targets":
                value = "fc1,fc2"
            if field.name == "arch_arg":
                value = "depth=3,act_layer=silu"
            if (name, field.name) == ("detect", "weights"):
                continue  # and then no weights
            wanted.setdefault(config.SECTION, {})[field.name] = value
            monkeypatch.setenv(variable(config.SECTION, field.name), value)
    done = here(*name.split(), "--print-config")
    assert done.returncode == 0, done.stderr
    printed = tomllib.loads(done.stdout)
    for section, settings in wanted.items():
        told = {key: spelt(printed[section].get(key)) for key in settings}
        assert told == {key: spelt(value) for key, value in settings.items()}


def spelt(value: object) -> str:
    if isinstance(value, list):
        return ",".join(spelt(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    try:
        return f"{float(str(value)):g}"
    except ValueError:
        return str(value)


@pytest.mark.parametrize(("name", "command", "context"), ALL, ids=IDS)
def test_every_plain_option__is_read_from_its_variable(
    name: str, command: Command, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [option for option in options(command, context) if option.show_envvar]
    for option in plain:
        text = "1" if option.is_flag or "int" in option.display_type(context) else "h5"
        monkeypatch.setenv(option.envvar, text)
        value, source = option.consume_value(context, {})
        assert source.name == "ENVIRONMENT", (name, option.name)
        assert value == ([text] if option.multiple else text)


@pytest.mark.parametrize("name", [*[name for name, _ in REGISTERED], "mil benchmark"])
def test_print_config__asks_for_nothing(here, name: str) -> None:
    done = here(*name.split(), "--print-config")
    assert done.returncode == 0, done.stderr
    own = {"mil score": "mil_score", "mil compare": "mil_compare", "run": "embed"}
    section = own.get(name, name.split(maxsplit=1)[0])
    assert f"[{section}]" in done.stdout


@pytest.mark.parametrize(
    ("environment", "words", "said"),
    [
        ({}, ("--tile-px", 8), "error: --tile-px 8 must be at least 16."),
        ({}, ("--pixels", "sorce"), "--pixels sorce: choose source, lossless, jpeg, none. Hint: "
         "did you mean source?"),
        ({"CYTOFM_TILE_TILE_PX": "wide"}, (), "CYTOFM_TILE_TILE_PX=wide is not of type int."),
        ({"CYTOFM_TILE_TILE_PX": "8"}, ("--config", "c.toml"), "CYTOFM_TILE_TILE_PX=8 must be"),
        ({}, ("--config", "c.toml"), "c.toml: [tile] tile_px = 4 must be at least 16."),
        ({}, ("--config", "typo.toml"), "typo.toml: [tile] has no setting 'tile_pxx'. Hint: did"),
        ({}, ("--config", "workers.toml"), "has no setting 'workers'. Hint: it belongs to [run]."),
        ({"CYTOFM_RUN_CONFIG": "c.toml"}, (), "c.toml: [tile] tile_px = 4"),
        ({"CYTOFM_TILE_WORKERS": "2"}, (), "CYTOFM_TILE_WORKERS is no setting of `cytofm tile`. "
         "Hint: did you mean CYTOFM_RUN_WORKERS?"),
        ({"CYTOFM_TILE_PREVEW": "p"}, (), "Hint: did you mean CYTOFM_TILE_PREVIEW?"),
        ({"CYTOFM_RUN_WORKERS": "few"}, (), "CYTOFM_RUN_WORKERS=few is not of type int."),
    ],
)  # fmt: skip
def test_a_bad_value__is_blamed_on_where_it_came_from(
    here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    words: tuple[object, ...],
    said: str,
) -> None:
    (tmp_path / "c.toml").write_text("[tile]\ntile_px = 4\n")
    (tmp_path / "typo.toml").write_text("[tile]\ntile_pxx = 256\n")
    (tmp_path / "workers.toml").write_text("[tile]\nworkers = 2\n")
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = here("tile", "slide.svs", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_set__is_blamed_by_name(here, stores: Path) -> None:
    done = here("detect", stores, "--set", "min_probability=2", "--dry-run")
    assert done.returncode != 0
    assert "--set min_probability=2 must be at most 1" in done.stderr


def test_shared_settings__that_a_command_has_not_are_said(
    here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[run]\nworkers = 2\noverwrite = true\n")
    monkeypatch.setenv("CYTOFM_RUN_THREADS", "2")
    done = here("mil", "train", "--config", tmp_path / "c.toml", "--print-config")
    assert done.returncode == 0
    assert "[run] workers = 2 is not used" in done.stderr
    assert "CYTOFM_RUN_THREADS=2 is not used" in done.stderr
    assert "overwrite" not in done.stderr
    assert here("tile", "--config", tmp_path / "c.toml", "--print-config").stderr == ""


def test_variables__that_nothing_reads_are_told(here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTOFM_TIEL_MPP", "0.5")
    monkeypatch.setenv("CYTOFM_CACHE_DIR", "scratch")
    monkeypatch.setenv("CYTOFM_DETECT_DETECTOR", "classical")  # of another command
    done = here("tile", "--print-config", "-q")
    assert done.returncode == 0
    assert "warning: CYTOFM_TIEL_MPP is set, and nothing reads it" in done.stderr
    assert "CYTOFM_TILE_MPP?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_variables__serve_commands_without_settings(here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYTOFM_RUN_JSON", "1")
    monkeypatch.setenv("CYTOFM_RUN_WORKERS", "2")
    assert here("encoders").stdout.startswith("{")
    monkeypatch.setenv("CYTOFM_ENCODERS_JSON", "1")
    done = here("encoders")
    assert done.returncode == 2
    assert "did you mean CYTOFM_RUN_JSON?" in done.stderr


def test_commands_without_settings__are_told_the_same_way(
    here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[run]\njson = true\nworkers = 2\n[tile]\ntile_px = 256\n")
    done = here("detectors", "--config", tmp_path / "c.toml")
    assert (done.returncode, done.stderr) == (0, "")  # workers are none of its business
    assert done.stdout.startswith('{"kind": "detector"')
    (tmp_path / "bad.toml").write_text("[run]\njson = 'perhaps'\n")
    done = here("detectors", "--config", tmp_path / "bad.toml")
    assert done.returncode == 2
    assert "bad.toml: [run] json = 'perhaps' is not of type bool." in done.stderr
    missing = here("info", tmp_path / "none.svs", tmp_path / "none.svs", "-q", "-v")
    assert missing.returncode == 3


def test_print_config__is_read_from_standard_input(here, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--tile-px", 256, "--select", "densest", "--max-tiles", 7, "--mpp", 0.5)
    printed = here("tile", *words, "--print-config").stdout
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    again = here("tile", "--config", "-", "--print-config")
    assert (again.returncode, again.stdout, again.stderr) == (0, printed, "")


def test_former_names__are_taken_with_a_warning(
    here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[evaluate]\nmpp = 0.5\n")
    words = ("evaluate", "probe", "--print-config")
    for given, value in ((("--mpp", 0.25), 0.25), (("--config", tmp_path / "c.toml"), 0.5)):
        done = here(*words, *given)
        assert f"slide_mpp = {value}" in done.stdout
        assert "the setting is called slide_mpp now" in done.stderr
    monkeypatch.setenv("CYTOFM_EVALUATE_MPP", "0.3")
    assert "slide_mpp = 0.3" in here(*words).stdout


def complete(line: str, *, without_torch: bool = True) -> list[str]:
    """Return what bash is offered for the last word of a line."""
    block = "import sys; sys.modules['torch'] = None\n" if without_torch else "import sys\n"
    code = f"{block}sys.argv = ['cytofm']\nfrom cytofm_cli.__main__ import main\nmain([])"
    environment = {
        **os.environ,
        "_CYTOFM_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cytofm ti", ["tile"]),
        ("cytofm mil ", ["train", "score", "compare", "benchmark"]),
        ("cytofm tile --pixels ", ["source", "lossless", "jpeg", "none"]),
        ("cytofm tile --select d", ["densest"]),
        ("cytofm tile --reader v", ["vips"]),
        ("cytofm tile --slide", ["--slide-mpp"]),
        ("cytofm detect --detector c", ["cellpose", "cellvit", "classical"]),
        ("cytofm detect --set min_p", ["min_probability="]),
        ("cytofm embed --encoder hand", ["handcrafted"]),
        ("cytofm embed --unit ", ["tile", "cell"]),
        ("cytofm embed --dtype float1", ["float16"]),
        ("cytofm embed --device cu", ["cuda", "cuda:0"]),
        ("cytofm pretrain stores --method dino", ["dino", "dinov2"]),
        ("cytofm mil train --method cl", ["clam_mb", "clam_sb"]),
        ("cytofm mil benchmark --method mean,cl", ["mean,clam_mb", "mean,clam_sb"]),
        ("cytofm mil benchmark --unit c", ["cell"]),
        ("cytofm evaluate probe --unit c", ["cell"]),
        ("cytofm export --to g", ["geojson"]),
    ],
)
def test_completion__offers_values_without_torch(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


def test_completion__says_nothing_about_a_plug_in_that_is_not_there() -> None:
    assert complete("cytofm detect --detector clasical --set ") == []


@pytest.mark.slow
def test_completion__offers_settings_of_the_chosen_head() -> None:
    found = complete("cytofm mil train --method clam_sb --set ", without_torch=False)
    assert {"instance_loss=", "bag_weight="} <= set(found)
