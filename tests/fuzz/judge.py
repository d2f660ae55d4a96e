"""What is right: whole-graph autograd in float64, double loops and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .network import CLASSES, Instrumented, Network, build, opened
from .spec import SAME_OBJECT, Spec

CUTS_DIFFERENCES = ("detached", "no_grad gate", "maximum")
"""Heads with a path that counts for the values and not for the derivative, or with equal maxima."""


@dataclass
class Answer:
    """What one call has to give."""

    outputs: Any
    """What plain inference gives."""
    activations: Tensor
    """A, (N, C, H, W)."""
    gradients: Tensor | None
    """dS/dA; None where no graph leads from the score to the layer, which is an error."""
    certain: bool
    """Whether an error is wrong: A is not made within the model's own no_grad block."""


def logits_of(spec: Spec, outputs: Any) -> Tensor:
    if spec.output == "tuple":
        return outputs[1]
    return outputs["logits"] if spec.output == "dict" else outputs


def class_ids(spec: Spec, images: Tensor) -> Tensor:
    """(N,)"""
    made = torch.Generator().manual_seed(spec.seed)
    return torch.randint(0, CLASSES, (len(images),), generator=made)


def scores_of(spec: Spec, outputs: Any) -> Tensor:
    """(N,)"""
    logits = logits_of(spec, outputs)
    return logits.gather(1, class_ids(spec, logits)[:, None])[:, 0]


def inference(spec: Spec, images: Tensor) -> Any:
    """The outputs of plain inference."""
    with torch.no_grad():
        return build(spec).eval()(images)


def answer(spec: Spec, images: Tensor) -> Answer:
    """A zero that requires a gradient is added to the activation where it comes into being."""
    model = _instrumented(spec, images)
    zeros: list[Tensor] = []
    returned: list[Tensor] = []

    def add_zero(made: Tensor) -> Tensor:
        with torch.enable_grad():
            zero = torch.zeros_like(made, requires_grad=True)
            zeros.append(zero)
            return _added(spec, made, zero)

    model.probe.edit = add_zero
    handle = model.get_submodule(model.layer_name).register_forward_hook(
        lambda module, args, output: returned.append(opened(output)[0].detach().clone())
    )
    with torch.enable_grad():
        scores = scores_of(spec, model(images))
        gradient = _gradient(scores, zeros[-1])
    handle.remove()
    return Answer(
        inference(spec, images),
        model.as_map(returned[-1]),
        None if gradient is None else model.as_map(gradient),
        certain=spec.grad not in ("no_grad layer", "no_grad body"),
    )


def plain_gradient(spec: Spec, images: Tensor, layer: str) -> Tensor | None:
    """dS/dA for a plain convolution that nobody overwrites, by the edge of its output.

    None where the network overwrites what a backward through it needs.
    """
    model = _instrumented(spec, images)
    edges: list[Any] = []
    model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: edges.append(torch.autograd.graph.get_gradient_edge(output))
    )
    with torch.enable_grad():
        scores = scores_of(spec, model(images))
    try:
        return _gradient(scores, edges[-1])
    except RuntimeError:
        return None


def edge_gradient(spec: Spec, images: Tensor) -> tuple[Tensor | None] | None:
    """dS/dA by the edge that the layer's output has when it is returned: another judge.

    None where it cannot tell: no graph, a view that is overwritten later (its edge then leaves the
    graph), or a layer that returns its input, which others read too.
    """
    model = _instrumented(spec, images)
    edges: list[Any] = []
    layer = model.get_submodule(model.layer_name)

    def take(module: Any, args: Any, output: Any) -> None:
        tensor = opened(output)[0]
        written = tensor._is_view() and spec.behind != "none"
        shared = spec.layer in SAME_OBJECT and spec.reads_input
        cut = not tensor.requires_grad or written or shared
        edges.append(None if cut else torch.autograd.graph.get_gradient_edge(tensor))

    handle = layer.register_forward_hook(take)
    with torch.enable_grad():
        scores = scores_of(spec, model(images))
    handle.remove()
    if edges[-1] is None:
        return None
    gradient = _gradient(scores, edges[-1])
    return (None if gradient is None else model.as_map(gradient),)


def difference(spec: Spec, images: Tensor, direction: Tensor, step: float = 1e-6) -> float:
    """The central difference of the sum of scores where A moves along ``direction``.

    Args:
        direction: in the shape of what the layer returns, read as (N, C, H, W).
    """
    model = _instrumented(spec, images)

    def moved(by: float) -> Tensor:
        def move(made: Tensor) -> Tensor:
            if model.probe.count < spec.repeat:
                return made
            change = torch.zeros_like(made)
            model.as_map(change).copy_(direction * by)
            return _added(spec, made, change)

        model.probe.edit = move
        with torch.no_grad():
            return scores_of(spec, model(images)).sum()

    return ((moved(step) - moved(-step)) / (2 * step)).item()


def differences_count(spec: Spec) -> bool:
    """Whether a difference of values is the derivative: no path is cut."""
    cut = "no_grad" in spec.grad or spec.head in CUTS_DIFFERENCES
    return not cut and "store detached" not in spec.hooks


def ablated_scores(spec: Spec, images: Tensor, channels: int) -> Tensor:
    """(C, N): the scores with one channel of A set to 0, where it comes into being."""
    model = _instrumented(spec, images)
    rows = []
    for channel in range(channels):

        def erase(made: Tensor, channel: int = channel) -> Tensor:
            if model.probe.count < spec.repeat:
                return made
            kept = torch.ones_like(made)
            model.as_map(kept)[:, channel] = 0
            # -made * (1 - kept) would leave -0.0 and NaN where made is infinite
            return _added(spec, made, torch.where(kept == 0, -made, 0.0))

        model.probe.edit = erase
        with torch.no_grad():
            rows.append(scores_of(spec, model(images)).detach())
    return torch.stack(rows)


def _instrumented(spec: Spec, images: Tensor) -> Network:
    """A network with every hook hung and a graph through everything."""
    model = build(spec, Instrumented).eval().requires_grad_(True)
    with torch.no_grad():
        model(images)
    return model


def _added(spec: Spec, made: Tensor, change: Tensor) -> Tensor:
    """``made + change``, in the memory that everybody reads; the input of a layer that returns it
    is not the layer's."""
    if spec.layer in SAME_OBJECT and spec.reads_input:
        return made + change
    try:
        return made.add_(change)
    except RuntimeError:  # a chunk, or a view that was made under no_grad
        return made + change


def _gradient(scores: Tensor, at: Any) -> Tensor | None:
    if not scores.requires_grad:
        return None
    return torch.autograd.grad(scores.sum(), [at], allow_unused=True)[0]


# maps of A and g, (N, C, H, W) both -> (N, H, W), before ReLU


def gradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (g.mean((2, 3), keepdims=True) * a).sum(1)


def denominator_sum(a: np.ndarray) -> np.ndarray:
    """sum ReLU(A), which stands for sum A in the denominator of Grad-CAM++."""
    return np.maximum(a, 0).sum((2, 3), keepdims=True)


def gradcam_plus_plus(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    denominator = 2 + g * denominator_sum(a)
    alpha_g = np.divide(g, denominator, out=np.zeros_like(g), where=g > 0)
    return (alpha_g.sum((2, 3), keepdims=True) * a).sum(1)


def hirescam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (g * a).sum(1)


def layercam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return (np.maximum(g, 0) * a).sum(1)


def xgradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    total = a.sum((2, 3), keepdims=True)
    products = (g * a).sum((2, 3), keepdims=True)
    weights = np.divide(products, total, out=np.zeros_like(total), where=total != 0)
    return (weights * a).sum(1)


GRADIENT_MAPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "hirescam": hirescam,
    "layercam": layercam,
    "xgradcam": xgradcam,
}


def eigencam(a: np.ndarray) -> np.ndarray:
    return np.stack([_eigencam(image) for image in a])


def _eigencam(a: np.ndarray) -> np.ndarray:
    rows = a.reshape(len(a), -1).T
    centred = rows - rows.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    return _signed(centred @ axis).reshape(a.shape[1:])


def kpcacam(a: np.ndarray) -> np.ndarray:
    return np.stack([_kpcacam(image) for image in a])


def _kpcacam(a: np.ndarray) -> np.ndarray:
    rows = a.reshape(len(a), -1).T
    rows = rows - rows.mean(0)
    kernel = np.tanh(rows @ rows.T / len(a) + 1)
    centre = np.eye(len(rows)) - 1 / len(rows)
    values, vectors = np.linalg.eigh(centre @ kernel @ centre)
    if values[-1] <= 1e-12 * np.abs(kernel).sum():  # equal positions: nothing but rounding
        return np.zeros(a.shape[1:])
    return _signed(np.sqrt(values[-1]) * vectors[:, -1]).reshape(a.shape[1:])


def _signed(component: np.ndarray) -> np.ndarray:
    return component * np.sign(component[np.abs(component).argmax()])


def fem(a: np.ndarray, k: float = 2.0) -> np.ndarray:
    mean, std = a.mean((2, 3), keepdims=True), a.std((2, 3), keepdims=True)
    weights = (a > mean + k * std).mean((2, 3), keepdims=True)
    return (weights * a).sum(1)


ACTIVATION_MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "eigencam": eigencam,
    "kpcacam": kpcacam,
    "fem": fem,
}


def ablationcam(spec: Spec, images: Tensor, found: Answer) -> np.ndarray:
    a = found.activations.numpy()
    whole = scores_of(spec, found.outputs).detach().numpy()
    erased = ablated_scores(spec, images, a.shape[1]).numpy()
    weights = np.divide(whole - erased, whole, out=np.zeros_like(erased), where=whole != 0)
    return np.einsum("cn,nchw->nhw", weights, a)


def scorecam(spec: Spec, images: Tensor, found: Answer) -> np.ndarray:
    a = found.activations
    enlarged = F.interpolate(a, images.shape[2:], mode="bilinear", align_corners=False)
    low, high = enlarged.amin((2, 3), keepdim=True), enlarged.amax((2, 3), keepdim=True)
    # enlarging a constant rounds: whether it is one is told before
    varies = a.amax((2, 3), keepdim=True) > a.amin((2, 3), keepdim=True)
    masks = torch.where(varies & (high > low), (enlarged - low) / (high - low), 0.0)
    model = build(spec).eval()
    rows = []
    with torch.no_grad():
        for channel in range(a.shape[1]):
            masked = images * masks[:, channel, None]
            rows.append(scores_of(spec, model(masked)).detach())
    scores = torch.stack(rows, 1)
    return (scores.softmax(1)[:, :, None, None] * a).sum(1).numpy()


MASKED_MAPS = {"ablationcam": ablationcam, "scorecam": scorecam}
