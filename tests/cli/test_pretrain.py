"""`cytofm pretrain`: killed or signalled it ends as if undisturbed; what it writes and refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.pixel_statistics import N_STATISTICS
from cytofm_cli.nuclei.crops import open_cells
from cytofm_cli.pretrain import checkpoint, loop
from cytofm_cli.store.io import open_store

from .pretrain_runs import TINY, assert_same, lines_of, wait_for, words_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(cytofm, detected: Path, tmp_path_factory) -> Path:
    """Return a RUN that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = cytofm("pretrain", detected, "-o", run, *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "encoder.safetensors")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_pretrain__stopped_and_resumed_equals_undisturbed(
    cytofm, detected, whole, tmp_path, number
):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *words_of(detected, run)], stderr=subprocess.DEVNULL
    )
    wait_for(run / "checkpoints" / "step-00000002", process)
    process.send_signal(number)
    code = process.wait()
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGUSR1: 75}[number]
    assert not (run / "summary.json").exists()
    assert (run / "stopped").exists() == (number != signal.SIGKILL)
    saved = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert saved, "the checkpoint must outlive the signal"
    again = cytofm("pretrain", detected, "-o", run, *TINY)
    assert again.returncode == 0, again.stderr
    assert not (run / "stopped").exists()
    assert f"goes on at step {int(saved[-1][5:])}" in again.stderr
    assert_same(run, whole)


def test_pretrain__exports_an_encoder_that_embeds(whole, detected, here):
    encoder = load_encoder(str(whole / "encoder.safetensors"), device="cpu")
    assert (encoder.spec.name, encoder.spec.dim) == ("sr-vit-tiny-dino", 192)
    words = ("--encoder", whole / "encoder.safetensors", "--unit", "cell", "--dry-run")
    assert here("embed", detected, *words).returncode == 0
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    values_BD = encoder.encode(encoder.prepare(pixels_BHWC))
    assert np.isfinite(values_BD).all() and not np.allclose(values_BD[0], values_BD[1])


def test_pretrain__finished_run_is_skipped_and_other_settings_are_named(here, detected, whole):
    before = (whole / "encoder.safetensors").stat().st_mtime_ns
    assert here("pretrain", detected, "-o", whole, *TINY).returncode == 0
    assert (whole / "encoder.safetensors").stat().st_mtime_ns == before
    other = here("pretrain", detected, "-o", whole, *TINY, "--seed", 3, "--set", "prototypes=32")
    assert other.returncode == 2
    assert "dino.prototypes: 64 → 32; pretrain.seed: 0 → 3" in other.stderr


@pytest.mark.slow
def test_pretrain__a_finished_run_without_its_encoder_writes_the_same_one_again(
    here, detected, whole, tmp_path
):
    run, encoder = tmp_path / "run", tmp_path / "run" / "encoder.safetensors"
    shutil.copytree(whole, run)
    bytes_of_it = encoder.read_bytes()
    for spoil in (encoder.unlink, lambda: encoder.write_bytes(bytes_of_it[:-4] + b"\1\2\3\4")):
        spoil()
        again = here("pretrain", detected, "-o", run, *TINY)
        assert again.returncode == 0, again.stderr
        assert "encoder.safetensors is gone, was changed" in again.stderr
        assert encoder.read_bytes() == bytes_of_it
    stated = here("pretrain", detected, "-o", run, *TINY, "--licence", "CC0")
    assert stated.returncode == 0, stated.stderr
    assert load_encoder(str(encoder), device="cpu").spec.licence == "CC0"
    shutil.rmtree(run / "checkpoints")
    encoder.unlink()
    gone = here("pretrain", detected, "-o", run, *TINY, "--licence", "CC0")
    assert (gone.returncode, gone.stdout) == (3, "")
    assert "is finished, but encoder.safetensors is gone" in gone.stderr


def test_pretrain__a_run_keeps_the_threads_it_was_begun_with(
    here, detected, whole, tmp_path, monkeypatch
):
    other = here("pretrain", detected, "-o", whole, *TINY, "--threads", 3)
    assert other.returncode == 2
    assert "compute.threads: 1 → 3" in other.stderr
    bare = list(TINY)
    at = bare.index("--threads")
    del bare[at : at + 2]
    monkeypatch.setattr("cytofm_cli.work.cpus.cpu_count", lambda: 3)
    assert here("pretrain", detected, "-o", whole, *bare).returncode == 0
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    done = here("pretrain", detected, "-o", run, *bare)  # as on a node with more processors
    assert done.returncode == 0, done.stderr
    assert used[0] == 1
    assert_same(run, whole)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--batch", 1000), 3, "tiles are too few for batches of 1000"),
        (("--accumulate", 3), 2, "does not divide"),
        (("--method", "dinno"), 2, "did you mean dino"),
        (
            ("--encoder", "timm/test_resnet", "--no-ncp", "--pooling", "cls+mean"),
            2,
            "no class token to join",
        ),
        (("--encoder", "sr-vit-huge"), 2, "sr-vit-huge"),
        (
            ("--recipe", "ibot", "--method", "ibot", "--encoder", "resnet50"),
            2,
            "no patches to mask",
        ),
        (("--set", "lr=1e30", "--set", "clip=0", "--set", "warmup=0"), 3, "is not finite at step"),
        (("--device", "cuda"), 2, "no GPU"),
        (("--init", "absent.safetensors"), 3, "absent.safetensors"),
        (("--without-nuclei", "drop"), 2, "gaps in batches"),
        (("--set", "prototype=3"), 2, "did you mean prototypes"),
    ],
)
def test_pretrain__bad_input_is_one_clear_line(here, detected, tmp_path, more, code, said):
    done = here("pretrain", detected, "-o", tmp_path / "run", *TINY, *more)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("slip", [("--encoder", "sr-vit-tny"), ("--init", "none.pt")])
def test_pretrain__a_start_that_failed_does_not_bind_the_corrected_command(
    here, detected, tmp_path, slip
):
    run = tmp_path / "run"
    assert here("pretrain", detected, "-o", run, *TINY, *slip).returncode in (2, 3)
    assert not run.exists()


def test_pretrain__stores_without_nuclei_are_refused_unless_asked_for(here, stores, tmp_path):
    done = here("pretrain", stores, "-o", tmp_path / "run", *TINY)
    assert done.returncode == 3 and "cytofm detect" in done.stderr
    assert not (tmp_path / "run").exists()
    plain = here("pretrain", stores, "-o", tmp_path / "run", *TINY, "--no-ncp", "--steps", 1)
    assert plain.returncode == 0, plain.stderr


def test_pretrain__diverged_run_keeps_its_last_checkpoint(here, detected, tmp_path, monkeypatch):
    update = loop.Trainer.update

    def poisoned(self: loop.Trainer, batches: loop.Batches) -> None:
        if self.step == 5:
            with torch.no_grad():
                next(iter(self.method.student().parameters())).fill_(float("nan"))
        update(self, batches)

    monkeypatch.setattr(loop.Trainer, "update", poisoned)
    done = here("pretrain", detected, "-o", tmp_path / "run", *TINY)
    assert done.returncode == 3
    assert "the loss is not finite at step 5" in done.stderr
    assert "checkpoint of step 4 is kept" in done.stderr
    assert checkpoint.saved_steps(tmp_path / "run") == [4]


@pytest.mark.slow
def test_pretrain__accumulated_parts_see_the_same_tiles(here, detected, tmp_path):
    """Two parts of two tiles give DINO's first loss of four tiles: its targets are per tile."""
    found = []
    for parts in (1, 2):
        run = tmp_path / str(parts)
        words = ("--steps", 1, "--log-every", 1, "--accumulate", parts, "--set", "drop_path=0")
        assert here("pretrain", detected, "-o", run, *TINY, *words).returncode == 0
        found.append(lines_of(run)[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-3)
    assert found[0]["gradient_norm"] == pytest.approx(found[1]["gradient_norm"], rel=2e-2)


def test_methods__lists_both_kinds_and_the_settings_of_one(here):
    listed = here("methods").stdout.splitlines()
    assert {line.split()[0] for line in listed} >= {"abmil", "transmil", "dino", "ibot", "simclr"}
    settings = {
        line.split()[0]: line.split()[1] for line in here("methods", "dino").stdout.splitlines()
    }
    assert settings["prototypes"] == "65536" and settings["teacher_temp"] == "0.07"
    wrong = here("methods", "dimo")
    assert wrong.returncode == 2 and "did you mean dino" in wrong.stderr


def test_pretrain__overwrite_never_removes_a_run_of_another_command(here, detected, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('[mil]\nmethod = "abmil"\n')
    (run / "precious").write_text("models")
    done = here("pretrain", detected, "-o", run, *TINY, "--overwrite")
    assert done.returncode == 2 and "is not a RUN of `cytofm pretrain`" in done.stderr
    assert (run / "precious").read_text() == "models"


def test_pretrain__cells__embed_cuts_the_crops_that_were_seen(here, detected, tmp_path):
    run = tmp_path / "run"
    words = ("--unit", "cell", "--cell-um", 28, "--global-px", 32, "--global-scale", "0.35,0.47",
             "--per-slide", 2, "--fill", "none", "--batch", 4, "--steps", 2, "--log-every", 1,
             "--device", "cpu", "--threads", 1, "--pooling", "cls+mean", "--licence", "CC0",
             "--name", "small")  # fmt: skip
    done = here("pretrain", detected, "-o", run, "--method", "distill", *words)
    assert done.returncode == 0, done.stderr
    first = lines_of(run)[0]
    assert first["loss"] == pytest.approx(first["regression"] + 0.3 * first["contrast"], rel=1e-5)
    encoder = load_encoder(str(run / "encoder.safetensors"), device="cpu")
    spec = encoder.spec
    assert (spec.cell_um, spec.pooling, spec.licence, spec.dim) == (17.9, "cls+mean", "CC0", 384)
    path = tmp_path / "a.zarr"
    shutil.copytree(sorted(detected.glob("*.zarr"))[0], path)
    for more, cell_um in (((), 17.9), (("--cell-um", 24, "--overwrite"), 24.0)):
        words = ("--encoder", run / "encoder.safetensors", "--unit", "cell", "--workers", 1)
        assert here("embed", path, *words, *more).returncode == 0
        store = open_store(path)
        assert store.embedding_record("small", "cell").cell_um == cell_um
        with open_cells(store, detector=None, cell_um=cell_um) as cells:
            pixels = np.stack([cells.read(0), cells.read(1)])
        values = store.embeddings("small", "cell").values
        np.testing.assert_allclose(values[:2], encoder.encode(encoder.prepare(pixels)), atol=1e-4)


def test_pretrain__pixels__a_finished_run_is_written_anew_with_them(here, detected, tmp_path):
    run = tmp_path / "run"
    words = ("--unit", "cell", "--cell-um", 28, "--global-px", 32, "--encoder", "sr-vit-nano",
             "--global-scale", "0.35,0.47", "--fill", "none", "--batch", 4, "--steps", 1,
             "--device", "cpu", "--threads", 1, "--method", "simclr")  # fmt: skip
    assert here("pretrain", detected, "-o", run, *words).returncode == 0
    done = here("pretrain", detected, "-o", run, *words, "--pooling", "cls+mean+pixels")
    assert done.returncode == 0, done.stderr
    assert "written anew" in done.stderr
    encoder = load_encoder(str(run / "encoder.safetensors"), device="cpu")
    assert (encoder.spec.pooling, encoder.spec.dim) == ("cls+mean+pixels", 256 + N_STATISTICS)
    path = sorted(detected.glob("*.zarr"))[0]
    with open_cells(open_store(path), detector=None, cell_um=17.9) as cells:
        pixels = cells.read_many(np.arange(len(cells.xy_px0)))
    values = encoder.encode(encoder.prepare(pixels))
    # One slide of several, whose crops the scales were measured on: near them, not on them.
    assert values[:, 256:].var(0).sum() == pytest.approx(1, abs=0.9)
    assert abs(values[:, 256:].mean(0)).max() < 0.5
    done = here("pretrain", detected, "-o", tmp_path / "odd", *words, "--pooling",
                "cls+mean+pixels", "--patch-px", 10, "--global-px", 30)  # fmt: skip
    assert done.returncode == 2
    assert "a multiple of 8 px, at least 16, not of 30 px" in done.stderr


def test_pretrain__a_file_states_the_settings_of_the_method_too(here, detected, tmp_path):
    file = tmp_path / "arm.toml"
    file.write_text(
        '[pretrain]\nmethod = "dino"\nencoder = "sr-vit-nano"\nbatch = 4\nsteps = 8\n'
        "[views]\nn_local = 2\n[dino]\nprototypes = 64\nteacher_temp = 0.05\n[byol]\nout = 8\n"
    )
    words = ("pretrain", detected, "-o", tmp_path / "run", "--dry-run", "--json", "--config", file)
    done = here(*words, "--set", "prototypes=32")
    record = json.loads(done.stdout)
    assert (record["dino"]["prototypes"], record["dino"]["teacher_temp"]) == (32, 0.05)
    assert (record["views"]["n_local"], record["views"]["patch_px"]) == (2, 8)
    file.write_text("[dinno]\nprototypes = 64\n")
    done = here(*words)
    assert (done.returncode, "no command has a table [dinno]" in done.stderr) == (2, True)
    file.write_text("[dino]\nprototype = 64\n")
    done = here(*words)
    assert (done.returncode, "did you mean prototypes?" in done.stderr) == (2, True)


@pytest.mark.slow
def test_pretrain__reads_a_pack_and_refuses_one_that_was_cut(here, detected, tmp_path):
    pack, run = tmp_path / "tiles.pack", tmp_path / "run"
    done = here("pack", detected, "-o", pack, "--codec", "png", "--json")
    facts = json.loads(done.stdout)
    assert (facts["file"], facts["bytes"]) == (str(pack), pack.stat().st_size)
    assert here("pack", detected, "-o", pack).returncode == 2
    assert here("pretrain", pack, "-o", run, *TINY).returncode == 0
    assert (run / "encoder.safetensors").is_file()
    pack.write_bytes(pack.read_bytes()[:-100])
    done = here("pretrain", pack, "-o", tmp_path / "other", *TINY)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "is cut or was changed" in done.stderr
    assert here("pack", tmp_path, "-o", tmp_path / "none.pack").returncode == 3
