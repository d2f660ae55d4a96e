"""A network that others use meanwhile, and a call that is interrupted: nothing is left behind."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import fastcam
from fastcam.engine.graph import OUTPUT


class Net(nn.Module):
    """BatchNorm, dropout and a ReLU in place, as in many networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(self.stem(x)).mean((2, 3))))


@pytest.fixture(autouse=True)
def one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def state(model: nn.Module) -> list[Any]:
    """What a call might leave behind: modes, hooks and what they belong to, every tensor."""
    found: list[Any] = []
    for module in model.modules():
        found.append(module.training)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found.append([(key, id(hook)) for key, hook in hooks.items()])
        found.append(dict(module._forward_pre_hooks_with_kwargs))
    for tensor in (*model.parameters(), *model.buffers()):
        found.append((id(tensor), tensor.requires_grad, tensor.grad is None, tensor.tolist()))
    return found


@pytest.mark.parametrize("training", [False, True])
def test_threads_that_share_a_network(training: bool) -> None:
    model = net().train(training)
    images = [torch.randn(1, 3, 12, 12) for _ in range(25)]
    methods = [fastcam.GradCAM, fastcam.EigenCAM, fastcam.GradCAMPlusPlus, fastcam.LayerCAM]
    expected = {
        (method, i): method(model, "body")(image, 1)
        for method in methods
        for i, image in enumerate(images)
    }
    before = state(model)
    errors: list[Any] = []
    done = threading.Event()

    def explain(number: int) -> None:
        cam = methods[number % 4](model, "body")
        for k in range(200):
            i = (k * 7 + number) % len(images)
            if not torch.equal(cam(images[i], 1), expected[type(cam), i]):
                errors.append(f"{type(cam).__name__}: another picture's map")
        if not torch.is_grad_enabled():
            errors.append("grad mode")

    def infer() -> None:
        quiet = copy.deepcopy(model).eval()
        answer = quiet(images[0]).detach()
        shared = model if not training else quiet
        with torch.no_grad():
            while not done.wait(0.002):  # the others want the processor too
                scores = shared(images[0])
                if scores.requires_grad or torch.is_grad_enabled():
                    errors.append("inference lost its no_grad")
                if not torch.equal(scores, answer):
                    errors.append("inference gave another answer")

    def train() -> None:
        own = copy.deepcopy(model).train()
        while not done.wait(0.002):
            own(torch.randn(4, 3, 12, 12)).square().mean().backward()
            if any(parameter.grad is None for parameter in own.parameters()):
                errors.append("training lost its graph")

    with ThreadPoolExecutor(10) as pool:
        beside = [pool.submit(infer), pool.submit(train)]
        explained = [pool.submit(explain, number) for number in range(8)]
        for future in explained:
            future.exception()
        done.set()
    for future in (*explained, *beside):
        future.result()
    assert not errors, set(errors)
    assert state(model) == before and torch.is_grad_enabled()


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        fastcam.GradCAMPlusPlus,
        fastcam.EigenCAM,
        fastcam.ScoreCAM,
        fastcam.AblationCAM,
        fastcam.SmoothGradCAMPlusPlus,
        fastcam.GuidedGradCAM,
    ],
)
def test_first_calls_side_by_side(method: type, shared: bool, eager_switches: None) -> None:
    model = net().eval()
    images = [torch.randn(1, 3, 6, 6) for _ in range(10)]
    expected = [method(model, "body")(image, 1) for image in images]
    before = state(model)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            own = [method(model, "body") for _ in images]
            cams = [own[0]] * len(images) if shared else own
            found = pool.map(lambda cam, image: cam(image, 1), cams, images)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one, other)
    assert state(model) == before


def test_a_method_is_copied_with_its_model() -> None:
    cam, image = fastcam.GradCAM(net().eval(), "body"), torch.randn(1, 3, 6, 6)
    expected = cam(image, 1)
    for other in (copy.deepcopy(cam), pickle.loads(pickle.dumps(cam))):
        assert torch.equal(other(image, 1), expected)
        assert not set(map(id, other.model.modules())) & set(map(id, cam.model.modules()))


def test_a_service_that_hands_calls_to_threads() -> None:
    model = net().eval()
    images = [torch.randn(1, 3, 12, 12) for _ in range(40)]
    cam = fastcam.GradCAM(model, "body")
    expected = [cam(image, 2) for image in images]

    async def serve() -> list[Tensor]:
        calls = (asyncio.to_thread(fastcam.GradCAM(model, "body"), image, 2) for image in images)
        return await asyncio.gather(*calls)

    for found, wanted in zip(asyncio.run(serve()), expected, strict=True):
        assert torch.equal(found, wanted)


def test_checkpoints_of_other_threads_stay_checkpoints() -> None:
    inside, leave = threading.Event(), threading.Event()
    ran: list[int] = []

    class Waits(Net):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            assert leave.wait(60)
            return super().forward(x)

    def part(x: Tensor) -> Tensor:
        ran.append(1)
        return x.sin()

    cam = fastcam.GradCAM(Waits().eval(), "body")
    cam._start = OUTPUT
    explain = threading.Thread(target=cam, args=(torch.randn(1, 3, 12, 12), 1))
    explain.start()
    assert inside.wait(60)
    x = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(part, x, use_reentrant=True).sum().backward()
    torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False).sum().backward()
    leave.set()
    explain.join()
    assert ran == [1] * 4  # each ran again in its backward
    assert issubclass(torch.utils.checkpoint.CheckpointFunction, torch.autograd.Function)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_checkpoints_within_the_model(reentrant: bool, training: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.utils.checkpoint.checkpoint(self.stem, x, use_reentrant=reentrant)
            x = torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=reentrant)
            return self.head(self.drop(x.mean((2, 3))))

    torch.manual_seed(0)
    model, plain = Checkpointed().train(training), net().eval()
    before, images = state(model), torch.randn(2, 3, 12, 12)
    for layer in ("stem", "stem.0", "body", "body.1"):
        found = fastcam.LayerCAM(model, layer)(images, 3)
        assert torch.equal(found, fastcam.LayerCAM(plain, layer)(images, 3))
    assert state(model) == before


class Interrupts:
    """Raises KeyboardInterrupt at the line of that number, in fastcam and what it calls."""

    def __init__(self, line: int) -> None:
        self.line, self.lines = line, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if "/engine/" not in frame.f_code.co_filename and frame.f_code.co_name != "forward":
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                raise KeyboardInterrupt
        return self

    def during(self, call: Callable[[], Any]) -> bool:
        """Whether it was raised."""
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


@pytest.mark.parametrize("method", [fastcam.GradCAM, fastcam.EigenCAM])
def test_an_interrupt_at_any_line_of_a_run(method: type) -> None:
    model, images = net().train(), torch.randn(1, 3, 6, 6)
    before, checkpoint = state(model), torch.utils.checkpoint.CheckpointFunction
    cam = method(model, "body")
    cam(images, 1)
    line = 0
    while True:
        line += 1
        raised = Interrupts(line).during(lambda: cam(images, 1))
        assert state(model) == before, line
        assert torch.is_grad_enabled(), line
        assert torch.utils.checkpoint.CheckpointFunction is checkpoint, line
        if not raised:
            break
    assert line > 100  # it was there
    other = threading.Thread(target=cam, args=(images, 1), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()  # no lock is held
    assert torch.equal(cam(images, 1), method(model, "body")(images, 1))
