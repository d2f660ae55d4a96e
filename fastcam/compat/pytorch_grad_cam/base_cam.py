"""The base of all CAM classes: runs the network, computes the map of each layer and their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from fastcam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image
from fastcam.dropin.pytorch_grad_cam.maps import FORMULAS, KERNELS, Formula, explain, top_classes
from fastcam.dropin.pytorch_grad_cam.projection import get_2d_projection
from fastcam.dropin.pytorch_grad_cam.run import RUNNERS, Array, Choose, TargetFunctions

RUNNERS.add(ActivationsAndGradients)
T = TypeVar("T")


class BaseCAM:
    """A method with one map per image; subclasses define the weights of the activations.

    Args:
        model: the network; it is set to evaluation mode.
        target_layers: modules of the network.
        reshape_transform: converts a layer's output and its gradient to (N, C, *S).
        compute_input_gradient: whether to compute the gradient of the input too.
        uses_gradients: whether the method needs gradients.
        tta_transforms: the transforms that ``aug_smooth`` averages over; any iterable of objects
            with ttach's ``augment_image`` and ``deaugment_mask``.
        detach: whether activations and gradients are detached from the graph.
    """

    outputs: Any

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Any = None,
        detach: bool = True,
    ) -> None:
        self.model = model.eval()
        self.target_layers = target_layers
        self.device = next(self.model.parameters()).device
        self.reshape_transform = reshape_transform
        self.compute_input_gradient = compute_input_gradient
        self.uses_gradients = uses_gradients
        self.tta_transforms = FLIPS_AND_FACTORS if tta_transforms is None else tta_transforms
        self.detach = detach
        self.activations_and_grads = ActivationsAndGradients(
            self.model, target_layers, reshape_transform, detach
        )

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layers: Any,
        targets: Any,
        activations: Any,
        grads: Any,
    ) -> Array:
        """The channel weights (N, C) from activations and gradients (N, C, *S)."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_cam_weights")

    def get_cam_image(
        self,
        input_tensor: Tensor,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """The map (N, *S) of one layer."""
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        if isinstance(activations, Tensor):
            activations = activations.detach().cpu().numpy()
        if activations.ndim not in (4, 5):
            raise ValueError(
                f"activations: got {activations.ndim} dimensions, expected (N, C, H, W) or "
                "(N, C, D, H, W); pass a reshape_transform"
            )
        weighted = weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations
        return get_2d_projection(weighted) if eigen_smooth else weighted.sum(axis=1)

    def forward(
        self, input_tensor: Any, targets: TargetFunctions | None, eigen_smooth: bool = False
    ) -> Array:
        """The maps (N, *S) of images (N, C, *S), with one target function per image."""
        maps: Array = explain(
            self,
            input_tensor,
            chosen(targets),
            eigen_smooth,
            lambda: self._through_everything(input_tensor, targets, eigen_smooth),
            f"pytorch_grad_cam.{type(self).__name__}",
        )
        return maps

    def _through_everything(
        self, input_tensor: Any, targets: TargetFunctions | None, eigen_smooth: bool
    ) -> Array:
        """The same by a backward pass through the whole network."""
        input_tensor = input_tensor.to(self.device)
        if self.compute_input_gradient:
            input_tensor = input_tensor.detach().requires_grad_()
        self.outputs = outputs = self.activations_and_grads(input_tensor)
        targets = chosen(targets)(outputs)
        if self.uses_gradients:
            self.model.zero_grad()
            loss: Any = sum(t(output) for t, output in zip(targets, outputs, strict=False))
            if self.detach:
                loss.backward(retain_graph=True)
            else:
                torch.autograd.grad(loss, input_tensor, retain_graph=True, create_graph=True)
        per_layer = self.compute_cam_per_layer(input_tensor, targets, eigen_smooth)
        return self.aggregate_multi_layers(per_layer)

    def get_target_width_height(self, input_tensor: Tensor) -> tuple[int, ...]:
        """The spatial size of the images, last dimension first."""
        if input_tensor.dim() not in (4, 5):
            raise ValueError(
                f"input_tensor: got {input_tensor.dim()} dimensions, expected (N, C, H, W) or "
                "(N, C, D, H, W)"
            )
        return tuple(input_tensor.shape[:1:-1])

    def compute_cam_per_layer(
        self, input_tensor: Tensor, targets: Any, eigen_smooth: bool
    ) -> list[Array]:
        """The map of each layer, enlarged: (N, 1, *S)."""
        kept = self.activations_and_grads
        activations: Sequence[Any] = kept.activations
        gradients: Sequence[Any] = kept.gradients
        if self.detach:
            activations = [each.numpy() for each in activations]
            gradients = [each.numpy() for each in gradients]
        size = self.get_target_width_height(input_tensor)
        maps = []
        for i, layer in enumerate(self.target_layers):
            a = activations[i] if i < len(activations) else None
            g = gradients[i] if i < len(gradients) else None
            cam = self.get_cam_image(input_tensor, layer, targets, a, g, eigen_smooth)
            maps.append(scale_cam_image(np.maximum(cam, 0), size)[:, None])
        return maps

    def aggregate_multi_layers(self, cam_per_target_layer: Sequence[Array]) -> Array:
        """The normalized mean over layers."""
        layers = np.maximum(np.concatenate(cam_per_target_layer, axis=1), 0)
        return scale_cam_image(layers.mean(axis=1))

    def forward_augmentation_smoothing(
        self, input_tensor: Tensor, targets: TargetFunctions | None, eigen_smooth: bool = False
    ) -> Array:
        """The mean map of augmented images."""
        maps = []
        for transform in self.tta_transforms:
            changed = self.forward(transform.augment_image(input_tensor), targets, eigen_smooth)
            back = transform.deaugment_mask(torch.from_numpy(changed)[:, None])
            maps.append(back[:, 0].numpy())
        return np.mean(np.asarray(maps, dtype=np.float32), axis=0)

    def __call__(
        self,
        input_tensor: Any,
        targets: TargetFunctions | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Array:
        """Maps (N, *S) in [0, 1], float32, as large as the images.

        Args:
            input_tensor: (N, C, *S).
            targets: one function of the image's output per image; None for the top classes.
            aug_smooth: whether to average the maps of augmented images, six by default.
            eigen_smooth: whether to take the first principal component of the weighted activations
                instead of their sum.
        """
        if aug_smooth is True:
            return self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)
        return self.forward(input_tensor, targets, eigen_smooth)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        self.activations_and_grads.release()
        if isinstance(exception[1], IndexError):
            print(f"An IndexError in the with block of {type(self).__name__}: {exception[1]}")
            return True  # as in pytorch-grad-cam
        return None

    def __del__(self) -> None:
        if hasattr(self, "activations_and_grads"):
            self.activations_and_grads.release()


class _FlipAndFactor:
    """Optionally flips images, multiplies them by a factor, and flips maps back."""

    def __init__(self, flip: bool, factor: float) -> None:
        self._flip, self._factor = flip, factor

    def augment_image(self, images: Tensor) -> Tensor:
        return (images.flip(3) if self._flip else images) * self._factor

    def deaugment_mask(self, maps: Tensor) -> Tensor:
        return maps.flip(3) if self._flip else maps


FLIPS_AND_FACTORS = [
    _FlipAndFactor(flip, factor) for flip in (False, True) for factor in (0.9, 1.0, 1.1)
]


def by_kernel(cam: type[T]) -> type[T]:
    """Decorates a class whose maps a kernel computes, unless a subclass overrides the formula."""
    FORMULAS[cam] = Formula(KERNELS[cam.__name__])
    return cam


def chosen(targets: TargetFunctions | None) -> Choose:
    """A function that returns ``targets``; if None, the class with the highest score."""
    if targets is None:
        return lambda outputs: top_classes(outputs, ClassifierOutputTarget)
    return lambda outputs: targets
