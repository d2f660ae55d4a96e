"""The model is left as found, whatever surrounds the call and whatever goes wrong in it."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import Small, Wrapped, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam.engine.capture import capture

CLASSES = torch.tensor([1, 4, 2])
EVERY_METHOD = sorted(fastcam.METHODS.keys() - {"legrad"})  # that one needs a transformer
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything a call could change: bytes, modes, hooks, attributes, identities."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name} module"] = id(module), type(module), module.training
        found[f"{name} attributes"] = {key: id(value) for key, value in vars(module).items()}
        found[f"{name} hooks"] = {hooks: dict(vars(module)[hooks]) for hooks in HOOKS}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        content = tensor.detach().numpy().tobytes(), tensor._version
        found[f"{name} tensor"] = id(tensor), tensor.requires_grad, grad, content
    return found


def in_training() -> Small:
    """Half in training, half frozen, with gradients and a hook of its own."""
    model = small().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model(small_images()).sum().backward()
    model.features.register_forward_hook(lambda *_: None)
    model.features.register_forward_pre_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_model_is_left_as_found(method: str) -> None:
    model, images = in_training(), small_images()
    before, pixels = state(model), images.clone()
    cam = fastcam.METHODS[method](model)
    for targets in (None, CLASSES, CLASSES[:, None].expand(3, 2)):
        cam(images, targets)
    assert state(model) == before
    assert images.equal(pixels) and images.grad is None and not images.requires_grad


class Failing(nn.Module):
    """Raises behind the target layer from the ``calls``-th call on."""

    def __init__(self, error: BaseException, calls: int) -> None:
        super().__init__()
        self.inner, self.error, self.calls = in_training(), error, calls

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.__dict__["calls"] -= 1
        if self.calls < 0:
            raise self.error
        return logits


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_also_after_an_exception_in_the_model(method, calls, error) -> None:
    model = Failing(error, calls).train()
    before = state(model)
    cam = fastcam.METHODS[method](model)
    with pytest.raises(type(error)):
        for _ in range(2):
            cam(small_images(), CLASSES)
    before[" attributes"]["calls"] = id(model.calls)
    assert state(model) == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_also_after_an_exception_in_the_target(error: BaseException) -> None:
    def target(row: Tensor) -> Tensor:
        raise error

    model = in_training()
    before = state(model)
    for method in EVERY_METHOD:
        with pytest.raises(type(error)):
            fastcam.METHODS[method](model)(small_images(), target)
    assert state(model) == before


@pytest.mark.parametrize("method", ["gradcam", "cam", "guided-gradcam"])
def test_nothing_leaks(method: str) -> None:
    model, images = small(), small_images()
    cam = fastcam.METHODS[method](model)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(found), Tensor) for found in gc.get_objects())

    cam(images, CLASSES)
    before = tensors()
    for _ in range(200):
        cam(images, CLASSES)
    assert tensors() == before


def test_a_dropped_result_frees_the_graph_without_the_collector() -> None:
    model, images = small(), small_images()
    gc.collect()
    gc.disable()
    try:
        count = sum(issubclass(type(found), Tensor) for found in gc.get_objects())
        for method in ("gradcam", "guided-gradcam"):
            fastcam.METHODS[method](model)(images, CLASSES)
        assert sum(issubclass(type(found), Tensor) for found in gc.get_objects()) == count
    finally:
        gc.enable()


def test_threads_with_one_model_each() -> None:
    models = [copy.deepcopy(small()) for _ in range(4)]
    batches = [small_images() + i for i in range(4)]
    expected = [fastcam.GuidedGradCAM(m)(x) for m, x in zip(models, batches, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        cam = fastcam.GuidedGradCAM(models[i])
        for _ in range(20):
            if not cam(batches[i]).equal(expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_no_grad_inference_mode_and_frozen_parameters(method: str) -> None:
    model, images = small(), small_images()
    classes = CLASSES[:, None].expand(3, 2)
    expected = fastcam.METHODS[method](model)(images, classes)
    with torch.no_grad():
        assert fastcam.METHODS[method](model)(images, classes).equal(expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        maps = fastcam.METHODS[method](model)(images.clone(), classes.clone())
        assert maps.equal(expected) and torch.is_inference_mode_enabled()
    model.requires_grad_(False)
    maps = fastcam.METHODS[method](model)(images, classes)
    assert maps.equal(expected) and not maps.requires_grad


def test_inside_a_training_loop() -> None:
    """An explanation between forward and backward changes neither."""
    results = []
    for explained in (False, True):
        model = small().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(small_images()), CLASSES)
            if explained:
                for method in EVERY_METHOD:
                    fastcam.METHODS[method](model)(small_images())
            loss.backward()
            optimizer.step()
        results.append(model.state_dict())
    for name, tensor in results[0].items():
        assert tensor.equal(results[1][name]), name


def test_the_network_below_the_layer_records_nothing() -> None:
    model, images = small(), small_images()
    recorded: dict[str, bool] = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, args, output, name=name: recorded.update({name: output.requires_grad})
        )
    fastcam.GradCAM(model, "features")(images)
    assert recorded == {"conv": False, "norm": False, "features": False, "head": True}


def test_a_layer_that_runs_twice_counts_as_it_ran_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(self.conv(x).relu()) ** 2).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Twice(), small_images()
    last = model.conv(model.conv(images).relu()).detach().requires_grad_()
    scores = model.head((last**2).mean((2, 3))).gather(1, CLASSES[:, None])
    (gradients,) = torch.autograd.grad(scores.sum(), last)
    expected = (gradients * last).sum(1).relu()
    raw = fastcam.HiResCAM(model, "conv")(images, CLASSES, size="layer", normalize=False)
    torch.testing.assert_close(raw, expected)


class Pair(NamedTuple):
    mask: Tensor
    features: Tensor


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda y: (y, None), lambda o: o[0]),
        (lambda y: [y.argmax(1), y], lambda o: o[1]),
        (lambda y: Pair(y > 0, y), lambda o: o.features),
        (lambda y: {"mask": y > 0, "y": y}, lambda o: o["y"]),
    ],
)
def test_layers_that_return_containers(wrap: Callable, pick: Callable) -> None:
    class Holder(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.layer = Wrapped(inner, wrap)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(pick(self.layer(x)).relu_().mean((2, 3)))

    torch.manual_seed(0)
    model = Holder(nn.Conv2d(3, 8, 3))
    images = small_images()
    expected = fastcam.LayerCAM(model, "layer.inner")(images)
    assert expected.any()
    assert fastcam.LayerCAM(model, "layer")(images).equal(expected)


@pytest.mark.parametrize("where", ["model", "submodule", "in place", "in place, submodule"])
def test_compiled_models(where: str) -> None:
    model, images = small(), small_images()
    layer: nn.Module = model.features
    expected = {
        name: fastcam.METHODS[name](model)(images) for name in ("gradcam", "guided-gradcam")
    }
    wrapped: Any = model
    if where == "model":
        wrapped = torch.compile(model, backend="eager")
    elif where == "submodule":
        model.features = layer = torch.compile(model.features, backend="eager")
    elif where == "in place":
        model.compile(backend="eager")
    else:
        model.features.compile(backend="eager")
    wrapped(images)
    for name, maps in expected.items():
        assert fastcam.METHODS[name](wrapped, layer)(images).equal(maps)
    if where == "model":
        assert fastcam.GradCAM(wrapped, "_orig_mod.features")(images).equal(expected["gradcam"])


@pytest.mark.parametrize("where", ["forward", "submodule's forward", "function"])
def test_compiled_functions(where: str) -> None:
    torch.compiler.reset()  # what other tests compiled
    images = small_images()
    methods = ("gradcam", "guided-backprop", "guided-gradcam")
    expected = {name: fastcam.METHODS[name](small())(images) for name in methods}
    model: Any = small()
    if where == "function":
        model = small(relu=torch.compile(F.relu, backend="aot_eager"))
    else:
        module = model if where == "forward" else model.features
        module.forward = torch.compile(module.forward, backend="aot_eager")
    model(images)
    for name, maps in expected.items():
        torch.testing.assert_close(fastcam.METHODS[name](model, *_layer(name))(images), maps)


def _layer(method: str) -> list[str]:
    return [] if method == "guided-backprop" else ["features"]


def test_two_threads_leave_the_compiler_as_it_was() -> None:
    """The first to begin ends first."""
    began, ended = threading.Event(), threading.Event()

    def explain(before: Callable[[], object]) -> None:
        model = small(relu=lambda x: before() and F.relu(x))
        model.features.compile(backend="eager")
        fastcam.GradCAM(model, "features")(small_images())

    first = threading.Thread(target=explain, args=(lambda: began.set() or ended.wait(10),))
    second = threading.Thread(target=explain, args=(lambda: ended.is_set() or wait(),))

    def wait() -> bool:
        ended.set()
        first.join(10)
        return True

    first.start()
    assert began.wait(10)
    second.start()
    second.join(10)
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert compiled


def test_data_parallel_is_looked_through() -> None:
    model, images = small(), small_images()
    expected = fastcam.GradCAM(model)(images)
    assert fastcam.GradCAM(nn.DataParallel(model), "module.features")(images).equal(expected)


class Answer:
    """No mapping, and with a reference to itself."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.extra, self.itself = logits, [logits * 2, {"more": logits * 3}], self
        self.cache = SimpleNamespace(layers=[SimpleNamespace(keys=logits * 4)], model=nn.ReLU())


def test_outputs_hold_no_graph_wherever_the_tensors_are() -> None:
    cam = fastcam.GradCAM(Wrapped(small(), Answer), "inner.features")
    cam(small_images())
    found = cam.outputs
    tensors = [found.logits, found.extra[0], found.extra[1]["more"], found.cache.layers[0].keys]
    assert not any(tensor.requires_grad for tensor in tensors)


class Shortcut(nn.Module):
    """A shortcut that is the input itself, which the other branch then writes to."""

    def __init__(self, short: nn.Module, written: bool) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.short, self.head, self.written = short, nn.Linear(8, 5), written

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = self.short(x)
        x = self.conv(x.relu_() if self.written else x.relu())
        return self.head((x + shortcut).mean((2, 3)))


@pytest.mark.parametrize("method", ["hirescam", "guided-gradcam"])
@pytest.mark.parametrize("short", [nn.Identity(), nn.Dropout(), nn.Dropout(inplace=True)])
def test_a_layer_that_returns_its_input(short: nn.Module, method: str) -> None:
    images = small_images()
    model = Shortcut(short, written=False).eval()
    cam = fastcam.METHODS[method](model, "short")
    assert cam(images).any() and cam.outputs.equal(model(images))
    with pytest.raises(ValueError, match=r"'short' returns its input, which .* overwrites"):
        fastcam.METHODS[method](Shortcut(short, written=True), "short")(images)


@pytest.mark.parametrize("method", ["hirescam", "guided-gradcam"])
@pytest.mark.parametrize("used", ["argument", "result", "view"])
def test_a_layer_that_writes_to_its_input(used: str, method: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.relu(y[:, :] if used == "view" else y)
            return self.head(((y if used == "argument" else z) ** 2).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Net(), small_images()
    cam = fastcam.METHODS[method](model)
    maps = cam(images)
    assert cam.layers == ("relu",) and cam.outputs.equal(model(images))
    model.relu.inplace, used = False, "result"
    assert maps.any() and maps.equal(fastcam.METHODS[method](model, "relu")(images))


def test_parameters_made_in_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = small()
    for method in ("gradcam", "guided-gradcam"):
        with pytest.raises(ValueError, match=r"outside of torch.inference_mode"):
            fastcam.METHODS[method](model)(small_images())


class Detached(nn.Module):
    def __init__(self, cut: str) -> None:
        super().__init__()
        self.features, self.unused = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.other, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        if self.cut == "no_grad":
            with torch.no_grad():
                y = self.features(x)
        else:
            y = self.features(x).detach()
        return self.head((y + self.other(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("cut", "layer"), [("no_grad", "features"), ("", "features"), ("", "unused")]
)
def test_a_score_that_does_not_depend_on_the_layer(cut: str, layer: str, frozen: bool) -> None:
    model = Detached(cut).requires_grad_(not frozen)
    with pytest.raises(ValueError, match=f"does not depend on what '{layer}'"):
        fastcam.GradCAM(model, layer)(small_images())


def test_layers_that_did_not_run_or_have_no_positions() -> None:
    model = small()
    model.idle = nn.Conv2d(3, 3, 3)
    for layer in ("idle", "head"):
        with pytest.raises(ValueError, match=f"'{layer}' did not run, or returned no"):
            fastcam.GradCAM(model, layer)(small_images())


def test_one_capture_serves_methods_and_classes() -> None:
    model, images = small(), small_images()
    record = capture(model, images, ["features"])
    (activations,) = record.activations
    for k in (0, 3):
        (gradients,) = record.gradients(record.logits[:, k])
        for method in ("gradcam", "layercam"):
            cam = fastcam.METHODS[method](model, "features")
            maps = fastcam.ops.cam(activations, gradients, method)
            assert maps.equal(cam(images, k, size="layer", normalize=False))
