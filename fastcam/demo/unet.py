"""DigitsUNet: a small U-Net that finds the pixels of each digit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcam.demo.network import Residual, conv


class Up(nn.Module):
    """Doubles the resolution of coarse features and joins the finer ones of the way down."""

    def __init__(self, coarse: int, fine: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(coarse + fine, outputs)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, coarse, h, w), (N, fine, H, W) -> (N, outputs, H, W)."""
        enlarged = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        joined: Tensor = self.relu(self.norm(self.conv(torch.cat([enlarged, fine], 1))))
        return joined


class DigitsUNet(nn.Module):
    """Tells for each pixel which of the ten digits it belongs to.

    Input (N, 3, H, W), RGB in [0, 1], any size from about 32 pixels up; output (N, 11, H, W)
    logits, of the digits 0 to 9 and of the background.
    """

    def __init__(self, classes: int = 11) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.ModuleList(
            Residual(inputs, outputs, stride=2)
            for inputs, outputs in ((16, 32), (32, 64), (64, 96))
        )
        self.up = nn.ModuleList((Up(96, 64, 64), Up(64, 32, 32), Up(32, 16, 24)))
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W)."""
        x = self.stem(2 * images - 1)
        finer = []
        for down in self.down:
            finer.append(x)
            x = down(x)
        for up in self.up:
            x = up(x, finer.pop())
        return F.interpolate(self.head(x), images.shape[2:], mode="bilinear")
