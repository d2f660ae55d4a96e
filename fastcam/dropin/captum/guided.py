"""Guided backpropagation and deconvolution, with hooks that do not copy a ReLU's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.captum.checks import has_own_forward
from fastcam.dropin.captum.peer import Peer
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.engine.guided import GuidedReLU
from fastcam.engine.values import tensors_of


def guided(present: Replacement) -> Replacement:
    def attribute(
        self: Any, inputs: Any, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        with counted(f"captum.{type(self).__name__}") as call, as_found(inputs):
            call.why = "ReLU modules and functions" if settings.fix else "ReLU modules"
            if settings.fix:
                relu = GuidedReLU()
                relu.rule = "deconvnet" if self.use_relu_grad_output else "guided"
                return everywhere(relu, self, inputs, target, additional_forward_args)
            try:
                return present(self, inputs, target, additional_forward_args)
            finally:
                self.backward_hooks.clear()  # captum removes the hooks but keeps their handles

    return attribute


def everywhere(
    relu: GuidedReLU, attribution: Any, inputs: Any, target: Any, additional: Any
) -> Any:
    """The guided gradient by fastcam's rule, which also covers ReLU functions and equivalents."""
    common, gradient = Peer.common, Peer.gradient
    given = common._format_tensor_into_tuples(inputs)
    required = gradient.apply_gradient_requirements(given)
    with relu:
        found = attribution.gradient_func(attribution.forward_func, given, target, additional)
    gradient.undo_gradient_requirements(given, required)
    return common._format_output(common._is_tuple(inputs), found)


@contextmanager
def as_found(inputs: Any) -> Iterator[None]:
    """Restores ``requires_grad`` of the inputs after an exception."""
    required = [(tensor, tensor.requires_grad) for tensor in tensors_of(inputs)]
    try:
        yield
    except BaseException:
        for tensor, before in required:
            if tensor.is_leaf:
                tensor.requires_grad_(before)
        raise


plain: WeakSet[Any] = WeakSet()
"""captum's guided objects whose hooks leave gradients unchanged at present."""


def register_hooks(present: Replacement) -> Replacement:
    def register(self: Any, module: nn.Module) -> None:
        def rule(gradient: Tensor, output: Tensor) -> Tensor | None:
            if self in plain:
                return None
            return (output if self.use_relu_grad_output else gradient).relu()

        if isinstance(module, nn.ReLU) and not has_own_forward(module):
            self.backward_hooks += _watch_relu(module, rule)
        else:
            present(self, module)

    return register


def _watch_relu(module: nn.ReLU, rule: Callable[[Tensor, Tensor], Tensor | None]) -> list[Any]:
    """Applies ``rule`` to the gradient of a ReLU's input; returns the handles of the hooks.

    Args:
        rule: takes that gradient and, as in captum, the last gradient of the module's output;
            returns the new gradient of the input, or None to keep it.
    """
    last: list[Tensor] = []

    def before(module: nn.Module, args: Any) -> None:
        assert len(args) == 1, "a ReLU took other arguments than one tensor"
        args[0].register_hook(lambda gradient: rule(gradient, last[0]) if last else None)

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            last[:] = [gradient]

        output.register_hook(keep)

    handles: list[Any] = [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ]
    if module.inplace:  # captum copies the input; writing to a new tensor has the same effect
        module.inplace = False
        handles.append(_Restore(module))
    return handles


@dataclass
class _Restore:
    """Acts as a hook's handle: ``remove`` makes a ReLU operate in place again."""

    module: nn.ReLU
    done: bool = field(default=False, init=False)

    def remove(self) -> None:
        if not self.done:
            self.done = True
            self.module.inplace = True
