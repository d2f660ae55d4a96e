"""DigitsViT: a small vision transformer that says which digits appear."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam.demo.network import Residual, conv


class Attention(nn.Module):
    """Self-attention of several heads: (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C)."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (N, heads, T, C / heads)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, t, c))
        return projected


class Block(nn.Module):
    """A block of a transformer, with the norms before attention and perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """Classifies which of the ten digits appear in an image.

    Input (N, 3, H, W), RGB in [0, 1], sides that 8 divides; output (N, 10) logits, one per digit
    and independent, read at the class token. A patch is 8 x 8 pixels, behind a few convolutions;
    the positions of patches are added as sines, so that any size fits.
    """

    def __init__(self, classes: int = 10, width: int = 96, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Sequential(conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            Residual(16, 32, stride=2),
        )
        self.patches = nn.Conv2d(32, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits: (N, 3, H, W) -> (N, classes)."""
        x = self.patches(self.stem(2 * images - 1))  # (N, C, H/8, W/8)
        tokens = (x + sines(*x.shape[1:]).to(x)).flatten(2).transpose(1, 2)
        front = self.class_token.expand(len(tokens), -1, -1)
        tokens = self.norm(self.blocks(torch.cat([front, tokens], 1)))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


def sines(channels: int, height: int, width: int) -> Tensor:
    """Positions as sines and cosines, (C, H, W): half of the channels for rows."""
    rates = torch.exp(-math.log(100) * torch.arange(channels // 4) / (channels // 4))
    down, across = (torch.arange(side) * rates[:, None] for side in (height, width))
    rows = torch.cat([down.sin(), down.cos()])[:, :, None].expand(-1, -1, width)
    columns = torch.cat([across.sin(), across.cos()])[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])
