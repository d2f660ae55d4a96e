"""A small trained network and pictures to try the maps on, without a download.

    model = fastcam.demo.digits()
    picture = fastcam.demo.asset("scene.png")

The network takes RGB in [0, 1] without normalization, (N, 3, H, W) of any size, and returns ten
logits. It was trained on 96x96 scenes with handwritten digits 18 to 36 pixels high. `TARGET_LAYER`
is the layer to explain. `digits_unet`, `digits_vit` and `digits_detector` are a U-Net, a vision
transformer and an FCOS detector for such scenes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from torch import nn

from fastcam.demo.network import DigitsNet
from fastcam.demo.unet import DigitsUNet
from fastcam.demo.vit import DigitsViT

__all__ = [
    "DIGITS_CLASSES",
    "TARGET_LAYER",
    "DigitsNet",
    "DigitsUNet",
    "DigitsViT",
    "asset",
    "digits",
    "digits_detector",
    "digits_unet",
    "digits_vit",
]

DIGITS_CLASSES: Final = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
TARGET_LAYER: Final = "stages.2"

_ASSETS = Path(__file__).parent / "assets"


Network = TypeVar("Network", bound=nn.Module)


def digits() -> DigitsNet:
    """The trained network on the CPU, in float32 and evaluation mode."""
    return _trained(DigitsNet(classes=len(DIGITS_CLASSES)), "digits")


def digits_unet() -> DigitsUNet:
    """The trained U-Net: (N, 3, H, W) in [0, 1] -> (N, 11, H, W); class 10 is the background."""
    return _trained(DigitsUNet(), "digits-unet")


def digits_vit() -> DigitsViT:
    """The trained transformer: (N, 3, H, W) in [0, 1], sides that 8 divides -> (N, 10)."""
    return _trained(DigitsViT(), "digits-vit")


def digits_detector() -> Any:
    """The trained detector, torchvision's FCOS: a list of (3, H, W) in [0, 1] -> detections.

    Labels are the digits. It needs torchvision.
    """
    from fastcam.demo.detector import detector

    return _trained(detector(), "digits-detector")


def _trained(model: Network, name: str) -> Network:
    # imported here so that the pictures are available without safetensors
    from safetensors.torch import load_file

    model.load_state_dict(load_file(asset(f"{name}.safetensors")))
    return model.eval()


def asset(name: str) -> Path:
    """The path of a shipped file: `scene.png`, `scene.json`, `clip.mp4`, `photo.jpg`, ..."""
    names = sorted(path.name for path in _ASSETS.iterdir())
    if name not in names:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(names)}")
    return _ASSETS / name
