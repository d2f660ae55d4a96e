"""Methods on top of a base method: with another score, or another way to join maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.layers import Layers
from fastcam.errors import ArgumentError, check_positive
from fastcam.methods.base import Reading
from fastcam.methods.gradient import GradCAM, GradCAMPlusPlus
from fastcam.methods.maps import MapMethod, Wanted
from fastcam.targets import Selection, probabilities


class _Composed(MapMethod):
    """A method on top of a base method, which decides how the network runs."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None,
        base: type[MapMethod],
        reading: Reading,
    ) -> None:
        super().__init__(model, target_layers, **reading)
        if not issubclass(base, MapMethod) or base.captures:
            raise ArgumentError(
                "base",
                f"got '{base.name}', expected a method whose map comes from one run of the "
                "network, such as GradCAM",
            )
        self._base = base(model)
        self.graph, self.twice = self._base.graph, self._base.twice


class FinerCAM(_Composed):
    """The map of S_c - gamma sum_d p_d S_d: evidence for class c, and not for similar classes d.

    Zhang et al. 2025, arXiv 2501.11309. The references d are the classes with the scores nearest to
    S_c. p weighs them equally, or by their softmax probabilities, which are scaled to sum 1 and
    differentiated too. The default is the formula of the paper and of torchcam;
    pytorch-grad-cam's is ``gamma=1, weights="softmax"``.
    """

    name = "finercam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        base: type[MapMethod] = GradCAM,
        gamma: float = 0.6,
        references: int = 3,
        weights: Literal["equal", "softmax"] = "equal",
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            base: the method whose map it is; one that uses gradients.
            gamma: the factor of the references.
            references: the number of references; all other classes if the model has fewer.
            weights: how to weigh the references.
        """
        super().__init__(model, target_layers, base, reading)
        if base.graph != "layers" or base.reruns:
            raise ArgumentError(
                "base", f"got '{base.name}', expected a method of gradients, such as GradCAM"
            )
        check_positive(references=references)
        if weights not in ("equal", "softmax"):
            raise ArgumentError("weights", f'got {weights!r}, expected "equal" or "softmax"')
        self.gamma, self.references, self.weights = gamma, references, weights

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return self._base.layer_maps(record, self._contrast(record.logits, selection), relu)

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> Any:
        return self._base.finished(record, self._contrast(record.logits, selection), wanted)

    def joined(self, maps: list[Tensor], extents: tuple[int, ...], normalize: bool) -> Any:
        return self._base.joined(maps, extents, normalize)

    def _contrast(self, logits: Tensor, selection: Selection) -> Selection:
        """The scores to explain instead."""
        ids = selection.class_ids
        if ids is None:
            raise ArgumentError(
                "targets", "Finer-CAM needs class ids, because it compares a class with others"
            )
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ArgumentError(
                "output",
                f"got {tuple(logits.shape)}, but Finer-CAM compares classes: it expects "
                "logits (N, classes) of at least 2 classes",
            )
        columns = ids if ids.dim() == 2 else ids.unsqueeze(1)
        with torch.enable_grad():
            scores = logits.gather(1, columns)  # (N, K)
            rows = logits.unsqueeze(1).expand(-1, columns.shape[1], -1)  # (N, K, classes)
            distance = (rows.detach() - scores.detach().unsqueeze(2)).abs()
            distance = distance.scatter(2, columns.unsqueeze(2), torch.inf)
            count = min(self.references, logits.shape[1] - 1)
            nearest = distance.topk(count, 2, largest=False).indices
            others = rows.gather(2, nearest)
            if self.weights == "equal":
                other = others.mean(2)
            else:
                other = (others.softmax(2) * others).sum(2)
            return Selection((scores - self.gamma * other).reshape(ids.shape), None)


class RefineCAM(_Composed):
    """The product of several layers' maps, each normalized at its layer's size, then enlarged.

    How to Evaluate and Refine your CAM, 2026, arXiv 2605.14641. The last layer locates the object,
    earlier layers outline it. For one layer, it is the base method's map.
    """

    name = "refinecam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        base: type[MapMethod] = GradCAMPlusPlus,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            base: the method whose maps are multiplied.
        """
        super().__init__(model, target_layers, base, reading)

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return self._base.layer_maps(record, selection, relu)

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> Any:
        """One map for any number of layers; for ``size="layer"`` at their largest extents."""
        if wanted.size == "layer":
            shapes = [a.shape[2:] for a in record.activations]
            largest = tuple(max(extents) for extents in zip(*shapes, strict=True))
            wanted = replace(wanted, size=largest)
        return super().finished(record, selection, wanted)

    def joined(self, maps: list[Tensor], extents: tuple[int, ...], normalize: bool) -> Any:
        dims = len(extents)
        product: Tensor | None = None
        for each in maps:
            enlarged = ops.upsample(ops.normalize(each, dims), extents, normalize=False)
            product = enlarged if product is None else product * enlarged
        assert product is not None
        return ops.normalize(product, dims) if normalize else product


class SESS(_Composed):
    """The combined maps of windows of the enlarged image, each weighted by the window's score.

    Tursun et al. 2022, arXiv 2207.01769: finds several objects, and objects of other sizes than the
    network was trained on. The image is enlarged to several sizes, and each of these is cut into
    windows. The class is that of the whole image. A window's map, in [0, 1], has the weight of its
    score over the highest score among the image's windows; negative scores count as 0, and all
    scores as 1 if none is positive. The maps are reduced to the image's size and averaged over
    those above ``theta`` at each position.

    The network runs once on each image and once on each window, for both score and map: with 12
    sizes and windows side by side, 1 + 122 runs per image. The windows' maps are kept at the
    layer's resolution until the image's last window has run.
    """

    name = "sess"
    reruns = True
    captures = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        base: type[MapMethod] = GradCAM,
        scales: int | Sequence[int] = 12,
        window: int | None = None,
        step: int | None = None,
        drop: float = 0.0,
        theta: float = 0.0,
        pool: Literal["mean", "max"] = "mean",
        smooth: bool = True,
        probabilities: bool = True,
        batch_size: int = 32,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            base: the method whose maps are combined.
            scales: the image's shorter side at each size, in pixels; or the number of sizes, which
                start at the window's shorter side and grow in steps of 2/7 of it.
            window: the side of square windows, in pixels; by default windows are as large as the
                images, which a network with a fixed input size needs.
            step: the distance from one window to the next, in pixels; by default windows lie side
                by side, the last ones shifted back to the border.
            drop: the fraction of an image's windows to leave out, those with the lowest scores.
            theta: the threshold above which a map's values count for the mean, in [0, 1).
            pool: "mean", or "max" for the largest value.
            smooth: whether to blur the result, with a standard deviation of 5 pixels.
            probabilities: whether a window's score is the class probability rather than the logit.
            batch_size: how many windows run together, of any size and image.
        """
        super().__init__(model, target_layers, base, reading)
        sizes = [scales] if isinstance(scales, int) else list(scales)
        if not sizes:
            raise ArgumentError("scales", "got none, expected at least one size")
        check_positive(scales=min(sizes), window=window, step=step, batch_size=batch_size)
        for argument, share in (("drop", drop), ("theta", theta)):
            if not 0 <= share < 1:
                raise ArgumentError(argument, f"got {share}, expected it in [0, 1)")
        if pool not in ("mean", "max"):
            raise ArgumentError("pool", f'got {pool!r}, expected "mean" or "max"')
        self.relu = self._base.relu
        self.scales = scales if isinstance(scales, int) else sizes
        self.window, self.step, self.batch_size = window, step, batch_size
        self.drop, self.theta, self.pool, self.smooth = drop, theta, pool, smooth
        self.probabilities = probabilities

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> Any:
        """One map for any number of layers; for ``size="layer"`` at the images' size."""
        if wanted.size == "layer":
            wanted = replace(wanted, size=record.extents)
        return super().finished(record, selection, wanted)

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """One tensor for all layers, at the images' size."""
        images = record.images
        if (
            images is None
            or images.dim() != 4
            or len(record.places) != 2
            or not images.is_floating_point()
        ):
            came = "none" if images is None else f"{images.dtype} {tuple(images.shape)}"
            raise ArgumentError(
                "images",
                f"got {came}, but SESS cuts windows out of images: it expects "
                "floating-point images (N, C, H, W)",
            )
        images = images.movedim(record.places, (2, 3))
        height, width = images.shape[2:]
        window = (height, width) if self.window is None else (self.window, self.window)
        grid = self._grid((height, width), window)
        kind = selection.scores.shape[1:]
        dtype = torch.promote_types(record.logits.dtype, torch.float32)
        scores = torch.zeros(len(images) * len(grid), *kind, dtype=dtype, device=images.device)
        found: list[list[Tensor]] = []  # by window, one map per layer
        for patches in self._batches(images, window, grid):
            numbers = torch.arange(len(patches), device=images.device) + len(found)
            patches = patches.movedim((2, 3), record.places)
            maps, scores[numbers] = self._explained(
                record, selection, relu, numbers // len(grid), patches
            )
            found += [list(each) for each in zip(*(m.split(1) for m in maps), strict=True)]
        weights = self._weights(scores.unflatten(0, (len(images), len(grid))))
        fused = weights.new_zeros(len(images), *kind, height, width)
        for n, total in enumerate(fused):
            counts = torch.zeros_like(total)
            for w, (extents, corner) in enumerate(grid):
                (map_,) = self._base.joined(found[n * len(grid) + w], window, True)
                placed = _placed(map_ * weights[n, w, ..., None, None], extents, corner, total)
                if self.pool == "max":
                    torch.maximum(total, placed, out=total)
                else:
                    counted = ~(placed <= self.theta)  # NaN counts
                    total += placed.where(counted, 0)
                    counts += counted
            if self.pool == "mean":
                total /= counts.clamp(min=1)
        return [_blurred(fused) if self.smooth else fused]

    def _grid(self, extents: tuple[int, int], window: tuple[int, int]) -> list[_Window]:
        """The windows of an image of these extents, size by size and row by row."""
        if isinstance(self.scales, int):
            least = min(window)
            sizes = [least + round(least * 2 / 7) * i for i in range(self.scales)]
        else:
            sizes = list(self.scales)
        grid = []
        for size in sizes:
            enlarged = _with_shorter_side(extents, size)
            if enlarged[0] < window[0] or enlarged[1] < window[1]:
                raise ArgumentError(
                    "scales",
                    f"got {size}, which makes the images {enlarged}, expected at least the "
                    f"windows' {window}",
                )
            steps = window if self.step is None else (self.step, self.step)
            down, across = map(_starts, enlarged, window, steps)
            grid += [_Window(enlarged, (y, x)) for y in down for x in across]
        return grid

    def _batches(
        self, images: Tensor, window: tuple[int, int], grid: list[_Window]
    ) -> Iterator[Tensor]:
        """The windows (R, C, *window) of (N, C, H, W), image by image; R is the batch size."""
        waiting: list[Tensor] = []
        for n in range(len(images)):
            enlarged = image = images[n : n + 1]
            for extents, (y, x) in grid:
                if enlarged.shape[2:] != extents:
                    enlarged = _enlarged(image, extents)
                waiting.append(enlarged[:, :, y : y + window[0], x : x + window[1]])
                if len(waiting) == self.batch_size:
                    yield torch.cat(waiting)
                    waiting = []
        if waiting:
            yield torch.cat(waiting)

    def _explained(
        self, record: Capture, selection: Selection, relu: bool, rows: Tensor, patches: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The maps of some windows, one per layer at its resolution, and the windows' scores.

        Args:
            rows: (R,), the image of each window.
            patches: the windows, (R, ...) in the layout of the images.
        """
        with record.as_before():
            windows = self.capture(record.inputs(rows, patches), exact=record.exact)
            logits = windows.logits.detach()
            logits = logits if logits.dtype == torch.float64 else logits.float()
            scores = selection.of(probabilities(logits) if self.probabilities else logits, rows)
            ids = None if selection.class_ids is None else selection.class_ids[rows]
            with torch.enable_grad():
                explained = Selection(selection.of(windows.logits, rows), ids)
            with torch.autocast(logits.device.type, enabled=False):
                return self._base.layer_maps(windows, explained, relu), scores

    def _weights(self, scores: Tensor) -> Tensor:
        """The weights of each image's windows, for scores (N, W) or (N, W, K)."""
        positive = scores.clamp(min=0)
        highest = positive.amax(1, keepdim=True)
        weights = torch.where(highest == 0, 1.0, positive / highest)
        dropped = scores.argsort(1)[:, : int(scores.shape[1] * self.drop)]
        return weights.scatter(1, dropped, 0.0)


class _Window(NamedTuple):
    extents: tuple[int, int]
    """The extents of the enlarged image that contains it."""
    corner: tuple[int, int]
    """Its first row and column there."""


def _with_shorter_side(extents: tuple[int, int], size: int) -> tuple[int, int]:
    height, width = extents
    longer = int(size * max(extents) / min(extents))
    return (longer, size) if height > width else (size, longer)


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along an axis; the last window ends where the axis ends."""
    return [*range(0, length - window, step), length - window]


def _enlarged(image: Tensor, extents: tuple[int, int]) -> Tensor:
    wide = image if image.dtype == torch.float64 else image.float()
    resized = F.interpolate(wide, extents, mode="bilinear", antialias=True)
    return resized.to(image.dtype)


def _placed(
    maps: Tensor, extents: tuple[int, int], corner: tuple[int, int], like: Tensor
) -> Tensor:
    """Maps ([K], h, w) at their place in the enlarged image, 0 elsewhere, at ``like``'s size."""
    (y, x), (height, width) = corner, maps.shape[-2:]
    borders = (x, extents[1] - x - width, y, extents[0] - y - height)
    return ops.upsample(F.pad(maps, borders), like.shape[-2:], normalize=False)


def _blurred(maps: Tensor) -> Tensor:
    """Blurs by a Gaussian of 11 x 11 pixels and standard deviation 5; mirrored at the border."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    kernel = (-(offsets**2) / 50).exp()
    kernel = (kernel / kernel.sum()).to(maps)
    for axis in (-2, -1):
        extent = maps.shape[axis]
        period = max(2 * (extent - 1), 1)
        places = torch.arange(-5, extent + 5, device=maps.device) % period
        mirrored = maps.index_select(axis, torch.minimum(places, period - places))
        maps = mirrored.unfold(axis, 11, 1) @ kernel
    return maps
