"""Training: what resumes is what was never stopped; what a RUN says; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import ConfigMismatchError, InputError, UsageError, WeightsError
from cytofm_cli.generate.config import GenerateConfig, ema_of, settled
from cytofm_cli.generate.file import read_generator
from cytofm_cli.generate.frozen import FrozenEncoder
from cytofm_cli.generate.plan import make_plan
from cytofm_cli.generate.run import train
from cytofm_cli.pretrain import checkpoint
from cytofm_cli.pretrain.loop import DivergedError

from .conftest import make_store

pytestmark = pytest.mark.slow

CLOCKS = {"tiles_per_s", "wait_share", "utilisation"}
SMALL: dict[str, Any] = {
    "size_px": 32, "vae_base": 8, "vae_blocks": 1, "depth": 2, "width": 16, "heads": 2, "patch": 1,
    "aligned_depth": 1, "projector": 16, "batch": 4, "steps": 6, "cell_um": 8.0, "threads": 1,
    "device": "cpu", "log_every": 2, "save_every": 2, "condition": "class", "align": "none",
}  # fmt: skip


def small(**changes: Any) -> GenerateConfig:
    return GenerateConfig(**SMALL | changes)


def stores(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.zarr"))


@pytest.fixture(scope="module")
def whole(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a RUN of classes, with a discriminator, that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(small(gan=0.1), stores(cells), run)
    return run


class Killed(Exception):
    pass


def lines_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def test_train__interrupted_and_resumed_is_undisturbed_bit_for_bit(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    def kill(done: int, total: int, loss: float) -> None:
        if done == 5:  # a step behind the last checkpoint
            raise Killed

    run = tmp_path / "run"
    with pytest.raises(Killed):
        train(small(gan=0.1), stores(cells), run, progress=kill)
    assert checkpoint.saved_steps(run) == [4] and not (run / "summary.json").exists()
    notes: list[str] = []
    report = train(small(gan=0.1), stores(cells), run, note=notes.append)
    assert any("goes on at step 4 of 6" in line for line in notes)
    assert (run / "generator.safetensors").read_bytes() == (
        whole / "generator.safetensors"
    ).read_bytes()
    for name in ("model", "optimizer"):  # three networks' moments, running means, statistics
        ours, theirs = (
            load_file(checkpoint.step_folder(path, 6) / f"{name}.safetensors")
            for path in (run, whole)
        )
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    parts = {key.partition(".")[0] for key in ours}
    assert parts == {"vae", "sit", "discriminator"}
    assert lines_of(run) == lines_of(whole)
    assert report.summary["steps"] == 6


def test_train__says_what_it_is_and_is_skipped_when_done(cells: Path, whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["condition"], summary["images"]) == ("class", 24)
    again = train(small(gan=0.1), stores(cells), whole)
    assert again.skipped and again.summary == summary
    generator = read_generator(again.generator)
    assert generator.about["classes"] == ["dark", "light"]
    assert generator.about["mpp"] == 0.25 and generator.about["unit"] == "cell"
    with pytest.raises(ConfigMismatchError, match="batch"):
        train(small(gan=0.1, batch=2), stores(cells), whole)


def test_train__a_lost_generator_is_written_again_the_same(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "generator.safetensors").unlink()
    # Killed after its last checkpoint, before the one before that was removed.
    shutil.copytree(checkpoint.step_folder(run, 6), checkpoint.step_folder(run, 4))
    assert not train(small(gan=0.1), stores(cells), run).skipped
    assert (run / "generator.safetensors").read_bytes() == (
        whole / "generator.safetensors"
    ).read_bytes()
    assert checkpoint.saved_steps(run) == [6]


def test_train__a_half_written_checkpoint_is_refused_by_name(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    model = checkpoint.step_folder(run, 6) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(Exception, match="damaged checkpoint"):
        train(small(gan=0.1), stores(cells), run)


def test_train__learns_the_classes_of_the_cells(cells: Path) -> None:
    plan = make_plan(small(), stores(cells))
    assert plan.classes == ("dark", "light")
    assert plan.class_N is not None and plan.class_N.tolist() == [0, 1] * 6
    plan.index.close()


def test_train__no_cell_of_a_class(tmp_path: Path) -> None:
    path = make_store(tmp_path, "plain", range(4), labelled=False)
    with pytest.raises(InputError, match="no cell of the stores has a class"):
        make_plan(small(), [path])


def test_train__the_encoders_vector_and_tokens_fit_the_networks(cells: Path) -> None:
    plan = make_plan(small(condition="encoder", align=None, cell_um=None), stores(cells))
    assert plan.sit.condition.dim == 384 and plan.sit.aligned == 192
    assert plan.index.tile_px == 72  # 18 µm, as cytofm-tiny was trained
    assert plan.told is plan.aligned
    assert plan.record["encoders"]["condition"] == "cytofm-tiny"
    plan.index.close()


def test_train__what_is_not_finite_ends_it(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytofm_cli.generate import repa_e

    plain = repa_e.velocity_loss
    monkeypatch.setattr(repa_e, "velocity_loss", lambda *words: plain(*words) * torch.nan)
    with pytest.raises(DivergedError, match="the loss is not finite at step 0"):
        train(small(), stores(cells), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert checkpoint.saved_steps(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size_px": 36}, "no multiple of 8"),
        ({"width": 18, "heads": 3}, "does not divide"),
        ({"aligned_depth": 3}, "has 2 blocks"),
        ({"unit": "tile"}, "classes are those of cells"),
        ({"gan": 0.1, "size_px": 16}, "the discriminator judges"),
    ],
)
def test_settings__that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settled(small(**changes))


def test_settings__an_encoder_without_tokens_cannot_be_aligned_with(cells: Path) -> None:
    with pytest.raises(UsageError, match="no tokens to align"):
        make_plan(small(align="handcrafted"), stores(cells))


def test_settings__vectors_with_statistics_of_pixels_come_with_tokens(cells: Path) -> None:
    plan = make_plan(small(align="cytofm-tiny-2"), stores(cells))
    assert plan.record["generate"]["align"] == "cytofm-tiny-2"
    levels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    image_BCHW = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255
    seen = FrozenEncoder("cytofm-tiny-2", grid=4)(image_BCHW)
    alone = load_encoder("cytofm-tiny-2", device="cpu", pooling="cls+mean")
    whole = load_encoder("cytofm-tiny-2", device="cpu")
    expected = torch.from_numpy(whole.encode(whole.prepare(levels)))
    assert torch.allclose(seen.vector_BV, expected, atol=1e-5)
    mean_BE = torch.from_numpy(alone.encode(alone.prepare(levels)))[:, 192:]
    assert seen.token_BTE is not None and seen.token_BTE.shape == (2, 16, 192)
    assert torch.allclose(seen.token_BTE.mean(1), mean_BE, atol=1e-5)


def test_settings__the_preset_settles_what_is_open() -> None:
    tiny = settled(GenerateConfig())
    assert (tiny.size_px, tiny.depth, tiny.width, tiny.heads) == (64, 4, 128, 4)
    assert (tiny.align, tiny.vae_base, tiny.projector) == ("cytofm-tiny", 32, 256)
    assert (tiny.kl, tiny.perceptual, tiny.gan, tiny.align_vae) == (1e-6, 1.0, 0.0, 1.5)
    base = settled(GenerateConfig(preset="base", batch=8))
    assert (base.size_px, base.width, base.batch, base.lr) == (224, 768, 8, 1e-4)
    assert ema_of(tiny, 400_000) == 0.9999
    assert ema_of(tiny, 200) == pytest.approx(0.95)
    assert ema_of(settled(GenerateConfig(ema=0.5)), 200) == 0.5


def repa_e_file(path: Path, whole: Path, **changes: Any) -> Path:
    """Write what upstream's training writes: a pickle of {model, ema, vae, …, args, steps}."""
    import argparse

    parts: dict[str, Any] = {}
    for name, value in load_file(whole / "generator.safetensors").items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = torch.from_numpy(value)
    parts.pop("vae_ema")
    parts |= {"args": argparse.Namespace(model="SiT"), "steps": 6, "opt": {"state": {}}}
    parts |= changes
    torch.save({k: v for k, v in parts.items() if v is not None}, path)
    return path


def test_file__of_repa_e_is_read_strictly_and_its_sizes_are_read_off(
    whole: Path, tmp_path: Path
) -> None:
    path = repa_e_file(tmp_path / "0000006.pt", whole)
    theirs, ours = read_generator(path), read_generator(whole / "generator.safetensors")
    assert theirs.sit.shape.condition == ours.sit.shape.condition
    assert (theirs.sit.shape.depth, theirs.sit.shape.patch, theirs.sit.shape.side) == (2, 1, 4)
    assert theirs.vae.shape == ours.vae.shape
    state = ours.sit.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in theirs.sit.state_dict().items())
    assert "entries of ema and vae fit" in theirs.notes[0]


def test_file__positions_are_the_files_own(whole: Path, tmp_path: Path) -> None:
    ema = {
        name.removeprefix("ema."): torch.from_numpy(value)
        for name, value in load_file(whole / "generator.safetensors").items()
        if name.startswith("ema.")
    }
    ema["pos_embed"] = ema["pos_embed"] + 3e-4  # upstream trains them
    read = read_generator(repa_e_file(tmp_path / "a.pt", whole, ema=ema))
    assert torch.equal(read.sit.pos_embed, ema["pos_embed"])


def test_file__entries_that_do_not_fit_are_named(whole: Path, tmp_path: Path) -> None:
    read = load_file(whole / "generator.safetensors")
    vae = {k[4:]: torch.from_numpy(v) for k, v in read.items() if k.startswith("vae.")}
    vae["encoder.extra"] = vae.pop("encoder.conv_out.bias")
    with pytest.raises(WeightsError) as caught:
        read_generator(repa_e_file(tmp_path / "a.pt", whole, vae=vae))
    said = str(caught.value)
    assert "vae does not fit: 1 missing: encoder.conv_out.bias; 1 unknown: encoder.extra" in said


def test_file__without_running_mean_or_autoencoder_or_finite_numbers(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no running mean of the SiT"):
        read_generator(repa_e_file(tmp_path / "a.pt", whole, ema=None))
    with pytest.raises(WeightsError, match="no autoencoder"):
        read_generator(repa_e_file(tmp_path / "b.pt", whole, vae=None))
    with pytest.raises(WeightsError, match=r"(ema|model|vae)\..*not finite"):
        bad = {"bn.running_mean": torch.tensor([torch.nan] * 4)}
        read_generator(repa_e_file(tmp_path / "c.pt", whole, ema=bad))
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "d.pt")
    with pytest.raises(WeightsError, match="no generator: none of its entries"):
        read_generator(tmp_path / "d.pt")


def test_file__an_unsafe_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save({"ema": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="it was not loaded, because such a file can run code"):
        read_generator(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_file__cut_or_gone(whole: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((whole / "generator.safetensors").read_bytes()[:5000])
    for path in (cut, tmp_path / "gone.safetensors"):
        with pytest.raises(WeightsError, match=path.name):
            read_generator(path)
