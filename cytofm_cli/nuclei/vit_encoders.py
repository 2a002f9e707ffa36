"""The two Vision Transformers under CellViT, with taps after chosen blocks.

Letters: B images, C colours, H W pixels or grid, N tokens, D width, G heads, d width of a head,
S side of a window.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from torch import Tensor, nn

PATCH: Final = 16


class PlainEncoder(nn.Module):
    """ViT with a class token and a learned grid of positions, as DINO trains it.

    `forward` returns the head's logits (B, out) and four taps (B, D, H / 16, W / 16).
    """

    GRID: Final = 14  # of the positions, 224 / 16

    def __init__(self, dim: int, depth: int, heads: int, taps: tuple[int, ...], n_out: int) -> None:
        super().__init__()
        self.taps = taps
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.GRID**2 + 1, dim))
        self.patch_embed = _Patches(dim)
        self.blocks = nn.ModuleList([_PlainBlock(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, n_out)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder; see the class."""
        grid_BDHW = self.patch_embed(x_BCHW)
        B, D, H, W = grid_BDHW.shape
        x_BND = torch.cat([self.cls_token.expand(B, -1, -1), grid_BDHW.flatten(2).mT], dim=1)
        x_BND = x_BND + self._positions(H, W)
        tapped = []
        for number, block in enumerate(self.blocks, start=1):
            x_BND = block(x_BND)
            if number in self.taps:
                tapped.append(x_BND[:, 1:].mT.reshape(B, D, H, W))
        return self.head(self.norm(x_BND)[:, 0]), tapped

    def _positions(self, H: int, W: int) -> Tensor:
        if (H, W) == (self.GRID, self.GRID):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].mT.reshape(1, -1, self.GRID, self.GRID)
        # DINO's 0.1 keeps the size from being rounded down; it also moves the sampling points,
        # so leaving it out would change the numbers.
        scale = ((H + 0.1) / self.GRID, (W + 0.1) / self.GRID)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).mT], dim=1)


class SamEncoder(nn.Module):
    """ViT with windowed attention and decomposed relative positions, as in Segment Anything.

    `forward` returns the mean of the neck's output (B, 256) and four taps (B, D, H/16, W/16).
    """

    NECK: Final = 256
    GRID: Final = 64  # of the positions, 1024 / 16
    WINDOW: Final = 14

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        taps: tuple[int, ...],
        global_blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.taps = taps
        self.patch_embed = _Patches(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.GRID, self.GRID, dim))
        self.blocks = nn.ModuleList(
            [
                _SamBlock(dim, heads, self.GRID if i in global_blocks else self.WINDOW, self.GRID)
                for i in range(depth)
            ]
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, self.NECK, 1, bias=False),
            _ChannelNorm(self.NECK),
            nn.Conv2d(self.NECK, self.NECK, 3, padding=1, bias=False),
            _ChannelNorm(self.NECK),
        )

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder; see the class."""
        x_BHWD = self.patch_embed(x_BCHW).permute(0, 2, 3, 1)
        _, H, W, _ = x_BHWD.shape
        # CellViT cuts the positions' top-left corner out; it does not shrink the grid.
        x_BHWD = x_BHWD + self.pos_embed[:, :H, :W]
        tapped = []
        for number, block in enumerate(self.blocks, start=1):
            x_BHWD = block(x_BHWD)
            if number in self.taps:
                tapped.append(x_BHWD.permute(0, 3, 1, 2))
        neck_BCHW: Tensor = self.neck(x_BHWD.permute(0, 3, 1, 2))
        return neck_BCHW.mean((2, 3)), tapped


class _Patches(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.proj(x_BCHW)
        return y


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        q, k, v = self.qkv(x_BND).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y_BGNd = F.scaled_dot_product_attention(q, k, v)
        y_BND: Tensor = self.proj(y_BGNd.transpose(1, 2).reshape(B, N, D))
        return y_BND


class _PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _PlainAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        y_BND: Tensor = x_BND + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_BND))))
        return y_BND


class _SamAttention(nn.Module):
    """Attention over a grid, with a learned bias for the row and the column distance."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        B, H, W, D = x_BHWD.shape
        qkv = self.qkv(x_BHWD).reshape(B, H * W, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        grid = q.reshape(B, self.heads, H, W, -1)
        rows = torch.einsum("bghwd,hkd->bghwk", grid, _between(self.rel_pos_h, H))
        columns = torch.einsum("bghwd,wkd->bghwk", grid, _between(self.rel_pos_w, W))
        bias = (rows[..., None] + columns[..., None, :]).reshape(B, self.heads, H * W, H * W)
        y_BGNd = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y_BHWD: Tensor = self.proj(y_BGNd.transpose(1, 2).reshape(B, H, W, D))
        return y_BHWD


def _between(table: Tensor, size: int) -> Tensor:
    """Return the entries of a relative-position table for all pairs of `size` places."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.mT[None], size=2 * size - 1, mode="linear")[0].mT
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place[None] + size - 1]


class _SamBlock(nn.Module):
    def __init__(self, dim: int, heads: int, side: int, grid: int) -> None:
        super().__init__()
        self.window = 0 if side == grid else side
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _SamAttention(dim, heads, side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(dim, 4 * dim), "lin2": nn.Linear(4 * dim, dim)})

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y = self.norm1(x_BHWD)
        x_BHWD = x_BHWD + (_in_windows(self.attn, y, self.window) if self.window else self.attn(y))
        z: Tensor = x_BHWD + self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.norm2(x_BHWD))))
        return z


def _in_windows(attention: nn.Module, x_BHWD: Tensor, S: int) -> Tensor:
    """Apply attention within S × S windows; the last ones are padded with zeros."""
    B, H, W, D = x_BHWD.shape
    rows, columns = -(-H // S), -(-W // S)
    padded = F.pad(x_BHWD, (0, 0, 0, columns * S - W, 0, rows * S - H))
    windows = padded.view(B, rows, S, columns, S, D).transpose(2, 3).reshape(-1, S, S, D)
    y: Tensor = attention(windows).view(B, rows, columns, S, S, D).transpose(2, 3)
    return y.reshape(B, rows * S, columns * S, D)[:, :H, :W]
