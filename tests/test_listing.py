"""The list of layers, on the command line and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastcam
from fastcam import demo
from fastcam.cli.commands import app


class Shared(nn.Module):
    """One activation that runs twice, a branch that the scores ignore, and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, stride=2)
        self.act, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.ignored, self.unused = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        low = self.act(self.low(x))
        self.side = self.ignored(low)
        return self.head(self.pool(self.act(self.high(low))).flatten(1))


def test_layers_in_the_order_of_the_forward() -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    listed = fastcam.list_layers(model, torch.rand(2, 3, 12, 14))
    assert [(each.name, each.kind, each.activations, each.runs) for each in listed] == [
        ("low", "Conv2d", (4, 10, 12), 1),
        ("high", "Conv2d", (6, 4, 5), 1),
        ("act", "ReLU", (6, 4, 5), 2),
    ]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def graph_of(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of the layers' outputs with positions that have a gradient of the top
    score, from a whole graph."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output})
        )
        for name, module in model.named_modules()
        if name
    ]
    with torch.enable_grad():
        scores = model(images.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    given = {
        name: output
        for name, output in outputs.items()
        if isinstance(output, Tensor) and output.dim() > 2 and output[0, 0].numel() > 1
    }
    gradients = torch.autograd.grad(scores[0].max(), list(given.values()), allow_unused=True)
    return {
        name: tuple(output.shape)
        for (name, output), gradient in zip(given.items(), gradients, strict=True)
        if gradient is not None
    }


@pytest.mark.parametrize("make", [demo.digits, demo.digits_vit])
def test_every_layer_that_a_whole_graph_has(make) -> None:
    model = make()
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    listed = {each.name: each for each in fastcam.list_layers(model, images)}
    assert {name: each.shape for name, each in listed.items()} == graph_of(model, images)
    cam = fastcam.GradCAM(model)
    cam(images)
    assert cam.layers[0] in listed
    assert listed[cam.layers[0]].activations is not None


def test_what_the_command_prints() -> None:
    result = CliRunner().invoke(app, ["layers", "digits"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["layer", "module", "channels", "x", "positions"]
    assert lines[1].split() == ["stem.0", "Conv2d", "16", "x", "128", "x", "128"]
    (chosen,) = (line for line in lines if "<-" in line)
    report = json.loads(CliRunner().invoke(app, ["layers", "digits", "--json"]).stdout)
    assert report["chosen"] == [chosen.split()[0]]
    assert report["input"] == [1, 3, 256, 256]
    assert len(report["layers"]) == len(lines) - 1


def test_the_levels_of_a_detector() -> None:
    result = CliRunner().invoke(app, ["layers", "digits-detector", "--target", "boxes", "--json"])
    detector = demo.digits_detector()
    image = torch.from_numpy(fastcam.pictures.read(demo.asset("scene.png"))).movedim(-1, 0) / 255
    (found,) = detector([image])
    cam = fastcam.LayerCAM(detector)
    cam([image], fastcam.targets.Boxes(found["boxes"][:1], found["labels"][:1]))
    assert set(cam.layers) <= set(json.loads(result.stdout)["chosen"])
    result = CliRunner().invoke(app, ["layers", "digits-detector"])
    assert result.exit_code == 2
    assert "is a detector: add --target boxes" in result.stderr


def test_what_cannot_be_listed() -> None:
    for arguments, message in (
        (["no-such-net"], "unknown model no-such-net"),
        (["digits", "--target", "7"], "target 7: expected top1"),
        (["tiny_models:number"], "number"),
    ):
        result = CliRunner().invoke(app, ["layers", *arguments])
        assert result.exit_code == 2, result.stderr
        assert message in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_stdout_is_one_sentence(options: list[str]) -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastcam", "layers", "digits", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    assert done.returncode == 1
    assert done.stderr == "fastcam: stdout cannot be written: No space left on device\n"


def test_a_reader_that_stops_ends_the_command_quietly() -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fastcam", "layers", "digits"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141
