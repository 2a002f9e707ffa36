"""VPU features: the loss must find what only the worst class has, without leaking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cytofm_cli.config import resolve
from cytofm_cli.mil import vpu
from cytofm_cli.mil.artefacts import load_model
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.base import seeded
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.run import train_run
from cytofm_cli.mil.vpu import Instances, VpuNet, train_vpu


def slides(*bags: Tensor) -> list[Instances]:
    return [lambda bag=bag: bag for bag in bags]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpu, "HIDDEN", 32)
    monkeypatch.setattr(vpu, "LR", 1e-2)
    monkeypatch.setattr(vpu, "EPOCHS", 6)


@pytest.mark.usefixtures("quick")
def test_train_vpu__phi_tells_benign_instances_among_the_unlabelled() -> None:
    with seeded(0):
        benign = [torch.randn(200, 6) for _ in range(4)]
        # A slide of cancer is mostly benign: one instance in four stands out.
        mixed = [torch.randn(200, 6) for _ in range(4)]
        for bag in mixed:
            bag[:50, 0] += 6
        net = VpuNet(6, 8)
        history = train_vpu(
            net,
            slides(*benign[:3]),
            slides(*mixed[:3]),
            (slides(benign[3]), slides(mixed[3])),
        )
    phi = net.log_phi(mixed[3]).exp()
    assert phi[50:].mean() > phi[:50].mean() + 0.4
    assert len(history) == 6
    assert not any(p.requires_grad for p in net.parameters())
    kept = vpu.variational_loss(net.log_phi(benign[3]), net.log_phi(mixed[3]))
    assert float(kept) == pytest.approx(min(history), abs=1e-6)


def test_draw__every_slide_counts_the_same() -> None:
    with seeded(1):
        small, large = torch.zeros(2, 1), torch.ones(5000, 1)
        drawn = torch.cat([vpu._draw(slides(small, large)) for _ in range(40)])
    assert drawn.shape == (4000, 1)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.04)


def bags_and_labels(folder: Path, shift: Sequence[int]) -> tuple[list[Bag], Path]:
    rng = np.random.default_rng(0)
    bags = []
    for i, label in enumerate(shift):
        x = rng.normal(size=(8, 6)).astype(np.float32)
        x[:3, 0] += 6.0 * label
        bags.append(Bag(f"s{i:02d}", x))
    path = folder / "labels.csv"
    rows = [f"s{i:02d},{label},p{i // 2}" for i, label in enumerate(shift)]
    path.write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return bags, path


def few(**settings: object) -> MilConfig:
    plain = {"folds": 2, "seeds": 1, "epochs": 8, "lr": 2e-2, "inner_folds": 3, "bootstrap": 200}
    return resolve(MilConfig, "mil", {**plain, "workers": 1, "vpu": 8, **settings})


@pytest.mark.usefixtures("quick")
def test_train_run__vpu_features_are_part_of_the_model_and_of_no_test_slide(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(24)]
    bags, table = bags_and_labels(tmp_path, labels)
    found = train_run(few(), bags, table, tmp_path / "run").metrics
    assert found["auc"]["value"] > 0.8
    model, card = load_model(tmp_path / "run" / "models" / "fold0_seed0.safetensors")
    assert card.vpu == 8
    assert model.head.project[0].in_features == 8
    # Features of the test slides may change at will: the model of that fold stays the same.
    rows = (tmp_path / "run" / "splits.csv").read_text().splitlines()[1:]
    tested = {row.split(",")[0] for row in rows if row.split(",")[2] == "test"}
    other = [Bag(b.slide_id, b.features_ND - 9) if b.slide_id in tested else b for b in bags]
    again = few(splits=str(tmp_path / "run" / "splits.csv"))
    train_run(again, other, table, tmp_path / "other")
    first, second = (
        load_model(tmp_path / run / "models" / "fold0_seed0.safetensors")[0].state_dict()
        for run in ("run", "other")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
