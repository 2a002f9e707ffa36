"""Cases for Triton's interpreter; run by test_top_h_kernels.py in a process of its own."""

import warnings

import pytest
import torch

from cytofm_kernels import RelPos, launch, launch_pairs, plan, top_h_attention

pytestmark = pytest.mark.filterwarnings("ignore")  # NumPy's, on NaN rows
ROUNDINGS = 4  # what `Case.worst_error` may come to, in single precision
warnings.simplefilter("ignore")


@pytest.fixture(autouse=True)
def _poisoned(poison):
    torch.manual_seed(0)


def streaming(monkeypatch, block_n=16):
    small = plan.ForwardPlan(block_m=64, chunks=(), block_n=block_n)
    monkeypatch.setattr(launch, "forward_plan", lambda *_, **__: small)


@pytest.mark.parametrize("n", [1, 15, 17, 65])
@pytest.mark.parametrize("levels", [1, 64])
def test_row_and_dense_backward__equal_float64(make_case, monkeypatch, n, levels):
    monkeypatch.setattr(launch, "dense_backward", lambda *_: True)
    case = make_case(n, levels=levels, d=16, h=7, masked=0.2, seed=n, heads=1)
    assert case.worst_error("triton") < ROUNDINGS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [16, 24])
def test_half_precision__close_to_float64(make_case, dtype, d):
    assert make_case(33, d=d, h=5).worst_error("triton", dtype) < 1  # weights are rounded too


@pytest.mark.parametrize("ties", ["all", "first"])
@pytest.mark.parametrize("levels", [1, 64])
def test_stream__equal_float64(make_case, monkeypatch, ties, levels):
    streaming(monkeypatch)
    monkeypatch.setattr(launch, "dense_backward", lambda *_: True)
    case = make_case(70, levels=levels, d=16, h=9, ties=ties, masked=0.1, heads=1)
    assert case.worst_error("triton") < ROUNDINGS


def test_stream__one_group_holds_the_whole_top(make_case, monkeypatch):
    # Keys 0, 16, 32, ... fall in one group of 16; its four best are not the top six.
    streaming(monkeypatch)
    monkeypatch.setattr(launch, "dense_backward", lambda *_: True)
    case = make_case(112, d=16, h=6, heads=1)
    q, k, v = case.qkv
    k = k.clone()
    k[:, :, ::16] = q.mean(2, keepdim=True).sign() * torch.arange(2, 9)[:, None]
    case = case.with_(qkv=(q.abs(), k.abs(), v))
    assert case.worst_error("triton") < ROUNDINGS


@pytest.mark.parametrize("ties", ["all", "first"])
def test_all_equal_rows__ties_are_kept_or_cut(make_case, ties):
    case = make_case(20, d=16, h=5, ties=ties, heads=1)
    q, k, v = case.qkv
    case = case.with_(qkv=(q, torch.ones_like(k), v))
    assert case.worst_error("triton") < ROUNDINGS


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("levels", [2, 64])
def test_irpe__equals_float64(make_case, shared, levels):
    case = make_case(18, d=16, h=3, n_buckets=6, shared=shared, levels=levels, masked=0.2)
    assert case.worst_error("triton") < ROUNDINGS


def test_irpe_without_value_table__equals_float64(make_case):
    case = make_case(18, d=16, h=3, n_buckets=6, value_table=False)
    assert case.worst_error("triton") < ROUNDINGS


def test_irpe_stream__equals_float64(make_case, monkeypatch):
    streaming(monkeypatch)
    assert make_case(37, d=16, h=4, n_buckets=6, heads=1).worst_error("triton") < ROUNDINGS


def test_sparse_backward__walks_over_empty_groups_of_words(make_case, monkeypatch):
    # 1060 tokens are 34 words, two groups; most words of a row are empty.
    streaming(monkeypatch, block_n=128)
    monkeypatch.setattr(launch_pairs, "pair_rows", lambda *_: 512)
    monkeypatch.setattr(launch_pairs, "TRANSPOSE_KEYS", 1024)
    monkeypatch.setattr(launch_pairs, "SUMMARY_ROWS", 512)
    case = make_case(1060, d=16, h=2, heads=1, levels=64)
    assert case.worst_error("triton") < ROUNDINGS


@pytest.mark.parametrize("h", [1, 16, 17, 40])
def test_extreme_h__equals_float64(make_case, h):
    assert make_case(17, d=16, h=h, heads=1).worst_error("triton") < ROUNDINGS


def test_large_channels_in_float32__values_by_pairs(make_case):
    assert make_case(20, d=80, h=4, heads=1).worst_error("triton") < ROUNDINGS


@pytest.mark.parametrize("n", [20, 70])
def test_nan_query__poisons_its_row_only(make_case, monkeypatch, n):
    if n == 70:
        streaming(monkeypatch)
    q, k, v = (x.float() for x in make_case(n, d=16, heads=1).qkv)
    q[0, 0, 3, 5] = float("nan")
    out = top_h_attention(q, k, v, 5, backend="triton")
    assert out[0, 0].isnan().any(-1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("n", [20, 70])
def test_infinite_key__poisons_the_rows_that_it_wins(make_case, monkeypatch, n):
    if n == 70:
        streaming(monkeypatch)
    q, k, v = (x.float() for x in make_case(n, d=16, heads=1).qkv)
    q = q.abs() + 1
    k[0, 0, 7] = float("inf")
    assert top_h_attention(q, k, v, 5, backend="triton").isnan().all()


def test_fully_masked_image__zero_output_and_gradient(make_case):
    case = make_case(20, b=2, d=16, masked=0.3)
    mask = case.mask.clone()
    mask[0] = False
    out, *grads = case.with_(mask=mask).outputs("triton", torch.float32)
    assert all((x[0] == 0).all() and (x[1] != 0).any() for x in (out, *grads))


def test_strided_inputs__as_contiguous(make_case):
    case = make_case(20, b=2, d=16)
    qkv = torch.stack([x.transpose(1, 2) for x in case.qkv], dim=2).float()  # (B, N, 3, H, d)
    views = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    dense = [x.contiguous() for x in views]
    got = top_h_attention(*views, 5, backend="triton")
    assert torch.equal(got, top_h_attention(*dense, 5, backend="triton"))
    swapped = [x.mT.contiguous().mT for x in dense]  # channels are not next to each other
    assert torch.equal(got, top_h_attention(*swapped, 5, backend="triton"))


def test_two_runs__bitwise_equal(make_case):
    case = make_case(18, d=16, h=3, n_buckets=6, heads=1)
    first, second = (case.outputs("triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batch_order__does_not_matter(make_case):
    q, k, v = (x.float() for x in make_case(20, b=3, d=16).qkv)
    out = top_h_attention(q, k, v, 5, backend="triton")
    turned = top_h_attention(q.flip(0), k.flip(0), v.flip(0), 5, backend="triton")
    assert torch.equal(out, turned.flip(0))


@pytest.mark.parametrize("table", ["table_q", "table_k", "table_v"])
@pytest.mark.parametrize("wrong", [-1, 6, 77, -(2**31), 2**31 - 1])
def test_bucket_outside_of_the_table__shows_as_nan(make_case, table, wrong):
    case = make_case(20, d=16, n_buckets=6)
    leaves = [x.float().requires_grad_() for x in case.qkv]
    bucket = case.bucket.to(torch.int32)
    bucket[4, :] = wrong
    rows = dict(zip(("table_q", "table_k", "table_v"), case.tables, strict=True))
    rel = RelPos(bucket=bucket, **{table: rows[table].float()})
    out = top_h_attention(*leaves, 5, rel=rel, backend="triton")
    assert out[0, 0].isnan().any(-1).nonzero().flatten().tolist() == [4]
    (dq,) = torch.autograd.grad(out, leaves[:1], torch.ones_like(out))
    assert dq[0, 0].isnan().any(-1).nonzero().flatten().tolist() == [4]


def test_operator__passes_opcheck_on_the_kernels(make_case):
    q, k, v = (x.float().requires_grad_() for x in make_case(18, d=16, heads=1).qkv)
    arguments = (q, k, v, None, None, None, None, None, 5, 0.25, False, "triton", True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.cytofm.top_h_forward, arguments, test_utils=tests)
