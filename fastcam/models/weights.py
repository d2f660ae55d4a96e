"""Reads weights from files and fills networks with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcam.errors import FastcamError, first_line


def build(
    name: str,
    create: Callable[..., nn.Module],
    state: dict[str, Tensor] | None,
    usual: int = 1000,
) -> tuple[nn.Module, bool]:
    """Creates the module with as many classes as ``state`` has.

    Returns:
        The module, and whether it has the ``usual`` number of classes.
    """
    try:
        module = create()
    except (OSError, RuntimeError) as error:  # download or checksum errors
        raise FastcamError(
            f"the weights of {name} cannot be downloaded ({first_line(error)}): "
            "use --weights FILE or --weights none"
        ) from None
    for key, value in module.state_dict().items():
        given = state.get(key) if state is not None else None
        if value.dim() and len(value) == usual and isinstance(given, Tensor):
            count = given.shape[:1].numel()
            if count != usual:
                return create(num_classes=count), False
    return module, True


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the state dict from a file and unwraps it from a training checkpoint."""
    if not path.is_file():
        raise FastcamError(f"weights: no such file: {path}; expected a file, DEFAULT or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FastcamError(
            f"{path}: not loaded because it contains objects other than tensors: "
            "save model.state_dict() instead"
        ) from None
    except Exception as error:  # safetensors and torch raise many types for a broken file
        raise FastcamError(f"{path}: not a weights file ({first_line(error)})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict):
            state = state.get(wrapper, state)
    if not isinstance(state, dict):
        raise FastcamError(f"{path}: expected a state dict, got {type(state).__name__}")
    if not all(isinstance(key, str) for key in state):
        raise FastcamError(f"{path}: not a state dict: its keys are not strings")
    return {key.removeprefix("module."): value for key, value in state.items()}


def fill(module: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # wrong shapes; the first line is only a heading
        raise FastcamError(f"{complaint}: {str(error).splitlines()[-1].strip()}") from None
    for keys, kind in ((missing, "missing"), (unexpected, "unexpected")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise FastcamError(f"{complaint}: {kind} keys {', '.join(keys[:3])}{more}")
