"""The digits detector: torchvision's FCOS on a small feature pyramid. It needs torchvision."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.ops import FeaturePyramidNetwork

from fastcam.demo.network import Residual, conv

SHORT_SIDE = 160  # of the pictures that the network receives
WIDTH = 32  # of the pyramid


class Backbone(nn.Module):
    """Two levels of features, (N, 32, H/4, W/4) and (N, 32, H/8, W/8)."""

    out_channels = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.ModuleList(
            (Residual(16, 32, stride=2), Residual(32, 64), Residual(64, 64, stride=2))
        )
        self.fpn = FeaturePyramidNetwork([64, 64], WIDTH)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> the levels by name, the finer one first."""
        x = self.stages[0](self.stem(images))
        fine = self.stages[1](x)
        levels: dict[str, Tensor] = self.fpn({"fine": fine, "coarse": self.stages[2](fine)})
        return levels


def detector(classes: int = 10) -> Any:
    """An untrained FCOS; labels are 0 to classes - 1, digits themselves.

    It takes a list of (3, H, W) in [0, 1] and resizes them to a short side of 160 pixels.
    """
    # a level is responsible for boxes up to 8 times as far as its anchor, 16 pixels
    anchors = AnchorGenerator(sizes=((2,), (4,)), aspect_ratios=((1.0,), (1.0,)))
    head = FCOSHead(WIDTH, 1, classes, num_convs=2)
    norm = nn.BatchNorm2d  # GroupNorm would make each score depend on the whole image
    head.classification_head = FCOSClassificationHead(WIDTH, 1, classes, 2, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(WIDTH, 1, 2, norm_layer=norm)
    return FCOS(
        Backbone(),
        classes,
        min_size=SHORT_SIDE,
        max_size=4 * SHORT_SIDE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        anchor_generator=anchors,
        head=head,
        center_sampling_radius=2.5,
    )
