"""The same script by another library's own code and under the drop-in, compared."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import dropin

TOLERANCE = 1e-4  # of an answer's range

Script = Callable[[nn.Module, Tensor], Any]
"""What a user wrote, for a model and inputs: it gives arrays and tensors, alone or in lists."""


def assert_same(
    library: str,
    script: Script,
    model: nn.Module,
    inputs: Tensor,
    without: Script | None = None,
) -> dropin.Report:
    """The script gives the same under the drop-in, and the model is left as it was.

    So does ``without``, the same script for :mod:`fastcam.compat`, which does without the library.

    Where more than :data:`TOLERANCE` lies between the answers, the library's own has to be as
    uncertain: it is taken in float64, and of inputs that differ by the last bit of a float32.

    Returns:
        who served the calls.
    """
    expected = run(script, model, inputs)
    untouched = inputs.clone()
    with left_alone(model, library), installed(library):
        found = run(script, model, inputs)
        served = dropin.report()
    assert torch.equal(inputs, untouched) and not inputs.requires_grad and inputs.grad is None
    _assert_as_certain(script, model, inputs, expected, found)
    if without is not None:
        with left_alone(model):
            found = run(without, model, inputs)
        assert torch.equal(inputs, untouched) and not inputs.requires_grad and inputs.grad is None
        _assert_as_certain(script, model, inputs, expected, found)
    return served


def _assert_as_certain(
    script: Script, model: nn.Module, inputs: Tensor, expected: Any, found: Any
) -> None:
    assert_same_form(expected, found)
    off = differences(expected, found)
    if max(off, default=0.0) > TOLERANCE:
        allowed = uncertainty(script, model, inputs, expected)
        lines = [
            f"answer {index}: differs by {each:.3g} of its range, its own uncertainty is {own:.3g}"
            for index, (each, own) in enumerate(zip(off, allowed, strict=True))
            if each > max(TOLERANCE, 4 * own)
        ]
        assert not lines, "; ".join(lines)


def assert_same_error(library: str, script: Script, model: nn.Module, inputs: Tensor) -> None:
    """The script raises the same type under the drop-in, and the model is left as it was."""
    expected = raised(script, model, inputs)
    with left_alone(model, library), installed(library):
        found = raised(script, model, inputs)
    assert expected is not None, "the library itself raises nothing"
    assert found is expected, f"got {found}, expected {expected}"


def raised(script: Script, model: nn.Module, inputs: Tensor) -> type[Exception] | None:
    """The type alone: an exception holds what its frames hold, hooks of a model among it."""
    try:
        run(script, model, inputs)
    except Exception as error:
        return type(error)
    return None


@contextmanager
def installed(library: str) -> Iterator[None]:
    """The library is taken over, or this raises; calls are counted from here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastcam.dropin: .* is unchanged")
        ended = dropin.install(library)
    dropin.forget()
    with ended:
        yield


@contextmanager
def left_alone(model: nn.Module, library: str = "") -> Iterator[None]:
    """Nothing in the model changes; its gradients neither, unless the library itself ran.

    torchcam 0.4.1 calls ``backward()`` for a map.
    """
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = state(model)
    yield
    after = state(model)
    changed = [name for name in before.keys() | after if before.get(name) != after.get(name)]
    if library == "torchcam":
        fills = hasattr(
            importlib.import_module("torchcam.methods.gradient")._GradCAM, "_store_grad"
        )
    else:
        fills = False
    if fills or not by_fastcam(dropin.report()):
        changed = [name for name in changed if not name.endswith(": grad")]
    assert not changed, f"left changed: {', '.join(sorted(changed)[:5])}"
    for parameter in model.parameters():
        parameter.grad = None


def by_fastcam(report: dropin.Report) -> bool:
    """Whether fastcam served every call, and there was one."""
    return bool(report.calls) and all(call.served_by == "fastcam" for call in report.calls)


def run(script: Script, model: nn.Module, inputs: Tensor) -> Any:
    """What the script gives; what it draws at random is the same each time."""
    torch.manual_seed(0)
    np.random.seed(0)
    return script(model, inputs)


def uncertainty(script: Script, model: nn.Module, inputs: Tensor, expected: Any) -> list[float]:
    """How far the library's own answers lie from one another, each as a share of its range."""
    last_bit = 2.0**-23
    others = [run(script, copy.deepcopy(model).double(), inputs.double())]
    for seed in range(3):
        signs = (
            torch.randint(2, inputs.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        )
        others.append(run(script, model, inputs * (1 + last_bit * signs)))
    model.zero_grad()
    found = [differences(expected, other) for other in others]
    return [max(each) for each in zip(*found, strict=True)]


def differences(expected: Any, found: Any) -> list[float]:
    """Of each array of two answers, as a share of the first one's range."""
    return [
        difference(as_double(a), as_double(b))
        for a, b in zip(arrays(expected), arrays(found), strict=True)
    ]


def difference(expected: Tensor, found: Tensor) -> float:
    """The largest, as a share of the largest value or the spread, NaN being equal to NaN."""
    if not expected.numel() or torch.equal(expected, found):
        return 0.0
    nan = expected.isnan() & found.isnan()
    off = (expected - found).abs().masked_fill(nan, 0).nan_to_num(torch.inf).amax()
    size = expected.nan_to_num().abs().amax()
    return float(off / size) if size else torch.inf


def arrays(answer: Any) -> Iterator[Any]:
    if isinstance(answer, (list, tuple)):
        for each in answer:
            yield from arrays(each)
    else:
        yield answer


def as_double(array: Any) -> Tensor:
    return torch.as_tensor(array).detach().double()


def assert_same_form(expected: Any, found: Any) -> None:
    """The same types, dtypes, shapes, memory order, devices, and both with a graph or without."""
    assert type(found) is type(expected), f"got {type(found)}, expected {type(expected)}"
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for each, other in zip(expected, found, strict=True):
            assert_same_form(each, other)
        return
    if isinstance(expected, (np.ndarray, np.generic, Tensor)):
        assert found.dtype == expected.dtype and found.shape == expected.shape, (
            f"got {found.dtype} {tuple(found.shape)}, "
            f"expected {expected.dtype} {tuple(expected.shape)}"
        )
    if isinstance(expected, np.ndarray):
        assert found.flags.c_contiguous == expected.flags.c_contiguous
        assert found.flags.writeable
    if isinstance(expected, Tensor):
        assert found.device == expected.device and found.requires_grad == expected.requires_grad


def state(model: nn.Module) -> dict[str, object]:
    """All that a library may leave behind in a model."""
    hooks = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found[f"{name}: training"] = module.training
        found[f"{name}: class"] = type(module)
        found[f"{name}: forward"] = vars(module).get("forward")
        for each in hooks:
            found[f"{name}: {each}"] = tuple(vars(module)[each].items())
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[f"{name}: grad"] = None if grad is None else (id(grad), grad._version)
        found[f"{name}: parameter"] = (id(parameter), parameter._version, parameter.requires_grad)
    for name, buffer in model.named_buffers():
        found[f"{name}: buffer"] = (id(buffer), buffer._version)
    return found
