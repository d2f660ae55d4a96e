"""Hooks that save the outputs of layers and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastcam.dropin.pytorch_grad_cam.run import OnTheCPU, clear


class ActivationsAndGradients:
    """Runs a model and saves the activations of its layers and, in backward, their gradients.

    Args:
        model: the network.
        target_layers: the layers to hook until :meth:`release`.
        reshape_transform: converts a layer's output and its gradient to (N, C, *S).
        detach: whether to save both on the CPU and detached from the graph.
    """

    activations = OnTheCPU("activations")
    gradients = OnTheCPU("gradients")

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None,
        detach: bool = True,
    ) -> None:
        self.model = model
        self.gradients = []
        self.activations = []
        self.reshape_transform = reshape_transform
        self.detach = detach
        self.handles = [
            layer.register_forward_hook(hook)
            for layer in target_layers
            for hook in (self.save_activation, self.save_gradient)
        ]

    def save_activation(self, module: nn.Module, input: Any, output: Any) -> None:
        """A forward hook that saves the output of a layer."""
        self.activations.append(self._kept(output))

    def save_gradient(self, module: nn.Module, input: Any, output: Any) -> None:
        """A forward hook that saves the gradient of a layer's output."""
        if not getattr(output, "requires_grad", False):
            return

        def keep_gradient(gradient: Tensor) -> None:
            self.gradients = [self._kept(gradient), *self.gradients]

        output.register_hook(keep_gradient)

    def _kept(self, value: Any) -> Any:
        if not self.detach:
            return value
        value = value if self.reshape_transform is None else self.reshape_transform(value)
        return value.cpu().detach()

    def __call__(self, x: Any) -> Any:
        """The output of the model."""
        self.gradients = []
        self.activations = []
        return self.model(x)

    def clear(self) -> None:
        """Empties both lists and detaches their tensors."""
        clear(self)

    def release(self) -> None:
        """Removes the hooks and the saved tensors."""
        self.clear()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
