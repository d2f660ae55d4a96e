"""Threads for pipeline stages, connected by bounded queues: producer, workers, consumer."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from fastcam.engine.cores import single_threaded
from fastcam.errors import ENDING, interrupt

T = TypeVar("T")
R = TypeVar("R")


class _Shut(Exception):
    """The channel is shut."""


class _Channel(Generic[T]):
    """A queue of at most ``depth`` items between two threads; either may shut it."""

    def __init__(self, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._shut = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Waits for room; raises _Shut if the channel is shut."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or len(self._items) < self._depth)
            if self._shut:
                raise _Shut
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Waits for an item; raises _Shut if the channel is shut and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or bool(self._items))
            if not self._items:
                raise _Shut
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def shut(self, drop: bool = False) -> None:
        """Shuts the channel; ``drop`` discards queued items."""
        with self._changed:
            self._shut = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Ahead(Iterator[T]):
    """Runs an iterable in a separate thread, at most ``depth`` items ahead.

    Raises the iterable's exception after its last item. ``stop`` is called by :meth:`close` and
    must end an iteration that may wait forever.
    """

    def __init__(
        self,
        items: Iterable[T],
        depth: int,
        name: str,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._stop = stop
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), name=name, daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._channel.put(item)
        except _Shut:
            pass
        except BaseException as error:  # raised again in the consuming thread
            self._error = error
        finally:
            self._channel.shut()

    def __next__(self) -> T:
        try:
            return self._channel.get()
        except _Shut:
            error, self._error = self._error, None
            raise error or StopIteration from None

    def close(self) -> None:
        """Ends the thread and discards its remaining items."""
        self._stop()
        self._channel.shut(drop=True)
        self._thread.join()


class Abreast(Iterator[R]):
    """Applies ``functions`` to items, each in a separate thread; yields results in item order.

    Each thread takes the next item when it finishes one and runs operators single-threaded. At most
    two items per thread are in progress. An exception of the items or of a function is raised in
    place of the result.
    """

    def __init__(
        self,
        items: Iterator[T],
        functions: Sequence[Callable[[T], R]],
        name: str,
        stop: Callable[[], object],
    ) -> None:
        """``stop`` as for :class:`Ahead`."""
        self._stop = stop
        self._taking = threading.Lock()
        self._results: _Channel[Future[R]] = _Channel(2 * len(functions))
        self._threads = [
            threading.Thread(
                target=self._run, args=(items, each), name=f"{name}-{index}", daemon=True
            )
            for index, each in enumerate(functions)
        ]
        for thread in self._threads:
            thread.start()

    @single_threaded()
    def _run(self, items: Iterator[T], function: Callable[[T], R]) -> None:
        while True:
            result: Future[R] = Future()
            try:
                with self._taking:
                    self._results.put(result)
                    item = next(items)
            except _Shut:
                return
            except BaseException as error:  # as in Ahead; includes StopIteration
                result.set_exception(error)
                return
            try:
                result.set_result(function(item))
            except BaseException as error:
                result.set_exception(error)

    def __next__(self) -> R:
        return self._results.get().result()

    def close(self) -> None:
        """Ends the threads after their current items."""
        self._stop()
        self._results.shut(drop=True)
        for thread in self._threads:
            thread.join()


class Behind(Generic[T]):
    """Calls ``consume`` for each item in a separate thread, at most ``depth`` items behind."""

    def __init__(self, consume: Callable[[T], object], depth: int, name: str) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._consume = consume
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._consume(self._channel.get())
        except _Shut:
            pass
        except BaseException as error:  # as in Ahead
            self._error = error
            self._channel.shut(drop=True)

    def put(self, item: T) -> None:
        """Waits for room; raises the exception of ``consume``, if any."""
        try:
            self._channel.put(item)
        except _Shut:
            self.close()

    def close(self) -> None:
        """Waits until all items are consumed; raises the exception of ``consume`` once, if any."""
        self._channel.shut()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Interrupts:
    """Within this context, signals interrupt only the block in :meth:`allowed`, and only once.

    Elsewhere they are deferred, so that closing files is not interrupted. This concerns Ctrl-C and
    the signals that fastcam's command line turns into an interrupt
    (:func:`fastcam.errors.interrupt`). Other handlers of a program stay in place.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._waiting: Callable[[], Any] | None = None
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for each in ENDING:
                handler = signal.getsignal(each)
                if handler is signal.default_int_handler or handler is interrupt:
                    self._replaced[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for each, handler in self._replaced.items():
            signal.signal(each, handler)
        if self._waiting is not None and kind is None:
            self._waiting()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise_it = partial(self._replaced[number], number, frame)
        if not self._allowed:
            self._waiting = raise_it
            return
        self._allowed = False
        raise_it()


class Clock:
    """The busy seconds of each stage, without time spent waiting for other stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._adding = threading.Lock()

    @contextmanager
    def of(self, stage: str, threads: int = 1) -> Iterator[None]:
        """Adds the block's time to a stage, divided by the stage's number of threads."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = (time.perf_counter() - start) / threads
            with self._adding:
                self.seconds[stage] = self.seconds.get(stage, 0) + seconds

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and adds the time to produce each one to the stage."""
        iterator = iter(items)
        while True:
            with self.of(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
