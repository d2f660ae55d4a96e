"""Runs the network of a CAM object of pytorch-grad-cam, recorded from the target layer up.

The functions of this package accept objects of pytorch-grad-cam's classes and of those in
:mod:`fastcam.compat.pytorch_grad_cam`; they use only attributes that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastcam.dropin.settings import settings
from fastcam.dropin.starts import Starts
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
"""From the model's outputs to one target function per image."""


class NotServed(Exception):
    """The library's own code must run this call; the message says why."""


RUNNERS: set[type] = set()
"""The classes of ``activations_and_grads`` that :func:`run_of` can replace."""


@dataclass(frozen=True)
class Run:
    """One run of the network, with layers in the order in which they ran."""

    images: Tensor
    outputs: Any
    """The model's output, with the graph above the layers."""
    activations: list[Tensor]
    """(N, C, *S), without a graph; on a CPU after in-place operations of the model."""
    points: list[Point]
    """The layers' outputs in the graph, before any in-place operation."""
    handed_on: list[Any]
    """The layers' outputs with their graph, after in-place operations of the model."""
    reshape: Callable[[Tensor], Tensor]

    def gradients(self, targets: TargetFunctions) -> list[Tensor]:
        """The gradient of the sum of the targets, (N, C, *S) per layer."""
        with torch.enable_grad():
            found = self._gradients(targets, False)
        return [self.reshape(gradient) for gradient in found]

    def hessian_products(self, targets: TargetFunctions) -> list[tuple[Tensor, Tensor]]:
        """The gradient and the Hessian times A for each layer, with A from :attr:`handed_on`."""
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
            raise NotServed("the targets' scores do not depend on the target layers")
        found = gradients_at(self.points, loss, create_graph=create_graph, retain=create_graph)
        gradients = [gradient for gradient in found if gradient is not None]
        if len(gradients) < len(found):
            raise NotServed("the targets do not depend on every target layer")
        return gradients


class OnTheCPU:
    """A list of tensors that are copied to the CPU on access."""

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
    """Stores activations and gradients on a CAM object, for its user and its class."""
    cam.activations_and_grads.activations = activations
    cam.activations_and_grads.gradients = gradients


def clear(kept: Any) -> None:
    """Empties an ActivationsAndGradients object and detaches its tensors, without copies to CPU."""
    for tensors in (vars(kept)["activations"], vars(kept)["gradients"]):
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.detach_()
        tensors.clear()


def run_of(cam: Any, input_tensor: Any, second_order: bool = False) -> Run:
    """Runs the network.

    Args:
        second_order: whether second derivatives are needed.

    Raises:
        NotServed: if the library's own code may give another result.
    """
    check_served(cam, input_tensor)
    if cam.model.training or any(module.training for module in cam.model.modules()):
        raise NotServed("the model is in training mode")
    if not second_order and (cam.compute_input_gradient or not cam.detach):
        raise NotServed("it needs gradients besides those of the layers")
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
            during.enter_context(sdpa_kernel(SDPBackend.MATH))  # the only one with second order
        start: Start | None = None
        try:
            if cam.uses_gradients:
                start = _starts.of(
                    cam,
                    names,
                    lambda: find_start(unwrap(cam.model), first_row(images), names),
                )
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
    # pytorch-grad-cam keeps a reference on a CPU, so in-place operations show; a copy on a GPU
    on_cpu = values[0].device.type == "cpu"
    kept = returned if on_cpu and not settings.fix else values
    activations = [reshape(detached(each)) for each in kept]
    return Run(images, recorded.outputs, activations, points, returned, reshape)


def check_served(cam: Any, input_tensor: Any) -> None:
    """Raises NotServed if a call may have effects besides the maps of the object's layers."""
    if not isinstance(input_tensor, Tensor):
        raise NotServed(f"the input is a {type(input_tensor).__name__}, not a tensor")
    if input_tensor.requires_grad:
        raise NotServed("the input requires a gradient, so the backward pass must reach it")
    _check_runner(cam)
    if isinstance(unwrap(cam.model), torch.jit.ScriptModule):
        raise NotServed("the model is TorchScript")
    # backward hooks, including those set by forward hooks, may have to run below the layers
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
        raise NotServed("the model has other hooks")


def _check_runner(cam: Any) -> None:
    """Raises NotServed if the object runs its model differently, or hooks other layers."""
    runner = cam.activations_and_grads
    if type(runner) not in RUNNERS:
        raise NotServed("its activations_and_grads is of another class")
    own = sorted(vars(runner).keys() & vars(type(runner)).keys() - {"activations", "gradients"})
    if own:
        raise NotServed(f"its activations_and_grads overrides {own[0]}")
    for name in ("model", "reshape_transform", "detach"):
        if getattr(runner, name) is not getattr(cam, name):
            raise NotServed(f"its activations_and_grads has another {name}")
    hung = {}  # the hook dictionary of each layer, in the order of registration
    for handle in runner.handles:
        hooks = handle.hooks_dict_ref()
        if hooks is None or handle.id not in hooks:
            raise NotServed("a hook of its activations_and_grads has been removed")
        hung[id(hooks)] = hooks
    if list(hung) != [id(layer._forward_hooks) for layer in cam.target_layers]:
        raise NotServed("its activations_and_grads hooks other layers than its target_layers")


@contextmanager
def aside(cam: Any) -> Iterator[None]:
    """Disables the hooks of this object and of other CAM objects for the duration of the block."""
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
            # the old hooks in their order, except those that the model removed; then new ones
            now = {key: hook for key, hook in before.items() if key in gone or key in each}
            now |= each
            each.clear()
            each.update(now)


_starts = Starts()
_fast_copies = FastCopies()


def _network(
    cam: Any, images: Tensor, names: Sequence[str], start: Start | None
) -> tuple[nn.Module, Any]:
    """The network and its input; in the fast mode, a copy of the network."""
    model = unwrap(cam.model)
    if not settings.fast:
        return model, images
    copy = _fast_copies.of(cam, model, images, names, start or OUTPUT)
    return copy.model, copy.prepared(images)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
