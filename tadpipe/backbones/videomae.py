"""VideoMAE and VideoMAE V2: plain vision transformers on space-time tubes.

Papers: VideoMAE (Tong et al., NeurIPS 2022), VideoMAE V2 (Wang et al., CVPR 2023); fine-tuned
models of both share this architecture. Order: VideoMAE -> one builder per published size; its parts
are in `videomae_blocks.py`. Key names are the official ones.
Shapes: B batch, F frames, H x W pixels, t x h x w token grid, N = t*h*w tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.backbones.recompute import recomputed
from tadpipe.backbones.tia import AdapterConfig, AdapterSite, Ladder
from tadpipe.backbones.tuning import keep_frozen_in_eval
from tadpipe.backbones.videomae_blocks import Block, PatchEmbed, as_windows, sinusoid_table
from tadpipe.backbones.videomae_keys import remap_official_keys as remap_official_keys
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError

RECOMPUTED_CLIPS = 8  # clips whose inner activations exist together while blocks are recomputed
NORM_EPS = 1e-6  # of every LayerNorm in the official releases
TINY_PIXELS = PixelRecipe(size=32, resize="squash", mean=(0.2, 0.2, 0.2), std=(0.25, 0.25, 0.25))


class VideoMAE(nn.Module):
    """The transformer with mean pooling: `fc_norm(mean of all tokens)` is the clip's feature.

    Args:
        name: the backbone's name in the name dictionary.
        pixels: recipe that turns frames into clips.
        image_size: side (or height and width) in pixels that the position table is made for;
            other inputs get the table interpolated.
        clip_len: F, frames per clip.
        tubelet_len: frames per token.
        mlp_dim: hidden width of the MLPs.
        num_classes: K of the classification head, 0 = no head.
        qkv_bias: whether queries and values have a bias.
        init_values: start of the branch scales, 0 = no scales.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        norm_eps: of the blocks' norms.
        fc_norm_eps: of the last norm.
        init_std: of the linear layers' initial weights.
        head_scale: factor on the head's initial weights.
        final_norm: whether there is an fc_norm; ladder checkpoints have none.
    """

    snippet_only = ("fc_norm", "head")
    bits_depend_on_batch = False
    couples_clips = False

    def __init__(
        self,
        *,
        name: str,
        pixels: PixelRecipe,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        patch_size: int = 16,
        image_size: int | tuple[int, int] = 224,
        clip_len: int = 16,
        tubelet_len: int = 2,
        num_classes: int = 0,
        qkv_bias: bool = True,
        init_values: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = NORM_EPS,
        fc_norm_eps: float = NORM_EPS,
        init_std: float = 0.02,
        head_scale: float = 0.001,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError("The width must be a multiple of the heads.", f"{dim}, {heads} heads")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.name = name
        self.pixels = pixels
        self.out_channels = dim
        self.weights_sha256 = ""
        self.adapter_sha256 = ""
        self.patch_size = patch_size
        self.tubelet_len = tubelet_len
        self.table_side = (height // patch_size, width // patch_size)
        self.num_classes = num_classes
        self.init_values = init_values
        self.drop_path = drop_path
        self.patch_embed = PatchEmbed(patch_size=patch_size, tubelet_len=tubelet_len, dim=dim)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                dim=dim,
                heads=heads,
                mlp_dim=mlp_dim,
                qkv_bias=qkv_bias,
                init_values=init_values,
                drop_path=rate,
                norm_eps=norm_eps,
            )
            for rate in rates
        )
        self.fc_norm_eps = fc_norm_eps
        self.fc_norm = nn.LayerNorm(dim, eps=fc_norm_eps) if final_norm else nn.Identity()
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.adapters = AdapterConfig(kind="none")
        self.ladders: Ladder | None = None
        self.clip_len = 0
        self.pos_table: Tensor  # [1, N, D]
        self.set_clip_len(clip_len)
        self._initialise(init_std, head_scale)

    def forward(self, clips: Tensor) -> Tensor:
        """clips [B, 3, F, H, W] -> features [B, D] float32."""
        return self.fc_norm(self.tokens(clips).mean(dim=1))

    def classify(self, clips: Tensor) -> Tensor:
        """clips [B, 3, F, H, W] -> logits [B, K] (the features themselves without a head)."""
        logits: Tensor = self.head(self(clips))
        return logits

    def feature_map(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [B, 3, F, H, W] -> tokens after the last block [B, D, t, h, w], no norm applied.

        Consecutive clips of one window are neighbouring rows; adapters see across their borders.
        """
        grid = self.token_grid(clips)
        tokens = self.tokens(clips, clips_per_window)
        return tokens.transpose(1, 2).reshape(len(clips), -1, *grid)

    def tokens(self, clips: Tensor, clips_per_window: int = 1) -> Tensor:
        """clips [B, 3, F, H, W] -> tokens after the last block [B, N, D] float32.

        Raises:
            ConfigError: the clips do not make whole windows.
        """
        grid = self.token_grid(clips)
        if clips_per_window < 1 or len(clips) % clips_per_window:
            raise ConfigError(
                "The clips do not make whole windows.",
                f"{len(clips)} clips, {clips_per_window} per window",
            )
        window = (clips_per_window, grid[0])
        x = self.patch_embed(clips) + self.position_table(grid)
        if self.ladders is not None:
            return self._ladder_tokens(self.ladders, x, window)
        if self.adapters.checkpoint and torch.is_grad_enabled():
            return self._recomputed_tokens(x, window)
        for block in self.blocks:
            x = block(x, *window)
        return x

    def _recomputed_tokens(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """The blocks in segments from one adapter to the next, see `recompute`."""
        k, steps = window
        shifted = self.adapters.kind == "longlora"  # attention that couples a window's clips
        before: Block | None = None
        for block in self.blocks:
            assert isinstance(block, Block)
            mix, trained = (
                None,
                [
                    parameter
                    for name, parameter in block.named_parameters()
                    if parameter.requires_grad and not name.startswith("adapter.")
                ],
            )
            if before is not None and before.adapter is not None:
                mix = partial(before.adapted, clips_per_window=k, steps=steps)
                trained += [p for p in before.adapter.parameters() if p.requires_grad]
            body = partial(block.body, clips_per_window=k, steps=steps)
            x = recomputed(mix, body, x, trained, k if shifted else RECOMPUTED_CLIPS)
            before = block
        if before is None or before.adapter is None:
            return x
        adapted: Tensor = checkpoint(before.adapted, x, k, steps, use_reentrant=False)
        return adapted

    def _ladder_tokens(self, ladder: Ladder, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Frozen blocks without a graph, and the ladder's adapters beside them."""
        total: Tensor | None = None
        x = x.detach()
        rows = RECOMPUTED_CLIPS if self.adapters.checkpoint else len(x)
        for index, block in enumerate(self.blocks):
            with torch.no_grad():
                parts = [block(part) for part in x.split(rows)]
                x = torch.cat(parts) if len(parts) > 1 else parts[0]
            total = ladder.step(index, as_windows(x, *window), total)
        assert total is not None  # the last block is always listed
        return x + total.view_as(x)

    def adapter_sites(self) -> Sequence[AdapterSite]:
        """Every block: an adapter stands behind the MLP's residual sum."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        return [AdapterSite(block, self.out_channels, block.attn) for block in blocks]

    def train(self, mode: bool = True) -> VideoMAE:
        """Set the mode; what `set_tuning` froze stays in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def token_grid(self, clips: Tensor) -> tuple[int, int, int]:
        """(t, h, w) of the tokens of clips [B, 3, F, H, W].

        Raises:
            ConfigError: not five axes, not `clip_len` frames, or smaller than one patch.
        """
        shape = tuple(clips.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2] != self.clip_len:
            raise ConfigError(
                f"{self.name} takes clips [N, 3, {self.clip_len}, H, W].",
                f"got {list(shape)}",
                f"Cut longer windows into clips of {self.clip_len} frames first.",
            )
        if min(shape[3:]) < self.patch_size:
            raise ConfigError(
                f"Pictures are smaller than one patch of {self.patch_size} pixels.",
                f"got {shape[3]} x {shape[4]} pixels",
            )
        return self.table_grid[0], shape[3] // self.patch_size, shape[4] // self.patch_size

    @property
    def table_grid(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) that the position table is made for."""
        return (self.clip_len // self.tubelet_len, *self.table_side)

    def position_table(self, grid: tuple[int, int, int]) -> Tensor:
        """Positions [1, N, D] for a token grid; other heights and widths are interpolated.

        Bicubic, every time step on its own, from the grid the table was made for; time is never
        interpolated (the same rule as in AdaTAD's release).
        """
        if grid == self.table_grid:
            return self.pos_table
        t, h, w = self.table_grid
        maps = self.pos_table.reshape(t, h, w, -1).permute(0, 3, 1, 2)  # [t, D, h, w]
        maps = nnf.interpolate(maps, size=grid[1:], mode="bicubic", align_corners=False)
        return maps.permute(0, 2, 3, 1).reshape(1, -1, self.out_channels)

    def reset_buffers(self) -> None:
        """Compute the position table, which is no part of the state dict."""
        t, h, w = self.table_grid
        table = sinusoid_table(t * h * w, self.out_channels)
        weight = self.patch_embed.proj.weight
        if not weight.is_meta:  # weights built on "meta" come later
            table = table.to(weight.device)
        self.register_buffer("pos_table", table, persistent=False)

    def set_clip_len(self, clip_len: int) -> None:
        """Take clips of another length: the weights fit any, the position table is made anew.

        Raises:
            ConfigError: not a multiple of the tubelet length.
        """
        if clip_len < 1 or clip_len % self.tubelet_len:
            raise ConfigError(
                "Frames per clip must be a multiple of frames per token.",
                f"clip_len = {clip_len}, tubelet_len = {self.tubelet_len}",
            )
        self.clip_len = clip_len
        self.reset_buffers()

    def builder_arguments(self) -> dict[str, float | bool]:
        """Keyword arguments with which this size's builder builds the same model again."""
        return {
            "num_classes": self.num_classes,
            "drop_path": self.drop_path,
            "init_values": self.init_values,
            "fc_norm_eps": self.fc_norm_eps,
            "final_norm": isinstance(self.fc_norm, nn.LayerNorm),
        }

    def set_matmul_dtype(self, dtype: torch.dtype) -> None:
        """Run the matrix products in `dtype`; norms, residual sums and pooling stay float32."""
        self.patch_embed.to(dtype)
        for block in self.blocks:
            block.attn.to(dtype)
            block.mlp.to(dtype)
            if block.adapter is not None:
                block.adapter.to(dtype)
        if self.ladders is not None:
            self.ladders.to(dtype)

    def compile_trunk(self) -> None:
        """Compile `tokens`, which features and feature maps share, for fixed shapes."""
        compiled = torch.compile(self.tokens, dynamic=False)
        self.tokens = compiled  # type: ignore[method-assign]  # the instance's own, by design

    def _initialise(self, init_std: float, head_scale: float) -> None:
        """Truncated normal for linear layers; the patch embedding keeps torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_scale)
                self.head.bias.mul_(head_scale)


def videomae_tiny(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """0.4 M parameters, 32 x 32 pixels: ours, for the demo and the tests; nothing is published.

    Shaped to learn motion from scratch within a minute of CPU: a token covers 8 frames, so that
    its own linear filter sees a movement, and 32 tokens make a step cheap. The initial weights are
    of the order 1 / sqrt(width); with 0.02 so narrow a network is nearly linear and hardly starts.
    """
    return VideoMAE(
        name="videomae-tiny",
        pixels=TINY_PIXELS,
        image_size=32,
        patch_size=8,
        tubelet_len=8,
        dim=96,
        depth=2,
        heads=6,
        mlp_dim=384,
        init_std=0.1,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )


def videomae_s(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """ViT-S: 21.9 M parameters without a head."""
    return VideoMAE(
        name="videomae-s",
        pixels=PIXEL_RECIPES["mmaction"],
        dim=384,
        depth=12,
        heads=6,
        mlp_dim=1536,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )


def videomae_b(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """ViT-B: 86.2 M parameters without a head."""
    return VideoMAE(
        name="videomae-b",
        pixels=PIXEL_RECIPES["mmaction"],
        dim=768,
        depth=12,
        heads=12,
        mlp_dim=3072,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )


def videomae_l(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """ViT-L: 303.9 M parameters without a head."""
    return VideoMAE(
        name="videomae-l",
        pixels=PIXEL_RECIPES["mmaction"],
        dim=1024,
        depth=24,
        heads=16,
        mlp_dim=4096,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )


def videomae_h(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """ViT-H: 631.6 M parameters without a head."""
    return VideoMAE(
        name="videomae-h",
        pixels=PIXEL_RECIPES["mmaction"],
        dim=1280,
        depth=32,
        heads=16,
        mlp_dim=5120,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )


def videomae_g(
    *,
    num_classes: int = 0,
    drop_path: float = 0.0,
    init_values: float = 0.0,
    fc_norm_eps: float = NORM_EPS,
    final_norm: bool = True,
) -> VideoMAE:
    """ViT-g of VideoMAE V2, patches of 14 pixels: 1011.6 M parameters without a head."""
    return VideoMAE(
        name="videomae-g",
        pixels=PIXEL_RECIPES["videomaev2-tad"],
        dim=1408,
        depth=40,
        heads=16,
        mlp_dim=int(1408 * 48 / 11),
        patch_size=14,
        num_classes=num_classes,
        drop_path=drop_path,
        init_values=init_values,
        fc_norm_eps=fc_norm_eps,
        final_norm=final_norm,
    )
