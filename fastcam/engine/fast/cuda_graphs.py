"""A step on a GPU, recorded once for each kind of call, then replayed: one launch for hundreds.

No GPU has run this yet; the tests replay on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcam.engine.fast.batch_sizes import BatchSizes, filled
from fastcam.engine.values import (
    rebuild,
)
from fastcam.errors import first_line

Step = Callable[[Tensor, Tensor | None], Any]
"""From images and class ids (None: the top class) to tensors in any containers."""
Replay = Callable[[], Any]
"""Computes the results of a recorded call again, into the same tensors, and returns these."""
_WARMUP = 3  # calls, in which libraries choose their kernels and take their workspace


class CudaGraphs:
    """The graphs of one step, each with input buffers of its own.

    Args:
        required: whether a step that cannot be recorded is an error.
    """

    def __init__(self, required: bool = False) -> None:
        self.state = "not called yet"
        self._required = required
        self._possible = True
        self._sizes: dict[Any, BatchSizes] = {}
        self._graphs: dict[Any, tuple[list[Tensor], Replay]] = {}

    def __call__(self, step: Step, images: Tensor, ids: Tensor | None, options: Any) -> Any:
        """``step(images, ids)``, from a graph where the step can be recorded.

        Args:
            options: whatever else changes what the step does; hashable.

        Returns:
            Tensors of the caller's own: no later call writes to them.
        """
        count = images.shape[0]
        kind = (images.shape[1:], images.dtype, None if ids is None else ids.shape[1:], options)
        sizes = self._sizes.setdefault(kind, BatchSizes())
        size = sizes.choose(count) if self._possible and count else None
        if size is None:
            return step(images, ids)
        given = [filled(images, size)] if ids is None else [filled(images, size), filled(ids, size)]
        if (kind, size) not in self._graphs:
            try:
                self._graphs[kind, size] = _recorded(step, given)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # something in the step waits for the GPU
                self._possible, self.state = False, f"not recorded: {first_line(error)}"
                if self._required:
                    raise RuntimeError(f"cuda_graph: this call is {self.state}") from error
                return step(images, ids)
            self.state = f"{len(self._graphs)} recorded"
        buffers, replay = self._graphs[kind, size]
        for buffer, tensor in zip(buffers, given, strict=True):
            buffer.copy_(tensor)

        def own(tensor: Tensor) -> Tensor:
            rows = tensor.dim() > 0 and tensor.shape[0] == size
            return (tensor[:count] if rows else tensor).clone()

        return rebuild(replay(), own)


def _recorded(step: Step, given: list[Tensor]) -> tuple[list[Tensor], Replay]:
    """The buffers that a recorded call reads, and how to run it again."""
    images, *ids = buffers = [tensor.clone() for tensor in given]
    return buffers, record(lambda: step(images, ids[0] if ids else None), images.device)


def record(call: Callable[[], Any], device: torch.device) -> Replay:
    """A CUDA graph of a call."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
