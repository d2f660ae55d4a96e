"""How a CAM object of pytorch-grad-cam runs its network here: recorded from the target layer up.

The functions take the object, of this package's classes or of pytorch-grad-cam's own, by the
attributes that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastcam import ops
from fastcam.capture import Graph, record
from fastcam.compat.pytorch_grad_cam.utils.image import scale_cam_image
from fastcam.compat.pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.engine.inputs import first_row
from fastcam.engine.recording import OUTPUT, Point, Start, find_start, gradients_at, has_hooks
from fastcam.engine.running import (
    unwrap,
)
from fastcam.errors import first_line
from fastcam.fast import FastModel, Options, preferred_dtype
from fastcam.layers import layer_names

SCALE_EPS = 1e-7  # beside the range of a map, as in scale_cam_image

T = TypeVar("T")
Array = np.ndarray[Any, Any]
TargetFunctions = Sequence[Callable[[Any], Any]]
Choose = Callable[[Any], TargetFunctions]
"""From the model's outputs to one target function an image."""

OVERRIDABLE = frozenset(
    ("get_cam_weights", "get_cam_image", "compute_cam_per_layer", "aggregate_multi_layers")
)
"""What a user's subclass may have of its own; these get numpy arrays."""


class NotServed(Exception):
    """This call is one for the library's own way; the message says why."""


@dataclass(frozen=True)
class Run:
    """One run of the network. Layers are in the order in which they ran."""

    images: Tensor
    outputs: Any
    """What the model returned, with the graph above the layers."""
    activations: list[Tensor]
    """(N, C, *S), without a graph; on a CPU as operations in place have left them."""
    points: list[Point]
    """Where in the graph the layers returned that, before any operation in place."""
    handed_on: list[Any]
    """What the model went on with, with its graph, as operations in place have left it."""
    reshape: Callable[[Tensor], Tensor]

    def gradients(self, targets: TargetFunctions) -> list[Tensor]:
        """The gradient of the targets' sum, (N, C, *S) a layer."""
        with torch.enable_grad():
            found = self._gradients(targets, False)
        return [self.reshape(gradient) for gradient in found]

    def hessian_products(self, targets: TargetFunctions) -> list[tuple[Tensor, Tensor]]:
        """The gradient and the Hessian times A, for each layer; A as it was handed on."""
        products = []
        with torch.enable_grad():
            found = self._gradients(targets, True)
            for gradient, a in zip(found, self.handed_on, strict=True):
                product = None
                if gradient.requires_grad:
                    (product,) = torch.autograd.grad(
                        gradient, a, a.detach(), retain_graph=True, allow_unused=True
                    )
                product = torch.zeros_like(gradient) if product is None else product
                products.append((self.reshape(gradient.detach()), self.reshape(product)))
        return products

    def _gradients(self, targets: TargetFunctions, create_graph: bool) -> list[Tensor]:
        pairs = zip(targets, self.outputs, strict=False)  # images beyond the targets count as 0
        loss: Any = sum(target(output) for target, output in pairs)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise NotServed("the targets do not depend on the target layers")
        found = gradients_at(self.points, loss, create_graph=create_graph, retain=create_graph)
        gradients = [gradient for gradient in found if gradient is not None]
        if len(gradients) < len(found):
            raise NotServed("the targets do not depend on every target layer")
        return gradients


Kernel = Callable[[Any, Run, TargetFunctions], list[Tensor]]
"""From the object, its run and the targets to a map a layer, (N, *S)."""


def weighing(method: str, eps: float = 0.0) -> Kernel:
    """The kernel of one of the methods of :func:`fastcam.ops.cam`."""

    def kernel(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
        gradients = run.gradients(targets)
        keep(cam, run.activations, gradients)
        pairs = zip(run.activations, gradients, strict=True)
        return [ops.cam(a, g, method, eps=eps) for a, g in pairs]

    return kernel


class Formula(NamedTuple):
    """What gives the maps of a class, in the place of its own methods."""

    kernel: Kernel
    changed: Callable[[], str | None] = lambda: None
    """What makes these methods others than those that the kernel stands for; None if nothing."""


FORMULAS: dict[type, Formula] = {}
RUNNERS: set[type] = set()
"""The classes of ``activations_and_grads`` that run a model just so."""


def maps_by(kernel: Kernel) -> Callable[[type[T]], type[T]]:
    """Decorates a class whose maps a kernel gives."""

    def decorate(owner: type[T]) -> type[T]:
        FORMULAS[owner] = Formula(kernel)
        return owner

    return decorate


def keep(cam: Any, activations: list[Tensor], gradients: list[Tensor]) -> None:
    """Puts them where a CAM object's user, or its class, looks for them."""
    cam.activations_and_grads.activations = activations
    cam.activations_and_grads.gradients = gradients


def explain(
    cam: Any,
    input_tensor: Any,
    choose: Choose,
    eigen_smooth: bool,
    otherwise: Callable[[], Any],
    name: str,
) -> Any:
    """The maps (N, *S) of a CAM object, as a float32 array.

    Args:
        cam: the object.
        choose: gives the targets.
        eigen_smooth: whether the map is a principal component; numpy computes it.
        otherwise: the library's own way.
        name: of the call, for the report.
    """
    with counted(name) as call:
        try:
            run, targets, maps = _maps(cam, input_tensor, choose, eigen_smooth)
        except NotServed as reason:
            call.leave_to("pytorch_grad_cam", str(reason))
            return otherwise()
        if maps is not None:
            call.why = "network recorded above the layer, maps by fused kernels"
            return _finished(cam, run.images, maps)
        call.why = "network recorded above the layer, maps in numpy"
        per_layer = cam.compute_cam_per_layer(run.images, targets, eigen_smooth)
        return cam.aggregate_multi_layers(per_layer)


def _maps(
    cam: Any, input_tensor: Any, choose: Choose, eigen_smooth: bool
) -> tuple[Run, TargetFunctions, list[Tensor] | None]:
    """The run, its targets, and a map a layer where the object's class has a kernel.

    Otherwise activations and gradients lie where the class looks for them.
    """
    kernel = kernel_of(cam)
    run = run_of(cam, input_tensor, second_order=kernel is not None and not cam.detach)
    cam.outputs = _detached(run.outputs)
    targets = choose(run.outputs)
    if settings.fix and len(targets) != len(run.images):
        raise ValueError(
            f"targets: got {len(targets)}, expected {len(run.images)}, one for each image"
        )
    if kernel is not None and not eigen_smooth and {a.dim() for a in run.activations} <= {4, 5}:
        return run, targets, kernel(cam, run, targets)
    if not cam.detach:
        raise NotServed("it keeps the graph of the whole network")
    keep(cam, run.activations, run.gradients(targets) if cam.uses_gradients else [])
    return run, targets, None


def kernel_of(cam: Any) -> Kernel | None:
    """The kernel of an object's class, unless it or a class below overrides the formula."""
    if OVERRIDABLE & vars(cam).keys():
        return None
    for each in type(cam).__mro__:
        if each in FORMULAS:
            formula = FORMULAS[each]
            return None if formula.changed() else formula.kernel
        if OVERRIDABLE & vars(each).keys():
            return None
    return None


def top_classes(outputs: Tensor, target: Any = ClassifierOutputTarget) -> TargetFunctions:
    """The class of the highest score, as a ``target`` for each image."""
    categories = np.argmax(outputs.detach().cpu().numpy(), axis=-1)
    return [target(category) for category in categories]


def run_of(cam: Any, input_tensor: Any, second_order: bool = False) -> Run:
    """Runs the network.

    Args:
        second_order: whether gradients will be derived once more.

    Raises:
        NotServed: where the library's own way may give another answer.
    """
    if not isinstance(input_tensor, Tensor):
        raise NotServed(f"the input is a {type(input_tensor).__name__}, no tensor")
    _check_runner(cam)
    if cam.model.training or any(module.training for module in cam.model.modules()):
        raise NotServed("the model is in training mode")
    if not second_order and (cam.compute_input_gradient or not cam.detach):
        raise NotServed("it asks for more gradients than those of the layers")
    images = input_tensor.to(cam.device)
    try:
        names = layer_names(unwrap(cam.model), list(cam.target_layers))
    except (ValueError, TypeError) as error:
        raise NotServed(first_line(error)) from error
    with ExitStack() as during:
        during.enter_context(torch.inference_mode(False))
        during.enter_context(torch.no_grad())
        during.enter_context(aside(cam))
        if second_order:
            during.enter_context(sdpa_kernel(SDPBackend.MATH))  # others have no second derivative
        start: Start | None = None
        try:
            if cam.uses_gradients:
                start = _start(cam, unwrap(cam.model), images, names)
            model, inputs = _network(cam, images, names, start)
            graph: Graph | None = "layers" if cam.uses_gradients else None
            recorded = record(model, inputs, names, graph=graph, start=start)
        except ValueError as error:
            raise NotServed(first_line(error)) from error
    if any(count != 1 for count in recorded.runs.values()) or len(set(names)) < len(names):
        raise NotServed("a target layer did not run exactly once, or returned no tensor")
    returned = [recorded.returned[layer] for layer in recorded.points]  # in the order of the runs
    if cam.uses_gradients and not all(isinstance(each, Tensor) for each in returned):
        raise NotServed("a target layer returned something else than a tensor")
    reshape = cam.reshape_transform or _as_it_is
    points = [point for (point,) in recorded.points.values()]
    values = [point.value for point in points]
    # a reference on a CPU, which operations in place write to; a copy elsewhere
    on_cpu = values[0].device.type == "cpu"
    kept = returned if on_cpu and not settings.fix else values
    activations = [reshape(_detached(each)) for each in kept]
    return Run(images, recorded.outputs, activations, points, returned, reshape)


def _check_runner(cam: Any) -> None:
    """Raises NotServed if the object runs its model in a way of its own."""
    runner = cam.activations_and_grads
    if type(runner) not in RUNNERS:
        raise NotServed("it has activations_and_grads of another class")
    own = sorted(vars(runner).keys() & vars(type(runner)).keys() - {"activations", "gradients"})
    if own:
        raise NotServed(f"its activations_and_grads have {own[0]} of their own")
    for name in ("model", "reshape_transform", "detach"):
        if getattr(runner, name) is not getattr(cam, name):
            raise NotServed(f"its activations_and_grads have another {name}")


_starts: WeakKeyDictionary[Any, tuple[Sequence[str], Start]] = WeakKeyDictionary()


def _start(cam: Any, model: nn.Module, inputs: Any, names: Sequence[str]) -> Start:
    """Where the graph of an object's runs starts; found by its first call.

    A model with hooks of the user's is recorded as a whole: runs to find more would be noticed.
    """
    if has_hooks(model):
        return Start("model")
    layers, start = _starts.get(cam, ((), None))
    if start is None or layers != names:
        try:
            start = find_start(model, first_row(inputs), names)
        except Exception:  # what is wrong, the run that explains says
            start = Start("model")
        _starts[cam] = names, start
    return start


@contextmanager
def aside(cam: Any) -> Iterator[None]:
    """The object's own hooks are not called meanwhile."""
    hooks = [handle.hooks_dict_ref() for handle in cam.activations_and_grads.handles]
    saved = [(each, dict(each)) for each in hooks if each is not None]
    own = {handle.id for handle in cam.activations_and_grads.handles}
    try:
        for each, _ in saved:
            for key in own & each.keys():
                del each[key]
        yield
    finally:
        for each, before in saved:
            # in their order, without those that the model removed; then those that it added
            now = {key: hook for key, hook in before.items() if key in own or key in each}
            now |= each
            each.clear()
            each.update(now)


_fast_copies: WeakKeyDictionary[Any, tuple[nn.Module, FastModel]] = WeakKeyDictionary()


def _network(
    cam: Any, images: Tensor, names: Sequence[str], start: Start | None
) -> tuple[nn.Module, Any]:
    """The network and its input, in the fast mode a copy of it."""
    model = unwrap(cam.model)
    if not settings.fast:
        return model, images
    of, copy = _fast_copies.get(cam, (None, None))
    if of is not model or copy is None or copy.is_stale:
        options = Options(dtype=preferred_dtype(images.device))
        copy = FastModel(model, images, names, options, start or OUTPUT)
        _fast_copies[cam] = model, copy
    return copy.model, copy.prepared(images)


def _finished(cam: Any, images: Tensor, maps: list[Tensor]) -> Array:
    """Each map normalized, enlarged; their mean normalized again."""
    size = tuple(cam.get_target_width_height(images))[::-1]
    if len(size) != 2:
        arrays = [scale_cam_image(m.float().cpu().numpy(), size[::-1]) for m in maps]
        finished: Array = cam.aggregate_multi_layers([each[:, None] for each in arrays])
        return finished
    scaled = [ops.normalize(m, eps=SCALE_EPS) for m in maps]
    if len(scaled) == 1:
        result = ops.upsample(scaled[0], size, eps=SCALE_EPS)
    else:
        enlarged = [ops.upsample(each, size, normalize=False) for each in scaled]
        result = ops.normalize(torch.stack(enlarged).mean(0), eps=SCALE_EPS)
    return result.float().cpu().numpy()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
