"""What a network returns: the class scores within it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastcam.engine.values import items

Output = Callable[[Any], Tensor]


def logits_of(outputs: Any, output: Output | None = None) -> Tensor:
    """The class scores in what a model returned.

    By default the tensor itself, else ``.logits`` or the item "logits", else the first
    floating-point tensor of a tuple or mapping.
    """
    if output is not None:
        logits: Any = output(outputs)
    elif isinstance(outputs, Tensor):
        logits = outputs
    elif hasattr(outputs, "logits"):
        logits = outputs.logits
    elif isinstance(outputs, Mapping) and "logits" in outputs:
        logits = outputs["logits"]
    else:
        logits = next((item for item in items(outputs) if item.is_floating_point()), None)
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        came = type(outputs if output is None else logits).__name__
        raise ValueError(
            f"output: found no logits (N, classes) in {came}; give output= to pick them out of "
            "what the model returns"
        )
    return logits
