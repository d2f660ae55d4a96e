"""Explanations of whole networks as one call: fastcam, other libraries, and plain inference."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import fastcam
from benchmarks import harness
from benchmarks.harness import Result
from fastcam import reference
from fastcam.engine.capture import capture
from fastcam.engine.fast.options import is_emulated
from fastcam.targets import select

Call = Callable[[], Tensor]
TOLERANCE = 1e-4  # of maps in [0, 1]


@dataclass
class Network:
    """A network in evaluation mode, images for it, and the layer that fastcam finds."""

    model: nn.Module
    images: Tensor
    layer: str
    reshape: Callable[[Tensor], Tensor] | None
    """Tokens as a grid, for libraries that do not recognise them."""

    @property
    def device(self) -> torch.device:
        return self.images.device


def network(name: str, batch: int, device: torch.device) -> Network:
    """A network of torchvision with random weights, such that its maps can be compared."""
    model = _model(name, device)
    torch.manual_seed(1)
    images = torch.randn(batch, 3, 224, 224).to(device)
    cam = fastcam.GradCAM(model)
    cam(images[:1])
    return Network(model, images, cam.layers[0], _grid if name.startswith("vit") else None)


@functools.lru_cache(1)
def _model(name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics near those of the images
            module.momentum = 1.0
        if isinstance(module, nn.Linear):
            head = module
    nn.init.normal_(head.weight, std=1e3)  # gradients far above the eps of other libraries
    with torch.no_grad():
        model(torch.randn(8, 3, 224, 224))
    return model.eval().to(device)


def _grid(tokens: Tensor) -> Tensor:
    """(N, 1 + 14 * 14, C) -> (N, C, 14, 14), without the class token."""
    return tokens[:, 1:].unflatten(1, (14, 14)).movedim(-1, 1)


def inference(net: Network, method: str) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return net.model(net.images)

    return call


def fastcam_maps(net: Network, method: str) -> Call:
    return functools.partial(fastcam.METHODS[method](net.model, net.layer), net.images)


def fastcam_fast(net: Network, method: str) -> Call:
    """The fast mode in the network's own precision."""
    return _fast(net, method, None)


def fastcam_fast_bf16(net: Network, method: str) -> Call | None:
    """... in bfloat16 below the layer, where the processor has instructions for that."""
    emulated = is_emulated(torch.bfloat16, net.device)
    return None if emulated else _fast(net, method, torch.bfloat16)


def _fast(net: Network, method: str, dtype: torch.dtype | None) -> Call:
    cam: Any = fastcam.METHODS[method](net.model, net.layer)
    cam.compile(dtype=dtype)
    return functools.partial(cam, net.images)


_PYTORCH_GRAD_CAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam-elementwise": "GradCAMElementWise",
}
_TORCHCAM = {"gradcam": "GradCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}


def _ill_conditioned(net: Network, method: str) -> bool:
    """Tokens are signed: denominators with sum(A) come near 0, and rounding rules the map."""
    return net.reshape is not None and method in ("gradcam++", "xgradcam")


def pytorch_grad_cam(net: Network, method: str) -> Call | None:
    if method not in _PYTORCH_GRAD_CAM or _ill_conditioned(net, method):
        return None
    import pytorch_grad_cam

    create = getattr(pytorch_grad_cam, _PYTORCH_GRAD_CAM[method])
    layers = [net.model.get_submodule(net.layer)]

    def call() -> Tensor:
        with create(net.model, layers, net.reshape) as cam:  # its hooks end with the call
            return torch.from_numpy(cam(net.images, None))

    return call


def torchcam(net: Network, method: str) -> Call | None:
    """Maps at the layer's resolution, not enlarged. Its Grad-CAM++ is another formula."""
    if method not in _TORCHCAM or _ill_conditioned(net, method):
        return None
    from torchcam import methods

    create = getattr(methods, _TORCHCAM[method])

    def call() -> Tensor:
        with create(net.model, net.layer, reshape_transform=net.reshape) as cam:
            logits = net.model(net.images)
            (maps,) = cam(logits.argmax(1).tolist(), logits)
            return maps.detach()

    return call


def captum(net: Network, method: str) -> Call | None:
    """Grad-CAM, not normalised, of layers that give (N, C, H, W)."""
    if method != "gradcam" or net.reshape:
        return None
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(net.model, net.model.get_submodule(net.layer))
    size = tuple(net.images.shape[2:])

    def call() -> Tensor:
        with torch.no_grad():
            classes = net.model(net.images).argmax(1)
        maps = cam.attribute(net.images, classes, relu_attributions=True)
        return LayerAttribution.interpolate(maps, size, "bilinear").squeeze(1).detach()

    return call


# implementation -> its call for a network and a method, None where it has not got that method
IMPLEMENTATIONS: dict[str, Callable[[Network, str], Call | None]] = {
    "inference": inference,
    "fastcam": fastcam_maps,
    "fastcam_fast": fastcam_fast,
    "fastcam_fast_bf16": fastcam_fast_bf16,
    "pytorch_grad_cam": pytorch_grad_cam,
    "torchcam": torchcam,
    "captum": captum,
}
PEERS = ("pytorch_grad_cam", "torchcam", "captum")


@functools.cache
def installed(name: str) -> bool:
    found = name not in PEERS or importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: left out")
    return found


def calls(net: Network, method: str) -> dict[str, Call]:
    """Every implementation that is installed and has the method."""
    made = {name: make(net, method) for name, make in IMPLEMENTATIONS.items() if installed(name)}
    return {name: call for name, call in made.items() if call is not None}


def results(
    suite: str, case: str, net: Network, times: dict[str, list[float]], peaks: dict[str, int]
) -> list[Result]:
    """One result an implementation, from the seconds and the peak memory of each."""
    return [
        Result(
            suite=suite,
            case=case,
            shape=list(net.images.shape),
            dtype="float32",
            layout="contiguous",
            device=harness.machine(net.device),
            implementation=name,
            **harness.summary(seconds),
            peak_memory=peaks[name],
        )
        for name, seconds in times.items()
    ]


def _definition(net: Network, method: str) -> Tensor:
    """The maps of the top classes, from activations and gradients in float64."""
    with torch.no_grad():
        record = capture(net.model, net.images, (net.layer,))
        (gradients,) = record.gradients(select(record.logits, None).scores)
        (activations,) = record.activations
        maps = reference.cam(activations.double(), gradients.double(), method)
        return reference.upsample(maps, net.images.shape[2:])


def check(net: Network, method: str, calls: dict[str, Call]) -> None:
    """Raises AssertionError where fastcam's maps are not those of the float64 reference, or others'
    are not fastcam's. bfloat16 is left to the tests: random weights amplify its noise.
    """
    cam = fastcam.METHODS[method](net.model, net.layer)
    expected = {
        "pytorch_grad_cam": {},
        "torchcam": {"size": "layer"},
        "captum": {"normalize": False},
    }
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        if not _ill_conditioned(net, method):
            harness.check_equal("fastcam", cam(net.images), _definition(net, method), TOLERANCE)
        if "fastcam_fast" in calls:  # folded: another order of rounding through a whole network
            harness.check_equal("fastcam_fast", calls["fastcam_fast"](), cam(net.images), 5e-3)
        for name in expected.keys() & calls.keys():
            want = cam(net.images, **expected[name])
            harness.check_equal(name, calls[name]().to(net.device), want, TOLERANCE)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
