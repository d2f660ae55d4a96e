"""The two classifiers of digits that the study explains, and how each begins its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcam.demo.network import DigitsNet, Residual, conv

CLASSES = 10
RARE = -2.0  # the first bias of the logits: most classes are absent from most pictures


class Classifier(nn.Module):
    """A network in two parts, between which its last feature map lies."""

    def features(self, images: Tensor) -> Tensor:
        """The last feature map: (N, 3, H, W) -> (N, C, h, w)."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """The logits: (N, C, h, w) -> (N, 10)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """The logits: (N, 3, H, W) -> (N, 10)."""
        return self.classify(self.features(images))


class PooledDigitsNet(DigitsNet, Classifier):
    """The demo's network before its training."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        nn.init.constant_(self.head.bias, RARE)
        self.to(memory_format=torch.channels_last)

    def classify(self, features: Tensor) -> Tensor:
        """The logits: (N, 64, h, w) -> (N, 10)."""
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class Coarse(Classifier):
    """Three stages with a stride of 8: a map of 12x12, (N, 96, 12, 12), for scenes of 96x96."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(
            Residual(16, 32, stride=2), Residual(32, 64, stride=2), Residual(64, 96)
        )
        self.head = self.new_head()
        nn.init.constant_(self.head[-1].bias, RARE)
        self.to(memory_format=torch.channels_last)

    def new_head(self) -> nn.Sequential:
        """From the last feature map to the logits."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, CLASSES))

    def features(self, images: Tensor) -> Tensor:
        """The last feature map: (N, 3, H, W) -> (N, 96, H/8, W/8)."""
        features: Tensor = self.stages(self.stem(2 * images - 1))  # zero padding is mid-grey
        return features

    def classify(self, features: Tensor) -> Tensor:
        """The logits: (N, 96, h, w) -> (N, 10)."""
        logits: Tensor = self.head(features)
        return logits


class FlatNet(Coarse):
    """Weights by position: max-pooling, flattening and two linear layers; scenes of 96x96 only."""

    def new_head(self) -> nn.Sequential:
        return nn.Sequential(
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96 * 6 * 6, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )

    @classmethod
    def after(cls, crops: Classifier) -> FlatNet:
        """A network with the stem and the stages of one that has learned from crops."""
        made = cls()
        learned = crops.state_dict()
        made.load_state_dict(
            made.state_dict()
            | {name: value for name, value in learned.items() if not name.startswith("head.")}
        )
        return made


@dataclass(frozen=True)
class Architecture:
    """A network of the study."""

    title: str
    of_crops: Callable[[], Classifier]
    """Makes the network that learns from crops of one digit."""
    of_scenes: Callable[[Classifier], Classifier]
    """Makes of it, trained, the one that learns from scenes."""
    layers: dict[str, str]
    """The explained layers: their place in the network, and their name there."""

    def new(self) -> Classifier:
        """The network of scenes with random weights."""
        return self.of_scenes(self.of_crops())


LAYERS = {"last": "stages.2", "before": "stages.1"}
ARCHITECTURES = {
    "pooled": Architecture(
        "stride 4, average pooling and one linear layer",
        PooledDigitsNet,
        lambda network: network,
        LAYERS,
    ),
    "flat": Architecture(
        "stride 8, max-pooling, flattening and two linear layers", Coarse, FlatNet.after, LAYERS
    ),
}
