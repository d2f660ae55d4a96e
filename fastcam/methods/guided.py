"""Image gradients through ReLUs with another backward, and their product with Grad-CAM."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.guided import GuidedReLU
from fastcam.engine.inputs import (
    Inputs,
)
from fastcam.engine.opaque import scripted_relus
from fastcam.errors import ArgumentError
from fastcam.methods.base import Method
from fastcam.methods.gradient import gradient_maps
from fastcam.methods.maps import extents_of, mean_of_layers
from fastcam.methods.result import Result
from fastcam.targets import Selection, Targets


class GuidedBackprop(Method):
    """dS/dx with a ReLU that passes positive gradients at positive inputs only.

    Springenberg et al. 2015, arXiv 1412.6806, section 3.4. Changes ReLU and ReLU6, as modules and
    functions, also in the form of hardtanh, threshold or clamp. Other activations keep their
    gradient, and so do ReLUs written as torch.where, torch.max or a product. Warns for a network
    without ReLU, and raises an error for ReLUs in TorchScript.
    """

    name = "guided-backprop"
    takes_layers = False
    graph = "images"
    signed = True
    rule: ClassVar[Literal["guided", "deconvnet"]] = "guided"

    def __call__(self, images: Inputs, targets: Targets = None) -> Tensor:
        """The signed gradient in the images' shape (N, C, *S), or (N, K, C, *S) for targets (N, K).

        Args:
            images: floating point (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
        """
        with self.calling(images):
            _refuse_scripted_relus(self.model)
            relu = GuidedReLU()
            with relu:
                record, selection = self.capture_scores(images, targets)
            _warn_of_missed_relus(relu)
            relu.rule = self.rule
            gradients = _image_gradients(record, selection)
            return self.keep(Result.of(gradients, record, selection))


class Deconvnet(GuidedBackprop):
    """dS/dx with a ReLU that passes positive gradients for any input.

    Zeiler and Fergus 2014, arXiv 1311.2901, section 2.1. Changes the same ReLUs as guided
    backpropagation.
    """

    name = "deconvnet"
    rule = "deconvnet"


class GuidedGradCAM(Method):
    """The enlarged, normalized Grad-CAM times guided backpropagation, from one forward.

    Selvaraju et al. 2017, arXiv 1610.02391, section 3.2. The map uses the plain gradient.
    """

    name = "guided-gradcam"
    graph = "images"
    signed = True

    def __call__(self, images: Inputs, targets: Targets = None) -> Tensor:
        """The signed product in the images' shape (N, C, *S), or (N, K, C, *S) for targets (N, K).

        Args:
            images: floating point (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
        """
        with self.calling(images):
            _refuse_scripted_relus(self.model)
            self.find_layers(images)
            relu = GuidedReLU()
            with relu:
                record, selection = self.capture_scores(images, targets)
            _warn_of_missed_relus(relu)
            with torch.autocast(record.logits.device.type, enabled=False):
                maps = gradient_maps(
                    record, selection, lambda a, g: ops.cam(a, g, "gradcam"), retain=True
                )
                if len(maps) > 1:
                    maps = [mean_of_layers(maps, extents_of(record, None))]
                relu.rule = "guided"
                guided = _image_gradients(record, selection)
                product = ops.guided_product(maps[0], guided, len(extents_of(record, None)))
            return self.keep(Result.of(product, record, selection))


def _refuse_scripted_relus(model: nn.Module) -> None:
    name = scripted_relus(model)
    if name is not None:
        where = f"'{name}'" if name else "this one"
        raise ArgumentError(
            "model",
            "guided backpropagation does not see the ReLUs of a TorchScript module, such as "
            f"{where}; explain the network from before torch.jit",
        )


def _warn_of_missed_relus(relu: GuidedReLU) -> None:
    if not relu.met:
        warnings.warn(
            "guided backpropagation met no ReLU in this network: this is the plain gradient",
            stacklevel=3,
        )


def _image_gradients(record: Capture, selection: Selection) -> Tensor:
    """dS/dx, (N, C, *S) or (N, K, C, *S); frees the graph."""
    (gradients,) = selection.by_class(
        lambda scores, retain: [record.image_gradients(scores, retain=retain)]
    )
    return gradients
