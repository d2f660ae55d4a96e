"""Which sizes of input a network takes."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastcam.engine.outputs import logits_of
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.models.loaded import LoadedModel
from fastcam.models.preprocessing import Preprocessing

_LONGEST = 3  # the longest side of a whole picture, in shorter sides


def whole_picture(model: LoadedModel) -> LoadedModel:
    """The model with its centre crop extended to the whole picture, if the network takes any size.

    The shorter side becomes that of the crop, as in training. The longer side is cut to three
    times that. A model that takes one size only, and one that sees whole pictures, are returned
    unchanged, and so is one with a :class:`fastcam.models.MeasuredTransform`.
    """
    seen = model.preprocessing
    if not isinstance(seen, Preprocessing) or seen.resize is None or seen.crop is None:
        return model
    whole = seen.whole(_LONGEST)
    if whole == seen or not takes_any_size(model, seen.crop):
        return model
    return replace(model, preprocessing=whole)


def takes_any_size(model: LoadedModel, size: tuple[int, int]) -> bool:
    """Whether the network has the same logits for inputs of this (height, width) and half as wide
    again."""
    time = () if model.clip_length is None else (model.clip_length,)
    height, width = size
    shapes = []
    for across in (width, width + width // 2 + 1):
        images = torch.zeros(1, 3, *time, height, across, device=model.device)
        try:
            shapes.append(logits_of(trial(model.module, images), count=1).shape)
        except Exception as error:  # user code may raise anything
            raise_out_of_memory(error)
            return False
    return shapes[0] == shapes[1]
