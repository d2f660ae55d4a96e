"""Scripts of other libraries: by the library's own code, and unchanged under fastcam.dropin.

A case is one call of an object that was made before, on images in memory. Each implementation has
a copy of the network of its own, so that no library's hooks are met by another. "fastcam" is the
same call under the drop-in; "fastcam_fast" under ``install(fast=True)``, in bfloat16, where the
processor has instructions for that. "forwards" is the floor: inference in the batches that the
network runs in a call under the drop-in. Methods that run the network once a channel take resnet18,
whose last layer has 512 channels, and the noisy ones of them two samples.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import harness, implementations
from benchmarks.harness import Result
from benchmarks.implementations import Network
from fastcam import demo, dropin, pictures
from fastcam.engine.fast.options import is_emulated

Call = Callable[[], Any]
Script = Callable[[Network], Call]
"""Makes what a user makes once, and gives the call that he makes again and again."""

TOLERANCE = 1e-4  # of an answer's range
CLASS = 3
_LONG = 60.0  # seconds of calls after which a case ends, but not before one turn


@dataclass(frozen=True)
class Case:
    library: str
    method: str
    network: str
    batch: int
    script: Script
    fast: bool = False
    """Whether the fast mode takes part."""
    memory: bool = False
    """Whether peak memory is taken."""
    moderate: bool = False
    """Whether scores are to be near 1, for a softmax of them weighs the channels."""

    @property
    def name(self) -> str:
        return f"{self.library} {self.method} {self.network} batch {self.batch}"


# --- scripts --------------------------------------------------------------------------------------


def _layers(net: Network) -> list[nn.Module]:
    return [net.model.get_submodule(net.layer)]


def _pytorch_grad_cam(method: str, **options: Any) -> Script:
    def script(net: Network) -> Call:
        library = importlib.import_module("pytorch_grad_cam")
        layers = [] if method == "FullGrad" else _layers(net)
        if method == "AblationCAM" and net.reshape:
            ablation = importlib.import_module("pytorch_grad_cam.ablation_layer")
            made = library.AblationCAM(
                net.model, layers, net.reshape, ablation_layer=ablation.AblationLayerVit()
            )
        else:
            made = getattr(library, method)(net.model, layers, net.reshape)
        return lambda: made(net.images, None, **options)

    return script


def _guided_backpropagation(net: Network) -> Call:
    library = importlib.import_module("pytorch_grad_cam")
    made = library.GuidedBackpropReLUModel(net.model, net.device)
    return lambda: made(net.images.clone(), CLASS)


def _factorization(net: Network) -> Call:
    library = importlib.import_module("pytorch_grad_cam")
    made = library.DeepFeatureFactorization(net.model, _layers(net)[0], net.reshape)
    return lambda: made(net.images, 5)


def _metric(module: str, name: str, **options: Any) -> Script:
    """Of smooth maps, drawn once, for the class of each image."""

    def script(net: Network) -> Call:
        metrics = importlib.import_module(f"pytorch_grad_cam.metrics.{module}")
        targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
        chosen = [targets.ClassifierOutputSoftmaxTarget(CLASS)] * len(net.images)
        small = torch.rand(len(net.images), 1, 7, 7, generator=torch.Generator().manual_seed(2))
        maps = nn.functional.interpolate(small, net.images.shape[2:], mode="bilinear")[:, 0].numpy()
        made = getattr(metrics, name)(**options)
        return lambda: made(net.images, maps, chosen, net.model)

    return script


def _torchcam(method: str, **options: Any) -> Script:
    def script(net: Network) -> Call:
        library = importlib.import_module("torchcam.methods")
        layers: Any = net.layer
        if method == "LeGrad":
            layers = list(net.model.encoder.layers)[-4:]  # type: ignore[operator, arg-type]
        elif method == "RefineCAM":
            layers = ["layer3", "layer4"]
        if net.reshape and method != "LeGrad":
            options["reshape_transform"] = net.reshape
        made = getattr(library, method)(net.model, layers, **options)
        plain = method in ("CAM", "ScoreCAM", "SSCAM", "ISCAM")

        def call() -> Any:
            with torch.inference_mode(plain):
                scores = net.model(net.images)
            return made(scores.argmax(1).tolist(), scores)

        return call

    return script


def _captum(method: str) -> Script:
    def script(net: Network) -> Call:
        library = importlib.import_module("captum.attr")
        layer = () if method in ("GuidedBackprop", "Deconvolution") else _layers(net)
        made = getattr(library, method)(net.model, *layer)
        return lambda: made.attribute(net.images, CLASS)

    return script


def _show_cam(net: Network) -> Call:
    """A picture of 1080 x 1920 with its heat."""
    image = importlib.import_module("pytorch_grad_cam.utils.image")
    picture, heat = _full_hd()
    return lambda: image.show_cam_on_image(np.float32(picture) / 255, heat, use_rgb=True)


def _overlay_mask(net: Network) -> Call:
    """The same picture, the map at 7 x 7."""
    utils = importlib.import_module("torchcam.utils")
    pil = importlib.import_module("PIL.Image")
    picture, heat = _full_hd()
    background = pil.fromarray(picture)
    mask = pil.fromarray(np.ascontiguousarray(heat[::154, ::274]), mode="F")
    return lambda: np.asarray(utils.overlay_mask(background, mask, alpha=0.5))


@functools.cache
def _full_hd() -> tuple[Any, Any]:
    import cv2

    photo = cv2.resize(pictures.read(demo.asset("photo.jpg")), (1920, 1080))
    small = np.random.default_rng(0).random((7, 7), dtype=np.float32)
    return photo, np.clip(cv2.resize(small, (1920, 1080), interpolation=cv2.INTER_CUBIC), 0, 1)


# --- selection ------------------------------------------------------------------------------------

GRADIENT = (
    *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM"),
)
"""Methods of pytorch-grad-cam that are a formula of activations and gradients."""
_EIGEN = ("EigenCAM", "EigenGradCAM")
_FURTHER = ("FEM", "KPCA_CAM", "RandomCAM", "FinerCAM", "ShapleyCAM", "FullGrad")
_MASKING = ("ScoreCAM", "AblationCAM")
_TORCHCAM = ("CAM", "GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM", "SmoothGradCAMpp")
_CAPTUM = ("LayerGradCam", "GuidedGradCam", "GuidedBackprop", "Deconvolution")


def selected(full: bool) -> list[Case]:
    """What a CPU of two cores does in some twenty minutes, or everything."""
    found: list[Case] = []
    add = functools.partial(_add, found)
    for network in ("resnet50", "vit_b_16"):
        tokens = network.startswith("vit")
        for batch in (1, 16):
            short = batch == 1 or not tokens  # 16 images through vit_b_16 take their time
            for method in GRADIENT:
                if full or short or method == "GradCAM":
                    fast = not tokens and method in ("GradCAM", "GradCAMPlusPlus")
                    script = _pytorch_grad_cam(method)
                    add("pytorch_grad_cam", method, network, batch, script, fast=fast or full)
            for method in _EIGEN:
                if full or batch == 1 or (method == "EigenCAM" and not tokens):
                    add("pytorch_grad_cam", method, network, batch, _pytorch_grad_cam(method))
            for method in _FURTHER:
                costly = method in ("ShapleyCAM", "FullGrad")
                if tokens and (costly or not full):  # ShapleyCAM fails on tokens
                    continue
                if full or batch == 1 or not costly:
                    add("pytorch_grad_cam", method, network, batch, _pytorch_grad_cam(method))
            for smooth in ("aug_smooth", "eigen_smooth"):
                if full or (batch == 1 and not tokens):
                    script = _pytorch_grad_cam("GradCAM", **{smooth: True})
                    add("pytorch_grad_cam", f"GradCAM {smooth}", network, batch, script)
            for method in _MASKING:
                if full:
                    script = _pytorch_grad_cam(method)
                    add("pytorch_grad_cam", method, network, batch, script, moderate=True)
            for method in _TORCHCAM:
                if tokens and (method == "CAM" or not full):
                    continue
                if full or batch == 1 or method not in ("SmoothGradCAMpp", "CAM"):
                    add("torchcam", method, network, batch, _torchcam(method), memory=True)
            for method in _CAPTUM:
                guided = method != "LayerGradCam"
                if not tokens and (full or batch == 1 or not guided or method == "GuidedGradCam"):
                    add("captum", method, network, batch, _captum(method), memory=True)
        if tokens:
            add("torchcam", "LeGrad", network, 1, _torchcam("LeGrad"), memory=True)
        else:
            add("pytorch_grad_cam", "GuidedBackpropReLUModel", network, 1, _guided_backpropagation)
            add("pytorch_grad_cam", "DeepFeatureFactorization", network, 1, _factorization)
            add("pytorch_grad_cam", "DropInConfidence", network, 16, _drop_in_confidence)
            for method in ("FinerCAM", "RefineCAM"):
                add("torchcam", method, network, 1, _torchcam(method), memory=True)
    for method in _MASKING:
        add("pytorch_grad_cam", method, "resnet18", 1, _pytorch_grad_cam(method), moderate=True)
    for method in ("ScoreCAM", "SSCAM", "ISCAM"):
        few = {} if method == "ScoreCAM" else {"num_samples": 2}
        add(
            *("torchcam", method + (", 2 samples" if few else ""), "resnet18", 1),
            _torchcam(method, **few),
            memory=True,
            moderate=True,
        )
    for name in ("ROADMostRelevantFirst", "ROADCombined"):
        add("pytorch_grad_cam", name, "resnet18", 1, _metric("road", name), moderate=True)
    add("pytorch_grad_cam", "show_cam_on_image 1080p", "resnet18", 1, _show_cam)
    add("torchcam", "overlay_mask 1080p", "resnet18", 1, _overlay_mask)
    return found


_drop_in_confidence = _metric("cam_mult_image", "DropInConfidence")


def _add(
    cases: list[Case],
    library: str,
    method: str,
    network: str,
    batch: int,
    script: Script,
    **options: bool,
) -> None:
    cases.append(Case(library, method, network, batch, script, **options))


# --- measurement ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _under(library: str, implementation: str) -> Iterator[None]:
    """The drop-in, unless the implementation is the library itself; without progress bars."""
    with contextlib.ExitStack() as during:
        during.enter_context(contextlib.redirect_stderr(io.StringIO()))
        during.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if implementation != library:
            fast = implementation == "fastcam_fast"
            during.enter_context(dropin.install(library, fast=fast))
        yield


def _own(net: Network, moderate: bool) -> Network:
    """The same with a copy of the model."""
    model = copy.deepcopy(net.model)
    if moderate:
        *_, head = (module for module in model.modules() if isinstance(module, nn.Linear))
        with torch.no_grad():
            head.weight *= 3 / model(net.images).std()
    return Network(model, net.images, net.layer, net.reshape)


def _flat(answer: Any) -> list[Tensor]:
    """Every array of an answer."""
    if isinstance(answer, (list, tuple)):
        return [tensor for each in answer for tensor in _flat(each)]
    return [torch.as_tensor(answer).detach().cpu()]


def _once(call: Call) -> list[Tensor]:
    torch.manual_seed(0)
    np.random.seed(0)
    return _flat(call())


def measure(case: Case, device: torch.device) -> list[Result]:
    if not implementations.installed(case.library):
        return []
    shared = implementations.network(case.network, case.batch, device)
    names = [case.library, "fastcam"]
    if case.fast and not is_emulated(torch.bfloat16, device):
        names.append("fastcam_fast")
    calls: dict[str, Call] = {}
    answers: dict[str, list[Tensor]] = {}
    first: dict[str, float] = {}
    peaks: dict[str, int | None] = {}
    for name in names:
        net = _own(shared, case.moderate)
        with _under(case.library, name):
            calls[name] = case.script(net)
            start = time.perf_counter()
            answers[name] = _once(calls[name])
            first[name] = time.perf_counter() - start
            if case.memory:
                peaks[name] = harness.peak_memory(calls[name], device, calls=1)
    _check(case, answers, shared)
    floor = _forwards(case, calls["fastcam"], shared)
    if floor is not None:
        calls["forwards"] = floor
        names.append("forwards")
        first["forwards"] = first["fastcam"]

    def timer(name: str) -> harness.Timer:
        timed = harness.call_timer(calls[name], device)

        def once() -> float:
            with _under(case.library, case.library if name == "forwards" else name):
                return timed()

        return once

    repetitions = min(5, max(1, round(_LONG / sum(first.values()))))
    times = harness.interleaved(
        {name: timer(name) for name in names}, warmup=0, repetitions=repetitions
    )
    return [
        Result(
            suite="dropin",
            case=case.name,
            shape=list(shared.images.shape),
            dtype="float32",
            layout="contiguous",
            device=harness.machine(device),
            implementation=name,
            **harness.summary(seconds * 2 if len(seconds) == 1 else seconds),
            peak_memory=peaks.get(name),
        )
        for name, seconds in times.items()
    ]


def _forwards(case: Case, call: Call, net: Network) -> Call | None:
    """Inference of what the network runs on in a call; None if it does not run."""
    rows: list[int] = []
    kind = type(net.model)
    forward = kind.forward

    def counting(model: nn.Module, images: Tensor) -> Any:
        rows.append(len(images))
        return forward(model, images)

    kind.forward = counting  # type: ignore[method-assign]
    try:
        with _under(case.library, "fastcam"):
            call()
    finally:
        kind.forward = forward  # type: ignore[method-assign]
    if not rows:
        return None
    batches = [net.images[:1].repeat(n, 1, 1, 1) for n in rows]

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                net.model(batch)

    return run


def _check(case: Case, answers: dict[str, list[Tensor]], net: Network) -> None:
    """Raises AssertionError where the drop-in's answer is not the library's.

    The fast mode is left to the tests: random weights amplify the noise of bfloat16.
    """
    signed = net.reshape is not None and case.method in ("GradCAMPlusPlus", "XGradCAM")
    if signed:  # denominators near 0: rounding rules the map
        return
    levels = 2 / 255 if "1080p" in case.method else TOLERANCE
    pairs = zip(answers["fastcam"], answers[case.library], strict=True)
    for index, (found, expected) in enumerate(pairs):
        harness.check_equal(f"{case.name}, answer {index}", found, expected, levels)


def cases(device: torch.device, full: bool) -> dict[str, Callable[[], list[Result]]]:
    return {case.name: functools.partial(measure, case, device) for case in selected(full)}
