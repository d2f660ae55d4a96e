"""Where the graph starts in runs that another library or its user makes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fastcam.engine.graph import Start
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import Loan
from fastcam.engine.start import start_at_inputs
from fastcam.engine.trials import raise_out_of_memory, untouched


class Starts:
    """The start of each object that explains; found by its first call."""

    def __init__(self) -> None:
        self._starts: WeakKeyDictionary[Any, tuple[Hashable, Start]] = WeakKeyDictionary()

    def of(self, owner: Any, layers: Hashable, find: Callable[[], Start]) -> Start:
        """The start for ``owner``, found anew if it has other layers.

        Args:
            owner: the object; its start is kept as long as it lives.
            layers: what the start depends on.
            find: finds it.
        """
        found_for, start = self._starts.get(owner, (None, None))
        if start is None or found_for != layers:
            start = start_or_none(find)
            if start is None:
                return Start("model")
            self._starts[owner] = layers, start
        return start


def start_or_none(find: Callable[[], Start]) -> Start | None:
    """The start that ``find`` returns; None if it raises, as the actual run then does."""
    try:
        return find()
    except Exception as error:
        raise_out_of_memory(error)
        return None


def attempts(
    run: Callable[[Any], Any], inputs: Any, model: nn.Module
) -> Callable[[Recorder, bool], Any]:
    """The runs that :func:`fastcam.engine.start.closest_start` compares.

    Args:
        run: runs the network.
        inputs: those of one image, for ``run``.
        model: the network, which stays as it is.
    """

    def attempt(recorder: Recorder, whole: bool) -> Any:
        given = start_at_inputs(inputs) if whole else inputs
        loan = Loan(recorder.hooks, recorder.before)
        with untouched(model), loan, torch.set_grad_enabled(whole):
            return run(given)

    return attempt
