"""Hooks that keep what layers return and the gradients that come back to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fastcam.dropin.pytorch_grad_cam.run import OnTheCPU, clear


class ActivationsAndGradients:
    """Calls a model, and has then its layers' activations, and after a backward their gradients.

    Args:
        model: the network.
        target_layers: the layers to hook, until :meth:`release`.
        reshape_transform: turns what a layer returns, and its gradient, into (N, C, *S).
        detach: whether both are kept on the CPU and without a graph.
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
        """A forward hook that keeps what a layer returns."""
        self.activations.append(self._kept(output))

    def save_gradient(self, module: nn.Module, input: Any, output: Any) -> None:
        """A forward hook that keeps the gradient that comes back to what a layer returns."""
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
        """What the model returns."""
        self.gradients = []
        self.activations = []
        return self.model(x)

    def clear(self) -> None:
        """Empties both lists, and detaches the tensors that were in them."""
        clear(self)

    def release(self) -> None:
        """Takes the hooks off, and forgets what they kept."""
        self.clear()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
