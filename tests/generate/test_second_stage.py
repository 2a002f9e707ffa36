"""The second training: the autoencoder and the statistics of its latents stay, the SiT learns."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cytofm_cli.errors import ConfigMismatchError, InputError, UsageError, WeightsError
from cytofm_cli.generate.config import VAE_LOSSES
from cytofm_cli.generate.file import read_autoencoder, read_generator
from cytofm_cli.generate.interpolant import alignment_loss, on_path, velocity_loss
from cytofm_cli.generate.plan import make_plan
from cytofm_cli.generate.repa_e import Weights
from cytofm_cli.generate.run import train
from cytofm_cli.generate.vae import Resting, Vae
from cytofm_cli.pretrain import checkpoint

from .test_train import Killed, repa_e_file, small, stores, whole
from .toys import VAE, batch, images, learner

__all__ = ["whole"]  # a fixture


def resting() -> Resting:
    torch.manual_seed(7)
    norm = {
        "running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5,
        "num_batches_tracked": torch.tensor(9),
    }  # fmt: skip
    return Resting(Vae(VAE).eval(), norm)


def test_step__is_the_sits_loss_on_latents_by_the_statistics_that_stay() -> None:
    still = resting()
    model = learner(Weights(gan=0.0, dropped=0.0), resting=still)
    torch.nn.init.normal_(model.sit.final_layer.linear.weight, std=0.1)
    torch.manual_seed(1)
    said = model(batch(), 0)
    torch.manual_seed(1)
    with torch.no_grad():
        posterior = still.vae.encode(2 * images() - 1)
        z = posterior.sample(torch.randn_like(posterior.mean_BChw))
        drawn = model.draw(z)
        wide = [still.norm[name][:, None, None] for name in ("running_mean", "running_var")]
        n = (z - wide[0]) / (wide[1] + 1e-4).sqrt()
        seen = model._frozen[0](images())
        condition = model.sit.y_embedder(seen.vector_BV, None)
        v, tokens = model.sit.both(on_path(n, drawn.noise_BChw, drawn.t_B), drawn.t_B, condition)
        expected = velocity_loss(v, n, drawn.noise_BChw)
        expected = expected + 0.5 * alignment_loss(tokens, seen.token_BTE)
    assert float(said.loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert set(said.parts) == {"velocity", "align_sit"}


def test_step__moves_the_sit_and_its_mean_and_nothing_else() -> None:
    model = learner(Weights(gan=0.0, ema=0.5), resting=resting())
    before = copy.deepcopy(model.state_dict())
    rate = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        model(batch(), step).loss.backward()
        model.before_update(step)
        rate.step()
        model.after_update(step)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"sit", "ema"}
    assert not [name for name in moved if ".bn." in name]
    assert "ema.final_layer.linear.weight" in moved


def second(run: Path, **changes: Any) -> Any:
    usual = {"vae_base": None, "vae_blocks": None, "autoencoder": run, "depth": 1, "width": 32}
    return small(**usual | changes)


@pytest.mark.slow
def test_train__leaves_the_autoencoder_to_the_bit_and_resumes(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    report = train(second(whole), stores(cells), tmp_path / "run", note=notes.append)
    assert f"{whole}: its autoencoder stays as it is; the SiT is trained" in notes
    first, made = (load_file(path / "generator.safetensors") for path in (whole, tmp_path / "run"))
    for name, x in made.items():
        part, _, rest = name.partition(".")
        if part.startswith("vae"):
            assert np.array_equal(x, first[f"vae_ema.{rest}"]), name
        elif rest.startswith("bn."):
            assert np.array_equal(x, first[f"ema.{rest}"]), name
    generator = read_generator(report.generator)
    assert (generator.sit.shape.depth, generator.sit.shape.width) == (1, 32)
    assert generator.vae.shape == read_generator(whole / "generator.safetensors").vae.shape

    def kill(done: int, total: int, loss: float) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(second(whole), stores(cells), tmp_path / "killed", progress=kill)
    assert checkpoint.saved_steps(tmp_path / "killed") == [4]
    train(second(whole), stores(cells), tmp_path / "killed")
    names = [tmp_path / name / "generator.safetensors" for name in ("run", "killed")]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.slow
def test_train__another_autoencoder_under_the_same_path_is_refused(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    train(second(source), stores(cells), tmp_path / "run")
    moved = source.rename(tmp_path / "moved")
    assert train(second(moved), stores(cells), tmp_path / "run").skipped  # it is the same
    train(small(seed=1), stores(cells), source)
    with pytest.raises(ConfigMismatchError, match="autoencoder_sha256"):
        train(second(source), stores(cells), tmp_path / "run")


@pytest.mark.slow
def test_settings__that_do_not_go_with_an_autoencoder_that_stays(
    cells: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--vae-base 16: the autoencoder of .* has 8"):
        make_plan(second(whole, vae_base=16), stores(cells))
    for name in VAE_LOSSES:
        flag = f"--{name.replace('_', '-')}"
        said = rf"^{flag} 0\.5: the autoencoder of .* stays .* none of its losses is used"
        with pytest.raises(UsageError, match=said):
            make_plan(second(whole, **{"gan": None, name: 0.5}), stores(cells))
    (tmp_path / "part").mkdir()
    shutil.copy(whole / "config.toml", tmp_path / "part")
    with pytest.raises(InputError, match="is not trained to its end"):
        make_plan(second(tmp_path / "part"), stores(cells))
    plan = make_plan(second(whole, vae_base=8), stores(cells))
    assert (plan.vae.base, plan.weights.gan) == (8, 0)
    plan.index.close()


@pytest.mark.slow
def test_autoencoder__of_repa_e_is_its_own_and_what_lacks_one_is_refused(
    whole: Path, tmp_path: Path
) -> None:
    ours = load_file(whole / "generator.safetensors")
    theirs = read_autoencoder(repa_e_file(tmp_path / "a.pt", whole))
    state = theirs.vae.state_dict()
    assert all(np.array_equal(state[n].numpy(), ours[f"vae.{n}"]) for n in state)
    assert np.array_equal(theirs.norm["running_var"].numpy(), ours["ema.bn.running_var"])
    with pytest.raises(WeightsError, match="no autoencoder with the statistics"):
        read_autoencoder(repa_e_file(tmp_path / "b.pt", whole, vae=None))
    with pytest.raises(WeightsError, match="no autoencoder with the statistics"):
        read_autoencoder(repa_e_file(tmp_path / "c.pt", whole, ema=None, model=None))
    with pytest.raises(WeightsError, match=r"bn does not fit: .*running_mean \(2,\) for \(4,\)"):
        bn = {"bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}
        count = {"bn.num_batches_tracked": torch.tensor(1)}
        read_autoencoder(repa_e_file(tmp_path / "d.pt", whole, ema=bn | count))
