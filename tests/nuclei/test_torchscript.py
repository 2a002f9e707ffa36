"""A TorchScript file that would write files is refused before any of it runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from cytofm_cli.errors import WeightsError
from cytofm_cli.nuclei.detectors.instanseg import load_torchscript
from cytofm_cli.nuclei.torchscript import reaching, refuse_reaching


class Saves(torch.nn.Module):
    """Writes a file when it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written-by-a-model")
        return x


class Harmless(torch.nn.Module):
    """Has words in its text that are calls elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("torch.save ops.image.write_file")
        return x + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_load__a_script_that_writes_files_is_refused_and_another_is_not(tmp_path: Path) -> None:
    for name, module in (("bad", Saves()), ("good", Harmless())):
        torch.jit.script(module).save(tmp_path / name)
    with pytest.raises(WeightsError, match="its code calls save, which can write files"):
        load_torchscript(tmp_path / "bad", torch.device("cpu"))
    model = load_torchscript(tmp_path / "good", torch.device("cpu"))
    assert model(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('torch.save(x, "f")', ["save"]),
        ('torch . \\\n save(x, "f")', ["save"]),
        ('t = torch\nt.save(x, "f")', ["save"]),
        ('torch.from_file("f", True, 10)', ["from_file"]),
        ("ops.image.write_png(x)", ["ops.image.write_png"]),
        ("o = ops\no.image.decode(x)", ["ops by another name"]),
        ("s = __torch__.torch.classes.c10d.TCPStore", ["torch.classes.c10d"]),
        ("ops.prim.rpc_sync(a)", ["rpc_sync"]),
        ("ops.torchvision.nms(a, b, 0.5)", []),
        ("torch.add(x, 1)  # torch.save\n", []),
        ("'torch.save'; '''torch.save'''", []),
        ("save = 3", []),
        ("c: __torch__.torch.classes.quantized.Conv2dPackedParamsBase", []),
    ],
)
def test_reaching__finds_calls_and_no_text(code: str, named: list[str]) -> None:
    assert list(reaching(code)) == named


def test_refuse__looks_at_each_of_two_members_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for code in ("torch.save(x)", "torch.add(x, x)"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_args, **_kwargs: None)
                archive.writestr("m/code/__torch__.py", code)
    with pytest.raises(WeightsError, match="save"):
        refuse_reaching(tmp_path / "m.pt")
