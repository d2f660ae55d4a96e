"""Networks that keep something between calls, or mix the images of a batch."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcam


class Memory(nn.Module):
    """Adds up what it saw, in an attribute, a buffer and a list, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.memory: Tensor | None = None
        self.register_buffer("total", torch.zeros(8, dtype=torch.float64))
        self.seen: list[int] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.memory = x if self.memory is None else 0.9 * self.memory + x
        self.total += 1
        self.calls += 1
        self.seen.append(self.calls)
        return self.head(self.memory.tanh().mean((2, 3)) + self.total + len(self.seen))


def same_state(model: Memory, other: Memory) -> None:
    assert torch.equal(model.memory, other.memory) and not model.memory.requires_grad
    assert torch.equal(model.total, other.total)
    assert (model.seen, model.calls) == (other.seen, other.calls)


@pytest.mark.parametrize("layer", ["conv", None])
@pytest.mark.parametrize(
    "method", ["hirescam", "eigencam", "scorecam", "ablationcam", "guided-gradcam"]
)
def test_a_call_counts_as_one(method: str, layer: str | None) -> None:
    torch.manual_seed(0)
    model = Memory().double().eval()
    other = copy.deepcopy(model)
    cam = fastcam.METHODS[method](model, layer)
    for call in range(2 if method not in ("scorecam", "ablationcam") else 1):
        images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
        with torch.no_grad():
            expected = other(images)
        found = cam(images, 1)
        assert torch.equal(cam.outputs, expected)
        same_state(model, other)
        if call == 0:  # nothing of what found out about the model shows
            model.__dict__.update(memory=None, seen=[], calls=0)
            model.total.zero_()
            torch.testing.assert_close(cam(images, 1), found)
            same_state(model, other)
    copy.deepcopy(model)


def test_noise_of_the_model_is_that_of_inference() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.conv(x).relu().mean((2, 3)), training=True))

    model, images = Noisy().eval(), torch.randn(2, 3, 16, 24)
    for method in ("gradcam", "eigencam"):
        torch.manual_seed(3)
        expected = model(images)
        torch.manual_seed(3)
        cam = fastcam.METHODS[method](model)
        cam(images, 1)
        assert torch.equal(cam.outputs, expected)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_images_that_cannot_run_together(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1),
        nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 16, 24)
    with pytest.raises(ValueError, match=r"^images: the model's output for an image depends on"):
        fastcam.METHODS[method](model, "1")(image)
    fastcam.METHODS[method](model, "1", batch_size=1)(image)


def test_images_along_another_axis_of_the_output() -> None:
    class Captions(nn.Module):
        """(T, N, classes), as CTC wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.steps, self.head = (
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.LSTM(8, 7),
                nn.Linear(7, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.steps(self.conv(x).relu().mean(2).permute(2, 0, 1))[0])

    model, images = Captions().eval(), torch.randn(12, 3, 16, 24)  # T is 12 too
    with pytest.raises(ValueError, match=r"images along axis 1, .* give output= with .movedim"):
        fastcam.GradCAM(model, "conv")(images, lambda scores: scores[0, 1])
    cam = fastcam.GradCAM(model, "conv", output=lambda scores: scores.movedim(1, 0))
    assert cam(images, lambda scores: scores[0, 1]).shape == (12, 16, 24)


def test_copies_notice_what_was_exchanged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, module in {
        "first": nn.Conv2d(3, 8, 3, 2, 1), "layer": nn.Conv2d(8, 12, 3, 2, 1), "act": nn.Tanh(),
        "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(12, 5),
    }.items():  # fmt: skip
        model.add_module(name, module)
    model.eval()
    images = torch.randn(2, 3, 16, 24)
    cam = fastcam.GradCAM(model, "layer")
    cam.compile()

    def head() -> None:
        model.head = nn.Linear(12, 5)

    def data() -> None:
        model.first.weight.data = torch.randn_like(model.first.weight)

    def hook() -> None:
        model.first.register_forward_hook(lambda module, args, output: output * 2)

    cam(images)
    for change in (head, data, hook):
        change()
        cam(images)
        torch.testing.assert_close(cam.outputs, model(images).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_no_function() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(TypeError, match=r"^output: got str, expected a function$"):
        fastcam.GradCAM(model, output="logits")


class Keeping(nn.Module):
    """Keeps what it computes in buffers and containers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mix, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 5)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("sum", torch.zeros(6))
        self.cache, self.kept, self.pair, self.box = {}, [], (), SimpleNamespace()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mix(self.body(x).mean((2, 3))).tanh()
        self.mean = 0.9 * self.mean + 0.1 * pooled.mean(0)
        self.sum += pooled.sum(0)
        self.cache["pooled"] = {"deep": pooled * 1}
        self.kept[:] = [pooled * 2]
        self.pair = pooled * 3, pooled[:1] * 4
        self.box.value = pooled * 5
        return self.head(pooled + self.mean)


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "guided-backprop"])
def test_what_a_model_keeps_has_no_graph_afterwards(method: str) -> None:
    model, images = Keeping().eval(), torch.randn(2, 3, 9, 9)
    cam = fastcam.METHODS[method](model)
    for _ in range(3):
        cam(images, 1)
        kept = [model.mean, model.sum, model.cache["pooled"]["deep"], *model.kept, *model.pair]
        assert not any(each.requires_grad for each in [*kept, model.box.value])
        copy.deepcopy(model)
