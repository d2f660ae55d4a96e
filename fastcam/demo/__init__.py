"""A small trained network and pictures to try the maps on, without a download.

    model = fastcam.demo.digits()
    picture = fastcam.demo.asset("scene.png")

The network takes RGB in [0, 1] without normalization, (N, 3, H, W) of any size, and returns ten
logits. It was trained on 96x96 scenes with handwritten digits 18 to 36 pixels high. `TARGET_LAYER`
is the layer to explain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastcam.demo.network import DigitsNet

__all__ = ["DIGITS_CLASSES", "TARGET_LAYER", "DigitsNet", "asset", "digits"]

DIGITS_CLASSES: Final = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
TARGET_LAYER: Final = "stages.2"

_ASSETS = Path(__file__).parent / "assets"


def digits() -> DigitsNet:
    """The trained network on the CPU, in float32 and evaluation mode."""
    # imported here so that the pictures are available without safetensors
    from safetensors.torch import load_file

    model = DigitsNet(classes=len(DIGITS_CLASSES))
    model.load_state_dict(load_file(asset("digits.safetensors")))
    return model.eval()


def asset(name: str) -> Path:
    """The path of a shipped file: `scene.png`, `scene.json`, `clip.mp4`, `photo.jpg`, ..."""
    names = sorted(path.name for path in _ASSETS.iterdir())
    if name not in names:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(names)}")
    return _ASSETS / name
