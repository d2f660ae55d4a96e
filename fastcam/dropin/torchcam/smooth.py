"""Smooth Grad-CAM++ with its samples in batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.forward import library_run
from fastcam.dropin.torchcam.peer import EPS, Peer
from fastcam.methods.smooth import smooth_weights


def smooth(present: Replacement) -> Replacement:
    """Smooth Grad-CAM++'s weights, from small batches of samples."""

    def weights(self: Any, class_idx: Any, eps: float, **kwargs: Any) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            reason = _why_not_together(self, class_idx)
            if reason:
                call.leave_to("torchcam", reason)
                with library_run():
                    return present(self, class_idx, eps, **kwargs)
            call.why = "samples together"
            return _smooth_weights(self, class_idx, eps, kwargs)

    return weights


def smooth_in_one(present: Replacement) -> Replacement:
    """The same as :func:`smooth` for 0.4.1, which has a single method for it."""

    def samples(self: Any, class_idx: Any, eps: float, **kwargs: Any) -> list[Tensor]:
        return present(self, class_idx, None, eps, **kwargs)

    together = smooth(samples)

    def weights(
        self: Any, class_idx: Any, _: Any = None, eps: float = EPS, **kwargs: Any
    ) -> list[Tensor]:
        self._ihook_enabled = False
        try:
            return together(self, class_idx, eps, **kwargs)
        finally:
            self._ihook_enabled = True

    return weights


def _why_not_together(extractor: Any, class_idx: Any) -> str:
    """Why samples must run one by one, as in torchcam, or "" if they can run in batches."""
    if not extractor._hooks_enabled:
        return "its hooks are disabled"
    own = "_backprop" in vars(extractor)
    if own or type(extractor)._backprop is not Peer.gradient._GradCAM._backprop:
        return "it overrides _backprop"
    if class_idx is None:
        return "the targets are functions"
    for module in extractor.model.modules():
        if module.training:
            return "the model is in training mode"
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            return "BatchNorm uses the statistics of the batch"
    return ""


def _smooth_weights(
    extractor: Any, class_idx: Any, eps: float, kwargs: dict[str, Any]
) -> list[Tensor]:
    images, samples = extractor._input, extractor.num_samples
    count = images.shape[0]
    clean = list(extractor.hook_a)
    draw = extractor._distrib.sample
    noise = [draw(images.shape).to(device=images.device) for _ in range(samples)]
    gradients: list[list[Tensor]] = [[] for _ in clean]  # (samples, N, C, *S) per layer and batch
    together = max(1, 8 // max(1, count))
    for start in range(0, samples, together):
        some = noise[start : start + together]
        noisy = torch.cat([images + each for each in some]).requires_grad_()
        with library_run():
            scores = extractor.model(noisy)
        classes = class_idx * len(some) if isinstance(class_idx, list) else class_idx
        extractor._backprop(scores, classes, **kwargs)
        for layer, gradient in enumerate(extractor.hook_g):
            gradients[layer].append(gradient.unflatten(0, (len(some), count)))
    weights = []
    for layer, (activations, found) in enumerate(zip(clean, gradients, strict=True)):
        # as a separate run of the last sample would have left it
        extractor.hook_a[layer] = extractor.hook_a[layer][-count:].clone()
        extractor.hook_g[layer] = extractor.hook_g[layer][-count:].clone()
        if settings.fix:
            extractor.hook_a[layer] = activations
            total = ops.gap(activations) * activations.shape[2:].numel()
            weights.append(smooth_weights(total, torch.cat(found)))
        else:
            weights.append(_smooth_weights_of_torchcam(activations, found, samples, eps))
    return weights


def _smooth_weights_of_torchcam(
    activations: Tensor, gradients: list[Tensor], samples: int, eps: float
) -> Tensor:
    """alpha = E[g^2] / (2 E[g^2] + sum_ab(E[g_ab^3] A_ab) + eps); ReLU(g) of the last sample."""
    second = sum(g.square().sum(0) for g in gradients) / samples
    third = sum((g * g.square()).sum(0) for g in gradients) / samples
    mixed = (third * activations).flatten(2).sum(-1)
    mixed = mixed.reshape(*mixed.shape, *(1,) * (activations.dim() - 2))
    alpha = second / (2 * second + mixed + eps)
    return (alpha * gradients[-1][-1].relu()).flatten(2).sum(-1)
