"""Copies of a network, and whether a copy computes the same as the network."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn

from fastcam.engine import running
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import FLAGS, hooks_of, run
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.engine.values import agree, rebuild, tensors_of
from fastcam.errors import ArgumentError, first_line


def copied(model: nn.Module) -> nn.Module:
    try:
        made = running.copied(model)
    except Exception as error:  # whatever a user's class raises
        raise_out_of_memory(error)
        raise ArgumentError(
            "model",
            f"the fast mode works on a copy, and this one cannot be copied "
            f"({first_line(error)}); explain it without compile()",
        ) from error
    return made.eval().requires_grad_(False)


def why_not_copied(model: nn.Module, inputs: Inputs) -> str:
    """Why a copy would not compute the same, or would write to the model; empty if it is safe."""
    for module in model.modules():
        if any(isinstance(hook, FunctionType) for hook in hooks_of(module).values()):
            return "its hooks are functions, which a copy shares with it"
    made = copied(model)
    before = _identities(model)
    given = inputs, other_inputs(inputs)
    answers = [run(made, each) for each in given]
    if before != _identities(model):
        return "a copy of it writes to its attributes"
    if not all_agree([trial(model, each) for each in given], answers):
        return "a copy of it gives another answer"
    return ""


def _identities(model: nn.Module) -> list[dict[str, int]]:
    """The ids of the attributes of all modules."""
    return [
        {key: id(value) for key, value in list(vars(module).items()) if key not in FLAGS}
        for module in model.modules()
    ]


def other_inputs(inputs: Inputs) -> Inputs:
    """Other inputs of the same kind."""
    return rebuild(inputs, lambda t: t.flip(-1) * 0.7 if t.is_floating_point() and t.dim() else t)


def all_agree(values: Any, expected: Any) -> bool:
    """Whether all tensors in them are equal up to the rounding of a whole network."""
    found, wanted = tensors_of(values), tensors_of(expected)
    return len(found) == len(wanted) and all(map(agree, found, wanted))
