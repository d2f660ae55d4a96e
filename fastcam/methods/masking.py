"""Methods that measure how a score changes if an image or an activation is masked."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.continuation import Continuation
from fastcam.engine.fast.model import folded
from fastcam.engine.layers import Layers
from fastcam.engine.pooled_head import find_pooled_head
from fastcam.errors import ArgumentError, check_positive
from fastcam.methods.base import Reading
from fastcam.methods.maps import MapMethod, extents_of
from fastcam.methods.masked_runs import masked_runs
from fastcam.targets import Selection


class _Masking(MapMethod):
    """A method that runs masked images or activations, some at a time."""

    reruns = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        batch_size: int = 32,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            batch_size: how many masked images or activations run together, but at least one for
                each image if activations are masked.
        """
        super().__init__(model, target_layers, **reading)
        check_positive(batch_size=batch_size)
        self.batch_size = batch_size


class ScoreCAM(_Masking):
    """M = ReLU(sum_k w_k A^k), w = softmax over k of S(x H_k), H_k the enlarged A^k in [0, 1].

    Wang et al. 2020, arXiv 1910.01279, equations 6 to 8. The paper subtracts the score of a
    baseline from S(x H_k), which softmax cancels. A constant A^k masks everything: the constant
    channels of an image share one run.
    """

    name = "scorecam"
    graph = None
    samples = 1
    """How many variations of a mask count."""
    _shares_constants = True

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        if record.images is None or not record.images.is_floating_point():
            raise ArgumentError(
                "images", "got no floating-point tensor (N, C, *S), but this method masks them"
            )
        maps = []
        for activations in record.activations:
            scores = self._masked_scores(record, selection, activations)  # (N, C) or (N, C, K)
            weights = scores.softmax(1)
            weights = weights if weights.dim() == 2 else weights.transpose(1, 2)
            maps.append(ops.weighted_sum(activations, weights, relu))
        return maps

    def _masked_scores(self, record: Capture, selection: Selection, activations: Tensor) -> Tensor:
        assert record.images is not None
        runs = masked_runs(activations, self._shares_constants)
        flat = activations.flatten(0, 1)  # (N C, *S)
        extents = extents_of(record, None)
        again = record if self.compiled else record.for_runs_of(folded)
        dtype = torch.promote_types(record.logits.dtype, torch.float32)
        scores = torch.zeros(
            len(runs.rows), *selection.scores.shape[1:], dtype=dtype, device=flat.device
        )
        for chunk in torch.arange(len(runs.rows), device=flat.device).split(self.batch_size):
            masks = self._masks(flat[runs.rows[chunk]], extents)
            images = runs.images[chunk]
            for varied in self._variations(masks):
                shown = record.over_images(varied.to(record.images.dtype))
                masked = record.images[images] * shown
                scores[chunk] += selection.of(again.again(images, masked), images)
        return runs.spread(scores / self.samples)

    def _masks(self, activations: Tensor, extents: tuple[int, ...]) -> Tensor:
        """(R, *extents) in [0, 1], for activations (R, *S)."""
        return ops.upsample(activations, extents)

    def _variations(self, masks: Tensor) -> Iterator[Tensor]:
        """The masks whose scores are averaged, :attr:`samples` in number."""
        yield masks


class SSCAM(ScoreCAM):
    """Score-CAM with S(x (H_k + noise)) averaged over samples of Gaussian noise.

    Wang et al. 2020, SS-CAM, arXiv 2006.14255: the noise is added to the feature maps after they
    are enlarged and scaled to [0, 1].
    """

    name = "sscam"
    _shares_constants = False  # each mask has different noise

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        samples: int = 35,
        std: float = 2.0,
        seed: int = 0,
        batch_size: int = 32,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            samples: the number of noisy masks per channel.
            std: the standard deviation of the noise; masks are in [0, 1].
            seed: the seed of the noise; calls with the same batch_size draw the same noise.
            batch_size: how many masked images run together.
        """
        super().__init__(model, target_layers, batch_size=batch_size, **reading)
        check_positive(samples=samples)
        self.samples, self.std, self.seed = samples, std, seed

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        device = record.activations[0].device
        self._generator = torch.Generator(device).manual_seed(self.seed)
        return super().layer_maps(record, selection, relu)

    def _variations(self, masks: Tensor) -> Iterator[Tensor]:
        for _ in range(self.samples):
            yield masks + torch.empty_like(masks).normal_(0, self.std, generator=self._generator)


class ISCAM(ScoreCAM):
    """Score-CAM with S(t x H_k) averaged over growing t = sum_{j <= i} j / n, i = 1 ... n.

    Naidu et al. 2020, IS-CAM, arXiv 2010.03023, as implemented in torchcam: the mask accumulates.
    """

    name = "iscam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        samples: int = 10,
        batch_size: int = 32,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            samples: n.
            batch_size: how many masked images run together.
        """
        super().__init__(model, target_layers, batch_size=batch_size, **reading)
        check_positive(samples=samples)
        self.samples = samples

    def _variations(self, masks: Tensor) -> Iterator[Tensor]:
        for factor in growing_factors(self.samples):
            yield masks * factor


def growing_factors(samples: int) -> Iterator[float]:
    """IS-CAM's factors of a mask, sum_{j <= i} j / n for i = 1 ... n."""
    factor = 0.0
    for i in range(1, samples + 1):
        factor += i / samples
        yield factor


class AblationCAM(_Masking):
    """M = ReLU(sum_k w_k A^k), w_k = (S - S_k) / S, S_k the score with A^k set to 0.

    Desai and Ramaswamy 2020, Ablation-CAM, WACV, equation 4; 0 if S is 0. For global average
    pooling and one linear layer, S - S_k = W[c]_k mean(A^k) without another run. For other
    networks, the part above the layer runs for each channel that is not 0 already
    (:class:`fastcam.engine.continuation.Continuation`).
    """

    name = "ablationcam"

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        scores = selection.scores.detach()
        scores = scores if scores.dtype == torch.float64 else scores.float()
        maps = []
        for layer, activations in enumerate(record.activations):
            head = find_pooled_head(record, layer, selection)
            if head is None:
                drops = self._drops(record, selection, layer, scores)
            else:
                means = ops.gap(head.pooled)
                means = means if scores.dim() == 1 else means.unsqueeze(1)
                drops = head.weight[selection.class_ids] * means
            weights = drops / scores.unsqueeze(-1)
            weights = weights.masked_fill((scores == 0).unsqueeze(-1), 0)
            maps.append(ops.weighted_sum(activations, weights, relu))
        return maps

    def _drops(self, record: Capture, selection: Selection, layer: int, scores: Tensor) -> Tensor:
        """S - S_k, (N, C) or (N, K, C)."""
        activations = record.activations[layer]
        count, channels = activations.shape[:2]
        drops = scores.new_zeros(count, channels, *scores.shape[1:])
        if count == 0:
            return drops.movedim(1, -1)
        # of each image the channels that are not 0 come first: the others have S_k = S
        live = self._bears(activations)
        order = live.int().argsort(stable=True, dim=1, descending=True)
        most = int(live.sum(1).max())
        copies = min(max(1, self.batch_size // count), max(1, most))
        image = torch.arange(count, device=activations.device)
        rows = image.repeat_interleave(copies)
        above = Continuation(record, layer, rows)
        for start in range(0, most, copies):
            # the last batch overlaps the one before, so that all have the same number of rows
            ablated = order[:, max(0, min(start, most - copies)) :][:, :copies]
            logits = above(functools.partial(self._ablate, channels=ablated.flatten()))
            left = selection.of(logits, rows).to(scores.dtype).unflatten(0, (count, copies))
            drops[image[:, None], ablated] = scores.unsqueeze(1) - left
        return drops.movedim(1, -1)

    def _bears(self, activations: Tensor) -> Tensor:
        """(N, C), whether ablating a channel changes it."""
        return (activations != 0).flatten(2).any(2)

    def _ablate(self, activations: Tensor, channels: Tensor) -> None:
        """Ablates one channel (R,) of each row of (R, C, *S)."""
        rows = torch.arange(len(channels), device=channels.device)
        activations[rows, channels] = 0
