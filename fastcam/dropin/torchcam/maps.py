"""Maps from the tensors of torchcam's hooks: weights, the sum over channels, normalization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.forward import recorded
from fastcam.dropin.torchcam.peer import EPS, EXACT


def as_one_call(present: Replacement) -> Replacement:
    """Counts a method that calls a base method as one call."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with counted(f"torchcam.{type(self).__name__}"):
            return present(self, *args, **kwargs)

    return call


class Formula(NamedTuple):
    """The maps and weights of a method, from activations and gradients (N, C, *S)."""

    map: Callable[[Tensor, Tensor, float | None], Tensor]
    """(N, *S), after ReLU."""
    weights: Callable[[Tensor, Tensor, float | None], Tensor]
    """(N, C) or (N, C, *S), for maps that skip NaN products."""
    takes_eps: bool = False


FORMULAS: dict[Any, Formula] = {}
"""By torchcam's ``_get_weights``, which a user's subclass may override."""


def _grad_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "gradcam")


def _grad_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return gradients.flatten(2).mean(-1)


def _grad_cam_pp(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    if settings.fix:
        return ops.cam(activations, gradients, "gradcam++-signed", eps=eps or 0.0)
    return ops.weighted_sum(activations, _grad_cam_pp_weights(activations, gradients, eps))


def _grad_cam_pp_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    if settings.fix:
        g = gradients.flatten(2)
        denominator = 2 + g * activations.flatten(2).sum(-1, keepdim=True)
        if eps:
            denominator = denominator + eps / g**2
        outside = (g <= 0) | (denominator == 0)
        return (g / denominator).masked_fill(outside, 0).sum(-1)
    # torchcam divides a copy of alpha = g^2, so alpha ReLU(g) is ReLU(g)^3
    return gradients.relu().pow_(3).flatten(2).sum(-1)


def _x_grad_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "xgradcam", eps=EPS if eps is None else eps)


def _x_grad_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    total = activations.flatten(2).sum(-1)
    return (gradients * activations).flatten(2).sum(-1) / (total + (EPS if eps is None else eps))


def _layer_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "layercam")


def _layer_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return gradients.relu()


BY_METHOD = {
    "GradCAM": Formula(_grad_cam, _grad_cam_weights),
    "GradCAMpp": Formula(_grad_cam_pp, _grad_cam_pp_weights, takes_eps=True),
    "XGradCAM": Formula(_x_grad_cam, _x_grad_cam_weights, takes_eps=True),
    "LayerCAM": Formula(_layer_cam, _layer_cam_weights),
}


def compute_cams(present: Replacement) -> Replacement:
    def compute_cams(
        self: Any,
        class_idx: Any = None,
        scores: Any = None,
        normalized: bool = True,
        *,
        targets: Any = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            if targets is not None:
                kwargs["targets"] = targets
            if not all(map(_has_map, self.hook_a)):
                call.leave_to("torchcam", "a layer's output is not (N, C, *S) in floating point")
                return present(self, class_idx, scores, normalized, **kwargs)
            own = "_get_weights" in vars(self) or "_backprop" in vars(self)
            formula = None if own else FORMULAS.get(type(self)._get_weights)
            if formula is None:
                weights = self._get_weights(class_idx, scores, **kwargs)
                with torch.no_grad():
                    pairs = zip(self.hook_a, weights, strict=True)
                    maps = [_weighted(a, w, self._relu) for a, w in pairs]
            else:
                eps = kwargs.pop("eps", None) if formula.takes_eps else None
                self._backprop(scores, class_idx, **kwargs)
                with torch.no_grad():
                    pairs = zip(self.hook_a, self.hook_g, strict=True)
                    maps = [_of_gradients(a, g, formula, eps) for a, g in pairs]
            if call.served_by == "fastcam":
                call.why = (call.why or "maps") + recorded(self)
            return [self._normalize(each) for each in maps] if normalized else maps

    return compute_cams


def _has_map(activations: Any) -> bool:
    return (
        isinstance(activations, Tensor)
        and 3 <= activations.dim() <= 5
        and activations.is_floating_point()
    )


def _of_gradients(
    activations: Tensor, gradients: Tensor, formula: Formula, eps: float | None
) -> Tensor:
    if activations.shape != gradients.shape:
        # 0.4.1, if a layer runs twice: the last run's activations, the first run's gradient
        return _weighted(activations, formula.weights(activations, gradients, eps), True)
    maps = formula.map(activations, gradients, eps).to(activations.dtype)
    if maps.isnan().any():
        return _without_nan(activations, formula.weights(activations, gradients, eps)).relu()
    return maps


def _weighted(activations: Tensor, weights: Tensor, relu: bool) -> Tensor:
    """The channel sum of (N, C, *S) with weights (N, C), (1, C) or (N, C, *S)."""
    if weights.dim() != 2 or weights.shape[1] != activations.shape[1]:
        maps = _without_nan(activations, weights)
        return maps.relu_() if relu else maps
    dtype = torch.promote_types(activations.dtype, weights.dtype)
    every = weights.expand(activations.shape[0], -1)
    maps = ops.weighted_sum(activations, every, relu).to(dtype)
    if maps.isnan().any():
        maps = _without_nan(activations, weights)
        return maps.relu_() if relu else maps
    return maps


def _without_nan(activations: Tensor, weights: Tensor) -> Tensor:
    """The channel sum without NaN products, as in torchcam."""
    weights = weights.reshape(*weights.shape, *(1,) * (activations.dim() - weights.dim()))
    return torch.nansum(weights * activations, 1)


def normalize(present: Replacement) -> Replacement:
    """(x - min) / (max - min + eps), in place."""

    @torch.no_grad()
    def normalize(cams: Tensor, spatial_dims: int | None = None, eps: float = EPS) -> Tensor:
        dims = cams.dim() - 1 if spatial_dims is None else spatial_dims
        exact = cams.dtype in EXACT or (settings.fix and cams.is_floating_point())
        if not exact or not 1 <= dims <= 3 or cams.numel() == 0:
            return present(cams, spatial_dims, eps)
        return cams.copy_(ops.normalize(cams, dims, eps))

    return normalize


def compute_legrad(present: Replacement) -> Replacement:
    def compute_cams(self: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            call.why = f"torchcam's own maps{recorded(self)}"
            return present(self, *args, **kwargs)

    return compute_cams
