"""The parts of VideoMAE's transformer: position table, patch embedding, attention, MLP, block.

Key names are the official ones. Order: sinusoid_table -> PatchEmbed -> Attention -> Mlp -> Block ->
as_windows.
Shapes: B batch, F frames, H x W pixels, t x h x w token grid, N = t*h*w tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """The fixed position table [1, positions, dim]: sines in even channels, cosines in odd ones.

    The position is the flat token index, so the table is one-dimensional although tokens lie on a
    grid. Angles are float64, as in the official code; the table is float32.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    wavelength = torch.pow(10000.0, 2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / wavelength  # [N, D]
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.float()[None]


class PatchEmbed(nn.Module):
    """Cuts clips into tubes of `tubelet_len` x `patch_size`^2 pixels, one token each."""

    def __init__(self, *, patch_size: int, tubelet_len: int, dim: int) -> None:
        super().__init__()
        kernel = (tubelet_len, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, kernel_size=kernel, stride=kernel)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [B, 3, F, H, W] -> tokens [B, N, D], time slowest, width fastest.

        A convolution whose stride is its kernel is a matrix product over the tubes; pixels beyond
        the last whole tube are ignored, as the strided convolution does.
        """
        weight = self.proj.weight  # [D, 3, s, P, P]
        s, p = weight.shape[2], weight.shape[3]
        t, h, w = clips.shape[2] // s, clips.shape[3] // p, clips.shape[4] // p
        tubes = clips[:, :, : t * s, : h * p, : w * p].to(weight.dtype)
        tubes = tubes.reshape(-1, 3, t, s, h, p, w, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
        tubes = tubes.reshape(-1, t * h * w, 3 * s * p * p)  # [B, N, 3*s*P*P]
        return nnf.linear(tubes, weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries and values, none on keys."""

    def __init__(self, *, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)  # rows: queries, keys, values
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)
        self.shifted = False  # "longlora": half of the heads see groups half a clip later

    def forward(self, x: Tensor, clips_per_window: int = 1, steps: int = 1) -> Tensor:
        """[B, N, D] -> [B, N, D]; the clip's tokens see each other.

        Args:
            clips_per_window, steps: rows of a window and time steps of a row, read if `shifted`.
        """
        batch, tokens, dim = x.shape
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = nnf.linear(x.to(self.qkv.weight.dtype), self.qkv.weight, bias)  # [B, N, 3D]
        qkv = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        half_clip = steps // 2 * (tokens // steps) if self.shifted and clips_per_window > 1 else 0
        if half_clip:
            qkv = self._shift(qkv, clips_per_window, -half_clip)
        queries, keys, values = qkv.unbind(0)  # each [B, heads, N, D/heads]
        mixed = nnf.scaled_dot_product_attention(queries, keys, values)
        if half_clip:
            mixed = self._shift(mixed[None], clips_per_window, half_clip)[0]
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj(mixed)

    def _shift(self, parts: Tensor, clips_per_window: int, by: int) -> Tensor:
        """Roll the tokens of the second half of the heads along their window [., B, heads, N, d].

        The window is a ring, as in LongLoRA: its last half clip shares a group with its first.
        """
        still, moved = parts.split((self.heads - self.heads // 2, self.heads // 2), dim=2)
        count, batch, heads, tokens, width = moved.shape
        windows = (count, batch // clips_per_window, clips_per_window, heads, tokens, width)
        line = moved.reshape(windows).transpose(2, 3).flatten(3, 4)  # [., R, heads, k*N, d]
        line = line.roll(by, dims=3).unflatten(3, (clips_per_window, tokens)).transpose(2, 3)
        return torch.cat((still, line.reshape(moved.shape)), dim=2)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nnf.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class Block(nn.Module):
    """Pre-norm transformer block; `gamma_1`, `gamma_2` scale the branches if `init_values` > 0.

    Args:
        drop_path: probability with which a sample skips a branch, in training only.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        mlp_dim: int,
        qkv_bias: bool,
        init_values: float,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim=dim, heads=heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim=dim, hidden_dim=mlp_dim)
        scaled = init_values > 0
        self.gamma_1 = nn.Parameter(torch.full((dim,), init_values)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), init_values)) if scaled else None
        self.drop_path = drop_path
        self.adapter: nn.Module | None = None  # `tia.add_adapters` puts it here

    def forward(self, x: Tensor, clips_per_window: int = 1, steps: int = 1) -> Tensor:
        """[B, N, D] -> [B, N, D]; the sum stays in the type of x, float32.

        Args:
            clips_per_window: neighbouring rows that an adapter sees as one window.
            steps: time steps of one row, N = steps * positions.
        """
        return self.adapted(self.body(x, clips_per_window, steps), clips_per_window, steps)

    def body(self, x: Tensor, clips_per_window: int, steps: int) -> Tensor:
        """The block without its adapter; unless its attention is shifted, row by row."""
        mixed = self.attn(self.norm1(x), clips_per_window, steps)
        x = x + self._branch(mixed, self.gamma_1)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma_2)

    def adapted(self, x: Tensor, clips_per_window: int, steps: int) -> Tensor:
        """The adapter, if there is one, on what leaves the body."""
        if self.adapter is None:
            return x
        adapted: Tensor = self.adapter(as_windows(x, clips_per_window, steps)).view_as(x)
        return adapted

    def _branch(self, y: Tensor, gamma: Tensor | None) -> Tensor:
        if gamma is not None:
            y = gamma * y
        if self.training and self.drop_path > 0:
            keep = 1.0 - self.drop_path
            y = y * (torch.rand(len(y), 1, 1, device=y.device) < keep) / keep
        return y


def as_windows(x: Tensor, clips_per_window: int, steps: int) -> Tensor:
    """Tokens [R*k, t*P, D] of k clips per window as [R, k*t, P, D], without a copy."""
    return x.view(len(x) // clips_per_window, clips_per_window * steps, -1, x.shape[2])
