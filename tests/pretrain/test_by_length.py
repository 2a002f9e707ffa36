"""Settings that follow from a run's length, and the teacher that hardly moves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.pretrain.backbone import Tokens, VitTrunk
from cytofm_cli.pretrain.base import Length
from cytofm_cli.pretrain.by_length import LONG, by_length
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.pretrain.monitor import read_log
from cytofm_cli.pretrain.plan import make_plan
from cytofm_cli.pretrain.run import pretrain
from cytofm_cli.pretrain.teacher import TeacherConfig, TeacherMethod
from cytofm_cli.registry import pretrain_methods

from .toys import make_method

SMALL = {"prototypes": "64", "hidden": "32", "bottleneck": "16"}


def settled(method: str, n_steps: int, batch: int = 64, **stated: float) -> tuple[float, ...]:
    config = pretrain_methods.load(method).config(**stated)
    length = Length(n_steps=n_steps, steps_per_epoch=10, batch=batch)
    c = by_length(config, length, stated)
    return tuple(getattr(c, n) for n in ("momentum", "momentum_end", "lr") if hasattr(c, n))


@pytest.mark.parametrize(
    ("method", "n_steps", "batch", "expected"),
    [
        # 1 - 10/120; sqrt(1024/64) = 4 times the rate, for 12 500/120 is more
        ("dino", 120, 64, (11 / 12, 11 / 12, 2e-3)),
        ("dino", 1000, 256, (0.99, 0.99, 1e-3)),
        ("dino", 2500, 64, (0.996, 0.996, 2e-3)),
        # the published start is lower than 1 - 10/5000; 12 500/5000 times the rate
        ("dino", 5000, 64, (0.996, 0.998, 1.25e-3)),
        ("dino", 5000, 1024, (0.996, 0.998, 5e-4)),
        ("dino", 5000, 4096, (0.996, 0.998, 5e-4)),
        ("dino", 8, 64, (0.5, 0.5, 2e-3)),
        ("dinov2", 1000, 64, (0.99, 0.99, 2e-3)),  # its rate goes with the root already
        ("dinov2", 5000, 64, (0.992, 0.998, 2e-3)),
        ("simclr", 5000, 64, (5e-4,)),
        ("distill", 440, 64, (2e-3,)),  # its defaults are for short runs
    ],
)
def test_by_length__hand_worked(
    method: str, n_steps: int, batch: int, expected: tuple[float, ...]
) -> None:
    assert settled(method, n_steps, batch) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", sorted(pretrain_methods.names()))
def test_by_length__long_runs_and_what_is_stated_stay_as_published(method: str) -> None:
    published = pretrain_methods.load(method).config()
    for batch in (64, 1024):
        length = Length(n_steps=LONG, steps_per_epoch=10, batch=batch)
        assert by_length(published, length) is published
    if hasattr(published, "momentum"):
        assert settled(method, 100, momentum=0.997, lr=3e-4)[::2] == (0.997, 3e-4)


@given(st.integers(10, LONG - 1), st.integers(1, 2048), st.sampled_from(["dino", "moco", "byol"]))
def test_by_length__no_window_is_longer_than_a_tenth_and_the_start_is_gone(
    n_steps: int, batch: int, method: str
) -> None:
    momentum, end, lr = settled(method, n_steps, batch)
    assert n_steps <= 20 or 1 / (1 - end) <= n_steps / 10 * (1 + 1e-9)
    assert momentum <= end
    c = TeacherConfig(momentum=momentum, momentum_end=end)
    length = Length(n_steps=n_steps, steps_per_epoch=1, batch=batch)
    assert math.prod(c.momentum_at(step, length) for step in range(n_steps)) < 0.01
    published = pretrain_methods.load(method).config().lr
    assert published <= lr <= published * max(1, math.sqrt(1024 / batch)) * (1 + 1e-12)


def teacher_of(n_steps: int, **settings: float) -> TeacherMethod:
    method = make_method("dino", n_steps=n_steps, **settings)
    assert isinstance(method, TeacherMethod)
    return method


def test_teacher__share_of_the_start_is_the_product_of_the_momenta() -> None:
    # 0.5, 0.75 - c, 0.75, 0.75 + c with c = cos 45° / 4: (0.5625 - 0.03125) · 0.375
    teacher = teacher_of(4, momentum=0.5)
    c = math.sqrt(0.5) / 4
    expected = [1, 0.5, 0.5 * (0.75 - c), 0.375 * (0.75 - c), 0.19921875]
    assert [teacher.monitors(s)["teacher_start"] for s in range(5)] == pytest.approx(expected)
    # of the issue: at 0.996 to 1 a run of 120 updates leaves 78.5 %: exp(-0.004 · 120/2) and a bit
    assert teacher_of(120).monitors(120)["teacher_start"] == pytest.approx(0.78477, abs=1e-5)
    assert teacher_of(120, momentum=11 / 12, momentum_end=11 / 12).monitors(120)[
        "teacher_start"
    ] == pytest.approx((11 / 12) ** 120)


def test_teacher__moves_by_what_the_momenta_leave_of_a_student_that_rests() -> None:
    teacher = teacher_of(4, momentum=0.5)
    assert teacher.monitors(0)["teacher_moved"] == 0
    with torch.no_grad():
        for parameter in teacher.student_net.parameters():
            parameter.mul_(2)  # as far from the start as the start is long
    for step in range(4):
        teacher.after_update(step)
    assert teacher.monitors(4)["teacher_moved"] == pytest.approx(1 - 0.19921875, rel=1e-5)
    assert "start_P" not in teacher.state_dict()


def run(store: Path, out: Path, **settings: object) -> tuple[Path, list[str]]:
    said: list[str] = []
    config = PretrainConfig(
        **({"encoder": "sr-vit-nano", "batch": 4, "steps": 6, "device": "cpu"} | settings)
    )
    views = views_of("dino", PretrainViews(n_local=0), "sr-vit-nano")
    pretrain(config, views, [store], out, settings=SMALL, note=said.append)
    return out, said


@pytest.mark.slow
def test_run__says_that_its_teacher_rests_and_does_not_by_default(
    make_store, tmp_path: Path
) -> None:
    store = make_store("a", 8)
    moved, said = run(store, tmp_path / "moved")
    assert not [line for line in said if "teacher" in line]
    line = read_log(moved / "log.jsonl")[-1]
    summary = json.loads((moved / "summary.json").read_text())
    assert summary["monitors"] == {n: line[n] for n in ("teacher_start", "teacher_moved")}
    assert line["teacher_start"] == 0.5**6
    assert 0 < line["teacher_moved"] < 1
    resting, said = run(store, tmp_path / "resting", by_length=False)
    warned = [line for line in said if "teacher" in line]
    assert len(warned) == 2
    assert "will still be 99% its start after 6 updates at momentum 0.996 to 1" in warned[0]
    assert "has hardly moved: 99% of its weights are its start's" in warned[1]
    summary = json.loads((resting / "summary.json").read_text())
    assert summary["monitors"]["teacher_start"] == pytest.approx(math.prod(
        1 - 0.004 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)
    ))  # fmt: skip


@pytest.mark.slow
def test_run__says_that_its_features_have_collapsed(
    make_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trunk whose output does not depend on its input, as collapse leaves one."""
    plain = VitTrunk.forward

    def forward(self: VitTrunk, *views: torch.Tensor, **how: object) -> Tokens:
        said = plain(self, *views, **how)  # type: ignore[arg-type]
        return replace(said, cls_BD=0 * said.cls_BD + 1)

    store = make_store("a", 8)
    _, said = run(store, tmp_path / "plain", batch=8, steps=2)
    assert not [line for line in said if "collapsed" in line]
    monkeypatch.setattr(VitTrunk, "forward", forward)
    _, said = run(store, tmp_path / "collapsed", batch=8, steps=2)
    (warned,) = [line for line in said if "collapsed" in line]
    assert "spread 0," in warned


def test_plan__records_what_the_length_has_settled(make_store) -> None:
    store = make_store("a", 8)
    views = views_of("dino", PretrainViews(), "sr-vit-nano")

    def method_of(settings: dict[str, str], **more: object) -> dict[str, object]:
        config = PretrainConfig(**({"encoder": "sr-vit-nano", "batch": 4, "steps": 100} | more))
        return make_plan(config, views, [store], settings).record["dino"]

    assert method_of({})["momentum"] == 0.9
    assert method_of({})["lr"] == 5e-4 * 16
    assert method_of({"momentum": "0.99"})["momentum"] == 0.99
    assert method_of({"momentum": "0.99"})["momentum_end"] == 1.0
    assert method_of({}, lr=1e-3)["lr"] == 1e-3
    assert method_of({}, by_length=False)["momentum"] == 0.996
