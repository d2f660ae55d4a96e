"""The network's threads abreast, their order and their end, and what Ctrl-C may cut short."""

from __future__ import annotations

import itertools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from clips import contents
from torch import Tensor, nn

from fastcam import models, pictures, video
from fastcam.engine.cores import single_threaded, threads_abreast
from fastcam.engine.fast import units
from fastcam.errors import FastcamError
from fastcam.explainer import Explainer, abreast
from fastcam.explainer.threads import Abreast, Ahead
from fastcam.video import network, pipeline, writer
from fastcam.video.temporal import Lock

SIDE = 32
AS_IT_IS = models.Preprocessing(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))


class Uneven(nn.Module):
    """Takes longer for some batches than for others."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 8, 8)
        self.kept: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.02 * (int(255 * images[0, 0, 0, 0]) % 3))
        self.kept["features"] = self.features(images)
        return 300 * self.kept["features"].mean((2, 3))


def uneven(method: str = "gradcam") -> Explainer:
    torch.manual_seed(0)
    module = Uneven().eval().requires_grad_(False)
    return Explainer(models.LoadedModel(module, AS_IT_IS, ("a", "b", "c")), method)


def noisy(count: int) -> list[pictures.Picture]:
    random = np.random.default_rng(0)
    tints = random.integers(0, 200, (count, 1, 1, 3))
    return list((random.integers(0, 56, (count, SIDE, SIDE, 3)) + tints).astype(np.uint8))


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """As on a CPU of so many cores."""
    return lambda count: monkeypatch.setattr(abreast, "threads_abreast", lambda: count)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("fastcam")] == []
    assert torch.get_num_threads() == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def same(found: list[video.ExplainedFrame], expected: list[video.ExplainedFrame]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.frame.pts, one.class_id) == (other.frame.pts, other.class_id)
        torch.testing.assert_close(one.map, other.map)
        assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"target": "top1", "stride": 2}, {"target": "clip", "batch": 1}, {"norm": "clip"}],
)
def test_threads_abreast_change_nothing(
    tmp_path: Path, cores: Callable[[int], None], options: dict[str, Any]
) -> None:
    for index, picture in enumerate(noisy(31)):
        pictures.write(tmp_path / f"{index:02}.png", picture)
    options = {"batch": 2, "norm": "fixed:-1,1", **options}
    found = []
    for count in (1, 4):
        cores(count)
        found.append(list(video.explain(tmp_path, None, uneven(), **options)))
    same(*found)
    if options.get("target") == "top1":
        assert len({each.class_id for each in found[0]}) > 1


@pytest.mark.parametrize("method", ["guided-gradcam", "scorecam", "smoothgradcam++"])
def test_other_methods_abreast(cores: Callable[[int], None], method: str) -> None:
    found = []
    for count in (1, 3):
        cores(count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no ReLU to be guided
            explained = video.explain(noisy(9), None, uneven(method), target="b", batch=1)
            found.append(list(explained))
    same(*found)


def test_a_video_network_abreast(cores: Callable[[int], None]) -> None:
    found = []
    for count in (1, 3):
        cores(count)
        explainer = Explainer(tiny_models.motion(), "gradcam")
        found.append(list(video.explain(noisy(43), None, explainer)))
    same(*found)


def test_the_class_is_chosen_in_the_order_of_the_clip(
    monkeypatch: pytest.MonkeyPatch, cores: Callable[[int], None]
) -> None:
    asked: list[float] = []

    class Watched(Lock):
        def ids(self, logits: Tensor) -> Tensor:
            asked.extend(logits[:, 0].tolist())
            return super().ids(logits)

    monkeypatch.setattr(pipeline, "Lock", Watched)
    cores(4)
    explainer, frames = uneven(), noisy(40)
    list(video.explain(frames, None, explainer, batch=2))
    inputs = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255
    expected = [explainer.model.module(each)[0, 0].item() for each in inputs.split(1)]
    assert asked == pytest.approx(expected, rel=1e-4)


def test_a_batch_that_fails_does_not_let_another_go_first() -> None:
    asked: list[float] = []

    class Choice(Lock):
        def ids(self, logits: Tensor) -> Tensor:
            asked.append(logits.item())
            return logits

    first, second, third = itertools.islice(network._turns(Choice(torch.sigmoid)), 3)

    def fail() -> None:
        with pytest.raises(ZeroDivisionError), second:
            raise ZeroDivisionError

    others = [
        threading.Thread(target=fail),
        threading.Thread(target=third.ids, args=(torch.tensor(3.0),)),
    ]
    for thread in others:
        thread.start()
    time.sleep(0.1)
    assert asked == []
    with first:
        first.ids(torch.tensor(1.0))
    for thread in others:
        thread.join(10)
    assert asked == [1, 3]


def test_weights_are_shared_and_the_model_stays_as_it_is(cores: Callable[[int], None]) -> None:
    explainer = uneven()
    weight = explainer.model.module.features.weight  # type: ignore[union-attr]
    seen: set[tuple[int, int]] = set()

    def watch(module: nn.Module, *_: object) -> None:
        seen.add((id(module), module.weight.data_ptr()))  # type: ignore[operator]

    explainer.model.module.features.register_forward_hook(watch)  # type: ignore[union-attr]
    cores(3)
    list(video.explain(noisy(24), None, explainer, batch=1))
    assert len({module for module, _ in seen}) > 2
    assert {pointer for _, pointer in seen} == {weight.data_ptr()}
    assert not explainer.model.module._forward_pre_hooks
    assert explainer.layers == ("features",)


def test_a_model_that_cannot_be_copied(cores: Callable[[int], None]) -> None:
    explainer = uneven()
    explainer.model.module.lock = threading.Lock()  # type: ignore[assignment]
    cores(3)
    with pytest.warns(UserWarning, match=r"cannot be copied \(.*pickle.*\): using a single thread"):
        found = list(video.explain(noisy(9), None, explainer, batch=2))
    same(found, list(video.explain(noisy(9), None, uneven(), batch=2)))


def test_autocast_holds_in_every_thread(cores: Callable[[int], None]) -> None:
    explainer, seen = uneven(), []
    explainer.model.module.features.register_forward_hook(  # type: ignore[union-attr]
        lambda _, args, returned: seen.append(returned.dtype)
    )
    cores(3)
    with torch.autocast("cpu", torch.bfloat16):
        list(video.explain(noisy(12), None, explainer, batch=1))
    assert set(seen) == {torch.bfloat16}


def test_what_is_compiled_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, cores: Callable[[int], None]
) -> None:
    compiled, threads = [], set()

    def fake(forward: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
        compiled.append(fullgraph)

        def unit(*args: Any) -> Any:
            threads.add((threading.current_thread().name, torch.get_num_threads()))
            return forward(*args)

        return unit

    compiling = threading.Lock()

    @contextmanager
    def freezing() -> Iterator[None]:
        """As torch.compile's options, for all threads."""
        assert compiling.acquire(blocking=False)
        time.sleep(0.01)
        yield
        compiling.release()

    monkeypatch.setattr(units, "_compiled", fake)
    monkeypatch.setattr(units, "_freezing", freezing)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    model = models.LoadedModel(module, AS_IT_IS)
    found = []
    for fast_mode in (False, True):
        explainer = Explainer(model, "gradcam", "4", fast_mode)
        cores(3)
        options = {"batch": 2, "norm": "frame", "target": "0"}
        found.append(list(video.explain(noisy(25), None, explainer, **options)))
    list(video.explain(noisy(25), None, explainer, batch=5))  # a size that all threads meet anew
    states = [state for state in explainer.compiled.values() if state == "compiled"]
    assert len(compiled) == len(states) > 0
    assert {count for _, count in threads} == {1}
    assert len({name for name, _ in threads}) > 2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.map, other.map, atol=0.1, rtol=0)


@pytest.mark.parametrize("at", [0, 5])
def test_a_failure_in_a_thread_comes_in_its_place(
    tmp_path: Path, cores: Callable[[int], None], at: int
) -> None:
    explainer, frames = uneven(), noisy(30)
    frames[at][:] = 255

    def fail(_: nn.Module, args: tuple[Tensor]) -> None:
        if args[0].min() == 1:
            raise RuntimeError("out of memory")

    explainer.model.module.register_forward_pre_hook(fail)
    cores(3)
    with pytest.raises(FastcamError, match="out of memory"):
        video.explain(iter(frames), tmp_path / "out.mkv", explainer, batch=1)
    assert (len(contents(tmp_path / "out.mkv").times) if at else 0) == at


def test_who_leaves_need_not_wait_for_a_long_batch(cores: Callable[[int], None]) -> None:
    runs: list[str] = []

    class Wide(nn.Module):
        """So many channels that Score-CAM takes many runs."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 1024, 8, 8)

        def forward(self, images: Tensor) -> Tensor:
            runs.append(threading.current_thread().name)
            time.sleep(0.01)
            return self.features(images).mean((2, 3))

    explainer = Explainer(models.LoadedModel(Wide().eval(), AS_IT_IS), "scorecam")
    cores(2)
    frames = video.explain(noisy(20), None, explainer, batch=1)
    next(frames)  # by this thread alone
    one = len(runs)
    next(frames)
    before = len(runs)
    frames.close()
    assert one > 20
    assert len(runs) < before + one // 2  # a batch takes as many as the first frame did


def test_threads_abreast_keep_the_order_and_raise_in_it() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise FastcamError("at the end")

    def work(item: int) -> int:
        assert torch.get_num_threads() == 1
        time.sleep(0.001 * (item % 3))
        return item

    ahead = Ahead(items(), 2, "fastcam-ahead")
    results = Abreast(ahead, [work] * 3, "fastcam-work", ahead.close)
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(FastcamError, match="at the end"):
        next(results)
    results.close()


def test_what_is_single_threaded_and_what_is_not() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    counts = []

    def count() -> None:
        counts.append(torch.get_num_threads())

    try:
        with single_threaded():
            count()
            torch.ones(10, 10) @ torch.ones(10, 10)
            other = threading.Thread(target=count)
            other.start()
            other.join()
        count()
    finally:
        torch.set_num_threads(before)
    if threads_abreast() > 1:
        assert counts == [1, 3, 3]


# --- Ctrl-C


@pytest.mark.parametrize("first", [True, False])
def test_ctrl_c_while_the_file_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The only one, or one behind another."""
    finish, finished, shown = writer._put_index_first, [], []

    def interrupted(path: Path, shown_as: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(path, shown_as)
        finished.append(path)

    def progress() -> None:
        shown.append(1)
        if not first and len(shown) == 12:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(writer, "_put_index_first", interrupted)
    with pytest.raises(KeyboardInterrupt):
        video.explain(noisy(20), tmp_path / "out.mp4", uneven(), progress=progress)
    assert len(finished) == 1
    assert len(contents(tmp_path / "out.mp4").times) == (20 if first else 12)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_ctrl_c_again_while_the_rest_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, shown = writer.Writer.write, []

    def slow(self: writer.Writer, frame: video.Frame) -> None:
        time.sleep(0.05)
        write(self, frame)

    def progress() -> None:
        shown.append(1)
        if len(shown) == 4:
            main = threading.main_thread().ident
            assert main is not None
            threading.Timer(0.06, signal.pthread_kill, (main, signal.SIGINT)).start()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(writer.Writer, "write", slow)
    with pytest.raises(KeyboardInterrupt):
        video.explain(noisy(20), tmp_path / "out.mp4", uneven(), progress=progress)
    assert len(contents(tmp_path / "out.mp4").times) == 4


def test_a_handler_of_the_users_own_stays(tmp_path: Path) -> None:
    met = []
    before = signal.signal(signal.SIGINT, lambda *_: met.append(1))
    try:
        options = {"progress": lambda: signal.raise_signal(signal.SIGINT)}
        video.explain(noisy(3), tmp_path / "out.mp4", uneven(), **options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(met) == 3
