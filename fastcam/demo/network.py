"""DigitsNet: a small residual network with sharp class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps pictures centred."""
    # 3x3, or 4x4 at stride 2: the even kernel centres each output on its 2x2 inputs, so that the
    # enlarged map is aligned with the image
    return nn.Conv2d(inputs, outputs, 2 + stride, stride=stride, padding=1, bias=False)


class Residual(nn.Module):
    """Two convolutions and a shortcut: (N, inputs, H, W) -> (N, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, stride, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H/s, W/s)."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        summed: Tensor = self.relu2(y + self.shortcut(x))
        return summed


class DigitsNet(nn.Module):
    """Classifies which of the ten digits appear in an image.

    Input (N, 3, H, W), RGB in [0, 1], any size from about 32 pixels up; output (N, 10) logits, one
    per digit and independent (sigmoid, not softmax), because a scene contains several digits.

    The last feature map, `stages.2`, has stride 4 and a receptive field of 50 pixels, about one
    digit (slightly more with the smoothing), which makes the maps compact. It is followed by global
    average pooling and one linear layer, so plain CAM applies too.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        # Smoothing moves the peak of a map from the most telling part of a digit, often at its rim,
        # to its centre. It changes the pooled score only at the image border.
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
        x = self.stem(2 * images - 1)  # so that zero padding is mid-grey
        features: Tensor = self.stages(x)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """The logits: (N, 3, H, W) -> (N, classes)."""
        pooled = torch.flatten(self.pool(self.features(images)), 1)
        logits: Tensor = self.head(pooled)
        return logits
