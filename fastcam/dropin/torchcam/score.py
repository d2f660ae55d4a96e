"""The Score-CAM family: scores of masked images, in as few runs as possible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.copies import for_many_runs
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.forward import has_other_hooks, without_hooks
from fastcam.dropin.torchcam.peer import Peer
from fastcam.engine.running import unwrap
from fastcam.methods.masked_runs import masked_runs
from fastcam.methods.masking import growing_factors

MANY_RUNS = 64
"""The number of masked images from which a folded copy of the network pays off."""
_RUNS = (
    "_init_score_weights",
    "_masked_input_chunk",
    "_prepare_masked_inputs",
    "_score_input",
    "_select_scores",
    "_upsample",
)
"""The methods by which 0.5.0 makes, runs and scores masked images; 0.4.1 has none."""
_Variations = Callable[[Tensor, int], Iterator[Tensor]]


def once(images: Tensor, samples: int) -> Iterator[Tensor]:
    yield images


def growing(images: Tensor, samples: int) -> Iterator[Tensor]:
    for factor in growing_factors(samples):
        yield factor * images


def score_weights(present: Replacement, variations: _Variations | None) -> Replacement:
    """Score-CAM's weights: softmax over channels of the scores of masked images.

    torchcam subtracts the score of the unmasked image, which has no effect before softmax. Constant
    channels mask the whole image, so those of one image share a run.

    Args:
        variations: yields variants of masked images, whose scores are averaged; None for noise on
            the masks.
    """

    @torch.no_grad()
    def weights(
        self: Any, activations: list[Tensor], class_idx: Any, targets: Any = None
    ) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            reason = _why_not_masked(self, activations)
            if reason:
                call.leave_to("torchcam", reason)
                more = () if targets is None else (targets,)  # 0.4.1 lacks the argument
                return present(self, activations, class_idx, *more)
            call.why = "constant channels share a run"
            functions = None
            if targets is not None:
                functions = Peer.core._resolve_targets(targets, activations[0].shape[0])
            network = _network(self, activations)

            def scores_of(masked: Tensor, images: Tensor) -> Tensor:
                return _selected(network(masked), images, class_idx, functions)

            found = []
            for layer in activations:
                count, channels = layer.shape[:2]
                if variations is None:
                    scores = _noisy_scores(self, layer, scores_of)
                else:
                    scores = _masked_scores(self, layer, scores_of, variations)
                scores = scores.to(layer.dtype).view(count, channels)
                found.append(torch.softmax(scores, -1))
            return found

    return weights


def _selected(
    outputs: Any, images: Tensor, class_idx: Any, functions: Sequence[Any] | None
) -> Tensor:
    """(R,), the scores of masked images, each for the target of its image."""
    if functions is not None:
        return Peer.core._target_scores(outputs, [functions[i] for i in images.tolist()])
    if isinstance(class_idx, int):
        return outputs[:, class_idx]
    classes = torch.tensor(class_idx, device=outputs.device)[images]
    return outputs.gather(1, classes.view(-1, 1)).squeeze(1)


def _why_not_masked(extractor: Any, activations: Sequence[Tensor]) -> str:
    score_cam = Peer.activation.ScoreCAM
    for name in filter(functools.partial(hasattr, score_cam), _RUNS):
        if name in vars(extractor):
            return f"the object overrides {name}"
        if getattr(type(extractor), name) is not getattr(score_cam, name):
            return f"a subclass overrides {name}"
    dims = extractor._input.dim() - 2
    if dims not in ((1, 2, 3) if settings.fix else (2, 3)):
        return "the images are not 2-D or 3-D"
    if not all(a.dim() == dims + 2 and a.is_floating_point() for a in activations):
        return "a layer has other dimensions than the images"
    return ""


def _masks(extractor: Any, activations: Tensor) -> Tensor:
    """Activations (R, *S) in [0, 1], enlarged to masks (R, 1, *extents)."""
    extents = extractor._input.shape[2:]
    masks = ops.upsample(activations, extents, normalize=settings.fix)
    return masks.to(activations.dtype).unsqueeze(1)


def _images(extractor: Any, rows: Tensor) -> Tensor:
    images = extractor._input
    return images if images.shape[0] == 1 else images[rows]


def _masked_scores(
    extractor: Any,
    activations: Tensor,
    scores_of: Callable[[Tensor, Tensor], Tensor],
    variations: _Variations,
) -> Tensor:
    """(N, C), the mean over variations of S(x H_k)."""
    samples = getattr(extractor, "num_samples", 1)
    runs = masked_runs(activations)
    flat = activations.flatten(0, 1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    scores = torch.zeros(len(runs.rows), dtype=dtype, device=flat.device)
    images_of_runs = runs.images.cpu()
    for chunk in torch.arange(len(runs.rows)).split(extractor.bs):
        images = images_of_runs[chunk]
        masked = _masks(extractor, flat[runs.rows[chunk]]) * _images(extractor, images)
        for varied in variations(masked, samples):
            scores[chunk] += scores_of(varied, images)
    return runs.spread(scores) / samples


def _noisy_scores(
    extractor: Any, activations: Tensor, scores_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(N C,), the mean over samples of S(x (H_k + noise)), with torchcam's draws."""
    count, channels = activations.shape[:2]
    extents = extractor._input.shape[2:]
    flat = activations.flatten(0, 1)
    scores = torch.zeros(
        len(flat), dtype=torch.promote_types(flat.dtype, torch.float32), device=flat.device
    )
    for _ in range(extractor.num_samples):
        noise = extractor._distrib.sample(torch.Size((count, channels, *extents))).flatten(0, 1)
        for start in range(0, len(flat), extractor.bs):
            rows = torch.arange(start, min(start + extractor.bs, len(flat)))
            added = noise[start : start + extractor.bs].unsqueeze(1).to(flat.device)
            masks = _masks(extractor, flat[rows]) + added
            images = rows // channels
            scores[rows] += scores_of(masks * _images(extractor, images), images)
    return scores / extractor.num_samples


def _network(extractor: Any, activations: Sequence[Tensor]) -> Callable[[Tensor], Any]:
    """The network for masked images: a copy with BatchNorm folded, or in the fast mode.

    The model itself if it is wrapped, has hooks of the user, or runs only a few times.
    """
    model, images = extractor.model, extractor._input
    runs = sum(a.shape[0] * a.shape[1] for a in activations) * getattr(extractor, "num_samples", 1)
    if unwrap(model) is not model or has_other_hooks(model):
        return model
    if runs < MANY_RUNS and not settings.fast:
        return model
    with without_hooks(model):
        return for_many_runs(extractor, model, images[:1])
