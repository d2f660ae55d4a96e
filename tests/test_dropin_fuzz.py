"""Gradient methods on random small networks: the libraries' own answers and the drop-in's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import condition
from side_by_side import assert_same
from torch import Tensor, nn

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: nothing to compare")
torchcam = pytest.importorskip("torchcam.methods", reason="torchcam is missing: nothing to compare")
captum = pytest.importorskip("captum.attr", reason="captum is missing: nothing to compare")

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEAN = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
CLASSES = 6

GRAD_CAM = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM")
FLAT_ONLY = () if hasattr(pgc, "SESS") else ("GradCAMPlusPlus", "XGradCAM")  # until 1.5.5
TORCHCAM = ("GradCAM", "XGradCAM", "LayerCAM")


@dataclass(frozen=True)
class Block:
    channels: int
    kernel: int
    stride: int
    norm: bool
    activation: str
    """A module or function, in place or not, or none."""
    shortcut: str
    """"none", "added" to a new tensor, or "in place"."""
    pooled: bool


@dataclass(frozen=True)
class Plan:
    """What a network is built from, and what is asked of it."""

    dimensions: int
    blocks: tuple[Block, ...]
    head: str
    seed: int
    batch: int
    layers: tuple[int, ...]
    """Which of the network's layers that have positions are explained, modulo their number."""
    targets: str


def activation(name: str) -> nn.Module:
    return {
        "relu": nn.ReLU(),
        "relu in place": nn.ReLU(inplace=True),
        "gelu": nn.GELU(),
        "leaky in place": nn.LeakyReLU(0.1, inplace=True),
        "hardswish in place": nn.Hardswish(inplace=True),
        "none": nn.Identity(),
        "function": nn.Identity(),
        "function in place": nn.Identity(),
    }[name]


class Part(nn.Module):
    """Convolution, norm, shortcut, activation, pooling."""

    def __init__(self, dimensions: int, channels: int, block: Block) -> None:
        super().__init__()
        d = dimensions - 1
        kernel, stride = block.kernel, block.stride
        self.conv = CONV[d](channels, block.channels, kernel, stride, kernel // 2)
        self.norm = NORM[d](block.channels) if block.norm else nn.Identity()
        self.activation = activation(block.activation)
        self.pool = POOL[d](2, ceil_mode=True) if block.pooled else nn.Identity()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        if self.block.shortcut != "none" and out.shape == x.shape:
            if self.block.shortcut == "in place":
                out += x
            else:
                out = out + x
        out = self.activation(out)
        if self.block.activation == "function":
            out = F.relu(out)
        if self.block.activation == "function in place":
            out = F.relu(out, inplace=True)
        return self.pool(out)


class Net(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        channels = [3, *(block.channels for block in plan.blocks)]
        self.parts = nn.Sequential(
            *(
                Part(plan.dimensions, before, block)
                for before, block in zip(channels, plan.blocks, strict=False)
            )
        )
        last = channels[-1]
        d = plan.dimensions - 1
        self.head: nn.Module
        if plan.head == "mean and linear":
            self.head = nn.Sequential(MEAN[d](1), nn.Flatten(), nn.Linear(last, CLASSES))
        elif plan.head == "flat":
            self.head = nn.Sequential(
                MEAN[d](2),
                nn.Flatten(),
                nn.Linear(last * 2**plan.dimensions, 7),
                nn.ReLU(inplace=True),
                nn.Linear(7, CLASSES),
            )
        else:
            self.head = nn.Sequential(CONV[d](last, CLASSES, 1), MEAN[d](1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(x))


def build(plan: Plan) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(plan.seed)
    extents = {1: (23,), 2: (14, 17), 3: (6, 9, 8)}[plan.dimensions]
    inputs = torch.randn(3, 3, *extents)
    model = condition(Net(plan), inputs)
    with torch.no_grad():
        spread = model(inputs).std()
        for parameter in list(model.head.parameters())[-2:]:
            parameter.mul_(10 / spread.clamp(min=1e-3))
    return model, inputs[: plan.batch]


def layers(model: nn.Module, plan: Plan) -> list[str]:
    """One or two layers of those that a user would name, in the order in which they run."""
    names = [
        name
        for name, module in model.named_modules()
        if name.startswith("parts.") and not isinstance(module, (nn.Identity, nn.Sequential))
    ]
    chosen = dict.fromkeys(names[index % len(names)] for index in plan.layers)
    ran = [name for name, _ in model.named_modules()]  # within a part: conv, norm, activation, pool
    return sorted(chosen, key=lambda name: (ran.index(name), name))


blocks = st.builds(
    Block,
    channels=st.sampled_from([3, 4, 7]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 1, 2]),
    norm=st.booleans(),
    activation=st.sampled_from(
        [
            *("relu", "relu in place", "gelu", "leaky in place", "hardswish in place"),
            *("none", "function", "function in place"),
        ]
    ),
    shortcut=st.sampled_from(["none", "added", "in place"]),
    pooled=st.booleans(),
)
plans = st.builds(
    Plan,
    dimensions=st.sampled_from([1, 2, 2, 3]),
    blocks=st.lists(blocks, min_size=1, max_size=4).map(tuple),
    head=st.sampled_from(["mean and linear", "flat", "convolution"]),
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 3),
    layers=st.lists(st.integers(0, 30), min_size=1, max_size=2).map(tuple),
    targets=st.sampled_from(["top", "classes", "callable"]),
)
fuzzed = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=list(HealthCheck),
)


def score(output: Tensor) -> Tensor:
    return output[1] - 0.5 * output[2] + output[3] * output[4] * 0.01


def classes(batch: int) -> list[int]:
    return [4, 0, 5][:batch]


@fuzzed
@given(plan=plans)
def test_pytorch_grad_cam(plan: Plan) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, inputs = build(plan)
    names = layers(model, plan)
    targets: Any = {
        "top": None,
        "classes": [ClassifierOutputTarget(c) for c in classes(plan.batch)],
        "callable": [score] * plan.batch,
    }[plan.targets]

    def script(model: nn.Module, inputs: Tensor) -> Any:
        answers = []
        for method in GRAD_CAM:
            if plan.dimensions == 3 and method in FLAT_ONLY:
                continue
            with getattr(pgc, method)(model, [model.get_submodule(n) for n in names]) as cam:
                answers += [cam(inputs, targets), cam.outputs.detach()]
        return answers

    if plan.dimensions > 1:
        assert_same("pytorch_grad_cam", script, model, inputs)


@fuzzed
@given(plan=plans)
def test_torchcam(plan: Plan) -> None:
    model, inputs = build(plan)
    names = layers(model, plan)
    target: dict[str, Any] = {
        "top": {"class_idx": 2},
        "classes": {"class_idx": classes(plan.batch)},
        "callable": {"targets": score}
        if hasattr(torchcam, "LeGrad")
        else {"class_idx": 1},  # since 0.5.0
    }[plan.targets]

    def script(model: nn.Module, inputs: Tensor) -> Any:
        answers = []
        for method in TORCHCAM:
            with getattr(torchcam, method)(model, list(names)) as cam:
                scores = model(inputs)
                answers += [cam(scores=scores, **target), scores.detach()]
        return answers

    assert_same("torchcam", script, model, inputs)


@fuzzed
@given(plan=plans)
def test_captum(plan: Plan) -> None:
    model, inputs = build(plan)
    target = 2 if plan.targets == "top" else classes(plan.batch)

    def script(model: nn.Module, inputs: Tensor) -> Any:
        found = []
        for name in layers(model, plan):
            cam = captum.LayerGradCam(model, model.get_submodule(name))
            found.append(cam.attribute(inputs, target).detach())
        return found

    assert_same("captum", script, model, inputs)
