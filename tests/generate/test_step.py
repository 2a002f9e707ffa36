"""The step of REPA-E: which gradient reaches what, and that one joint step equals three."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cytofm_cli.generate.conditions import ClassEmbedder, ConditionShape, VectorEmbedder
from cytofm_cli.generate.interpolant import (
    alignment_loss,
    draw_times,
    on_path,
    score_of,
    velocity_loss,
)
from cytofm_cli.generate.repa_e import Weights

from .toys import batch, images, learner


def passes(model, seed=1):
    """Return the two losses of one step, with what they share."""
    torch.manual_seed(seed)
    image = images()
    seen = model._frozen[0](image)
    x = 2 * image - 1
    posterior = model.vae.encode(x)
    z = posterior.sample(torch.randn_like(posterior.mean_BChw))
    drawn = model.draw(z)
    decoded = model.vae.decode(z)
    given, target = seen.vector_BV, seen.token_BTE
    vae = model.autoencoder_loss(x, decoded, posterior, z, drawn, given, seen)[0]
    return vae, lambda: model.sit_loss(z.detach(), drawn, given, target)[0], z, drawn


def graded(module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def test_autoencoders_pass__reaches_the_autoencoder_alone() -> None:
    model = learner()
    for parameter in model.sit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = copy.deepcopy(model.sit.bn.state_dict())
    loss, _, z, _ = passes(model)
    z.retain_grad()
    loss.backward()
    assert z.grad is not None and bool(z.grad.any())
    assert graded(model.sit) == set() and graded(model.discriminator) == set()
    assert graded(model.vae) == {name for name, _ in model.vae.named_parameters()}
    assert all(torch.equal(v, before[k]) for k, v in model.sit.bn.state_dict().items())
    assert all(p.requires_grad for p in model.sit.parameters())


def test_sits_pass__reaches_the_sit_and_its_projector_alone() -> None:
    model = learner()
    _, sit_loss, _, _ = passes(model)
    sit_loss().backward()
    assert graded(model.vae) == set()
    assert {"projectors.0.4.weight", "final_layer.linear.weight"} <= graded(model.sit)
    assert int(model.sit.bn.num_batches_tracked) == 1
    assert graded(model.ema) == set() and graded(model.vae_ema) == set()


def test_step__one_sum_has_the_gradients_of_three_losses() -> None:
    """Networks share no parameter, so the sum's gradient is each loss's own."""
    model = learner(Weights(gan=0.1, dropped=0.0))
    torch.manual_seed(5)
    model(batch(), 0).loss.backward()
    joint = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    fresh = learner(Weights(gan=0.1, dropped=0.0))
    seen = fresh._frozen[0](images())
    torch.manual_seed(5)
    x = 2 * images() - 1
    posterior = fresh.vae.encode(x)
    z = posterior.sample(torch.randn_like(posterior.mean_BChw))
    decoded = fresh.vae.decode(z)
    fresh.sit.bn.begin(z)
    drawn = fresh.draw(z)
    given, target = seen.vector_BV, seen.token_BTE
    fresh.autoencoder_loss(x, decoded, posterior, z, drawn, given, seen)[0].backward()
    fresh.sit_loss(z.detach(), drawn, given, target)[0].backward()
    for name, parameter in fresh.named_parameters():
        if parameter.grad is not None and not name.startswith("discriminator"):
            assert torch.allclose(joint[name], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_step__draws_times_and_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, used = learner(), [], []
    plain_draw, plain_sit, plain_vae = model.draw, model.sit_loss, model.autoencoder_loss
    monkeypatch.setattr(model, "draw", lambda z: made.append(plain_draw(z)) or made[-1])
    monkeypatch.setattr(model, "sit_loss", lambda *w: used.append(w[1]) or plain_sit(*w))
    monkeypatch.setattr(model, "autoencoder_loss", lambda *w: used.append(w[4]) or plain_vae(*w))
    model(batch(), 0)
    assert len(made) == 1 and used == [made[0], made[0]]


def test_step__the_perceptual_distance_takes_the_tokens_that_are_aligned_with() -> None:
    model = learner(Weights(gan=0.0))
    eyes, asked = model._frozen[1], []
    plain = eyes.tokens
    eyes.tokens = lambda image: asked.append(image) or plain(image)
    torch.manual_seed(2)
    parts = model(batch(), 0).parts
    assert len(asked) == 2  # the real images once, for alignment, condition and distance
    decoded = asked[-1].detach()
    cosine = torch.nn.functional.cosine_similarity(plain(images()), plain(decoded), dim=-1)
    assert float(parts["perceptual"]) == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_step__the_first_loss_of_the_velocity_is_two() -> None:
    """A network that says 0 has the mean of (ε - n)²: the variance of the noise and of the data."""
    losses = []
    for seed in range(20):
        model = learner()
        torch.manual_seed(seed)
        losses.append(float(model(batch(16), 0).parts["velocity"]))
    assert sum(losses) / 20 == pytest.approx(2.0, abs=0.03)


def test_conditions__are_dropped_in_the_sits_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = learner(Weights(gan=0.0, dropped=1.0)), []
    plain = model.sit.y_embedder.forward

    def watched(given, null=None):
        masks.append(null)
        return plain(given, null)

    monkeypatch.setattr(model.sit.y_embedder, "forward", watched)
    model(batch(), 0)
    assert masks[0] is None and bool(masks[1].all())
    model.weights = Weights(gan=0.0, dropped=0.0)
    model(batch(), 0)
    assert not bool(masks[3].any())


def test_null__is_what_takes_the_place_of_a_dropped_condition() -> None:
    torch.manual_seed(0)
    vectors = VectorEmbedder(5, 16)
    said = vectors(torch.randn(2, 5), torch.tensor([True, False]))
    assert torch.equal(said[0], vectors.null_embedding) and not torch.equal(said[1], said[0])
    assert torch.equal(vectors.null(2)[1], vectors.null_embedding)
    table = ClassEmbedder(3, 16)
    said = table(torch.tensor([1, 2]), torch.tensor([True, False]))
    assert torch.equal(said[0], table.embedding_table.weight[3])
    assert torch.equal(said[1], table.embedding_table.weight[2])
    assert torch.equal(table(torch.tensor([3]))[0], table.null(1)[0])  # a cell without a class


def test_ema__follows_sit_statistics_and_autoencoder() -> None:
    model = learner(Weights(gan=0.0, ema=0.5))
    start = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for network in (model.sit, model.vae):
            for parameter in network.parameters():
                parameter.add_(1.0)
        model.sit.bn.running_mean.fill_(4.0)
        model.sit.bn.num_batches_tracked.fill_(3)
    model.after_update(0)
    for mean, name in (("ema", "sit"), ("vae_ema", "vae")):
        for key, value in getattr(model, mean).named_parameters():
            assert torch.allclose(value, start[f"{name}.{key}"] + 0.5, atol=1e-6)
    assert torch.equal(model.ema.bn.running_mean, torch.full((4,), 2.0))
    assert int(model.ema.bn.num_batches_tracked) == 3


def test_ema__starts_as_a_copy_and_stays_one_at_decay_zero() -> None:
    model = learner(Weights(gan=0.0, ema=0.0))
    torch.manual_seed(0)
    model(batch(), 0).loss.backward()
    model.after_update(0)
    for mean, network in ((model.ema, model.sit), (model.vae_ema, model.vae)):
        assert all(torch.equal(v, network.state_dict()[k]) for k, v in mean.state_dict().items())


def test_clip__is_of_each_network_by_itself() -> None:
    model = learner(Weights(gan=0.0, clip=1.0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e-6)
    next(iter(model.vae.parameters())).grad.fill_(1e3)
    model.before_update(0)
    norm = lambda net: float(torch.stack([p.grad.norm() for p in net.parameters()]).norm())  # noqa: E731
    assert norm(model.vae) == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(model.sit.x_embedder.proj.weight.grad, torch.full((16, 4, 4, 4), 1e-6))


def test_alignment__by_hand() -> None:
    tokens = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    assert float(alignment_loss(3 * tokens, tokens)) == pytest.approx(-1.0, abs=1e-6)
    assert float(alignment_loss(-tokens, tokens)) == pytest.approx(1.0, abs=1e-6)
    left = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    right = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    assert float(alignment_loss(left, right)) == pytest.approx(-(0.5**0.5) / 2, abs=1e-6)


def test_path__ends_and_velocity_by_hand() -> None:
    n, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), -1.0)
    at = on_path(n, noise, torch.tensor([0.0, 0.25]))
    assert at.flatten().tolist() == [3.0, 2.0]
    assert float(velocity_loss(torch.full_like(n, -4.0), n, noise)) == 0.0
    assert float(velocity_loss(torch.zeros_like(n), n, noise)) == 16.0
    # The score of N(0, 1) data at any t: -x / ((1 - t)² + t²), with its exact velocity.
    x, t = torch.tensor([0.7], dtype=torch.float64), 0.3
    velocity = x * (t - (1 - t)) / ((1 - t) ** 2 + t**2)
    assert float(score_of(x, velocity, t)) == pytest.approx(-0.7 / (0.49 + 0.09))


def test_times__lognormal_is_a_logistic_of_a_normal() -> None:
    torch.manual_seed(3)
    drawn = draw_times(5, "lognormal", torch.device("cpu"))
    torch.manual_seed(3)
    sigma = torch.randn(5).exp()
    assert torch.allclose(drawn, sigma / (1 + sigma))


def test_class_condition__comes_from_the_tiles_of_the_batch() -> None:
    from cytofm_cli.generate.repa_e import RepaE

    from .toys import LEARNT, RATES, VAE, sit_shape

    shape = sit_shape(**LEARNT, aligned=0, condition=ConditionShape(kind="class", classes=2))
    labels = torch.tensor([1, 0, 2, 1])
    model = RepaE(VAE, shape, Weights(gan=0.0), RATES, classes=labels).train()
    assert model._seen(batch(4))[0].tolist() == [1, 0, 2, 1]
    assert set(model(batch(4), 0).parts) == {"l1", "kl", "velocity"}


@pytest.mark.slow
def test_two_processes__do_what_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.generate.two_processes", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    from .two_processes import losses_and_gradients

    alone = losses_and_gradients()
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    mean = (shares[0].pop("loss") + shares[1].pop("loss")) / 2
    torch.testing.assert_close(mean, alone.pop("loss"), atol=1e-5, rtol=1e-5)
    for share in shares:  # statistics of the latents are those of both, and so are the means
        torch.testing.assert_close(share, alone, atol=1e-5, rtol=1e-4)
