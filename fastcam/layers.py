"""Which layer: from what the user names, or found by running the network on one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.capture import (
    capture,
)
from fastcam.engine.inputs import (
    Inputs,
    first_image,
    images_of,
)
from fastcam.engine.outputs import (
    Output,
)
from fastcam.engine.running import (
    run,
)
from fastcam.engine.survey import Reading, survey
from fastcam.engine.values import (
    replace_first,
    storage,
)
from fastcam.errors import near
from fastcam.layout import Reshape, reading

Layers = nn.Module | str | Sequence[nn.Module | str]

_POOLING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_NORMS_TRIED = 8  # two blocks and what surrounds them


def layer_names(model: nn.Module, target_layers: Layers) -> tuple[str, ...]:
    """Dotted names within the model, for modules and names.

    Raises:
        ValueError: for a name that is not in the model, with those near to it, or another's module.
        TypeError: for anything else.
    """
    if isinstance(target_layers, (nn.Module, str)):
        target_layers = [target_layers]
    known = {name: module for name, module in model.named_modules() if name}
    names = tuple(_name(layer, known) for layer in target_layers)
    if not names:
        raise ValueError("target_layers: got an empty list, expected at least one layer")
    return names


def _name(layer: nn.Module | str, known: dict[str, nn.Module]) -> str:
    if isinstance(layer, str):
        # names taken from a wrapped model carry the wrappers' names
        bare = layer.removeprefix("_orig_mod.").removeprefix("module.")
        if layer in known or bare in known:
            return layer if layer in known else bare
        raise ValueError(f"target_layers: the model has no '{layer}'{near(layer, known)}")
    if isinstance(layer, nn.Module):
        inner = layer._modules.get("_orig_mod", layer)
        for name, module in known.items():
            if module is inner:
                return name
        raise ValueError(f"target_layers: this {type(layer).__name__} is not a layer of the model")
    raise TypeError(f"target_layers: got {type(layer).__name__}, expected modules or dotted names")


def find_layer(
    model: nn.Module,
    inputs: Inputs,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
) -> str:
    """The last layer with more than one position, by a run on the first image.

    Where that layer gives tokens, the last norm whose patch tokens still have a gradient: in a
    network read out at its class token this is the last block's first norm, for behind it the
    gradients of all patch tokens are exactly 0. That takes a second run and one backward.

    Raises:
        ValueError: if there is no such layer.
    """
    inputs = first_image(inputs)
    images = images_of(inputs)
    extents = None if images is None else tuple(images.shape[2:])
    last: tuple[Tensor, int] | None = None
    names: list[str] = []  # the modules that returned the last tensor with positions
    norms: list[str] = []  # the norms that returned tokens

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, returned: Any) -> None:
            def look(tensor: Tensor) -> Tensor:
                nonlocal last
                # by the shape alone: reshape= need not fit the layers before the target
                read = reading(tensor.shape, extents)
                positions = (tensor if read is None else read(tensor)).shape[2:].numel()
                if positions == 1 or isinstance(module, _POOLING):
                    return tensor
                # a container returns its last module's tensor, a view or an identity its input's;
                # an operation in place makes the next version of it
                same = last is not None and (storage(tensor), tensor._version) == (
                    storage(last[0]),
                    last[1],
                )
                if not same:
                    last = tensor, tensor._version
                    names.clear()
                names.append(name)
                if (read or reshape) and "norm" in type(module).__name__.lower():
                    norms.append(name)
                return tensor

            replace_first(returned, look)

        return hook

    modules = [(module, watch(name)) for name, module in model.named_modules() if name]
    run(model, inputs, modules)
    if last is None:
        raise ValueError("target_layers: no layer of the model has more than one position")
    if last[0].dim() != 3 or extents is None or len(extents) < 2:
        return min(names, key=lambda name: name.count("."))
    return _last_norm(model, inputs, list(dict.fromkeys(norms)), reshape, output)


def _last_norm(
    model: nn.Module,
    inputs: Inputs,
    norms: list[str],
    reshape: Reshape | None,
    output: Output | None,
) -> str:
    if norms:
        axes = survey(model, inputs, norms)
        readable = [name for name in norms if isinstance(axes.layers.get(name), Reading)]
        tried = (norms if reshape or not readable else readable)[-_NORMS_TRIED:]
        record = capture(model, inputs, tried, reshape=reshape, output=output, axes=axes)
        with torch.enable_grad():
            scores = record.logits.flatten(1).amax(1)
        for name, gradient in zip(reversed(tried), reversed(record.gradients(scores)), strict=True):
            if gradient.any():
                return name
    raise ValueError(
        "target_layers: found no norm whose patch tokens bear on the output; name a layer yourself"
    )
