"""The methods: a network and images in, maps out. One table of names, :data:`METHODS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.capture import Capture, Inputs, Output, PooledHead, capture, unwrap
from fastcam.guided import GuidedReLU
from fastcam.layers import Layers, find_layer, layer_names
from fastcam.layout import Reshape
from fastcam.targets import Selection, Targets, look_like_probabilities, select

Size = Sequence[int] | Literal["layer"] | None


class _Method:
    """What every method shares: the model, the layers and the last call's answers."""

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        reshape: Reshape | None = None,
        output: Output | None = None,
    ) -> None:
        """Nothing is hooked until a call.

        Args:
            model: the classifier; torch.compile, DataParallel and DistributedDataParallel are
                looked through. It runs in evaluation mode and is left as it was found.
            target_layers: a module, a dotted name, or a list of those; None finds the last layer
                with positions on the first call (see :func:`fastcam.layers.find_layer`).
            reshape: turns a layer's output, and its gradient, into (N, C, *S); needed only where
                token grids and (N, H, W, C) layouts are not recognised.
            output: picks the logits out of what the model returns.

        Raises:
            ValueError, TypeError: if a layer is not in the model.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
        self.model = unwrap(model)
        self.layers = () if target_layers is None else layer_names(self.model, target_layers)
        """The target layers' names; found on the first call where none were given."""
        self.outputs: Any = None
        """What the model returned in the last call, detached."""
        self.class_ids: Tensor | None = None
        """The classes of the last call, (N,) or (N, K); None where targets were functions."""
        self.scores: Tensor | None = None
        """Their scores, in the same shape."""
        self._reshape = reshape
        self._output = output
        self._checked = False  # the outputs, for being probabilities

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        """No hook outlives a call; this lets go of the last outputs."""
        self.outputs = self.class_ids = self.scores = None

    def _run(
        self, inputs: Inputs, targets: Targets, *, from_inputs: bool = False
    ) -> tuple[Capture, Selection]:
        record = capture(
            self.model,
            inputs,
            self.layers,
            reshape=self._reshape,
            output=self._output,
            from_inputs=from_inputs,
        )
        selection = select(record.logits, targets)
        if not self._checked:
            self._checked = True
            if look_like_probabilities(record.logits):
                warnings.warn(
                    "the model's outputs look like probabilities, whose gradients vanish where the "
                    "model is sure: explain the logits before softmax or sigmoid instead",
                    stacklevel=3,
                )
        self.outputs = record.outputs
        self.class_ids, self.scores = selection.class_ids, selection.scores.detach()
        return record, selection

    def _find_layers(self, inputs: Inputs) -> None:
        if not self.layers:
            found = find_layer(self.model, inputs, reshape=self._reshape, output=self._output)
            self.layers = (found,)


class _Map(_Method):
    """A method that gives one map an image and class."""

    relu: ClassVar[bool] = True

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
        relu: bool | None = None,
    ) -> Any:
        """Maps; ``outputs``, ``class_ids`` and ``scores`` come from the same forward.

        Args:
            images: (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default those of the images; "layer" for the layer's own.
            normalize: whether each map is brought to [0, 1], a constant one to 0.
            relu: whether negative values become 0; by default what the method's paper does.

        Returns:
            (N, *size) float32 on the images' device (float64 for a float64 model), or (N, K, *size)
            for targets (N, K). Several layers: each map normalized at its layer's resolution, then
            enlarged, and their mean normalized again; a list with one tensor a layer where
            ``size="layer"`` or not ``normalize``.

        Raises:
            ValueError, TypeError: if layers, targets or sizes do not fit the model and the images.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._find_layers(images)
            record, selection = self._run(images, targets)
            with torch.autocast(record.logits.device.type, enabled=False):
                rectify = self.relu if relu is None else relu
                return self._finished(record, selection, rectify, size, normalize)

    def _finished(
        self, record: Capture, selection: Selection, relu: bool, size: Size, normalize: bool
    ) -> Any:
        """What the call returns."""
        return _finish(self._maps(record, selection, relu), record, size, normalize)

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """One a layer, at the layer's resolution: (N, *S) or (N, K, *S)."""
        raise NotImplementedError


class CAM(_Map):
    """M = sum_k w_k^c A^k, w^c the weights of the linear layer behind global average pooling.

    Zhou et al. 2016, arXiv 1512.04150, equation 2; the bias and ReLU are left out. Where the head
    averages ReLU(A), A stands for that.
    """

    name = "cam"
    relu = False

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        if selection.class_ids is None:
            raise ValueError("targets: CAM needs class ids, for it takes the weights of a class")
        maps = []
        for layer, name in enumerate(record.layers):
            head = record.pooled_head(layer, selection)
            if head is None:
                raise ValueError(
                    f"target_layers: CAM needs global average pooling and one linear layer right "
                    f"behind '{name}', which this network has not, or every image gave NaN; use "
                    'Grad-CAM ("gradcam")'
                )
            maps.append(ops.weighted_sum(head.pooled, head.weight[selection.class_ids], relu))
        return maps


class _GradientMap(_Map):
    """A method of :func:`fastcam.ops.cam`."""

    pooled_shortcut: ClassVar[bool] = True
    """Whether, where g is constant, M = sum_k w_k A^k with w a function of g and sum(A)."""

    def _finished(
        self, record: Capture, selection: Selection, relu: bool, size: Size, normalize: bool
    ) -> Any:
        one_map = len(record.layers) == 1 and selection.scores.dim() == 1
        if not one_map or size == "layer":
            return super()._finished(record, selection, relu, size, normalize)
        extents = _extents(record, size)
        return _gradient_maps(
            record,
            selection,
            lambda a, g: ops.saliency(a, g, self.name, extents, relu, normalize),
        )[0]

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        ids = selection.class_ids
        if self.pooled_shortcut and len(record.layers) == 1 and ids is not None and ids.dim() == 2:
            head = record.pooled_head(0, selection) if ids.shape[1] > 1 else None
            if head is not None and not head.rectified:
                return [self._pooled_maps(head, ids, relu)]
        return _gradient_maps(record, selection, lambda a, g: ops.cam(a, g, self.name, relu))

    def _pooled_maps(self, head: PooledHead, class_ids: Tensor, relu: bool) -> Tensor:
        """The maps of K classes, (N, K, *S), without a backward: g = W[c] / Z at every position."""
        positions = head.pooled.shape[2:].numel()
        slopes = head.weight / positions
        total = ops.gap(head.pooled) * positions
        # classes by blocks, so that the weights (N, block, C) stay in a CPU's cache
        elements = 2**18 if total.device.type == "cpu" else 2**26
        blocks = torch.split(class_ids, max(1, elements // max(1, total.numel())), dim=1)
        same = bool((class_ids == class_ids[:1]).all())  # as in "all classes": one copy will do
        maps = []
        for ids in blocks:
            gradients = slopes[ids[:1]].expand(*ids.shape, -1) if same else slopes[ids]
            weights = self._weights(gradients, total, positions)
            maps.append(ops.weighted_sum(head.pooled, weights, relu))
        return torch.cat(maps, 1)

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        """Channel weights (N, K, C) where the gradient is the same at all positions.

        Args:
            slopes: g, (N, K, C).
            total: sum(A), (N, C).
            positions: Z.
        """
        return slopes


class GradCAM(_GradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = (1/Z) sum_ij g_ij.

    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2.
    """

    name = "gradcam"


class GradCAMPlusPlus(_GradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = sum_ij alpha_ij ReLU(g_ij).

    Chattopadhyay et al. 2018, arXiv 1710.11063, equations 5 and 19 with Y = exp(S); see
    :func:`fastcam.ops.gradcam_plus_plus_weights`. The factor exp(S) of the raw map is left out.
    """

    name = "gradcam++"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        # sum_ij ReLU(g) / (2 + g sum(A)): Z times that of a single position with A = sum(A)
        single = ops.gradcam_plus_plus_weights(total.unsqueeze(-1), slopes.unsqueeze(-1))
        return single.mul_(positions)


class XGradCAM(_GradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = sum_ij g_ij A_ij / sum_ij A_ij, 0 where that is 0.

    Fu et al. 2020, arXiv 2008.02312, equation 8.
    """

    name = "xgradcam"


class HiResCAM(_GradientMap):
    """M = ReLU(sum_k g^k A^k), elementwise.

    Draelos and Carin 2020, arXiv 2011.08891; the ReLU is for display, ``relu=False`` leaves it out.
    """

    name = "hirescam"


class LayerCAM(_GradientMap):
    """M = ReLU(sum_k ReLU(g^k) A^k), elementwise.

    Jiang et al. 2021, IEEE Transactions on Image Processing 30, equations 5 to 7.
    """

    name = "layercam"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        return slopes.relu()


class GradCAMElementWise(_GradientMap):
    """M = sum_k ReLU(g^k A^k), elementwise."""

    name = "gradcam-elementwise"
    pooled_shortcut = False


class GuidedBackprop(_Method):
    """dS/dx with a ReLU that passes positive gradients at positive inputs only.

    Springenberg et al. 2015, arXiv 1412.6806, section 3.4. Acts on ReLU and ReLU6, modules and
    functions alike, also as hardtanh, threshold or clamp; other activations keep their gradient, a
    network without ReLU, or with TorchScript modules, gets a warning.
    """

    name = "guided-backprop"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        reshape: Reshape | None = None,
        output: Output | None = None,
    ) -> None:
        """As for the other methods, but without layers: those two arguments stay None."""
        if target_layers is not None or reshape is not None:
            raise ValueError(
                "target_layers: guided backpropagation has none, it ends at the images"
            )
        super().__init__(model, output=output)

    def __call__(self, images: Inputs, targets: Targets = None) -> Tensor:
        """The signed gradient in the images' shape (N, C, *S), or (N, K, C, *S) for targets (N, K).

        Args:
            images: floating point (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
        """
        with torch.inference_mode(False), torch.no_grad():
            relu = GuidedReLU()
            with relu:
                record, selection = self._run(images, targets, from_inputs=True)
            _warn_of_missed_relus(self.model, relu)
            return _image_gradients(relu, record, selection)


class GuidedGradCAM(_Method):
    """The enlarged, normalized Grad-CAM times guided backpropagation, from one forward.

    Selvaraju et al. 2017, arXiv 1610.02391, section 3.2. The map's own gradient is the plain one.
    """

    name = "guided-gradcam"

    def __call__(self, images: Inputs, targets: Targets = None) -> Tensor:
        """Signed, in the images' shape (N, C, *S), or (N, K, C, *S) for targets (N, K).

        Args:
            images: floating point (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._find_layers(images)
            relu = GuidedReLU()
            with relu:
                record, selection = self._run(images, targets, from_inputs=True)
            _warn_of_missed_relus(self.model, relu)
            with torch.autocast(record.logits.device.type, enabled=False):
                maps = _gradient_maps(
                    record, selection, lambda a, g: ops.cam(a, g, "gradcam"), retain=True
                )
                if len(maps) > 1:
                    maps = [_mean(maps, _extents(record, None))]
                guided = _image_gradients(relu, record, selection)
                return ops.guided_product(maps[0], guided, len(_extents(record, None)))


def _gradient_maps(
    record: Capture,
    selection: Selection,
    to_map: Callable[[Tensor, Tensor], Tensor],
    retain: bool = False,
) -> list[Tensor]:
    """One map of activations and gradients a layer, (N, *S) or (N, K, *S).

    Class by class, one class's gradients at a time.
    """
    columns = selection.columns()
    maps: list[list[Tensor]] = [[] for _ in record.layers]
    for k, scores in enumerate(columns, start=1):
        gradients = record.gradients(scores, retain=retain or k < len(columns))
        for layer, activations in enumerate(record.activations):
            maps[layer].append(to_map(activations, gradients[layer]))
    several = selection.scores.dim() == 2
    return [torch.stack(layer, 1) if several else layer[0] for layer in maps]


def _warn_of_missed_relus(model: nn.Module, relu: GuidedReLU) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        warnings.warn(
            "guided backpropagation does not meet the ReLUs of TorchScript modules: there this is "
            "the plain gradient",
            stacklevel=3,
        )
    elif not relu.met:
        warnings.warn(
            "guided backpropagation met no ReLU in this network: this is the plain gradient",
            stacklevel=3,
        )


def _image_gradients(relu: GuidedReLU, record: Capture, selection: Selection) -> Tensor:
    """The guided gradient, (N, C, *S) or (N, K, C, *S); the last use of the graph."""
    relu.guided = True
    columns = selection.columns()
    gradients = [
        record.image_gradients(scores, retain=k < len(columns))
        for k, scores in enumerate(columns, start=1)
    ]
    return torch.stack(gradients, 1) if selection.scores.dim() == 2 else gradients[0]


def _finish(maps: list[Tensor], record: Capture, size: Size, normalize: bool) -> Any:
    """Enlargement, then min-max; of several layers the mean (:func:`_mean`)."""
    if size == "layer":
        dims = [activations.dim() - 2 for activations in record.activations]
        maps = [ops.normalize(m, d) for m, d in zip(maps, dims, strict=True)] if normalize else maps
    else:
        extents = _extents(record, size)
        if normalize and len(maps) > 1:
            return _mean(maps, extents)
        maps = [ops.upsample(m, extents, normalize) for m in maps]
    return maps[0] if len(maps) == 1 else maps


def _mean(maps: list[Tensor], extents: tuple[int, ...]) -> Tensor:
    """The mean of several layers' maps, normalized: each was so before its enlargement too."""
    dims = len(extents)
    enlarged = [ops.upsample(ops.normalize(m, dims), extents, normalize=False) for m in maps]
    return ops.normalize(torch.stack(enlarged).mean(0), dims)


def _extents(record: Capture, size: Size) -> tuple[int, ...]:
    """The extents to enlarge to, as many as the layers have."""
    extents = record.extents if size is None else size
    if not (extents is None or isinstance(extents, Sequence)):
        raise TypeError(f'size: got {extents!r}, expected a list of integers or "layer"')
    for name, activations in zip(record.layers, record.activations, strict=True):
        dims = activations.dim() - 2
        if extents is None or isinstance(extents, str) or len(extents) != dims or min(extents) < 1:
            source = "the inputs have" if size is None else "got"
            raise ValueError(
                f"size: {source} {extents!r}, but '{name}' has {dims} dimensions of "
                f'positions; give {dims} positive integers or "layer"'
            )
    return tuple(int(extent) for extent in extents or ())


METHODS: dict[str, type[_Method]] = {
    method.name: method
    for method in (
        CAM,
        GradCAM,
        GradCAMPlusPlus,
        XGradCAM,
        HiResCAM,
        LayerCAM,
        GradCAMElementWise,
        GuidedBackprop,
        GuidedGradCAM,
    )
}
"""Every method by the name that Python, command line and benchmarks use."""


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` gives."""

    maps: Any
    """As the method returns them."""
    class_ids: Tensor | None
    """(N,) or (N, K); None where the targets were functions."""
    scores: Tensor
    """The explained scores, (N,) or (N, K)."""
    outputs: Any
    """What the model returned."""


def explain(
    model: nn.Module,
    images: Inputs,
    method: str = "gradcam++",
    target_layers: Layers | None = None,
    targets: Targets = None,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    **options: Any,
) -> Explanation:
    """One explanation in one call: maps, class ids, scores and outputs from one forward.

    Args:
        model, target_layers, reshape, output: as the methods' constructors take them.
        images, targets: as the methods' calls take them.
        method: a name of :data:`METHODS`.
        options: the call's ``size``, ``normalize`` and ``relu``.

    Raises:
        ValueError, TypeError: as the method does, and for a name that is not in the table.
    """
    if method not in METHODS:
        raise ValueError(f"method: got '{method}', expected one of {', '.join(METHODS)}")
    cam: Any = METHODS[method](model, target_layers, reshape=reshape, output=output)
    maps = cam(images, targets, **options)
    return Explanation(maps, cam.class_ids, cam.scores, cam.outputs)
