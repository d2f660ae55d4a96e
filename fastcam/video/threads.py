"""Stages side by side: a thread that runs ahead, one that comes behind, bounded queues between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from typing_extensions import Self

T = TypeVar("T")


class _Shut(Exception):
    """Nobody listens at the other end, or nothing more will come."""


class _Channel(Generic[T]):
    """A queue of at most ``depth`` items between two threads; either may shut it."""

    def __init__(self, depth: int) -> None:
        self._items: deque[T] = deque()
        self._depth = depth
        self._shut = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Waits for room; raises _Shut where the channel is shut."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or len(self._items) < self._depth)
            if self._shut:
                raise _Shut
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Waits for an item; raises _Shut where the channel is shut and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._shut or bool(self._items))
            if not self._items:
                raise _Shut
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def shut(self, drop: bool = False) -> None:
        """``drop``: what waits in it is let go."""
        with self._changed:
            self._shut = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Ahead(Iterator[T]):
    """Runs an iterable in a thread of its own, at most ``depth`` items ahead.

    An exception of the iterable comes behind its last item.
    """

    def __init__(self, items: Iterable[T], depth: int, name: str) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), name=name, daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._channel.put(item)
        except _Shut:
            pass
        except BaseException as error:  # handed over, and raised in the other thread
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
        """Ends the thread, whatever it has left; the iterable must not wait for ever."""
        self._channel.shut(drop=True)
        self._thread.join()


class Behind(Generic[T]):
    """Calls ``consume`` for every item in a thread of its own, at most ``depth`` items behind."""

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
        """Waits for room; raises what ``consume`` raised."""
        try:
            self._channel.put(item)
        except _Shut:
            self.close()

    def close(self) -> None:
        """Waits until all is consumed; raises what ``consume`` raised, once."""
        self._channel.shut()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Clock:
    """Seconds that each stage was at work; waiting for other stages is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come is the stage's."""
        iterator = iter(items)
        while True:
            with self.of(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
