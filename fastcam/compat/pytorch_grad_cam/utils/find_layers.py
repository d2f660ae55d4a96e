"""Finds and replaces layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Container

from torch import nn


def replace_layer_recursive(model: nn.Module, old_layer: nn.Module, new_layer: nn.Module) -> bool:
    """Replaces the first occurrence of a layer; returns whether there was one."""
    for name, layer in model._modules.items():
        if layer is old_layer:
            model._modules[name] = new_layer
            return True
        if layer is not None and replace_layer_recursive(layer, old_layer, new_layer):
            return True
    return False


def replace_all_layer_type_recursive(
    model: nn.Module, old_layer_type: type | tuple[type, ...], new_layer: nn.Module
) -> None:
    """Replaces all layers of a type by one layer."""
    for name, layer in model._modules.items():
        if isinstance(layer, old_layer_type):
            model._modules[name] = new_layer
        if layer is not None:
            replace_all_layer_type_recursive(layer, old_layer_type, new_layer)


def find_layer_types_recursive(model: nn.Module, layer_types: Container[type]) -> list[nn.Module]:
    """All layers of exactly these types."""
    return find_layer_predicate_recursive(model, lambda layer: type(layer) in layer_types)


def find_layer_predicate_recursive(
    model: nn.Module, predicate: Callable[[nn.Module], bool]
) -> list[nn.Module]:
    """All submodules of the model that satisfy the predicate, parents before children."""
    found = []
    for layer in model._modules.values():
        if layer is None:
            continue
        if predicate(layer):
            found.append(layer)
        found += find_layer_predicate_recursive(layer, predicate)
    return found
