"""Top-h attention on the CPU: reference, fast path, dispatch, registration with torch."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from cytofm_kernels import (
    BackendError,
    RelPos,
    TopHError,
    cpu,
    cpu_dense,
    top_h_attention,
    top_h_attention_reference,
)

INF, NAN = float("inf"), float("nan")
ROUNDINGS = 4  # what `Case.worst_error` may come to, in single precision


def qkv(n=20, b=2, heads=2, d=8, dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(b, heads, n, d, generator=gen).to(dtype) for _ in range(3)]


# --- reference -----------------------------------------------------------------------------------


def test_reference__keeps_ties_and_matches_a_hand_worked_row():
    # Scores of the one query: 3, 1, 3, 2. The 2 best are the threes; eq. 5 with h = 3 adds 2.
    q = torch.tensor([[[[1.0]] * 4]])
    k = torch.tensor([[[[3.0], [1.0], [3.0], [2.0]]]])
    v = torch.tensor([[[[1.0], [100.0], [3.0], [5.0]]]])
    two = top_h_attention_reference(q, k, v, 2, scale=1.0)
    assert two.keep_BHNN[0, 0, 0].tolist() == [True, False, True, False]
    assert two.out_BHND[0, 0, 0].item() == 2.0
    one = top_h_attention_reference(q, k, v, 1, scale=1.0)  # a tie: both stay
    assert one.out_BHND[0, 0, 0].item() == 2.0
    first = top_h_attention_reference(q, k, v, 1, scale=1.0, ties="first")
    assert first.out_BHND[0, 0, 0].item() == 1.0
    three = top_h_attention_reference(q, k, v, 3, scale=1.0).out_BHND[0, 0, 0].item()
    assert three == pytest.approx((1 + 3 + 5 * math.exp(-1)) / (2 + math.exp(-1)))


def test_reference__relative_terms_by_hand():
    # Two tokens, one channel. b(0, 1) = 1, else 0; scale 1, h = 2.
    q, k, v = (torch.tensor([[[[a], [b]]]]) for a, b in ((1.0, 2.0), (3.0, 5.0), (7.0, 11.0)))
    bucket = torch.tensor([[0, 1], [0, 0]])
    rel = RelPos(
        bucket=bucket,
        table_q=torch.tensor([[[0.0, 0.25]]]),
        table_k=torch.tensor([[[0.5, -1.0]]]),
        table_v=torch.tensor([[[0.0], [10.0]]]),
    )
    got = top_h_attention_reference(q, k, v, 2, rel=rel, scale=1.0)
    s_00, s_01 = 3.0 + 1 * 0.5, 5.0 + 1 * -1.0 + 5 * 0.25
    a_01 = 1 / (1 + math.exp(s_00 - s_01))
    assert got.attn_BHNN[0, 0, 0, 1].item() == pytest.approx(a_01)
    assert got.out_BHND[0, 0, 0, 0].item() == pytest.approx(7 * (1 - a_01) + a_01 * (11 + 10))


def test_reference__h_of_all_keys_is_dense_attention():
    x = qkv(n=13)
    dense = torch.nn.functional.scaled_dot_product_attention(*x)
    for h in (13, 50):
        torch.testing.assert_close(top_h_attention_reference(*x, h).out_BHND, dense)


def test_reference__gradcheck_with_every_table():
    x = [t.double().requires_grad_() for t in qkv(n=5, b=1, d=2)]
    shapes = ((1, 2, 3), (2, 2, 3), (1, 3, 2))
    tables = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    bucket = torch.arange(25).view(5, 5) % 3

    def call(q, k, v, t_q, t_k, t_v):
        rel = RelPos(bucket=bucket, table_q=t_q, table_k=t_k, table_v=t_v)
        return top_h_attention_reference(q, k, v, 3, rel=rel).out_BHND

    assert torch.autograd.gradcheck(call, (*x, *tables))


# --- the CPU path against float64 ----------------------------------------------------------------


@given(
    n=st.integers(1, 40),
    h=st.integers(1, 44),
    b=st.integers(1, 2),
    d=st.sampled_from([1, 3, 8]),
    n_buckets=st.sampled_from([0, 1, 5]),
    shared=st.booleans(),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    ties=st.sampled_from(["all", "first"]),
    levels=st.sampled_from([1, 2, 64]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_cpu__output_and_gradients_equal_float64(make_case, **draw):
    assert make_case(**draw).worst_error("cpu") < ROUNDINGS


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 197},
        {"n": 197, "n_buckets": 50},
        {"n": 431, "n_buckets": 50, "masked": 0.1},
        {"n": 1025, "heads": 1},
        {"n": 640, "heads": 1, "levels": 1, "d": 2},  # ties in every row, through two levels
    ],
    ids=str,
)
def test_cpu__long_rows_equal_float64(make_case, poison, changes):
    case = make_case(**{"d": 16, "h": 16, **changes})
    assert case.worst_error("cpu") < ROUNDINGS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cpu__half_precision_selects_in_float32(make_case, dtype):
    # Only what is written is rounded to 16 bit, once: half a step at most.
    assert make_case(60, n_buckets=5).worst_error("cpu", dtype) < 0.5


def test_cpu__without_numpy_gives_the_same(make_case, monkeypatch):
    monkeypatch.setattr(cpu, "np", None)
    assert make_case(450, heads=1).worst_error("cpu") < ROUNDINGS


@given(
    n=st.integers(2, 700), h=st.integers(1, 20), seed=st.integers(0, 99), levels=st.integers(1, 400)
)
@settings(max_examples=40, deadline=None)
def test_top_values__is_a_top_h_and_knows_its_ties(n, h, seed, levels):
    gen = torch.Generator().manual_seed(seed)
    s = torch.randint(-levels, levels + 1, (6, n), generator=gen).float()
    s[0, : n // 2] = -INF
    values, index, tied = cpu.top_values(s, h)
    kept = min(h, n)
    assert torch.equal(s.gather(-1, index), values)
    assert all(len(set(row)) == kept for row in index.tolist())
    assert torch.equal(values.sort(-1).values, s.topk(kept, dim=-1).values.sort(-1).values)
    least = values.amin(-1, keepdim=True)
    assert torch.equal(tied, ((s >= least).sum(-1) > kept) & (least[:, 0] > -INF))


def test_cpu__dense_formulas_serve_only_tied_heads(make_case, monkeypatch):
    seen = []
    real = cpu_dense.forward
    monkeypatch.setattr(cpu_dense, "forward", lambda p, g: seen.append(g) or real(p, g))
    q, k, v = qkv(b=1, heads=3)
    k[:, 1] = 1.0  # every key alike: all tie
    top_h_attention(q.requires_grad_(), k, v, 4)
    assert seen == [1]


@given(
    n=st.integers(1, 70),
    h=st.integers(1, 74),
    n_buckets=st.sampled_from([0, 1, 5]),
    shared=st.booleans(),
    value_table=st.booleans(),
    masked=st.sampled_from([0.0, 0.5]),
    ties=st.sampled_from(["all", "first"]),
    levels=st.sampled_from([1, 2, 64]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_cpu__without_gradients_equals_the_reference(make_case, **draw):
    case = make_case(b=2, **draw)
    qkv_ = [x.float() for x in case.qkv]
    rel = case.rel([None if t is None else t.float() for t in case.tables])
    with torch.inference_mode():
        found = top_h_attention(
            *qkv_, case.h, rel=rel, key_mask=case.mask, ties=case.ties, backend="cpu"
        )
    wide = top_h_attention_reference(
        *case.qkv, case.h, rel=case.rel(case.tables), key_mask=case.mask, ties=case.ties
    ).out_BHND
    # Values of up to 3 are averaged, sums of up to 70 terms rounded at random.
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_cpu__short_rows_that_are_not_finite_are_as_with_gradients(bad):
    q, k, v = qkv(n=9)
    k[0, 0, 4, 2] = bad
    with_gradients = top_h_attention(q.clone().requires_grad_(), k, v, 3).detach()
    assert torch.equal(
        torch.nan_to_num(top_h_attention(q, k, v, 3), 7.0), torch.nan_to_num(with_gradients, 7.0)
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("n", [20, 450])
def test_nan_and_inf__poison_their_rows_only(backend, n):
    q, k, v = qkv(n=n, b=1, heads=1)
    q[0, 0, 3, 5] = NAN
    out = top_h_attention(q, k, v, 5, backend=backend)
    assert out[0, 0].isnan().any(-1).nonzero().flatten().tolist() == [3]
    q, k, v = qkv(n=n, b=1, heads=1)
    k[0, 0, 7] = INF
    out = top_h_attention(q.abs(), k, v, 5, backend=backend)
    assert out.isnan().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_masked_image__zero_output_and_gradient(make_case, backend):
    case = make_case(20, b=2, masked=0.3)
    mask = case.mask.clone()
    mask[0] = False
    dtype = torch.float32 if backend == "cpu" else torch.float64
    out, *grads = case.with_(mask=mask).outputs(backend, dtype)
    assert all((x[0] == 0).all() and (x[1] != 0).any() for x in (out, *grads))


def test_gradient__is_zero_for_keys_that_no_row_keeps():
    q, k, v = (x.requires_grad_() for x in qkv(n=30, b=1, heads=1))
    keep = top_h_attention_reference(q, k, v, 2).keep_BHNN
    unused = ~keep.any(-2)[0, 0]
    assert unused.any()
    top_h_attention(q, k, v, 2).square().sum().backward()
    assert (k.grad[0, 0, unused] == 0).all()
    assert (v.grad[0, 0, unused] == 0).all()


def test_strided_and_expanded_inputs__as_contiguous():
    x = torch.randn(2, 20, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    want = top_h_attention(*(t.contiguous() for t in x), 5)
    assert torch.equal(top_h_attention(*x, 5), want)
    q, k, v = qkv(b=1)
    spread = [t.expand(3, -1, -1, -1) for t in (q, k, v)]
    assert torch.equal(top_h_attention(*spread, 5)[2], top_h_attention(q, k, v, 5)[0])


def test_two_runs__bitwise_equal(make_case):
    case = make_case(430, n_buckets=6)
    first, second = (case.outputs("cpu", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_empty_batch__keeps_shape_and_graph():
    q, k, v = (x[:0].requires_grad_() for x in qkv())
    out = top_h_attention(q, k, v, 4)
    assert out.shape == q.shape
    out.sum().backward()
    assert q.grad.shape == q.shape


# --- torch features ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_operator__passes_opcheck():
    q, k, v = (x.requires_grad_() for x in qkv(n=12, b=1))
    bucket = torch.zeros(12, 12, dtype=torch.uint8)
    tables = [torch.randn(s, requires_grad=True) for s in ((1, 8, 2), (2, 8, 2), (1, 2, 8))]
    for extra in ((None,) * 4, (bucket, *tables)):
        arguments = (q, k, v, *extra, None, 5, 0.3, False, "cpu", True)
        torch.library.opcheck(torch.ops.cytofm.top_h_forward, arguments)


def test_compile__one_graph_and_equal(make_case):
    case = make_case(24, n_buckets=5)
    tables = dict(zip(("table_q", "table_k", "table_v"), case.tables, strict=True))

    def call(q, k, v):
        return top_h_attention(q, k, v, 4, rel=RelPos(bucket=case.bucket, **tables)).sin().sum()

    x = [t.requires_grad_() for t in case.qkv]
    want = torch.autograd.grad(call(*x), x)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*x), x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast__casts_qkv_but_selects_in_float32():
    q, k, v = qkv(n=60)
    table = torch.randn(1, 8, 3)
    rel = RelPos(bucket=torch.arange(3600).view(60, 60) % 3, table_k=table)
    with torch.autocast("cpu", torch.bfloat16):
        out = top_h_attention(q, k, v, 5, rel=rel)
    assert out.dtype == torch.bfloat16
    half = [x.bfloat16().float() for x in (q, k, v)]
    want = top_h_attention_reference(*half, 5, rel=rel).out_BHND
    torch.testing.assert_close(out, want.bfloat16(), rtol=1e-2, atol=1e-2)


def test_activation_checkpointing__same_gradients():
    from torch.utils.checkpoint import checkpoint

    x = [t.requires_grad_() for t in qkv()]
    plain = torch.autograd.grad(top_h_attention(*x, 4).square().sum(), x)
    again = checkpoint(top_h_attention, *x, 4, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again.square().sum(), x), plain, strict=True):
        assert torch.equal(a, b)


def test_double_backward__clear_error_but_the_reference_can():
    x = [t.double().requires_grad_() for t in qkv(n=6, b=1, d=2)]
    (grad,) = torch.autograd.grad(top_h_attention(*x, 3).square().sum(), x[:1], create_graph=True)
    with pytest.raises(TopHError, match='backend="reference"'):
        grad.sum().backward()
    out = top_h_attention(*x, 3, backend="reference")
    (grad,) = torch.autograd.grad(out.square().sum(), x[:1], create_graph=True)
    grad.sum().backward()
    assert x[1].grad.abs().sum() > 0


DDP = """
import torch, torch.distributed as dist, torch.multiprocessing as mp
from cytofm_kernels import RelPos, top_h_attention

class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(8, 24)
        self.table = torch.nn.Parameter(torch.randn(1, 4, 2))
    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        bucket = torch.arange(81).view(9, 9) % 2
        return top_h_attention(q, k, v, 3, rel=RelPos(bucket=bucket, table_k=self.table))

def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(1))
    alone, layer = Layer(), Layer()
    ddp = torch.nn.parallel.DistributedDataParallel(layer)
    alone(x).square().mean().backward()
    ddp(x[rank::2]).square().mean().backward()
    for a, b in zip(alone.parameters(), layer.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    import sys
    mp.spawn(work, (sys.argv[1],), nprocs=2)
    print("equal")
"""


@pytest.mark.slow
def test_ddp__averages_to_the_gradients_of_one_process(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "rendezvous")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "equal" in done.stdout, done.stderr[-3000:]


# --- transforms of torch.func --------------------------------------------------------------------


def square_sum(q, k, v, backend="auto"):
    return top_h_attention(q, k, v, 5, backend=backend).square().sum()


def test_torch_func_grad__equals_backward(make_case):
    q, k, v = (x.float() for x in make_case(20, d=16).qkv)
    leaf = q.clone().requires_grad_()
    square_sum(leaf, k, v, backend="cpu").backward()
    got = torch.func.grad(square_sum)(q, k, v)
    torch.testing.assert_close(got, leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("how", ["torch.func", "dual numbers"])
def test_forward_mode__equals_the_slope(make_case, how):
    q, k, v = (x.double() for x in make_case(20, d=16).qkv)
    along = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).view_as(q)
    if how == "torch.func":
        _, slope = torch.func.jvp(lambda x: square_sum(x, k, v), (q,), (along,))
    else:
        with forward_ad.dual_level():
            slope = forward_ad.unpack_dual(square_sum(forward_ad.make_dual(q, along), k, v)).tangent
    (grad,) = torch.autograd.grad(square_sum(leaf := q.clone().requires_grad_(), k, v), leaf)
    assert float(slope) == pytest.approx(float((grad * along).sum()), rel=1e-9)


def test_transform_with_a_named_backend__is_refused_by_name(make_case):
    q, k, v = (x.float() for x in make_case(20, d=16).qkv)
    with pytest.raises(BackendError, match=r"torch\.func transform"):
        torch.func.grad(square_sum)(q, k, v, "cpu")
