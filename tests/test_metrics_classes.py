"""The metrics as classes of torchmetrics: batches, collections, processes, copies."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from networks import small, small_images
from torch import Tensor

import fastcam
from fastcam import metrics

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is missing")

MODEL, IMAGES = small(), small_images(5)
with torch.no_grad():
    MODEL.head.weight *= 20
METHOD = fastcam.GradCAM(MODEL, "features")
CLASSES = torch.tensor([1, 4, 2, 0, 1])
MAPS = METHOD(IMAGES, CLASSES)
OTHERS = fastcam.LayerCAM(MODEL, "features")(IMAGES, CLASSES)
BOXES = [torch.tensor([[2, 3, 9, 12], [0, 0, 4, 5]])[: 1 + n % 2] for n in range(5)]
OTHER_BOXES = [torch.tensor([[8, 2, 15, 14]])] * 5
BATCH: dict[str, Any] = {
    "images": IMAGES,
    "maps": MAPS,
    "targets": CLASSES,
    "other_maps": OTHERS,
    "boxes": BOXES,
    "other_boxes": OTHER_BOXES,
}

# the metric, and what it is over all images
ALL: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "AverageDrop": (
        lambda: metrics.AverageDrop(MODEL),
        lambda: 100 * metrics.confidence(MODEL, IMAGES, MAPS, CLASSES).relative_drop.mean(),
    ),
    "IncreaseInConfidence": (
        lambda: metrics.IncreaseInConfidence(MODEL, probabilities=False),
        lambda: (
            100
            * metrics.confidence(MODEL, IMAGES, MAPS, CLASSES, probabilities=False)
            .increase.float()
            .mean()
        ),
    ),
    "Win": (
        lambda: metrics.Win(MODEL),
        lambda: 100 * metrics.win(MODEL, IMAGES, MAPS, OTHERS, CLASSES).mean(),
    ),
    "Deletion": (
        lambda: metrics.Deletion(MODEL, steps=5, baseline="blur"),
        lambda: metrics.deletion(
            MODEL, IMAGES, MAPS, CLASSES, steps=5, baseline="blur"
        ).area.mean(),
    ),
    "Insertion": (
        lambda: metrics.Insertion(MODEL, steps=5),
        lambda: metrics.insertion(MODEL, IMAGES, MAPS, CLASSES, steps=5).area.mean(),
    ),
    "InsertionMinusDeletion": (
        lambda: metrics.InsertionMinusDeletion(MODEL, steps=5),
        lambda: metrics.insertion_minus_deletion(MODEL, IMAGES, MAPS, CLASSES, steps=5).mean(),
    ),
    "ROAD": (
        lambda: metrics.ROAD(MODEL, percentiles=(30, 60), noise=0),
        lambda: metrics.road(
            MODEL, IMAGES, MAPS, CLASSES, percentiles=(30, 60), noise=0
        ).combined.mean(),
    ),
    "Infidelity": (
        lambda: metrics.Infidelity(MODEL, perturb=lambda x, _: x / 2, samples=2),
        lambda: metrics.infidelity(
            MODEL, IMAGES, MAPS, CLASSES, perturb=lambda x, _: x / 2, samples=2
        ).mean(),
    ),
    "MaxSensitivity": (
        lambda: metrics.MaxSensitivity(METHOD, radius=0.0, samples=1),
        lambda: metrics.max_sensitivity(METHOD, IMAGES, CLASSES, radius=0.0, samples=1).mean(),
    ),
    "Coherency": (
        lambda: metrics.Coherency(METHOD),
        lambda: metrics.coherency(MAPS, METHOD(IMAGES * MAPS[:, None], CLASSES)).mean(),
    ),
    "ADCC": (
        lambda: metrics.ADCC(METHOD),
        lambda: metrics.adcc(METHOD, IMAGES, CLASSES).score.mean(),
    ),
    "ARCC": (
        lambda: metrics.ARCC(METHOD, noise=0),
        lambda: metrics.arcc(METHOD, IMAGES, CLASSES, noise=0).score.mean(),
    ),
    "ClassificationMetric": (
        lambda: metrics.ClassificationMetric(METHOD),
        lambda: torch.stack(
            [
                metrics.confidence(MODEL, IMAGES, MAPS, CLASSES).relative_drop.mean(),
                metrics.confidence(MODEL, IMAGES, MAPS, CLASSES).increase.float().mean(),
            ]
        ),
    ),
    "ParameterRandomisation": (
        lambda: metrics.ParameterRandomisation(METHOD, measure="ssim", order="independent"),
        lambda: metrics.parameter_randomisation(
            METHOD, IMAGES, CLASSES, order="independent"
        ).ssim.mean(0),
    ),
    "ClassSensitivity": (
        lambda: metrics.ClassSensitivity(METHOD),
        lambda: metrics.class_sensitivity(METHOD, IMAGES, CLASSES).rank_correlation.mean(),
    ),
    "PointingGame": (
        lambda: metrics.PointingGame(tolerance=2),
        lambda: torch.stack(
            [
                metrics.pointing_game(MAPS, BOXES, tolerance=2)[c == CLASSES].mean()
                for c in (0, 1, 2, 4)
            ]
        ).mean(),
    ),
    "EnergyPointingGame": (
        lambda: metrics.EnergyPointingGame(),
        lambda: metrics.energy_pointing_game(MAPS, BOXES).mean(),
    ),
    "IoU": (
        lambda: metrics.IoU(thresholds=(0.2, 0.6)),
        lambda: metrics.iou(MAPS, BOXES, thresholds=(0.2, 0.6)).mean(0),
    ),
    "InstanceRecall": (
        lambda: metrics.InstanceRecall(threshold=0.3),
        lambda: metrics.instance_recall(MAPS, BOXES, threshold=0.3).mean(),
    ),
    "ClassConfusion": (
        lambda: metrics.ClassConfusion(threshold=0.3),
        lambda: metrics.class_confusion(MAPS, BOXES, other_boxes=OTHER_BOXES, threshold=0.3).mean(),
    ),
    "MaxBoxAccV2": (
        lambda: metrics.MaxBoxAccV2(thresholds=8, levels=(0.2, 0.4)),
        lambda: metrics.max_box_acc_v2(metrics.box_ious(MAPS, BOXES, thresholds=8), (0.2, 0.4)),
    ),
    "PxAP": (
        lambda: metrics.PxAP(thresholds=9),
        lambda: metrics.px_ap(metrics.pixel_histograms(MAPS, BOXES, thresholds=9)),
    ),
    "Complexity": (lambda: metrics.Complexity(), lambda: metrics.complexity(MAPS).mean()),
    "Sparseness": (lambda: metrics.Sparseness(), lambda: metrics.sparseness(MAPS).mean()),
}


def part(metric: Any, some: slice) -> dict[str, Any]:
    """The arguments of ``update`` for some of the images."""
    wanted = {name: value[some] for name, value in BATCH.items()}
    return metric._filter_kwargs(**wanted)


def as_tensor(result: Any) -> Tensor:
    found = torch.stack(list(result.values())) if isinstance(result, dict) else result
    return found.double()


def test_every_class_is_tested_and_in_the_readme_and_says_its_direction() -> None:
    assert sorted([*ALL, "MapMetric"]) == list(metrics.CLASSES)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert not [name for name in ALL if f"`{name}`" not in readme]
    for name in ALL:
        found = getattr(metrics, name)
        assert issubclass(found, torchmetrics.Metric) and issubclass(found, metrics.MapMetric)
        assert isinstance(found.higher_is_better, bool) is (name != "ClassificationMetric")
        if name not in ("ClassificationMetric", "Win"):
            function = found.function.__name__
            assert function in metrics.__all__ or function.startswith("_")


@pytest.mark.parametrize("name", ALL)
def test_batches_are_all_images(name: str) -> None:
    make, whole = ALL[name]
    metric, expected = make(), as_tensor(whole())
    for some in (slice(0, 2), slice(2, 2), slice(2, 5)):
        if some.start == some.stop and isinstance(metric, METHODS):
            continue  # a method explains at least one image
        metric.update(**part(metric, some))
    torch.testing.assert_close(as_tensor(metric.compute()), expected, rtol=1e-4, atol=1e-5)
    assert len(metric.values) == len(IMAGES) and not metric.values.requires_grad
    # the same from a copy, which shares the model, and after another use
    copied = metric.clone()
    metric.reset()
    with pytest.raises(ValueError, match="images: got none, expected at least one batch"):
        _ = metric.values
    torch.testing.assert_close(as_tensor(copied.compute()), expected, rtol=1e-4, atol=1e-5)
    metric.update(**part(metric, slice(0, 5)))
    torch.testing.assert_close(as_tensor(metric.compute()), expected, rtol=1e-4, atol=1e-5)
    # forward returns the value of the batch
    metric.reset()
    metric(**part(metric, slice(3, 5)))
    torch.testing.assert_close(
        as_tensor(metric(**part(metric, slice(0, 3)))).isnan(), torch.zeros_like(expected) > 0
    )
    assert len(metric.values) == 5
    assert metric.values[:2].allclose(copied.values[3:], rtol=1e-3, atol=1e-5)


METHODS = tuple(
    getattr(metrics, name)
    for name in (
        "MaxSensitivity",
        "Coherency",
        "ADCC",
        "ARCC",
        "ClassificationMetric",
        "ParameterRandomisation",
        "ClassSensitivity",
    )
)


def test_a_collection_feeds_each_metric_what_it_takes() -> None:
    collection = torchmetrics.MetricCollection({name: make() for name, (make, _) in ALL.items()})
    for some in (slice(0, 3), slice(3, 5)):
        collection.update(**{name: value[some] for name, value in BATCH.items()})
    found = collection.compute()
    for name, (_, whole) in ALL.items():
        if name != "ClassificationMetric":
            torch.testing.assert_close(
                found[name].double(), as_tensor(whole()), rtol=1e-4, atol=1e-5
            )
    assert {"average_drop", "increase"} <= {name.split("_", 1)[-1] for name in found} | set(found)


def test_a_collection_does_not_merge_metrics_that_begin_alike() -> None:
    """torchmetrics merges metrics whose states are equal after the first batch."""
    collection = torchmetrics.MetricCollection(
        {"exact": metrics.PointingGame(), "near": metrics.PointingGame(tolerance=9)}
    )
    heat = torch.zeros(1, 16, 16)
    heat[0, 4, 4] = 1
    collection.update(maps=heat, boxes=[[[4, 4, 5, 5]]])
    collection.update(maps=heat, boxes=[[[8, 4, 9, 5]]])
    found = collection.compute()
    assert found["exact"] == 0.5 and found["near"] == 1


def test_a_pointing_game_is_averaged_over_classes() -> None:
    """Class 0: hit, no instance, hit, hit; class 1: miss."""
    heat = torch.zeros(5, 8, 8)
    heat[:, 2, 3] = 1
    hit, miss = [[3, 2, 4, 3]], [[0, 0, 2, 2]]
    boxes, classes = [hit, [], hit, hit, miss], [0, 0, 0, 0, 1]
    for targets, expected in ((classes, 0.5), (None, 0.75)):
        metric = metrics.PointingGame()
        metric.update(heat[:2], boxes[:2], targets=targets and targets[:2])
        metric.update(heat[2:], boxes[2:], targets=targets and targets[2:])
        with pytest.warns(UserWarning, match="1 of 5"):
            assert metric.compute() == expected


def test_the_model_is_borrowed() -> None:
    model = small().train()
    metric = metrics.AverageDrop(model)
    assert not list(metric.children()) and not list(metric.parameters()) and not metric.state_dict()
    metric.eval()
    metric.double()
    assert model.training and next(model.parameters()).dtype == torch.float32
    metric.update(IMAGES, MAPS)
    assert all(module.training for module in model.modules())
    assert copy.deepcopy(metric).clone()._borrowed.objects[0] is model
    again = pickle.loads(pickle.dumps(metric))
    assert again.compute() == metric.compute()


def test_images_without_a_value_are_left_out_with_a_warning() -> None:
    metric = metrics.PointingGame()
    metric.update(MAPS, [[], *BOXES[1:]])
    with pytest.warns(UserWarning, match="PointingGame: 1 of 5 images have no value"):
        found = metric.compute()
    assert found == metrics.pointing_game(MAPS[1:], BOXES[1:]).double().mean()
    assert metric.values.isnan().tolist() == [True] + [False] * 4
    broken = MAPS.clone()
    broken[2] = torch.nan
    rows = metrics.MaxBoxAccV2(thresholds=4)
    rows.update(broken, BOXES)
    with pytest.warns(UserWarning, match="MaxBoxAccV2: 1 of 5"):
        found = rows.compute()
    kept = [0, 1, 3, 4]
    expected = metrics.box_ious(MAPS[kept], [BOXES[n] for n in kept], thresholds=4)
    torch.testing.assert_close(found, metrics.max_box_acc_v2(expected))
    for alone in (metrics.EnergyPointingGame(), metrics.PointingGame()):
        given = alone._filter_kwargs(maps=MAPS[:1], boxes=[[]], targets=3)
        alone.update(**given)
        with pytest.warns(UserWarning, match="1 of 1"):
            assert alone.compute().isnan()


def test_summary_of_the_classification_metric() -> None:
    metric = metrics.ClassificationMetric(METHOD, probabilities=False)
    assert metric.method is METHOD
    with pytest.raises(ValueError, match="images: got none"), pytest.warns(UserWarning):
        metric.summary()
    logits = MODEL(IMAGES).detach()
    metric.update(IMAGES)  # the top class
    found = metrics.confidence(MODEL, IMAGES, METHOD(IMAGES), logits.argmax(1), probabilities=False)
    assert metric.summary() == {
        "average_drop": pytest.approx(found.relative_drop.mean().item(), rel=1e-4),
        "increase": found.increase.float().mean().item(),
    }


def test_settings_that_do_not_fit_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="tolerence"):
        metrics.PointingGame(tolerence=3)
    with pytest.raises(ValueError, match="measure: got 'hog', expected \"ssim\""):
        metrics.ClassSensitivity(METHOD, measure="hog")
    with pytest.raises(ValueError, match=r"targets: got shape \(3,\), expected \(5,\)"):
        metrics.PointingGame().update(MAPS, BOXES, targets=[1, 2, 3])
    cpu = metrics.PointingGame(compute_on_cpu=True)  # torchmetrics' settings go to it
    cpu.update(MAPS, BOXES)
    assert cpu.compute() == metrics.pointing_game(MAPS, BOXES).double().mean()


def _one_process(rank: int, file: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=3
    )
    found = {}
    for name in ("PointingGame", "IoU", "PxAP", "MaxBoxAccV2", "AverageDrop", "Complexity"):
        metric = ALL[name][0]()
        for some in ((slice(0, 2), slice(2, 3)), (slice(3, 5),), ())[rank]:
            metric.update(**part(metric, some))
        found[name] = metric.compute()
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*was called before.*")
def test_processes_share_their_images(tmp_path: Path) -> None:
    """Three images, two, and none."""
    arguments = str(tmp_path / "file"), str(tmp_path)
    torch.multiprocessing.start_processes(_one_process, arguments, nprocs=3, start_method="fork")
    for rank in range(3):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, as_tensor(ALL[name][1]()), rtol=1e-4, atol=1e-5)


def test_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in metrics.CLASSES:
        monkeypatch.delitem(vars(metrics), name, raising=False)
    monkeypatch.delitem(vars(metrics), "classes", raising=False)
    for name in [name for name in sys.modules if name.startswith("fastcam.metrics.classes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    message = re.escape('metrics.ROAD requires torchmetrics: pip install "fastcam[metrics]"')
    with pytest.raises(ModuleNotFoundError, match=message):
        _ = metrics.ROAD
    assert metrics.complexity(MAPS).shape == (5,) and "ROAD" in dir(metrics)
    with pytest.raises(AttributeError, match="has no attribute 'Road2'"):
        _ = metrics.Road2


def test_an_import_does_not_need_torchmetrics() -> None:
    code = "import sys, fastcam.metrics; assert 'torchmetrics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
