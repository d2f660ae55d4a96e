"""How a CAM object of pytorch-grad-cam runs its network here: recorded from the target layer up.

The functions of this package take the object, one of pytorch-grad-cam's own classes or of those in
:mod:`fastcam.compat.pytorch_grad_cam`, by the attributes that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastcam.dropin.settings import settings
from fastcam.engine.fast.model import FastCopies
from fastcam.engine.graph import OUTPUT, Point, Start, gradients_at
from fastcam.engine.inputs import first_row
from fastcam.engine.layers import layer_names
from fastcam.engine.recorded_run import Graph, record
from fastcam.engine.running import hooks_of, modules_of, unwrap
from fastcam.engine.start import find_start
from fastcam.errors import first_line

Array = np.ndarray[Any, Any]
TargetFunctions = Sequence[Callable[[Any], Any]]
Choose = Callable[[Any], TargetFunctions]
"""From the model's outputs to one target function an image."""


class NotServed(Exception):
    """This call is one for the library's own way; the message says why."""


RUNNERS: set[type] = set()
"""The classes of ``activations_and_grads`` that run a model just so."""


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
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise NotServed("the targets give no score that depends on the target layers")
        found = gradients_at(self.points, loss, create_graph=create_graph, retain=create_graph)
        gradients = [gradient for gradient in found if gradient is not None]
        if len(gradients) < len(found):
            raise NotServed("the targets do not depend on every target layer")
        return gradients


class OnTheCPU:
    """A list of tensors that are brought to the CPU when somebody looks at them."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        kept: list[Tensor] = vars(instance)[self._name]
        if instance.detach:
            kept[:] = [tensor.detach().cpu() for tensor in kept]
        return kept

    def __set__(self, instance: Any, value: list[Tensor]) -> None:
        vars(instance)[self._name] = value


def keep(cam: Any, activations: list[Tensor], gradients: list[Tensor]) -> None:
    """Puts them where a CAM object's user, or its class, looks for them."""
    cam.activations_and_grads.activations = activations
    cam.activations_and_grads.gradients = gradients


def clear(kept: Any) -> None:
    """Empties an ActivationsAndGradients object, and detaches the tensors that were in it.

    None is brought to the CPU for that.
    """
    for tensors in (vars(kept)["activations"], vars(kept)["gradients"]):
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.detach_()
        tensors.clear()


def run_of(cam: Any, input_tensor: Any, second_order: bool = False) -> Run:
    """Runs the network.

    Args:
        second_order: whether gradients will be derived once more.

    Raises:
        NotServed: where the library's own way may give another answer.
    """
    check_served(cam, input_tensor)
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
    activations = [reshape(detached(each)) for each in kept]
    return Run(images, recorded.outputs, activations, points, returned, reshape)


def check_served(cam: Any, input_tensor: Any) -> None:
    """Raises NotServed if more is expected of a call than the maps of the object's layers."""
    if not isinstance(input_tensor, Tensor):
        raise NotServed(f"the input is a {type(input_tensor).__name__}, no tensor")
    if input_tensor.requires_grad:
        raise NotServed("the input requires a gradient, which a whole backward fills")
    _check_runner(cam)
    if isinstance(unwrap(cam.model), torch.jit.ScriptModule):
        raise NotServed("the model is TorchScript")
    # a backward hook, or one that a forward hook sets, may be called below the layers
    for module in modules_of(unwrap(cam.model)):
        if module._backward_hooks or module._backward_pre_hooks:
            raise NotServed("the model has backward hooks")
        for parameter in module._parameters.values():
            if parameter is not None and (
                parameter._backward_hooks or parameter._post_accumulate_grad_hooks
            ):
                raise NotServed("the model has hooks on its parameters")
    with aside(cam):
        hooks = [h for module in modules_of(unwrap(cam.model)) for h in hooks_of(module).values()]
    if any(type(hook).__module__.partition(".")[0] != "torch" for hook in hooks):  # as weight norm
        raise NotServed("the model has hooks of others")


def _check_runner(cam: Any) -> None:
    """Raises NotServed if the object runs its model in a way of its own, or hooks other layers."""
    runner = cam.activations_and_grads
    if type(runner) not in RUNNERS:
        raise NotServed("it has activations_and_grads of another class")
    own = sorted(vars(runner).keys() & vars(type(runner)).keys() - {"activations", "gradients"})
    if own:
        raise NotServed(f"its activations_and_grads have {own[0]} of their own")
    for name in ("model", "reshape_transform", "detach"):
        if getattr(runner, name) is not getattr(cam, name):
            raise NotServed(f"its activations_and_grads have another {name}")
    hung = {}  # by layer, in the order of the hooks, the dictionary that they are in
    for handle in runner.handles:
        hooks = handle.hooks_dict_ref()
        if hooks is None or handle.id not in hooks:
            raise NotServed("a hook of its activations_and_grads has been removed")
        hung[id(hooks)] = hooks
    if list(hung) != [id(layer._forward_hooks) for layer in cam.target_layers]:
        raise NotServed("its activations_and_grads hook other layers than its target_layers")


_starts: WeakKeyDictionary[Any, tuple[Sequence[str], Start]] = WeakKeyDictionary()


def _start(cam: Any, model: nn.Module, inputs: Any, names: Sequence[str]) -> Start:
    """Where the graph of an object's runs starts; found by its first call."""
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
    """The object's own hooks, and those of other such objects, are not called meanwhile."""
    own = {handle.id for handle in cam.activations_and_grads.handles}
    hung = [handle.hooks_dict_ref() for handle in cam.activations_and_grads.handles]
    hung += [module._forward_hooks for module in modules_of(unwrap(cam.model))]
    saved = [(each, dict(each)) for each in {id(hooks): hooks for hooks in hung if hooks}.values()]
    gone = own | {
        key
        for _, before in saved
        for key, hook in before.items()
        if type(getattr(hook, "__self__", None)) in RUNNERS
    }
    try:
        for each, _ in saved:
            for key in gone & each.keys():
                del each[key]
        yield
    finally:
        for each, before in saved:
            # in their order, without those that the model removed; then those that it added
            now = {key: hook for key, hook in before.items() if key in gone or key in each}
            now |= each
            each.clear()
            each.update(now)


_fast_copies = FastCopies()


def _network(
    cam: Any, images: Tensor, names: Sequence[str], start: Start | None
) -> tuple[nn.Module, Any]:
    """The network and its input, in the fast mode a copy of it."""
    model = unwrap(cam.model)
    if not settings.fast:
        return model, images
    copy = _fast_copies.of(cam, model, images, names, start or OUTPUT)
    return copy.model, copy.prepared(images)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
