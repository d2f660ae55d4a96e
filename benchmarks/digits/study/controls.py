"""Controls: maps that know less than a method, called as the methods are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.methods.base import Method
from fastcam.methods.gradient import gradient_maps
from fastcam.methods.maps import MapMethod
from fastcam.targets import Selection


class RandomMap(MapMethod):
    """Uniform noise in the layer's resolution, the same in every call."""

    name = "random-map"
    graph = None

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(a[:, 0].shape, generator=generator) for a in record.activations]


class CentrePrior(MapMethod):
    """A Gaussian in the middle of the image, with a quarter of its side as standard deviation."""

    name = "centre-prior"
    graph = None

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        assert record.extents is not None
        down, across = (
            (-0.5 * ((torch.arange(extent) + 0.5) / extent - 0.5).div(0.25) ** 2).exp()
            for extent in record.extents
        )
        return [(down[:, None] * across).expand(len(record.logits), -1, -1)]


class Edges(MapMethod):
    """The magnitude of the image's gradient by Sobel's filter, averaged over the channels."""

    name = "edges"
    graph = None

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        assert record.images is not None
        grey = F.pad(record.images.detach().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(grey)
        both = F.conv2d(grey, torch.stack([across, across.T])[:, None])
        return [both.norm(dim=1)]


class MeanActivation(MapMethod):
    """M = ReLU(mean_k A^k): what the layer sees, whatever the class."""

    name = "mean-activation"
    graph = None

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        means = [a.float().mean(1) for a in record.activations]
        return [mean.relu() if relu else mean for mean in means]


class RectifiedGradCAM(MapMethod):
    """Grad-CAM with w_k = (1/Z) sum_ij ReLU(g_ij): Grad-CAM++ without its alpha."""

    name = "gradcam-relu-g"

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return gradient_maps(
            record, selection, lambda a, g: ops.weighted_sum(a, ops.gap(g.relu()), relu)
        )


CONTROLS: dict[str, type[Method]] = {
    control.name: control
    for control in (RandomMap, CentrePrior, Edges, MeanActivation, RectifiedGradCAM)
}
"""Every control by name."""
