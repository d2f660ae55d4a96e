"""Every operator beside its definition in plain PyTorch, eager and compiled, and beside a copy."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastcam
from benchmarks import harness
from benchmarks.harness import Call, Result
from fastcam import ops, reference

# (C, *S); tokens are what a transformer gives, read as (N, C, T)
LAYERS = {
    "2048x7x7": (2048, 7, 7),
    "1024x14x14": (1024, 14, 14),
    "512x28x28": (512, 28, 28),
    "256x56x56": (256, 56, 56),
    "64x112x112": (64, 112, 112),
    "tokens": (1024, 197),
    "512x8x7x7": (512, 8, 7, 7),
}
METHODS = tuple(name for name in reference.METHODS if name in fastcam.METHODS)
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")
BATCHES = (1, 8, 64)
CLASSES = 5
IMAGE = (224, 224)
HD = (1080, 1920)
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}  # by the dtype of the result
_CALLS = 20  # in a CUDA graph, at least
_BUFFERS = 1024  # at most
_L2_TIMES = 3  # all buffers together against the second-level cache


@dataclass(frozen=True)
class Case:
    """One operator on one shape."""

    operator: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    method: str = ""
    classes: int = 1
    size: tuple[int, ...] = ()
    """What a map is enlarged to."""

    @property
    def name(self) -> str:
        classes = f"{self.classes} classes" if self.classes > 1 else ""
        to = f"to {_extents(self.size)}" if self.size else ""
        words = (self.operator, self.method, classes, _extents(self.shape), to, self.dtype)
        layout = "" if self.layout == "contiguous" else self.layout
        return " ".join(filter(None, (*words, layout)))


def _extents(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values (N, C, *S) with the channels next to each other in memory, or as they are."""
    if layout == "contiguous":
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _uniform(case: Case, device: torch.device) -> Tensor:
    """In [0, 1): activations, maps, images."""
    values = torch.rand(case.shape, device=device)
    return _laid_out(values.to(getattr(torch, case.dtype)), case.layout)


def _signed(case: Case, device: torch.device) -> Tensor:
    """Gradients, (N, C, *S) or (N, K, C, *S)."""
    count, *shape = case.shape
    values = torch.randn((count * case.classes, *shape), device=device)
    values = _laid_out(values.to(getattr(torch, case.dtype)), case.layout)
    return values if case.classes == 1 else values.unflatten(0, (count, case.classes))


def _weights(case: Case, device: torch.device) -> Tensor:
    return torch.randn(case.shape[:2], device=device).to(getattr(torch, case.dtype))


def _small_maps(case: Case, device: torch.device) -> Tensor:
    return torch.rand(case.shape[0], 7, 7, device=device)


def _images(case: Case, device: torch.device) -> Tensor:
    if case.dtype == "uint8":
        return torch.randint(0, 256, case.shape, dtype=torch.uint8, device=device)
    return _uniform(case, device)


def _colormap(device: torch.device) -> tuple[Tensor, Tensor]:
    ramp = torch.arange(256, device=device)  # neighbouring colours are near, as in any colour table
    return torch.stack([ramp, 255 - ramp, ramp // 2], 1).byte(), torch.full_like(
        ramp, 0.5, dtype=torch.float32
    )


# operator -> the arguments of one call
ARGUMENTS: dict[str, Callable[[Case, torch.device], tuple[Any, ...]]] = {
    "gap": lambda case, on: (_signed(case, on),),
    "gradcam_plus_plus_weights": lambda case, on: (_uniform(case, on), _signed(case, on)),
    "weighted_sum": lambda case, on: (_uniform(case, on), _weights(case, on)),
    "cam": lambda case, on: (_uniform(case, on), _signed(case, on), case.method),
    "saliency": lambda case, on: (
        _uniform(case, on),
        _signed(case, on),
        case.method,
        list(case.size),
    ),
    "normalize": lambda case, on: (_uniform(case, on), len(case.shape) - 1),
    "upsample": lambda case, on: (_uniform(case, on), list(case.size)),
    "guided_relu": lambda case, on: (_signed(case, on),),
    "guided_relu_backward": lambda case, on: (_signed(case, on), _signed(case, on)),
    "guided_product": lambda case, on: (_small_maps(case, on), _signed(case, on)),
    "overlay": lambda case, on: (_images(case, on), _small_maps(case, on), *_colormap(on)),
}


def _layer_layouts(layer: str) -> tuple[str, ...]:
    return ("channels_last",) if layer == "tokens" else LAYOUTS


def _picture_cases(batches: Sequence[int], dtypes: Sequence[str]) -> Iterator[Case]:
    """The operators on maps and pictures."""
    for n in batches:
        yield Case("normalize", (n, *IMAGE))
        for side in (7, 14, 56):
            yield Case("upsample", (n, side, side), size=IMAGE)
        yield Case("upsample", (n, 8, 7, 7), size=(16, 112, 112))
        for dtype in dtypes:
            yield Case("guided_relu", (n, 64, 112, 112), dtype)
            yield Case("guided_relu_backward", (n, 64, 112, 112), dtype)
            yield Case("guided_product", (n, 3, *IMAGE), dtype)
            yield Case("overlay", (n, 3, *IMAGE), dtype)
        yield Case("overlay", (n, *IMAGE, 3), "uint8")
    yield Case("overlay", (1, *HD, 3), "uint8")


def every_case() -> list[Case]:
    """All sizes, dtypes, layouts and methods."""
    cases = []
    for (layer, shape), n, dtype in itertools.product(LAYERS.items(), BATCHES, DTYPES):
        for layout in _layer_layouts(layer):
            on_layer = functools.partial(Case, shape=(n, *shape), dtype=dtype, layout=layout)
            cases += [
                on_layer(operator)
                for operator in ("gap", "gradcam_plus_plus_weights", "weighted_sum")
            ]
            cases += [
                on_layer("cam", method=method, classes=classes)
                for method, classes in itertools.product(METHODS, (1, CLASSES))
            ]
            if hasattr(ops, "saliency") and len(shape) == 3:
                cases.append(on_layer("saliency", method="gradcam++", size=IMAGE))
    return cases + list(_picture_cases(BATCHES, DTYPES))


def selected_cases(device: torch.device) -> list[Case]:
    """At most 60: every operator and layer, with dtypes and layouts that take turns."""
    large = 64 if device.type == "cuda" else 8
    leading = [
        ("gradcam_plus_plus_weights", ""),
        ("cam", "gradcam++"),
        ("cam", "gradcam"),
        ("gap", ""),
        ("weighted_sum", ""),
    ]
    cases = []
    for i, (layer, shape) in enumerate(LAYERS.items()):
        for turn, (operator, method) in enumerate(leading, start=i):
            layouts = _layer_layouts(layer)
            dtype, layout = DTYPES[turn % len(DTYPES)], layouts[turn % len(layouts)]
            cases.append(Case(operator, (large, *shape), dtype, layout, method))
    small, middle, wide = (LAYERS[name] for name in ("2048x7x7", "1024x14x14", "256x56x56"))
    for operator, method in leading[:2]:
        cases.append(Case(operator, (1, *small), "float16", method=method))
    for method in METHODS[2:]:
        cases.append(Case("cam", (8, *small), "bfloat16", "channels_last", method))
    cases.append(Case("cam", (64, *small), method="gradcam++"))
    cases.append(Case("cam", (8, *wide), method="gradcam++"))
    cases.append(Case("cam", (8, *middle), method="gradcam++", classes=CLASSES))
    if hasattr(ops, "saliency"):
        for n in (1, large):
            cases.append(Case("saliency", (n, *small), method="gradcam++", size=IMAGE))
    cases += _picture_cases((large,), ("float32",))
    cases.append(Case("upsample", (1, 7, 7), size=IMAGE))
    cases.append(Case("guided_relu_backward", (large, 64, 112, 112), "bfloat16"))
    return list(dict.fromkeys(cases))


def _compiled(operator: str) -> Callable[..., Tensor]:
    torch._dynamo.reset()  # every case is compiled for its own shape
    return torch.compile(getattr(reference, operator), dynamic=False, fullgraph=True)


def _opencv(images: Tensor, maps: Tensor, colormap: Tensor, opacities: Tensor) -> Tensor:
    """One picture (1, H, W, 3) uint8, with OpenCV's own functions and one opacity."""
    import cv2

    image, table = images[0].numpy(), colormap.unsqueeze(1).numpy()
    alpha = opacities[0].item()
    heat = cv2.resize(maps[0].numpy(), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), table)
    return torch.from_numpy(cv2.addWeighted(colors, alpha, image, 1 - alpha, 0)).unsqueeze(0)


def _double(arguments: tuple[Any, ...]) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]


def check(case: Case, name: str, got: Tensor, want: Tensor) -> None:
    """Raises AssertionError where a result is not that of the reference in float64."""
    if case.operator == "overlay":  # a level by rounding; OpenCV rounds the heat to 8 bits as well
        levels = (got.int() - want.int()).abs().max()
        assert levels <= (2 if name == "opencv" else 1), f"{name}: differs by {levels} levels"
    else:
        harness.check_equal(name, got, want, TOLERANCE[str(got.dtype).removeprefix("torch.")])


def _nbytes(values: Sequence[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def measure(case: Case, device: torch.device) -> list[Result]:
    """All implementations of a case, checked and then timed."""
    torch.manual_seed(0)
    arguments = ARGUMENTS[case.operator](case, device)
    calls: dict[str, Callable[..., object]] = {
        "fastcam": getattr(ops, case.operator),
        "reference": getattr(reference, case.operator),
    }
    if can_compile(device):
        calls["reference_compiled"] = _compiled(case.operator)
    if device.type == "cpu" and case.operator == "overlay" and case.shape == (1, *HD, 3):
        calls["opencv"] = _opencv
    with torch.no_grad():
        want = getattr(reference, case.operator)(*_double(arguments))
        for name, call in calls.items():
            check(case, name, call(*arguments), want)
        moved = _nbytes([*arguments, calls["fastcam"](*arguments)])
        del want
        peaks = {
            name: harness.peak_memory(functools.partial(call, *arguments), device)
            for name, call in calls.items()
        }
        timers = (
            _gpu_timers(calls, arguments, moved, device)
            if device.type == "cuda"
            else _cpu_timers(case, calls, arguments, moved, device)
        )
        times = harness.interleaved(timers)
    figures = {name: harness.summary(seconds) for name, seconds in times.items()}
    copy = figures["copy"]["median"]
    return [
        Result(
            suite="ops",
            case=case.name,
            shape=list(case.shape),
            dtype=case.dtype,
            layout=case.layout,
            device=harness.machine(device),
            implementation=name,
            **figure,
            **(
                harness.bandwidth(moved, figure["median"], copy, device) if name != "launch" else {}
            ),
            peak_memory=peaks.get(name),
        )
        for name, figure in figures.items()
    ]


def _cpu_timers(
    case: Case,
    calls: dict[str, Callable[..., object]],
    arguments: tuple[Any, ...],
    moved: int,
    device: torch.device,
) -> dict[str, harness.Timer]:
    bound: dict[str, Call] = {
        name: functools.partial(call, *arguments) for name, call in calls.items()
    }
    if case.operator in ("gap", "weighted_sum"):
        bound["read"] = harness.read_call(arguments[0])
    bound["copy"] = harness.copy_call(moved, device)
    return {name: harness.batch_timer(call) for name, call in bound.items()}


def _gpu_timers(
    calls: dict[str, Callable[..., object]],
    arguments: tuple[Any, ...],
    moved: int,
    device: torch.device,
) -> dict[str, harness.Timer]:
    """Each call of a graph on the next set of buffers, which together exceed the L2 cache."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    sets = min(max(2, math.ceil(_L2_TIMES * l2 / moved) + 1), _BUFFERS)
    buffers = [
        tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments) for _ in range(sets)
    ]
    rounds = range(max(sets, _CALLS))
    copies = [harness.copy_call(moved, device) for _ in range(sets)]
    one = torch.zeros(1, device=device)
    timers = {
        name: harness.graph_timer(
            [functools.partial(call, *buffers[i % sets]) for i in rounds], sets
        )
        for name, call in calls.items()
    }
    timers["copy"] = harness.graph_timer([copies[i % sets] for i in rounds], sets)
    timers["launch"] = harness.graph_timer([functools.partial(one.add_, 1) for _ in rounds], sets)
    return timers


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here; it takes a compiler, on a GPU Triton too."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:
        print(f"torch.compile does not work, reference_compiled is left out: {error}")
        return False
    return True


def cases(device: torch.device, full: bool) -> dict[str, Callable[[], list[Result]]]:
    chosen = every_case() if full else selected_cases(device)
    return {case.name: functools.partial(measure, case, device) for case in chosen}
