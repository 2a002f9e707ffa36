"""Which backend serves a call, why, and which arguments are refused."""

import subprocess
import sys

import pytest
import torch

from cytofm_kernels import (
    BackendError,
    RelPos,
    TopHError,
    dispatch,
    explain,
    last_backend,
    top_h_attention,
)


def qkv():
    return list(torch.randn(3, 2, 2, 20, 8, generator=torch.Generator().manual_seed(0)))


def test_explain__cpu_and_the_path_that_ran():
    assert explain("cpu").backend == "cpu"
    top_h_attention(*qkv(), 4)
    assert last_backend() == "cpu"
    top_h_attention(*qkv(), 4, backend="reference")
    assert last_backend() == "reference"


@pytest.mark.parametrize(
    ("capability", "backend"),
    [((9, 0), "triton"), ((8, 0), "triton"), ((7, 5), "reference"), ((13, 7), "reference")],
)
def test_explain__unknown_gpu_gets_the_reference_with_the_reason(monkeypatch, capability, backend):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    choice = explain("cuda", torch.bfloat16, 64)
    assert choice.backend == backend
    assert ("Test GPU" if backend == "triton" else "capability") in choice.reason


@pytest.mark.parametrize(
    ("dtype", "dim", "reason"),
    [(torch.float64, 64, "float64"), (torch.bfloat16, 160, "160 channels")],
)
def test_explain__what_the_kernels_do_not_cover(dtype, dim, reason):
    assert reason in explain("cuda", dtype, dim).reason
    assert not explain("cuda", dtype, dim).fused


def test_explain__without_triton(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda _: None)
    assert explain("cuda", torch.float32, 64).reason == "triton is not installed"


def test_named_backend__serves_or_raises(monkeypatch):
    with pytest.raises(BackendError, match="backend"):
        top_h_attention(*qkv(), 4, backend="cuda")
    meta = [x.to("meta") for x in qkv()]
    with pytest.raises(BackendError, match="meta"):
        top_h_attention(*meta, 4, backend="cpu")
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    with pytest.raises(BackendError, match="triton"):
        top_h_attention(*qkv(), 4, backend="triton")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"h": 0}, "h is 0"),
        ({"q": torch.zeros(2, 2, 20, 8, dtype=torch.float64)}, "dtypes"),
        ({"q": torch.zeros(2, 2, 19, 8)}, "shapes"),
        ({"k": torch.zeros(2, 2, 20, 8, device="meta")}, "meta"),
        ({"scale": 0.0}, "scale"),
        ({"ties": "some"}, "ties"),
        ({"key_mask": torch.ones(2, 19, dtype=torch.bool)}, "key_mask"),
        ({"key_mask": torch.ones(2, 20)}, "key_mask"),
        ({"rel": RelPos(bucket=torch.zeros(19, 19, dtype=torch.uint8))}, "prefix"),
        ({"rel": (1, 7, 3)}, "table_k"),
        ({"rel": (3, 8, 3)}, "table_k"),
    ],
)
def test_bad_arguments__clear_error(change, match):
    q, k, v = qkv()
    change = dict(change)
    if isinstance(change.get("rel"), tuple):
        bucket = torch.zeros(20, 20, dtype=torch.uint8)
        change["rel"] = RelPos(bucket=bucket, table_k=torch.zeros(change["rel"]))
    call = {"h": 4, **change}
    tensors = [call.pop(name, x) for name, x in (("q", q), ("k", k), ("v", v))]
    with pytest.raises(TopHError, match=match):
        top_h_attention(*tensors, **call)


def test_import__needs_neither_triton_nor_the_application():
    code = "import sys, cytofm_kernels; print(sorted({'triton', 'cytofm_cli'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
