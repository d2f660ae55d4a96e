"""The target layer: named by the user, or found by running the network on one image."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from fastcam.engine.inputs import Inputs, count_of, images_of
from fastcam.engine.layer_reader import Reader
from fastcam.engine.opaque import why_hidden, why_nothing_is_seen
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.engine.shapes import Reshape
from fastcam.engine.survey import Returned, Survey, survey
from fastcam.engine.values import rebuild
from fastcam.errors import ArgumentError, near

Layers = nn.Module | str | Sequence[nn.Module | str]

_POOLING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def layer_names(model: nn.Module, target_layers: Layers) -> tuple[str, ...]:
    """Dotted names within the model, for modules and names.

    Raises:
        ValueError: for a name that is not in the model (the message suggests similar names), a
            module of another model, or a module that is hidden from hooks.
        TypeError: for anything else.
    """
    if isinstance(target_layers, (nn.Module, str)):
        target_layers = [target_layers]
    known = {name: module for name, module in model.named_modules() if name}
    names = tuple(_name(layer, known) for layer in target_layers)
    if not names:
        raise ArgumentError("target_layers", "got an empty list, expected at least one layer")
    for name in names:
        reason = why_hidden(model, name)
        if reason is not None:
            raise ArgumentError("target_layers", f"'{name}' cannot be explained: {reason}")
    return names


def _name(layer: nn.Module | str, known: dict[str, nn.Module]) -> str:
    if isinstance(layer, str):
        # names taken from a wrapped model carry the wrappers' names
        bare = layer.removeprefix("_orig_mod.").removeprefix("module.")
        if layer in known or bare in known:
            return layer if layer in known else bare
        raise ArgumentError("target_layers", f"the model has no '{layer}'{near(layer, known)}")
    if isinstance(layer, nn.Module):
        inner = layer._modules.get("_orig_mod", layer)
        for name, module in known.items():
            if module is inner:
                return name
        raise ArgumentError(
            "target_layers", f"this {type(layer).__name__} is not a layer of the model"
        )
    raise TypeError(f"target_layers: got {type(layer).__name__}, expected modules or dotted names")


def find_layer(
    model: nn.Module,
    inputs: Inputs,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    per_image: PerImage | None = None,
) -> str:
    """The last layer with more than one position on which the top score of the first image depends.

    It takes one run with a whole graph, and backward passes that end near the scores.

    - Layers count if they depend on the images and their gradient is not 0 everywhere. If the graph
      does not reach the images (the model uses ``no_grad``), all layers count.
    - If several modules return the same tensor, the one that runs least often is chosen, then the
      innermost.
    - If a network reads its class token, the gradients of all patch tokens after the last attention
      are exactly 0. Then the last norm whose patch tokens have a gradient is chosen: the first norm
      of the last block.
    - Layers with fewer axes of positions than the images (a recurrent layer over a clip's
      pictures), and sequences of which only one position is read, are skipped for earlier layers.
    - A map of class scores is skipped if the scores are dense, (N, K, *S), or picked from the map.
      For dense scores, a layer with fewer positions than the scores is preferred.
    - Outputs that cannot be read as (N, C, *S), or in two ways (object queries), are skipped too.
    - If there are several input pictures, the first one with such a layer counts.

    Raises:
        ValueError: if there is no such layer, or the first image has no score.
    """
    per_image = per_image or PerImage()
    one, pair = (prepare(model, inputs, output) for prepare in (per_image.first, per_image.pair))
    failure: ValueError | None = None
    for picture in range(max(count_of(one), 1)):
        if picture and not _are_alike(one, picture):
            continue
        try:
            return _find_layer(model, one, pair, picture, reshape, output)
        except ValueError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def find_levels(
    model: nn.Module, one: Inputs, levels: Callable[[], Sequence[Tensor]], output: Output
) -> tuple[str, ...]:
    """The layers that return the levels of a feature pyramid, as far as the top score needs them.

    If no module returns a level, as behind a function, the nearest one below it counts.

    Args:
        model: the model.
        one: its inputs for one image.
        levels: returns the levels of the last run.
        output: picks the scores.

    Raises:
        ValueError: if there is no such layer.
    """
    seen = survey(model, rebuild(one, Tensor.clone), output)
    made: dict[Node, str] = {}
    for group in seen.groups:
        for layer in reversed(group):  # the innermost last
            if layer.edge is not None and layer.tensor.shape[2:].numel() > 1:
                made[layer.edge.node] = layer.name
    found: dict[str, None] = {}
    for level in levels():
        waiting, met = deque([level.grad_fn]), set()
        while waiting:
            node = waiting.popleft()
            if node in made:
                found[made[node]] = None
                break
            if node is not None and node not in met:
                met.add(node)
                waiting += [source for source, _ in node.next_functions]
    if not found:
        raise ArgumentError(
            "target_layers",
            "none given, and no layer was found that returns a level of the feature pyramid; name "
            "the layers to explain",
        )
    return tuple(found)


def _are_alike(inputs: Inputs, picture: int) -> bool:
    """Whether a further tensor with positions is a picture like the first one, and not a mask."""
    first, other = images_of(inputs), images_of(inputs, picture)
    if first is None or other is None:
        return False
    return other.is_floating_point() and other.dim() == first.dim()


def _find_layer(
    model: nn.Module,
    one: Inputs,
    pair: Inputs,
    picture: int,
    reshape: Reshape | None,
    output: Output | None,
) -> str:
    """:func:`find_layer` for one of the input pictures."""
    seen = survey(model, rebuild(one, Tensor.clone), output, picture)
    read = Reader(model, pair, seen, reshape, picture)
    finest = seen.logits.shape[2:].numel() if seen.logits.dim() > 2 else None
    groups = {_of_the_same(group, read): group for group in seen.groups if not _pools(group)}
    ran = [layer for layer in groups if _positions(layer, seen, read) > 1]
    spare = unread = None  # the last ones of those that are worse, and that cannot be read
    read_at_class_token = False
    for layer, gradient in seen.gradients(ran):
        if not seen.has_graph and read(layer, layer.tensor) is not None:
            return layer.name
        if gradient is None or not gradient.any():
            continue
        gradient = read(layer, gradient)
        tokens = _are_tokens(layer.tensor, seen)
        if gradient is None or not gradient.any():
            if tokens and not read_at_class_token:
                read_at_class_token = True
                norms = [each for each in ran if _is_norm(each, seen) and not read.why_not(each)]
                norm = _last_norm(norms, seen, read)
                if norm is not None:
                    return norm
            continue
        if _are_scores(gradient, seen):
            continue
        worse = (
            gradient.shape[1] == 1  # the logits of attention over positions
            or _is_part_of_attention(model, layer, groups[layer])
            or gradient.dim() - 2 < read.dims
            or (gradient.dim() == 3 and int(gradient.any(1).sum()) == 1)
            or (
                finest is not None
                # at the scores' own resolution, or a projection of tokens on the way to it
                and (
                    gradient.shape[2:].numel() >= finest
                    or (tokens and isinstance(layer.module, nn.Linear))
                )
            )
        )
        if read.why_not(layer) is not None:
            unread = unread or layer.name
        elif not worse:
            return layer.name
        else:
            spare = spare or layer.name
    best = spare or unread
    if best is not None:
        return best
    if read_at_class_token and any(_is_norm(each, seen) for each in ran):
        raise ArgumentError(
            "target_layers",
            "no normalization layer was found whose patch tokens affect the output; name a layer "
            "with target_layers=",
        )
    if ran:
        blank = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not module.weight.any()
        ]
        if blank:
            raise ArgumentError(
                "target_layers",
                "the top score depends on no layer with more than one position: the "
                f"weights of '{blank[-1]}' are all 0, as before training; load trained ones",
            )
    reason = why_nothing_is_seen(model)
    for layer in [] if reason else [layer for group in seen.groups for layer in group]:
        why_not = read.why_not(layer)
        if why_not is not None and layer.runs > 1:
            return layer.name  # the call lists the runs; another run may be readable
        if why_not is not None:
            raise ValueError(why_not)
    if ran:
        raise ArgumentError(
            "target_layers",
            "the top score depends on no layer with more than one position, or only "
            "on maps of scores; name a layer, or pick other scores by output=",
        )
    if seen.groups and not reason:
        last = seen.groups[0][-1]
        raise ArgumentError(
            "target_layers",
            "found no layer with more than one position for each of the output's "
            f"rows; '{last.name}' returned {tuple(last.tensor.shape)} for an output of "
            f"{tuple(seen.logits.shape)}: name a layer, and give reshape= to turn what it returns "
            "into (N, C, *S)",
        )
    raise ValueError(
        "target_layers: no layer of the model has more than one position"
        + (f", as far as can be seen: {reason}" if reason else "")
    )


def _last_norm(norms: list[Returned], seen: Survey, read: Reader) -> str | None:
    for norm, gradient in seen.gradients(norms):
        gradient = None if gradient is None else read(norm, gradient)
        if gradient is not None and gradient.any():
            return norm.name
    return None


def _of_the_same(group: list[Returned], read: Reader) -> Returned:
    """Among modules that read as the last one, the innermost of those that ran least often."""

    def view(layer: Returned) -> tuple[int, torch.Size, tuple[int, ...]]:
        activations = read(layer, layer.tensor)
        tensor = layer.tensor.detach() if activations is None else activations
        return tensor.data_ptr(), tensor.shape, tensor.stride()

    views = [view(each) for each in group]
    alike = [each for each, seen in zip(group, views, strict=True) if seen == views[-1]]
    return min(alike, key=lambda each: each.runs)


def _pools(group: list[Returned]) -> bool:
    return any(isinstance(each.module, _POOLING) for each in group)


def _positions(layer: Returned, seen: Survey, read: Reader) -> int:
    """The number of positions; tokens count even if they do not form a grid."""
    activations = read(layer, layer.tensor)
    if activations is not None:
        return activations.shape[2:].numel()
    return layer.tensor.shape[1] if _are_tokens(layer.tensor, seen) else 0


def _are_tokens(tensor: Tensor, seen: Survey) -> bool:
    """Whether this is (N, T, C) of a network for pictures or clips."""
    several = seen.extents is not None and len(seen.extents) > 1
    return tensor.dim() == 3 and tensor.shape[0] == seen.logits.shape[0] and several


def _is_norm(layer: Returned, seen: Survey) -> bool:
    return "norm" in type(layer.module).__name__.lower() and _are_tokens(layer.tensor, seen)


def _is_part_of_attention(model: nn.Module, layer: Returned, group: list[Returned]) -> bool:
    """Whether it makes queries, keys or values, as in attention pooling."""
    parent = layer.name.rpartition(".")[0]
    return (
        parent != ""
        and "atten" in type(model.get_submodule(parent)).__name__.lower()
        and all(each.name != parent for each in group)  # which returns something else
    )


def _are_scores(gradient: Tensor, seen: Survey) -> bool:
    """Whether a layer gives scores by position, of which the model returns all or picks one.

    The top class's score then depends on one channel of as many as there are classes. The mean of
    such a map is no pick: that is CAM.
    """
    logits = seen.logits
    classes = 1 if logits.dim() == 1 else logits.shape[1]
    if gradient.shape[1] != classes:
        return False
    bears = gradient != 0
    others = bears.any(0).flatten(1).any(1)
    others[seen.class_id] = False
    picked = logits.dim() > 2 or not bears[:, seen.class_id].all()
    return picked and not others.any()
