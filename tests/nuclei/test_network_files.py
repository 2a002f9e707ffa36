"""Weight files of InstanSeg and Cellpose: what is read, and what is refused by name."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch

from cytofm_cli.errors import (
    InputError,
    MissingPackageError,
    OutOfMemoryError,
    WeightsError,
)
from cytofm_cli.nuclei.detectors import cellpose, instanseg
from cytofm_cli.nuclei.networks import load_tensors
from cytofm_cli.nuclei.weights import check_whole
from cytofm_cli.registry import detectors


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bomb:
    ran = False

    def __reduce__(self):
        return (setattr, (Bomb, "ran", True))


def test_load_tensors__runs_no_code_and_names_the_file(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"model_state_dict": {}, "x": Bomb()}, path)
    with pytest.raises(WeightsError, match=r"bomb\.pth"):
        load_tensors(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"bomb\.pth"):
        load_tensors(path)
    assert not Bomb.ran
    for content in (b"", b"\0" * 100, b"PK\x03\x04 no zip"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"bomb\.pth"):
            load_tensors(path)
    path.write_text("hello")  # a KeyError inside, which says nothing
    with pytest.raises(WeightsError, match="not a readable file of tensors"):
        load_tensors(path)


def test_check_whole__one_changed_byte_of_a_tensor_and_a_cut_end(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(1000.0)}, path)
    check_whole(path)
    data = path.read_bytes()
    at = data.index(np.float32(500).tobytes() + np.float32(501).tobytes())
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    assert load_tensors(path)["w"][500] != 500  # PyTorch does not notice
    with pytest.raises(WeightsError, match=r"w\.pth: damaged weight file: the checksum of 'w/data"):
        check_whole(path)
    path.write_bytes(data[:-30])
    with pytest.raises(WeightsError, match="it is cut or damaged"):
        check_whole(path)
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    check_whole(path)  # no archive: nothing can be told


@pytest.mark.parametrize("name", ["cellvit", "instanseg"])
def test_missing_weights__are_an_error_and_never_a_download(name, tmp_path):
    plugin = detectors.load(name)
    with pytest.raises(WeightsError, match="needs a weight file"):
        plugin.make()
    with pytest.raises(WeightsError, match="no such file"):
        plugin.make(plugin.config(weights=tmp_path / "none.pt"))


def test_instanseg__out_of_memory_is_no_fault_of_the_file(tmp_path):
    detector = instanseg.InstansegDetector(
        instanseg.InstansegConfig(weights=scripted(TwoMaps(0.5), tmp_path / "m.pt"), device="cpu")
    )

    def full(_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    detector.module = full
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(OutOfMemoryError, match="instanseg"):
        detector.detect(noise, 0.5)


# --- InstanSeg ------------------------------------------------------------------------------


class TwoMaps(torch.nn.Module):
    """Nuclei where the normalised image is dark, and a second map that must be ignored."""

    def __init__(self, mpp: float):
        super().__init__()
        self.pixel_size = mpp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dark = (x.mean(1, keepdim=True) < 0.5).float()
        return torch.cat([dark * 5, torch.ones_like(dark)], dim=1)


class Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(path)
    return path


def test_instanseg__resolution_of_the_model_and_first_map(tmp_path):
    path = scripted(TwoMaps(0.5), tmp_path / "instanseg.pt")
    detector = instanseg.InstansegDetector(instanseg.InstansegConfig(weights=path, device="cpu"))
    image = np.full((100, 140, 3), 220, np.uint8)
    image[40:60, 80:120] = 60  # 20 x 40 px of 0.25 µm: 50 µm²
    table = detector.detect(image, 0.25).validate()
    np.testing.assert_allclose(table.xy_px0, [[100, 50]])
    np.testing.assert_allclose(table.area_um2, [50])
    np.testing.assert_allclose(table.polygon(0).max(0), [120, 60], atol=1)


def test_normalise__percentiles_per_channel():
    ramp = np.linspace(0, 250, 10_001).reshape(-1, 1, 1) * [1, 0.5, 0]
    scaled = instanseg.normalise(np.ascontiguousarray(ramp, dtype=np.float32))
    np.testing.assert_allclose(scaled[[10, -11], 0, :2], [[0, 0], [1, 1]], atol=1e-3)
    assert np.isfinite(scaled).all() and (scaled[..., 2] == 0).all()


def test_instanseg__refusals(tmp_path):
    def make(path, **settings):
        return instanseg.InstansegDetector(
            instanseg.InstansegConfig(weights=path, device="cpu", **settings)
        )

    torch.save({"w": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(WeightsError, match="not a TorchScript"):
        make(tmp_path / "state.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="not a TorchScript"):
        make(tmp_path / "pickle.pt")
    wrong = scripted(Wrong(), tmp_path / "wrong.pt")
    with pytest.raises(InputError, match="pixel_size"):
        make(wrong)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(WeightsError, match="no label map"):
        make(wrong, model_mpp=0.5).detect(noise, 0.5)
    data = wrong.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        make(tmp_path / "cut.pt")


# --- Cellpose: the guards -------------------------------------------------------------------


def test_cellpose__a_missing_file_never_reaches_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(cellpose, "_open_model", lambda *_: pytest.fail("package was called"))
    for config in (cellpose.CellposeConfig(),
                   cellpose.CellposeConfig(weights=tmp_path / "cpsam_v2")):  # fmt: skip
        with pytest.raises(WeightsError):
            cellpose.CellposeDetector(config)
    torch.save({"encoder.x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(WeightsError, match="3 tensors are missing"):
        cellpose.CellposeDetector(cellpose.CellposeConfig(weights=tmp_path / "other"))


def test_cellpose__a_partly_fitting_file_is_refused(tmp_path, monkeypatch):
    net = torch.nn.Linear(2, 2)
    model = type("Model", (), {"net": net})
    monkeypatch.setattr(cellpose, "_open_model", lambda *_: model)
    path = tmp_path / "cpsam"
    torch.save({key: torch.ones(1) for key in cellpose.EXPECTED_KEYS}, path)
    with pytest.raises(WeightsError, match="2 tensors are missing"):
        cellpose.CellposeDetector(cellpose.CellposeConfig(weights=path, device="cpu"))


def test_cellpose__without_the_package_the_extra_is_named():
    try:
        detectors.load("cellpose")
    except MissingPackageError as error:
        assert "cytofm[cellpose]" in str(error.hint)
