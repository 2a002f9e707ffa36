"""Compile kernels for a GPU without having one, and read what the machine code says.

Triton's wheel brings ptxas and cuobjdump; `python -m cytofm_kernels.aot` prints the table of every
planned configuration as JSON. Unset TRITON_INTERPRET first.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_kernels.configs import KernelConfig

SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # a block's most; the compiler does not check


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one compiled configuration needs; loops are innermost ones, in lane instructions."""

    name: str
    capability: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    spills: int  # local loads and stores in the machine code
    tensor_core: str  # the kind of matrix instruction, "" if none
    loops_per_score: tuple[float, ...]

    @property
    def fits(self) -> bool:
        """Tell whether a block launches, without spilled registers."""
        return (
            self.stack_bytes == 0
            and self.spills == 0
            and self.shared_bytes <= SHARED_LIMIT_BYTES[self.capability]
        )


def compile_config(config: KernelConfig, capability: int) -> Report:
    """Compile one configuration for sm_80 or sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = config.kernel()
    names = kernel.arg_names
    signature = {n: config.types.get(n, "constexpr") for n in names}
    constants = {(names.index(n),): v for n, v in config.constants.items() if n in names}
    aligned = [(i,) for i, n in enumerate(names) if n in config.types and n in config.aligned]
    attrs = {i: [["tt.divisibility", 16]] for i in aligned}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attrs),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    return _read(config, capability, compiled.asm["cubin"], compiled.metadata.shared)


def _read(config: KernelConfig, capability: int, cubin: bytes, shared_bytes: int) -> Report:
    usage = _tool("cuobjdump", "-res-usage", cubin=cubin)
    sass = _tool("cuobjdump", "-sass", cubin=cubin)
    lines = [x for x in sass.splitlines() if re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+[@A-Z]", x)]
    return Report(
        name=config.name,
        capability=capability,
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        shared_bytes=shared_bytes,
        spills=sum(bool(re.search(r"\b(LDL|STL)\b", x)) for x in lines),
        tensor_core=next((k for k in ("HGMMA", "HMMA") if k in sass), ""),
        loops_per_score=_loops(lines, config.scores_per_lane),
    )


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match.group(1)) if match else 0


def _loops(lines: list[str], scores_per_lane: float) -> tuple[float, ...]:
    """Count the instructions of innermost loops, a score; backward branches delimit loops."""
    address = {
        int(m.group(1), 16): i
        for i, x in enumerate(lines)
        if (m := re.search(r"/\*([0-9a-f]{4,})\*/", x))
    }
    spans = []
    for i, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line)
        target = address.get(int(match.group(1), 16)) if match else None
        if target is not None and target < i:
            spans.append((target, i))
    inner = [s for s in spans if not any(s[0] <= o[0] and o[1] <= s[1] and o != s for o in spans)]
    return tuple(round((b - a + 1) / scores_per_lane, 2) for a, b in inner)


def _tool(name: str, flag: str, *, cubin: bytes) -> str:
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run(  # noqa: S603 - a tool of the installed triton package
            [str(folder / name), flag, str(path)], capture_output=True, text=True, check=True
        )
    return done.stdout + done.stderr


def as_row(report: Report) -> Mapping[str, Any]:
    """Flatten a report for JSON."""
    from dataclasses import asdict

    return {**asdict(report), "fits": report.fits}


def main() -> None:
    """Compile every shipped configuration for sm_80 and sm_90; print JSON."""
    import json
    import sys

    import triton

    from cytofm_kernels.configs import shipped

    rows = [as_row(compile_config(c, cap)) for cap in (80, 90) for c in shipped(cap)]
    json.dump({"triton": triton.__version__, "rows": rows}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
