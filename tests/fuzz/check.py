"""One case: the network of a spec, explained, against the judges."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastcam
from fastcam.engine.capture import capture

from . import judge
from .network import Network, images_of, prepared
from .spec import Spec, smaller

AROUND = {
    "none": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}
TOLERANCE = 1e-9
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]


class Wrong(AssertionError):
    """An answer of fastcam's that is not the judge's.

    Args:
        kind: what it is about, for counting.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def check(spec: Spec) -> None:
    """Explains the network of a spec in several ways.

    Raises:
        Wrong: for the first thing that is not as the judges have it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check(spec)


def _check(spec: Spec) -> None:
    model = prepared(spec)
    twin = prepared(spec)
    before = State(model)
    first, second = images_of(spec, 0), images_of(spec, 1)
    answers = [judge.answer(spec, first)] * 2 + [judge.answer(spec, second)]

    methods = sorted(judge.GRADIENT_MAPS)
    method = methods[spec.seed % len(methods)]
    cam = _method(method, model, spec)
    for call, (images, found) in enumerate(zip((first, first, second), answers, strict=True)):
        with _left_as_found(), AROUND[spec.around]():
            gradients = found.gradients
            maps = _maps(cam, spec, images, found, f"call {call + 1}")
        if maps is not None and gradients is not None:
            a, g = found.activations.numpy(), gradients.numpy()
            _same_map(method, maps, judge.GRADIENT_MAPS[method](a, g), a, call)
    _check_capture(spec, model, first, answers[0])
    if answers[0].gradients is not None and spec.grad == "none":
        _check_two_layers(spec, model, first, answers[0])
    if spec.seed % 8 == 0:
        for method, function in judge.ACTIVATION_MAPS.items():
            maps = _maps(_method(method, model, spec), spec, first, answers[0], method)
            a = answers[0].activations.numpy()
            if maps is not None:
                _same_map(method, maps, function(a), a, 0, 1e-6)
    if spec.seed % 8 in (1, 2):
        method = ("ablationcam", "scorecam")[spec.seed % 8 - 1]
        masked = _method(method, model, spec)
        for call, (images, found) in enumerate(zip((first, second), answers[1:], strict=True)):
            maps = _maps(masked, spec, images, found, f"{method}, call {call + 1}")
            if maps is not None:
                expected = judge.MASKED_MAPS[method](spec, images, found)
                _same_map(method, maps, expected, found.activations.numpy(), call, 1e-7)

    twin.eval()
    with torch.no_grad():
        twin(first)
    before.compare(model, twin)


def _method(name: str, model: nn.Module, spec: Spec) -> Any:
    assert isinstance(model, Network)
    output = None if spec.output == "tensor" else lambda outputs: judge.logits_of(spec, outputs)
    return fastcam.METHODS[name](model, model.layer_name, reshape=model.reshape(), output=output)


def _maps(
    cam: Any, spec: Spec, images: Tensor, found: judge.Answer, where: str
) -> np.ndarray | None:
    """Raw maps; None where the error that came is right."""
    needs_graph = cam.name in judge.GRADIENT_MAPS
    targets = judge.class_ids(spec, images)
    try:
        maps = cam(images, targets, size="layer", normalize=False, relu=False)
    except ValueError as error:
        if needs_graph and (found.gradients is None or not found.certain):
            return None
        raise Wrong("refused", f"{where} raised {error!r}") from error
    except Exception as error:
        raise Wrong("crashed", f"{where} raised {type(error).__name__}: {error}") from error
    _same_outputs(cam.outputs, found.outputs, where)
    if needs_graph and found.gradients is None:
        raise Wrong("invented", f"{where} gave a map, but no graph leads to the layer")
    return maps.numpy()


def _check_capture(spec: Spec, model: Network, images: Tensor, found: judge.Answer) -> None:
    """A and dS/dA themselves."""
    output = None if spec.output == "tensor" else lambda outputs: judge.logits_of(spec, outputs)
    ids = judge.class_ids(spec, images)
    try:
        with torch.no_grad():
            record = capture(
                model, images, [model.layer_name], reshape=model.reshape(), output=output
            )
            with torch.enable_grad():
                scores = record.logits.gather(1, ids[:, None])[:, 0]
            (gradients,) = record.gradients(scores)
    except ValueError as error:
        if found.gradients is None or not found.certain:
            return
        raise Wrong("refused", f"capture raised {error!r}") from error
    except Exception as error:
        raise Wrong("crashed", f"capture raised {type(error).__name__}: {error}") from error
    if found.gradients is None:
        raise Wrong("invented", "capture gave gradients, but no graph leads to the layer")
    _same_outputs(record.outputs, found.outputs, "capture")
    if not record.activations[0].equal(found.activations):
        raise Wrong("activations", _apart(record.activations[0], found.activations))
    scale = max(found.gradients.abs().max().item(), 1e-12)
    if (gradients - found.gradients).abs().max() > TOLERANCE * scale:
        raise Wrong("gradients", _apart(gradients, found.gradients))


def _check_two_layers(spec: Spec, model: Network, images: Tensor, found: judge.Answer) -> None:
    """The layer together with one below it."""
    if spec.view == "permute":
        return  # one reshape cannot tell the two
    ids, names = judge.class_ids(spec, images), ["stem", model.layer_name]
    expected = {
        "stem": judge.plain_gradient(spec, images, "stem"),
        model.layer_name: found.gradients,
    }
    if expected["stem"] is None:
        return
    reshape = model.reshape()
    try:
        with torch.no_grad():
            record = capture(
                model,
                images,
                names[:: 1 if spec.seed % 2 else -1],
                reshape=None if reshape is None else lambda t: t if t.dim() == 4 else reshape(t),
                output=None
                if spec.output == "tensor"
                else lambda outputs: judge.logits_of(spec, outputs),
            )
            with torch.enable_grad():
                scores = record.logits.gather(1, ids[:, None])[:, 0]
            gradients = record.gradients(scores)
    except Exception as error:
        raise Wrong("two layers", f"raised {type(error).__name__}: {error}") from error
    _same_outputs(record.outputs, found.outputs, "two layers")
    for name, gradient in zip(record.layers, gradients, strict=True):
        right = expected[name]
        assert right is not None
        if (gradient - right).abs().max() > TOLERANCE * max(right.abs().max().item(), 1e-12):
            raise Wrong("two layers", f"'{name}': {_apart(gradient, right)}")


def _same_outputs(outputs: Any, expected: Any, where: str) -> None:
    for came, right in zip(tree_leaves(outputs), tree_leaves(expected), strict=True):
        if not came.equal(right):
            raise Wrong("outputs", f"{where}: {_apart(came, right)}")


def _same_map(
    method: str,
    maps: np.ndarray,
    expected: np.ndarray,
    a: np.ndarray,
    call: int,
    tolerance: float = TOLERANCE,
) -> None:
    if maps.shape != expected.shape:
        raise Wrong("shape", f"{method}: got {maps.shape}, expected {expected.shape}")
    # a map whose channels cancel has an error of their size, not its own; zeros are exact unless
    # they are the difference of two runs
    exact = not expected.any() and method not in judge.MASKED_MAPS
    scale = max(np.abs(expected).max(), 1e-12 if exact else 1e-4 * np.abs(a).max())
    if not np.abs(maps - expected).max() <= tolerance * scale:
        detail = _apart(torch.from_numpy(maps), torch.from_numpy(expected))
        raise Wrong(f"map {method}", f"call {call + 1}: {detail}")


def _apart(came: Tensor, right: Tensor) -> str:
    if came.shape != right.shape:
        return f"got shape {tuple(came.shape)}, expected {tuple(right.shape)}"
    pair = torch.stack([came.flatten(), right.flatten()])
    error = (came - right).abs().max() / right.abs().max().clamp(min=1e-300)
    return f"relative error {error:.2g}, correlation {torch.corrcoef(pair)[0, 1]:.4f}"


@contextlib.contextmanager
def _left_as_found() -> Iterator[None]:
    """The caller's grad mode stays."""
    before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield
    after = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    if after != before:
        raise Wrong("grad mode", f"was {before}, is {after}")


class State:
    """What a call may not change on a model."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict(self._tensors(model))
        self.modules = {
            name: (id(module), type(module), module.training)
            for name, module in model.named_modules()
        }
        self.hooks = {name: self._hooks(module) for name, module in model.named_modules()}

    @staticmethod
    def _tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            grad = tensor.grad
            held = None if grad is None else (id(grad), grad.numpy().tobytes())
            content = tensor.detach().numpy().tobytes(), tensor._version
            yield name, (id(tensor), tensor.requires_grad, held, content)

    @staticmethod
    def _hooks(module: nn.Module) -> dict[str, list[tuple[int, int]]]:
        return {kind: [(k, id(v)) for k, v in vars(module)[kind].items()] for kind in HOOKS}

    def compare(self, model: nn.Module, twin: nn.Module) -> None:
        """
        Args:
            twin: an equal model that has run by itself: what it did to itself is allowed.
        """
        now = State(model)
        for what in ("tensors", "modules"):
            for name, value in getattr(self, what).items():
                if getattr(now, what)[name] != value:
                    raise Wrong("state", f"{what} of '{name}' were changed")
        for (name, module), other in zip(model.named_modules(), twin.modules(), strict=True):
            for kind in HOOKS:
                mine = [_name(hook) for hook in vars(module)[kind].values()]
                theirs = [_name(hook) for hook in vars(other)[kind].values()]
                kept = now.hooks[name][kind][: len(self.hooks[name][kind])]
                if mine != theirs or kept != self.hooks[name][kind]:
                    raise Wrong("state", f"{kind} of '{name}': {mine}, expected {theirs}")
            if set(vars(module)) != set(vars(other)):
                extra = set(vars(module)) ^ set(vars(other))
                raise Wrong("state", f"attributes of '{name}': {sorted(extra)}")


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


def agree(spec: Spec) -> None:
    """That the judges are right themselves: two gradients and a difference of values."""
    images = images_of(spec, 0)
    found = judge.answer(spec, images)
    by_edge = judge.edge_gradient(spec, images)
    if by_edge is not None:
        (other,) = by_edge
        assert (other is None) == (found.gradients is None), "the judges differ about a graph"
        if other is not None:
            error = (other - found.gradients).abs().max()
            assert error <= 1e-10 * max(other.abs().max(), 1e-6), f"the judges differ by {error}"
    if found.gradients is not None and judge.differences_count(spec):
        made = torch.Generator().manual_seed(spec.seed)
        direction = torch.randn(found.activations.shape, generator=made, dtype=torch.float64)
        direction[found.activations.abs() < 1e-3] = 0  # ReLU has put it at a kink
        slope = judge.difference(spec, images, direction)
        product = (direction * found.gradients).sum().item()
        # a kink within the step moves the difference by no more than this
        assert abs(slope - product) <= 1e-4 * max(abs(product), 1e-2), (slope, product)


def shrunk(spec: Spec, kind: str) -> Spec:
    """The spec with as few habits as fail in the same way."""
    for candidate in smaller(spec):
        try:
            check(candidate)
        except Wrong as wrong:
            if wrong.kind == kind:
                return shrunk(candidate, kind)
        except Exception:  # no network any more
            continue
    return spec
