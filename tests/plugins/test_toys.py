"""A file of a few lines is a plug-in: found, used by the commands, and held to its suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli import registry
from cytofm_cli.errors import UsageError
from cytofm_cli.store.io import open_store
from cytofm_cli.testing import check
from cytofm_cli.testing.samples.stores import write_slide

pytestmark = pytest.mark.slow

TOYS = Path(__file__).parent / "toys"
FOLDER = {kind.kind: kind.group.rpartition(".")[2] for kind in registry.ALL}
FILES = [
    (kind, path.stem) for kind in FOLDER for path in sorted((TOYS / FOLDER[kind]).glob("*.py"))
]


def drop(folder: Path) -> Path:
    """Put the toys where plug-ins are found, below a folder of the path."""
    shutil.copytree(TOYS, folder / "cytofm_plugins")
    return folder


def install(folder: Path, name: str, points: dict[str, str]) -> None:
    """Write what an installed distribution has: its name and its entry points, by group."""
    record = folder / f"{name}-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    text = "".join(f"[cytofm.{group}]\n{point}\n" for group, point in points.items())
    (record / "entry_points.txt").write_text(text)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new first folder of the path."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("cytofm_plugins")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


# ---------------------------------------------------------------- the commands


class Toolkit:
    """Runs `cytofm WORDS…` with the toys on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        paths = [str(drop(folder / "plugins")), os.environ.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def __call__(self, *words: object) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "cytofm_cli", *map(str, words)],
            capture_output=True, text=True, check=False, env=self.environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Toolkit:
    return Toolkit(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def stores(toolkit: Toolkit) -> Path:
    """Tile eight slides of the toy format, and find nuclei and embeddings with the toys."""
    from PIL import Image

    slides, stores = toolkit.folder / "slides", toolkit.folder / "stores"
    slides.mkdir()
    for number in range(8):
        pixels = np.array(Image.open(write_slide(toolkit.folder / "s.png")))
        with (slides / f"s{number}.toy").open("wb") as file:
            np.save(file, pixels if number % 2 else pixels // 2 + 120)
    tile = ("--tile-px", 128, "--mpp", 0.25, "--foreground", "none")
    assert len(toolkit("tile", slides, "-o", stores, *tile)) == 8
    toolkit("detect", stores, "--detector", "toy", "--set", "below=175")
    toolkit("embed", stores, "--encoder", "toy")
    return stores


def test_toys__are_listed(toolkit: Toolkit) -> None:
    checks = {row["check"] for row in map(json.loads, toolkit("doctor", "--json"))}
    assert {f"{kind.kind} toy" for kind in registry.ALL} <= checks


def test_toys__read_detect_and_embed(stores: Path) -> None:
    store = open_store(stores / "s1.zarr")  # the suffix is no part of the name
    assert store.slide.reader == "toy"
    assert store.tile.n_tiles == 2
    assert len(store.nuclei("toy")) == 18
    values = store.embeddings("toy", "tile").values
    assert values.shape == (2, 3)
    expected = np.stack([tile.mean((0, 1)) for tile in store.read("tiles/pixels")]) / 255
    np.testing.assert_allclose(values, expected, atol=2e-3)


def test_toys__cells_are_cut_as_the_encoder_prefers(toolkit: Toolkit, stores: Path) -> None:
    toolkit("embed", stores / "s1.zarr", "--encoder", "toy", "--unit", "cell")
    assert open_store(stores / "s1.zarr").embedding_record("toy", "cell").cell_um == 20.0


@pytest.mark.slow
def test_toys__a_head_learns(toolkit: Toolkit, stores: Path) -> None:
    labels = "".join(f"s{n},{'dark' if n % 2 else 'pale'},p{n}\n" for n in range(8))
    (toolkit.folder / "labels.csv").write_text("slide_id,label,group\n" + labels)
    run = toolkit.folder / "mil"
    toolkit(
        "mil", "train", "--bags", stores, "--labels", toolkit.folder / "labels.csv", "-o", run,
        "--method", "toy", "--encoder", "toy", "--folds", 2, "--inner-folds", 2, "--seeds", 1,
        "--epochs", 30, "--lr", 0.1,
    )  # fmt: skip
    assert json.loads((run / "metrics.json").read_text())["auc"]["value"] == 1.0


@pytest.mark.slow
def test_toys__a_method_pretrains_a_trunk_that_embeds(toolkit: Toolkit, stores: Path) -> None:
    run = toolkit.folder / "ssl"
    toolkit(
        "pretrain", stores, "-o", run, "--method", "toy", "--encoder", "toynet", "--no-ncp",
        "--steps", 2, "--batch", 4, "--global-px", 32, "--device", "cpu", "--threads", 1,
    )  # fmt: skip
    said = (run / "config.toml").read_text()
    assert 'recipe = "simclr"' in said
    assert "global_scale = [0.5, 1.0]" in said
    store = stores / "s1.zarr"
    toolkit("embed", store, "--encoder", run / "encoder.safetensors", "--device", "cpu")
    (step,) = [name for name in open_store(store).steps if name.startswith("embeddings/toynet")]
    assert open_store(store).embedding_record(step.split("/")[1], "tile").dim == 8


def test_toys__an_exporter_writes(toolkit: Toolkit, stores: Path) -> None:
    out = toolkit.folder / "out"
    files = toolkit("export", stores, "-o", out, "--to", "toy")
    assert sorted(files) == [str(out / f"s{number}.txt") for number in range(8)]
    assert (out / "s3.txt").read_text() == "2 tiles\n"


# ---------------------------------------------------------------- the suites


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_toys__pass_the_suite_of_their_kind(path: Path, kind: str, name: str) -> None:
    drop(path)
    check(kind, name)


@pytest.mark.parametrize("kind", FOLDER)
def test_toys__without_a_sample_fail(path: Path, kind: str) -> None:
    drop(path)
    file = path / "cytofm_plugins" / FOLDER[kind] / "toy.py"
    text = file.read_text()
    file.write_text(
        f"{text}\nimport dataclasses\nPLUGIN = dataclasses.replace(PLUGIN, sample=None)\n"
    )
    with pytest.raises(AssertionError, match=f"{kind} 'toy' brings no sample"):
        check(kind, "toy")


def test_toys__that_break_a_rule_are_told_which(path: Path) -> None:
    drop(path)
    file = path / "cytofm_plugins" / "encoders" / "toy.py"
    file.write_text(file.read_text().replace("dtype=np.float32", "dtype=np.float64"))
    with pytest.raises(AssertionError, match="vectors_have_shape_and_type_and_are_finite, toy"):
        check("encoder", "toy")


# ---------------------------------------------------------------- entry points


@pytest.mark.parametrize(("kind", "name"), [("reader", "toy"), ("MIL method", "toy")])
def test_entry_points__pass_the_suite_too(path: Path, kind: str, name: str) -> None:
    shutil.copy(TOYS / FOLDER[kind] / f"{name}.py", path / "outside.py")
    install(path, "outside", {FOLDER[kind]: "toy = outside:PLUGIN"})
    try:
        check(kind, name)
    finally:
        sys.modules.pop("outside")


@pytest.mark.slow
def test_entry_points__work_in_the_commands(tmp_path: Path) -> None:
    toolkit = Toolkit(tmp_path)
    plugins = tmp_path / "plugins"
    shutil.move(plugins / "cytofm_plugins" / "readers" / "toy.py", plugins / "outside_reader.py")
    shutil.move(plugins / "cytofm_plugins" / "mil_methods" / "toy.py", plugins / "outside_head.py")
    shutil.rmtree(plugins / "cytofm_plugins")
    install(plugins, "outside", {"readers": "toy = outside_reader:PLUGIN",
                                 "mil_methods": "toy = outside_head:PLUGIN"})  # fmt: skip
    with (tmp_path / "s.toy").open("wb") as file:
        np.save(file, np.full((64, 64, 3), 200, np.uint8))
    (shown,) = map(json.loads, toolkit("info", tmp_path / "s.toy", "--json"))
    assert shown["reader"] == "toy"
    assert any(line.startswith("toy ") for line in toolkit("methods"))


# ---------------------------------------------------------------- which one counts


def test_registry__cytofm_goes_before_distributions_and_these_before_files(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drop(path)
    heads = path / "cytofm_plugins" / "mil_methods"
    shutil.copy(heads / "toy.py", heads / "abmil.py")
    for name in ("b", "a"):
        text = (heads / "toy.py").read_text().replace("mean and linear layer", f"of {name}")
        (path / f"{name}_head.py").write_text(text)
        install(path, name, {"mil_methods": f"toy = {name}_head:PLUGIN"})
    known = registry.mil_methods
    assert known.load("abmil").make.__module__ == "cytofm_cli.mil.methods.abmil"
    assert known.load("toy").summary == "of a"
    assert f"MIL method 'abmil' of {heads / 'abmil'} is left out: that of cytofm" in caplog.text
    assert known.shadowed() == [
        f"MIL method 'abmil' of {heads / 'abmil'} is left out: that of cytofm goes first",
        "MIL method 'toy' of distribution b (b_head:PLUGIN) is left out: "
        "that of distribution a (a_head:PLUGIN) goes first",
        f"MIL method 'toy' of {heads / 'toy'} is left out: "
        "that of distribution a (a_head:PLUGIN) goes first",
    ]
    assert known.names().count("abmil") == known.names().count("toy") == 1


@pytest.mark.slow
def test_registry__the_working_directory_is_not_searched_unless_the_user_says_so(
    tmp_path: Path,
) -> None:
    drop(tmp_path)
    words = [sys.executable, "-m", "cytofm_cli", "methods", "toy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def asked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )

    refused = asked()
    assert refused.returncode == 2
    assert "no method is called 'toy'" in refused.stderr
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    assert asked().stderr == "toy has no settings.\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_that_name", "cannot be imported .ModuleNotFoundError"),
        ("raise SystemError('boom')", "cannot be imported .SystemError: boom"),
        ("PLUGIN = 7", "exports no ReaderPlugin"),
        ("from cytofm_cli.registry import Plugin\nPLUGIN = Plugin(make=int, summary='')",
         "exports no ReaderPlugin"),
    ],
)  # fmt: skip
def test_registry__a_broken_plugin_is_told_and_harms_no_other(
    path: Path, text: str, says: str
) -> None:
    folder = path / "cytofm_plugins" / "readers"
    folder.mkdir(parents=True)
    (folder / "broken.py").write_text(text + "\n")
    with pytest.raises(UsageError, match=says) as caught:
        registry.readers.load("broken")
    assert str(folder / "broken") in str(caught.value.hint)
    (row,) = [row for row in registry.readers.available() if row.name == "broken"]
    assert row.broken
    from cytofm_cli.slides.open import open_slide

    assert open_slide(str(write_slide(path / "s.png"))).info.reader == "vips"


def test_registry__what_users_type_may_differ_from_the_file(path: Path) -> None:
    assert registry.detectors.key("import") == registry.detectors.key("imported") == "imported"
    assert "import" in registry.detectors.words()
    with pytest.raises(UsageError, match="no detector") as caught:
        registry.detectors.find("imprt")
    assert caught.value.hint == "did you mean import?"
