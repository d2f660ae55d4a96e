"""DigitsNet: a small residual network whose class activation maps are sharp enough to show."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    # 3x3, or 4x4 at stride 2: an even kernel centres each output on the square of inputs it stands
    # for, so a map enlarged by interpolation lies on the image and not a pixel or two beside it.
    return nn.Conv2d(inputs, outputs, 2 + stride, stride=stride, padding=1, bias=False)


class Residual(nn.Module):
    """Two convolutions beside a shortcut: (N, inputs, H, W) -> (N, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, stride, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the block."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        summed: Tensor = self.relu2(y + self.shortcut(x))
        return summed


class DigitsNet(nn.Module):
    """Says which of the ten digits appear anywhere in an image.

    Input (N, 3, H, W), RGB in [0, 1], any size from about 32 pixels up; output (N, 10) logits,
    one independent yes or no a digit (sigmoid, not softmax), since a scene holds several.

    The last feature map, `stages.2`, has stride 4, and a position of it sees 50 pixels, about one
    digit (a little more after smoothing): that is what makes the maps compact. Behind it come
    global average pooling and one linear layer, so plain CAM applies too.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        # Smoothing moves the peak of a map from the rim of a digit, where a single part may tell
        # most, to its middle. The pooled score stays what it was, but for the image's border.
        smooth = nn.AvgPool2d(5, stride=1, padding=2)
        self.stages = nn.Sequential(
            Residual(16, 32, stride=2),
            Residual(32, 64),
            nn.Sequential(Residual(64, 64), smooth),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, classes)

    def features(self, images: Tensor) -> Tensor:
        """The last feature map: (N, 3, H, W) -> (N, 64, H/4, W/4)."""
        x = self.stem(2 * images - 1)  # so that the zeros of the padding mean mid grey
        features: Tensor = self.stages(x)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """The logits: (N, 3, H, W) -> (N, classes)."""
        pooled = torch.flatten(self.pool(self.features(images)), 1)
        logits: Tensor = self.head(pooled)
        return logits
