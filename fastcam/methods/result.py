"""The result of an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.targets import Selection


@dataclass(frozen=True)
class Result:
    """Maps, and the classes, scores and outputs of the same forward."""

    maps: Any
    """As the method returns them."""
    class_ids: Tensor | None
    """(N,) or (N, K); None if the targets were functions."""
    scores: Tensor
    """The explained scores, (N,) or (N, K)."""
    outputs: Any
    """The model's outputs, detached."""

    @classmethod
    def of(cls, maps: Any, record: Capture, selection: Selection) -> Result:
        """The maps with the results of the run that they come from."""
        return cls(maps, selection.class_ids, selection.scores.detach(), record.outputs)
