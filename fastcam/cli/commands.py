"""The commands of ``fastcam``. Heavy modules are imported inside them to keep --help fast."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import fastcam
from fastcam.cli.parameters import (
    FOUND_LAYER,
    Address,
    Alpha,
    Batch,
    CentreCrop,
    Classes,
    Colorbar,
    Colormap,
    Crop,
    DataSet,
    Device,
    Engine,
    Enlarge,
    Fade,
    Json,
    Layer,
    Layout,
    MaxPixels,
    Mean,
    Method,
    ModelName,
    Overwrite,
    Preprocess,
    Processor,
    Shard,
    Size,
    Std,
    Target,
    Threshold,
    Weights,
    Workers,
)
from fastcam.cli.terminal import Command, bar, print_json, print_line, print_table, say
from fastcam.errors import FastcamError, UsageError, first_line

if TYPE_CHECKING:
    import torch

    from fastcam.pictures import Picture


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Class activation maps: see which parts of a picture support a class.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"fastcam {fastcam.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...


@app.command(cls=Command)
def image(
    picture: Annotated[
        list[Path],
        typer.Argument(metavar="PICTURE", help="Files in any format that OpenCV reads."),
    ],
    model: ModelName = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Classes = None,
    processor: Processor = None,
    preprocess: Preprocess = None,
    method: Method = "auto",
    layer: Layer = FOUND_LAYER,
    target: Target = "top1",
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of classes in the grid (default: 3, if it has them); all boxes are "
            "shown.",
        ),
    ] = None,
    threshold: Threshold = None,
    out: Annotated[Path, typer.Option(help="The output folder.")] = Path("out"),
    layout: Layout = "overlay",
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Skip larger pictures with an error, before decoding them.")
    ] = 100_000_000,
    overwrite: Overwrite = False,
    colormap: Colormap = "turbo",
    alpha: Alpha = 0.65,
    fade: Fade = True,
    enlarge: Enlarge = "bilinear",
    colorbar: Colorbar = False,
    size: Size = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain pictures: an overlay, a grid of the top classes and the raw maps.

    Writes NAME-overlay.png, NAME-grid.png, NAME.npy and NAME.json for each picture, and
    NAME-boxes.png in place of NAME-overlay.png with --target boxes.
    Regions outside the network's input are darkened. --json prints one line per picture.
    """
    from fastcam import pictures
    from fastcam.cli import boxes, loading, options, outputs
    from fastcam.cli import image as images
    from fastcam.explainer import Explainer
    from fastcam.pictures import render

    style = render.Style(layout, colormap, alpha, fade, enlarge, colorbar)
    detects = options.check(target, method, threshold, mean, std)
    layers = options.layers(layer)
    if detects:
        boxes.check_style(style)
    names = list(images.output_names(picture))
    kind = boxes if detects else images
    files = [path for name in names for path in outputs.paths(kind.FILES, out, name).values()]
    inputs = [*picture, *options.files(weights, classes)]
    about = {"model": model, "weights": weights, "target": target}
    failed = 0
    with outputs.planned(lambda: files, inputs, overwrite):
        load = loading.load_detector if detects else loading.load
        loaded = load(
            model,
            weights,
            _device(device),
            classes=classes,
            processor=processor,
            preprocess=preprocess,
            size=size,
            crop=crop,
            mean=mean,
            std=std,
        )
        notes: loading.Notes | None = None
        if detects:
            finder = boxes.BoxExplainer(loaded, method, layers, threshold, style)

            def report_of(shown: Picture, name: str, about: dict[str, Any]) -> dict[str, Any]:
                found = finder(shown)
                more = {"method": finder.method, "layers": finder.layers}
                return boxes.save(found, out, name, {**about, **more})
        else:
            explainer = Explainer(loaded, options.usual(method), layers)
            images.check(loaded)
            targets = options.targets(explainer, target, top_k)
            notes = loading.Notes(loaded, say, None if as_json else print_line)

            def report_of(shown: Picture, name: str, about: dict[str, Any]) -> dict[str, Any]:
                explanation = images.explain(shown, explainer, targets, style)
                more = {
                    "method": options.usual(method),
                    "layers": explainer.layers,
                    "preprocessing": loaded.preprocessing.report(*shown.shape[:2]),
                }
                return images.save(explanation, out, name, {**about, **more})

        for path, name in zip(picture, names, strict=True):
            try:
                with pictures.enough_memory(path):
                    shown = pictures.read(path, max_pixels)
                    report = report_of(shown, name, {"picture": str(path), **about})
            except UsageError:
                raise
            except FastcamError as error:
                failed += 1
                say(str(error) if str(path) in str(error) else f"{path}: {error}")
                if as_json:
                    print_json({"picture": str(path), "error": str(error)})
                continue
            if notes is not None:
                notes.once(*shown.shape[:2])
            if as_json:
                print_json(report)
            else:
                how = f"{report['method']} at {', '.join(report['layers']) or 'the input'}"
                found = f"{path}: {report['found']}"
                print_line("\n  ".join((found, how, *report["files"].values())))
            if notes is not None:
                notes.seen(*shown.shape[:2])
    if failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def video(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A clip, a folder or glob of pictures, a camera number, a URL, or - for stdin.",
        ),
    ],
    sink: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A .mp4, .mov, .mkv, .gif or .safetensors file, or a folder."
        ),
    ],
    model: ModelName = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Classes = None,
    processor: Processor = None,
    preprocess: Preprocess = None,
    method: Method = "auto",
    layer: Layer = FOUND_LAYER,
    target: Annotated[
        str,
        typer.Option(
            help="The class to explain: lock, clip, top1, an id or a name; not:NAME for what "
            "speaks against it; boxes for all that a detector finds."
        ),
    ] = "lock",
    threshold: Threshold = None,
    norm: Annotated[
        str, typer.Option(help="How to normalize maps: running, clip, frame or fixed:LOW,HIGH.")
    ] = "running",
    smooth: Annotated[
        str, typer.Option(help="Smoothing over time: none, ema:A or gauss:S.")
    ] = "none",
    stride: Annotated[
        int, typer.Option(min=1, help="Explain every N-th frame and interpolate the others.")
    ] = 1,
    layout: Layout = "overlay",
    max_height: Annotated[
        int | None, typer.Option(min=2, help="Shrink taller frames to this height, in pixels.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Frames per forward pass (default: 4, on a GPU 32).")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Compile the network first to save time per frame.")
    ] = False,
    codec: Annotated[
        str, typer.Option(help="h264 or mjpeg; auto: h264 unless the GPU only encodes mjpeg.")
    ] = "auto",
    raw: Annotated[
        str | None, typer.Option(help="WxH or WxH@RATE: read raw RGB frames from stdin.")
    ] = None,
    overwrite: Overwrite = False,
    colormap: Colormap = "turbo",
    alpha: Alpha = 0.65,
    fade: Fade = True,
    enlarge: Enlarge = "bilinear",
    colorbar: Colorbar = False,
    size: Size = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain every frame of a clip with a heatmap and the class name.

    Keeps the timestamps, sound and orientation of the clip.
    The target lock keeps the top class of a scene's first frame until another leads for 0.3 s.
    A damaged clip is explained as far as it can be decoded; then the exit code is 1.
    """
    from fastcam import video as videos
    from fastcam.cli import boxes, loading, options, outputs
    from fastcam.explainer import Explainer
    from fastcam.pictures import render

    detects = options.check(target, method, threshold, mean, std)
    layers = options.layers(layer, "frame" if detects else norm)
    chosen = {
        "target": target,
        "norm": norm,
        "smooth": smooth,
        "stride": stride,
        "layout": layout,
        "colormap": colormap,
        "alpha": alpha,
        "fade": fade,
        "enlarge": enlarge,
        "colorbar": colorbar,
        "max_height": max_height,
        "batch": batch,
        "codec": codec,
    }
    style = render.Style(layout, colormap, alpha, fade, enlarge, colorbar)
    if detects:
        boxes.check_style(style)
        boxes.check_clip_options(stride, fast, norm, smooth, sink)
    videos.check(sink, **chosen)
    with (
        videos.open_source(source, raw, "cpu" if detects else _device(device).type) as opened,
        outputs.planned(
            lambda: videos.existing_files(sink),
            [*opened.files, *options.files(weights, classes)],
            overwrite,
        ),
        bar("frames", opened.frames) as advance,
    ):
        load = loading.load_detector if detects else loading.load
        loaded = load(
            model,
            weights,
            _device(device),
            classes=classes,
            processor=processor,
            preprocess=preprocess,
            size=size,
            crop=crop,
            mean=mean,
            std=std,
        )
        if detects:
            finder = boxes.BoxExplainer(loaded, method, layers, threshold, style)
            found = boxes.explain_clip(
                opened, sink, finder, max_height=max_height, codec=codec, progress=advance
            )
            if as_json:
                about = {"source": source, "model": model, "weights": weights, "target": target}
                print_json({**about, **found})
            else:
                seconds = found["seconds"]
                print_line(
                    f"{sink}: {found['boxes']} boxes in {found['frames']} frames, {seconds:.1f} s"
                )
            return
        method = options.usual(method)
        explainer = Explainer(loaded, method, layers, fast)
        if target not in videos.CHOICES:
            options.targets(explainer, target)
        done = videos.explain(opened, sink, explainer, progress=advance, **chosen)
    if done.padded is not None:
        height, width = done.padded
        say(f"the width or height is odd: padded to {width}x{height}")
    notes = loading.Notes(loaded, say, None if as_json else print_line)
    notes.once(*done.size)
    report = {
        "source": source,
        "model": model,
        "weights": weights,
        "method": method,
        "layers": explainer.layers,
        "target": target,
        "frames": done.frames,
        "lost_packets": done.lost_packets,
        "decode_errors": done.decode_errors,
        "seconds": done.seconds,
        "frames_per_second": done.frames_per_second,
        "stages": done.stages,
        "preprocessing": loaded.preprocessing.report(*done.size),
        "region": loaded.preprocessing.region(*done.size)._asdict(),
        "compiled": explainer.compiled,
        "slowest_stage": done.slowest_stage,
        "sink": str(sink),
        "files": [str(each) for each in done.files],
    }
    if as_json:
        print_json(report)
    else:
        speed = f"{done.frames_per_second:.1f} frames/s, slowest: {done.slowest_stage}"
        print_line(f"{sink}: {done.frames} frames in {done.seconds:.1f} s ({speed})")
        print_line(f"  {method} at {', '.join(explainer.layers) or 'the input'}")
        for part, state in explainer.compiled.items():
            print_line(f"  {part}: {state}")
    notes.seen(*done.size)


@app.command(cls=Command)
def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As --model of fastcam image.")],
    weights: Weights = "DEFAULT",
    target: Annotated[
        str, typer.Option(metavar="top1|boxes", help="boxes for a detector.")
    ] = "top1",
    size: Size = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """List the layers that can be explained, and mark the one that is chosen by default.

    They stand in the order in which the network computes them, with the channels and positions
    that each returns for one picture.
    """
    from fastcam.cli import layers as listing
    from fastcam.cli import loading, options

    if options.boxes_or_top_class(target):
        report = listing.of_detector(
            loading.load_detector(model, weights, _device(device), size=size)
        )
    else:
        report = listing.of_classifier(
            loading.load(model, weights, _device(device), size=size, crop=True)
        )
    if as_json:
        print_json({"model": model, "weights": weights, **report})
        return
    table = Table("layer", "module", "channels x positions", "", box=None, padding=(0, 2, 0, 0))
    for row in listing.rows(report):
        table.add_row(*map(Text, row))
    print_table(table)
    if report["problem"] is not None:
        say(f"no layer is chosen by default: {report['problem']}")


@app.command(cls=Command)
def dataset(
    source: DataSet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder.")],
    model: ModelName = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Classes = None,
    processor: Processor = None,
    preprocess: Preprocess = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas between them, for one forward: gradcam,layercam. none: the "
            "classes alone."
        ),
    ] = "gradcam++",
    layer: Layer = FOUND_LAYER,
    targets: Annotated[
        str,
        typer.Option(
            help="The class to explain: label, top1, an id or a name; not:NAME for what speaks "
            "against it."
        ),
    ] = "top1",
    top_k: Annotated[
        int,
        typer.Option(
            min=1, help="The number of classes per picture: the target, then the most probable."
        ),
    ] = 1,
    batch: Batch = 32,
    shard: Shard = 512,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    max_pixels: MaxPixels = 100_000_000,
    size: Size = None,
    crop: CentreCrop = True,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain a whole data set: the maps of several methods and classes from one forward.

    If it is interrupted at any moment, the same command goes on. OUT has the maps in shards,
    manifest.parquet with a row for each picture and failures.parquet with those that could not be
    explained; then the exit code is 1. fastcam.MapDataset reads it.
    """
    from fastcam.cli import data_sets

    names = data_sets.names_of(methods)
    maps = names != ["none"]
    explainer = data_sets.explainer(
        names if maps else ["gradcam"],
        layer,
        targets,
        _device(device),
        model=model,
        weights=weights,
        classes=classes,
        processor=processor,
        preprocess=preprocess,
        size=size,
        crop=crop,
        mean=mean,
        std=std,
    )
    done = data_sets.explain(
        source,
        out,
        explainer,
        targets=targets,
        top_k=top_k,
        maps=maps,
        batch=batch,
        shard=shard,
        workers=workers,
        max_pixels=max_pixels,
        engine=engine,
        address=address,
    )
    if as_json:
        about = {"model": model, "weights": weights, "methods": names if maps else []}
        print_json(data_sets.facts(source, out, explainer, targets, about, done))
    else:
        for line in data_sets.lines(out, explainer if maps else None, done):
            print_line(line)
    if done.failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def bench(
    source: DataSet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder.")] = Path(
        "out/bench"
    ),
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="What is in the pictures: a .json file of COCO, a folder of Pascal VOC's .xml "
            "files, a .csv file with the columns path, label, x0, y0, x1, y1, or a folder of masks "
            "PICTURE/LABEL.png."
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Names with commas between them, or the groups localisation (needs annotations: "
            "pointing_game, energy_pointing_game, iou, instance_recall, class_confusion, px_ap, "
            "max_box_acc_v2), faithfulness (average_drop and increase_in_confidence, together 2 "
            "forwards for each map; road, 19; deletion and insertion, 225 each) and form "
            "(complexity, sparseness). Default: localisation with annotations, average_drop, "
            "increase_in_confidence.",
            show_default=False,
        ),
    ] = "",
    model: ModelName = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Classes = None,
    processor: Processor = None,
    preprocess: Preprocess = None,
    methods: Annotated[
        str,
        typer.Option(help="Names with commas between them, for one forward: gradcam,layercam."),
    ] = "gradcam,gradcam++,layercam",
    layer: Layer = FOUND_LAYER,
    targets: Annotated[
        str | None,
        typer.Option(
            help="The class to explain: annotated (each class that is annotated in the picture), "
            "label, top1, an id or a name. Default: annotated, without annotations top1.",
            show_default=False,
        ),
    ] = None,
    batch: Batch = 32,
    shard: Shard = 512,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    max_pixels: MaxPixels = 100_000_000,
    size: Size = None,
    crop: CentreCrop = True,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare methods on a data set: where their maps lie, and what they tell about the network.

    Explains the data set as fastcam dataset does, and goes on in the same way if it is interrupted.
    OUT has in addition report.json and report.md, a table of metrics and methods with 95 %
    intervals; manifest.parquet has the values for each picture.
    """
    from fastcam.cli import data_sets
    from fastcam.dataset import ANNOTATED, report
    from fastcam.explainer import TOP_CLASS

    names = data_sets.names_of(methods)
    targets = targets or (TOP_CLASS if annotations is None else ANNOTATED)
    explainer = data_sets.explainer(
        names,
        layer,
        targets,
        _device(device),
        model=model,
        weights=weights,
        classes=classes,
        processor=processor,
        preprocess=preprocess,
        size=size,
        crop=crop,
        mean=mean,
        std=std,
    )
    done = data_sets.explain(
        source,
        out,
        explainer,
        targets=targets,
        annotations=annotations,
        metrics=data_sets.names_of(metrics) if metrics else (),
        batch=batch,
        shard=shard,
        workers=workers,
        max_pixels=max_pixels,
        engine=engine,
        address=address,
    )
    found = None if done.failed is None else report.read(out)
    if as_json:
        about = {"model": model, "weights": weights, "methods": names, "report": found}
        print_json(data_sets.facts(source, out, explainer, targets, about, done))
    else:
        unit = "pairs of picture and class" if targets == ANNOTATED else "pictures"
        for line in data_sets.lines(out, explainer, done, unit):
            print_line(line)
        if found is not None:
            print_table(data_sets.table(found))
            for line in report.notes(found):
                print_line(line)
    if done.failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def demo(
    out: Annotated[Path, typer.Option(help="The output folder.")] = Path("out/demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Explain the included picture and clip with the included network."""
    from fastcam.cli import demonstration, outputs

    files = [out / name for name in demonstration.MAKERS]
    with outputs.planned(lambda: files, demonstration.inputs(), overwrite):
        for path, make in zip(files, demonstration.MAKERS.values(), strict=True):
            text = make(path)
            if as_json:
                print_json({"file": str(path), "shows": text})
            else:
                print_line(f"{path}\n  {text}")


@app.command(cls=Command)
def info(as_json: Json = False) -> None:
    """Show the version, the build, the devices and the kernels used on each device."""
    import torch

    from fastcam import _kernels

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts: dict[str, dict[str, str]] = {
        "versions": {"fastcam": fastcam.__version__, "torch": torch.__version__},
        "build": {key: str(value) for key, value in _kernels.build_info().items()},
        "devices": {
            "cpu": f"{torch.get_num_threads()} threads",
            "cuda": ", ".join(gpus) or "none",
        },
        "kernels": _kernels.report(),
    }
    if as_json:
        print_json(facts)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for section, entries in facts.items():
        for index, (key, value) in enumerate(entries.items()):
            table.add_row("" if index else section, key, Text(value))
    print_table(table)


def main() -> None:
    """Runs the command line."""
    warnings.showwarning = lambda message, *_, **__: say(" ".join(str(message).split()))
    app(prog_name="fastcam")


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise UsageError(f"device {name} cannot be used: {first_line(error)}") from None
    return device
