"""Check, then time top-h attention beside naive, dense and flex attention. Needs torch only.

    python kernels/bench/bench.py                     # what this machine has
    python kernels/bench/bench.py --tokens 197 1025 --models tiny --rounds 5 --out results/mine

Arms, plain: ours, naive (topk, mask, softmax, matmul), sdpa (dense), flex (dense; it cannot express
a per-row top-h). With iRPE: ours, naive, sdpa (bias built and passed as attn_mask; no top-h, no
value term, so it does less). Every arm of a row sees the same tensors in interleaved rounds.
A failed check ends the run with exit code 1 and no table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cytofm_kernels import (
    RelPos,
    explain,
    last_backend,
    product_buckets,
    top_h_attention,
    top_h_attention_reference,
)

HEADS = {"tiny": 3, "small": 6, "base": 12}
H_KEPT, DIM, N_BUCKETS = 16, 64, 50
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}
Arm = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured arm; times are medians in ms, `spread` is (max - min) / median of the sum."""

    model: str
    tokens: int
    batch: int
    irpe: bool
    arm: str
    forward_ms: float
    backward_ms: float
    spread: float
    peak_forward_mib: float | None
    peak_mib: float | None
    note: str = ""


@dataclass(frozen=True)
class Inputs:
    """Tensors of one row: q, k, v and tables (q, k, v) that require gradients."""

    qkv: list[Tensor]
    tables: list[Tensor]
    bucket: Tensor
    do: Tensor

    def rel(self) -> RelPos:
        """Bind the tables."""
        t_q, t_k, t_v = self.tables
        return RelPos(bucket=self.bucket, table_q=t_q, table_k=t_k, table_v=t_v)


def draw(n: int, batch: int, heads: int, device: str, dtype: torch.dtype) -> Inputs:
    """Draw Gaussian inputs, and buckets of the nearest square grid with prefix tokens."""
    gen = torch.Generator().manual_seed(n)
    shape = (batch, heads, n, DIM)
    q, k, v, do = (torch.randn(shape, generator=gen).to(device, dtype) for _ in range(4))
    side = int((n - 1) ** 0.5)
    bucket = product_buckets((side, side), n - side * side, device=device)
    sizes = ((1, DIM, N_BUCKETS), (1, DIM, N_BUCKETS), (1, N_BUCKETS, DIM))
    tables = [(torch.randn(s, generator=gen) * 0.2).to(device).requires_grad_() for s in sizes]
    return Inputs([x.requires_grad_() for x in (q, k, v)], tables, bucket, do)


def naive(q: Tensor, k: Tensor, v: Tensor, rel: RelPos | None) -> Tensor:
    """Write eq. 5-9 as most code does: N x N maps and torch's topk."""
    s = (q @ k.mT).float()
    if rel is not None:
        s = s + bias(q, k, rel)
    s = s * DIM**-0.5
    t = s.topk(min(H_KEPT, s.shape[-1]), dim=-1).values[..., -1:]
    attn = s.masked_fill(s < t, -torch.inf).softmax(-1)
    out = attn.to(v.dtype) @ v
    if rel is not None and rel.table_v is not None:
        sums = attn.new_zeros(*attn.shape[:-1], N_BUCKETS)
        sums = sums.scatter_add(-1, rel.bucket.long().expand(attn.shape), attn)
        out = out + (sums @ rel.table_v).to(v.dtype)
    return out


def bias(q: Tensor, k: Tensor, rel: RelPos) -> Tensor:
    """Build the N x N relative term of eq. 7 in float32, unscaled."""
    index = rel.bucket.long().expand(*q.shape[:2], -1, -1)
    by_query = (q.float() @ rel.table_k).gather(-1, index)
    return by_query + (k.float() @ rel.table_q).gather(-1, index.mT).mT


def arms(x: Inputs, irpe: bool, flex: bool) -> dict[str, Arm]:
    """Name what is timed on these inputs."""
    q, k, v = x.qkv
    if irpe:
        return {
            "ours": lambda: top_h_attention(q, k, v, H_KEPT, rel=x.rel()),
            "naive": lambda: naive(q, k, v, x.rel()),
            "sdpa": lambda: scaled_dot_product_attention(
                q, k, v, attn_mask=(bias(q, k, x.rel()) * DIM**-0.5).to(q.dtype)
            ),
        }
    by_name: dict[str, Arm] = {
        "ours": lambda: top_h_attention(q, k, v, H_KEPT),
        "naive": lambda: naive(q, k, v, None),
        "sdpa": lambda: scaled_dot_product_attention(q, k, v),
    }
    if flex:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention, dynamic=False)
        by_name["flex"] = lambda: compiled(q, k, v)
    return by_name


def check(x: Inputs, irpe: bool) -> float:
    """Compare output and gradients of ours with float64, given float64's own selection of the same
    numbers; return the worst relative error, ignoring rows whose selection is a matter of rounding.
    """
    rel = x.rel() if irpe else None
    got_out = top_h_attention(*(t[:1] for t in x.qkv), H_KEPT, rel=rel)
    leaves = [t.detach()[:1].double().requires_grad_() for t in x.qkv]
    tables = [t.detach().double().requires_grad_() for t in x.tables]
    ref_rel = Inputs(leaves, tables, x.bucket, x.do).rel() if irpe else None
    ref = top_h_attention_reference(*leaves, H_KEPT, rel=ref_rel)
    scores = ref.attn_BHNN.detach().sort(-1, descending=True).values
    firm = torch.ones_like(scores[..., 0], dtype=torch.bool)
    if scores.shape[-1] > H_KEPT:
        raw = _raw_scores(leaves, ref_rel).sort(-1, descending=True).values
        firm = raw[..., H_KEPT - 1] - raw[..., H_KEPT] > 1e-4 * raw.abs().amax(-1)
    do = x.do[:1] * firm[..., None]
    sources = x.qkv + (x.tables if irpe else [])
    got = torch.autograd.grad(got_out, sources, do)
    want = torch.autograd.grad(ref.out_BHND, leaves + (tables if irpe else []), do.double())
    got_out, want_out = got_out * firm[..., None], ref.out_BHND * firm[..., None]
    pairs = [(got_out, want_out), *zip(got, want, strict=True)]
    errors = [_error(g[: w.shape[0]] if w.dim() == 4 else g, w) for g, w in pairs]
    return max(errors)


def _raw_scores(leaves: list[Tensor], rel: RelPos | None) -> Tensor:
    from cytofm_kernels.reference import scores

    return scores(leaves[0].detach(), leaves[1].detach(), rel, None).detach()


def _error(got: Tensor, want: Tensor) -> float:
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())


def measure(arm: Arm, x: Inputs, device: str) -> tuple[float, float]:
    """Time forward and backward once, in ms: CPU seconds on the CPU, events on a GPU."""
    sources = [t for t in x.qkv + x.tables if t.requires_grad]
    if device == "cpu":
        start = time.process_time()
        out = arm()
        middle = time.process_time()
        torch.autograd.grad(out, sources, x.do, allow_unused=True)
        return (middle - start) * 1e3, (time.process_time() - middle) * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    events[0].record()
    out = arm()
    events[1].record()
    torch.autograd.grad(out, sources, x.do, allow_unused=True)
    events[2].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])


def peak_mib(arm: Arm, x: Inputs, device: str) -> tuple[float | None, float | None]:
    """Measure the most memory beyond the inputs: after forward, and through backward (GPU only)."""
    if device == "cpu":
        return None, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    out = arm()
    forward = torch.cuda.max_memory_allocated() - base
    torch.autograd.grad(out, [*x.qkv, *x.tables], x.do, allow_unused=True)
    return forward / 2**20, (torch.cuda.max_memory_allocated() - base) / 2**20


def bench_rows(
    model: str, n: int, irpe: bool, args: argparse.Namespace, dtype: torch.dtype
) -> list[Row]:
    """Check one setting, then time its arms in interleaved rounds."""
    batch = args.batch or max(1, args.budget // (HEADS[model] * n * n))
    x = draw(n, batch, HEADS[model], args.device, dtype)
    error = check(x, irpe)
    if not error < TOLERANCE[dtype]:
        sys.exit(f"RED: {model} N={n} irpe={irpe}: error {error:.2e} to float64. Nothing reported.")
    by_name = arms(x, irpe, flex=args.flex and not irpe)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in by_name}
    memory = {}
    for name, arm in by_name.items():
        measure(arm, x, args.device)  # warm up, compile
        memory[name] = peak_mib(arm, x, args.device)
    by_name["ours"]()
    note = f"{last_backend()}, error {error:.1e}"
    for _ in range(args.rounds):
        for name, arm in by_name.items():
            times[name].append(measure(arm, x, args.device))
    rows = []
    for name, seen in times.items():
        total = [f + b for f, b in seen]
        rows.append(
            Row(
                model=model,
                tokens=n,
                batch=batch,
                irpe=irpe,
                arm=name,
                forward_ms=median(f for f, _ in seen),
                backward_ms=median(b for _, b in seen),
                spread=(max(total) - min(total)) / median(total),
                peak_forward_mib=memory[name][0],
                peak_mib=memory[name][1],
                note=note if name == "ours" else "",
            )
        )
    return rows


def table(rows: list[Row], about: dict[str, object]) -> str:
    """Format rows as Markdown, with ratios to the dense arm of the same setting."""
    lines = [
        "# " + ", ".join(f"{k}: {v}" for k, v in about.items()),
        "",
        "| model | N | batch | iRPE | arm | forward ms | backward ms | fwd / sdpa | bwd / sdpa"
        " | total / sdpa | spread | peak MiB | note |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    dense = {(r.model, r.tokens, r.irpe): r for r in rows if r.arm == "sdpa"}
    for r in rows:
        base = dense[r.model, r.tokens, r.irpe]
        total = (r.forward_ms + r.backward_ms) / (base.forward_ms + base.backward_ms)
        peak = "" if r.peak_mib is None else f"{r.peak_mib:.1f}"
        lines.append(
            f"| {r.model} | {r.tokens} | {r.batch} | {'yes' if r.irpe else 'no'} | {r.arm} "
            f"| {r.forward_ms:.2f} | {r.backward_ms:.2f} | {r.forward_ms / base.forward_ms:.2f} "
            f"| {r.backward_ms / base.backward_ms:.2f} | {total:.2f} | {r.spread:.0%} | {peak} "
            f"| {r.note} |"
        )
    return "\n".join(lines) + "\n"


def about(args: argparse.Namespace) -> dict[str, object]:
    """Describe device and versions."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    gpu = args.device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
        "isa": "" if gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "clock": "CUDA events" if gpu else "CPU time",
        "dtype": args.dtype,
        "h": H_KEPT,
        "d": DIM,
        "rounds": args.rounds,
        "torch": torch.__version__,
        "triton": version,
        "python": platform.python_version(),
        "backend": explain(args.device, getattr(torch, args.dtype), DIM).reason,
    }


def parse() -> argparse.Namespace:
    """Read the command line; defaults suit the machine."""
    gpu = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--device", default="cuda" if gpu else "cpu")
    p.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    p.add_argument("--tokens", type=int, nargs="+", default=[197, 257, 1025, 4097])
    p.add_argument("--models", nargs="+", default=list(HEADS), choices=list(HEADS))
    p.add_argument("--batch", type=int, default=0, help="0: as many images as --budget allows")
    p.add_argument("--budget", type=int, default=2**30 if gpu else 2**19, help="scores a call")
    p.add_argument("--rounds", type=int, default=25 if gpu else 9)
    p.add_argument("--threads", type=int, default=0, help="CPU threads, 0: torch's choice")
    p.add_argument("--flex", action=argparse.BooleanOptionalAction, default=gpu)
    p.add_argument("--irpe", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--out", type=Path, help="write PREFIX.json and PREFIX.md")
    return p.parse_args()


def main() -> None:
    """Run every setting, print the table, write the files."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype, described = getattr(torch, args.dtype), about(args)
    rows: list[Row] = []
    for model in args.models:
        for n in args.tokens:
            for irpe in (False, True) if args.irpe else (False,):
                rows += bench_rows(model, n, irpe, args, dtype)
    text = table(rows, described)
    print(text)
    if args.out:
        record = {"about": described, "rows": [asdict(r) for r in rows]}
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
