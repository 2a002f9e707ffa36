"""One rule for `--device`, on machines with no, one and several GPUs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cytofm_cli.errors import UsageError
from cytofm_cli.work import device as module
from cytofm_cli.work.device import OnGpus, check_device, find_device, own_gpu


@pytest.fixture(params=[0, 1, 3])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let torch see so many GPUs; nothing is computed on them."""
    number: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    return number


def test_find_device__auto_takes_the_gpu_if_there_is_one(gpus: int) -> None:
    assert find_device("auto") == torch.device("cuda" if gpus else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("gpus", [1, 3], indirect=True)
def test_find_device__a_gpu_by_number(gpus: int) -> None:
    assert find_device("cuda") == torch.device("cuda")  # the current one
    assert find_device(f"cuda:{gpus - 1}") == torch.device("cuda", gpus - 1)
    with pytest.raises(UsageError) as caught:
        find_device(f"cuda:{gpus}")
    there = {1: "there is one GPU here", 3: "there are 3 GPUs here, cuda:0 to cuda:2"}[gpus]
    assert caught.value.message == f"--device cuda:{gpus}: {there}."


@pytest.mark.parametrize("gpus", [3], indirect=True)
def test_find_device__of_several_processes_each_takes_its_own(gpus: int) -> None:
    for name in ("auto", "cuda"):
        assert [find_device(name, rank=r).index for r in range(3)] == [0, 1, 2]
        with pytest.raises(UsageError, match="cuda:3: there are 3 GPUs"):
            find_device(name, rank=3)
    assert find_device("cuda:1", rank=2) == torch.device("cuda", 1)
    assert find_device("cpu", rank=2) == torch.device("cpu")


@pytest.mark.parametrize("gpus", [3], indirect=True)
@pytest.mark.parametrize(("slot", "n", "number"), [(0, 3, 0), (2, 3, 2), (2, 2, 0), (None, 2, 0)])
def test_on_gpus__each_worker_has_its_own_in_turns(
    gpus: int, monkeypatch: pytest.MonkeyPatch, slot: int | None, n: int, number: int
) -> None:
    monkeypatch.setattr(module, "_shared_gpus", None)
    monkeypatch.setattr(module, "slot", lambda: slot)
    assert own_gpu() is None
    devices = OnGpus(find_device, n)
    assert devices("auto") == devices("cuda") == torch.device("cuda", number)
    assert devices("cuda:1") == torch.device("cuda", 1)
    assert devices("cpu") == torch.device("cpu")


def test_on_gpus__fewer_than_asked_for_end_all_slides(
    gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_shared_gpus", None)
    with pytest.raises(UsageError, match="--gpus 4: there") as caught:
        OnGpus(find_device, 4)("auto")
    assert caught.value.of_all_slides
    assert own_gpu() is None


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_find_device__no_gpu_is_told_with_a_way_out(gpus: int, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: there is no GPU here") as caught:
        find_device(name)
    assert caught.value.hint == "--device cpu"


@pytest.mark.parametrize("name", ["banana", "", "cuda:x", "cuda:-1", "Auto"])
def test_find_device__unknown_names_are_refused(gpus: int, name: str) -> None:
    with pytest.raises(UsageError, match="no device is called") as caught:
        find_device(name)
    assert "auto, cpu, cuda" in (caught.value.hint or "")
    with pytest.raises(UsageError):
        check_device(name)


@pytest.mark.parametrize("name", ["meta", "xla"])
def test_find_device__what_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' cannot be used here"):
        find_device(name)


def test_check_device__loads_no_torch_for_auto_and_cpu() -> None:
    script = (
        "import sys; from cytofm_cli.work.device import check_device\n"
        "check_device('auto'); check_device('cpu'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
