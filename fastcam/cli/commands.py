"""The commands of ``fastcam``. Heavy modules are imported inside them to keep --help fast."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

import fastcam
from fastcam.cli import json
from fastcam.errors import FastcamError, UsageError, first_line

if TYPE_CHECKING:
    import torch

    from fastcam.models import LoadedModel
    from fastcam.video import Source


class _Command(TyperCommand):
    """Prints errors that the user can fix as one line on stderr and sets the exit code.

    With --json, prints the error on stdout too.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FastcamError as error:
            _say(str(error))
            if ctx.params["as_json"]:
                _print_json({"error": str(error)})
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            _say("interrupted; finished output is kept")
            raise typer.Exit(130) from None


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Class activation maps: see which parts of a picture support a class.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastcam {fastcam.__version__}")
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


ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="digits (included), a torchvision name, timm:NAME or package.module:function.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(help="DEFAULT, none (random weights) or a .safetensors or .pth file."),
]
Classes = Annotated[Path | None, typer.Option(help="A text file with one class name per line.")]
Method = Annotated[str, typer.Option(help="cam, gradcam, gradcam++, layercam, scorecam, ...")]
Layer = Annotated[str, typer.Option(help="The layer's dotted name; auto: the last suitable one.")]
Target = Annotated[str, typer.Option(help="The class to explain: top1, an id or a name.")]
Colormap = Annotated[str, typer.Option(help="The name of an OpenCV colormap.")]
Alpha = Annotated[float, typer.Option(min=0, max=1, help="The opacity of the heatmap.")]
Size = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="The side of the network's input, in pixels."),
]
Crop = Annotated[
    bool,
    typer.Option("--crop/--no-crop", help="Crop the centre, as the model's preprocessing does."),
]
Mean = Annotated[
    tuple[float, float, float] | None, typer.Option(help="Channel means, for values in [0, 1].")
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(help="Channel standard deviations, for values in [0, 1]."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU if available.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that fastcam has not written.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command(cls=_Command)
def image(
    picture: Annotated[
        list[Path],
        typer.Argument(metavar="PICTURE", help="Files in any format that OpenCV reads."),
    ],
    model: ModelName = "resnet50",
    weights: Weights = "DEFAULT",
    classes: Classes = None,
    method: Method = "gradcam++",
    layer: Layer = "auto",
    target: Target = "top1",
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="The number of classes in the grid (default: 3, if it has them)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The output folder.")] = Path("out"),
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Skip larger pictures with an error, before decoding them.")
    ] = 100_000_000,
    overwrite: Overwrite = False,
    colormap: Colormap = "turbo",
    alpha: Alpha = 0.5,
    size: Size = None,
    crop: Crop = True,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain pictures: an overlay, a grid of the top classes and the raw maps.

    Writes NAME-overlay.png, NAME-grid.png, NAME.npy and NAME.json for each picture.
    Regions outside the network's input are darkened. --json prints one line per picture.
    """
    from fastcam import pictures
    from fastcam.cli import image as images
    from fastcam.cli import options, outputs
    from fastcam.explainer import Explainer

    options.check(method, colormap, mean, std)
    names = list(images.output_names(picture))
    files = [path for name in names for path in images.files(out, name).values()]
    inputs = [*picture, *options.files(weights, classes)]
    failed = 0
    with outputs.planned(lambda: files, inputs, overwrite):
        loaded = _load(model, weights, classes, size, crop, mean, std, device)
        explainer = Explainer(loaded, method, layer)
        if loaded.clip_length is not None:
            raise UsageError(
                f"the network takes clips of {loaded.clip_length} frames, not pictures: "
                "use fastcam video"
            )
        targets = options.targets(explainer, target, top_k)
        for path, name in zip(picture, names, strict=True):
            about: dict[str, Any] = {
                "picture": str(path),
                "model": model,
                "weights": weights,
                "method": method,
                "target": target,
            }
            try:
                with pictures.enough_memory(path):
                    shown = pictures.read(path, max_pixels)
                    explanation = images.explain(shown, explainer, targets, colormap, alpha)
                    about["layer"] = explainer.layer
                    report = images.save(explanation, out, name, about)
            except UsageError:
                raise
            except FastcamError as error:
                failed += 1
                _say(str(error))
                if as_json:
                    _print_json({"picture": str(path), "error": str(error)})
                continue
            if as_json:
                _print_json(report)
            else:
                found = (f"{each['name']} {each['probability']:.1%}" for each in report["classes"])
                print(f"{path}: {', '.join(found)}", *report["files"].values(), sep="\n  ")
    if failed:
        raise typer.Exit(1)


@app.command(cls=_Command)
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
    method: Method = "gradcam++",
    layer: Layer = "auto",
    target: Annotated[
        str, typer.Option(help="The class to explain: lock, clip, top1, an id or a name.")
    ] = "lock",
    norm: Annotated[
        str, typer.Option(help="How to normalize maps: running, clip, frame or fixed:LOW,HIGH.")
    ] = "running",
    smooth: Annotated[
        str, typer.Option(help="Smoothing over time: none, ema:A or gauss:S.")
    ] = "none",
    stride: Annotated[
        int, typer.Option(min=1, help="Explain every N-th frame and interpolate the others.")
    ] = 1,
    layout: Annotated[str, typer.Option(help="overlay, side-by-side or heat.")] = "overlay",
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
    alpha: Alpha = 0.5,
    size: Size = None,
    crop: Crop = True,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain every frame of a clip with a heatmap and the class name.

    Keeps the timestamps, sound and orientation of the clip.
    The target lock keeps the first frame's top class until another one leads for a while.
    """
    from fastcam import video as videos
    from fastcam.cli import options, outputs
    from fastcam.explainer import Explainer

    options.check(method, colormap, mean, std)
    chosen = {
        "target": target,
        "norm": norm,
        "smooth": smooth,
        "stride": stride,
        "layout": layout,
        "colormap": colormap,
        "alpha": alpha,
        "max_height": max_height,
        "batch": batch,
        "codec": codec,
    }
    videos.check(sink, **chosen)
    with (
        videos.open_source(source, raw, _device(device).type) as opened,
        outputs.planned(
            lambda: videos.existing_files(sink),
            [*opened.files, *options.files(weights, classes)],
            overwrite,
        ),
        _bar(opened) as advance,
    ):
        loaded = _load(model, weights, classes, size, crop, mean, std, device)
        explainer = Explainer(loaded, method, layer, fast)
        if target not in videos.CHOICES:
            options.targets(explainer, target)
        done = videos.explain(opened, sink, explainer, progress=advance, **chosen)
    if done.padded is not None:
        height, width = done.padded
        _say(f"the width or height is odd: padded to {width}x{height}")
    report = {
        "source": source,
        "model": model,
        "weights": weights,
        "method": method,
        "layer": explainer.layer,
        "target": target,
        "frames": done.frames,
        "seconds": done.seconds,
        "frames_per_second": done.frames_per_second,
        "stages": done.stages,
        "compiled": explainer.compiled,
        "slowest_stage": done.slowest_stage,
        "sink": str(sink),
    }
    if as_json:
        _print_json(report)
    else:
        speed = f"{done.frames_per_second:.1f} frames/s, slowest: {done.slowest_stage}"
        print(f"{sink}: {done.frames} frames in {done.seconds:.1f} s ({speed})")
        for part, state in explainer.compiled.items():
            print(f"  {part}: {state}")


@app.command(cls=_Command)
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
                _print_json({"file": str(path), "shows": text})
            else:
                print(f"{path}\n  {text}", flush=True)


@app.command(cls=_Command)
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
        _print_json(facts)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for section, entries in facts.items():
        for index, (key, value) in enumerate(entries.items()):
            table.add_row("" if index else section, key, Text(value))
    Console().print(table)


def main() -> None:
    """Runs the command line."""
    warnings.showwarning = lambda message, *_, **__: _say(" ".join(str(message).split()))
    app(prog_name="fastcam")


def _load(
    name: str,
    weights: str,
    classes: Path | None,
    size: int | None,
    crop: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    device: str,
) -> LoadedModel:
    """Loads the model and applies the preprocessing and class-name options."""
    from fastcam import models

    model = models.load(name, weights, _device(device))
    preprocessing = model.preprocessing
    if size is not None:
        preprocessing = preprocessing.sized(size)
    if not crop:
        preprocessing = replace(preprocessing, crop=None)
    preprocessing = replace(
        preprocessing, mean=mean or preprocessing.mean, std=std or preprocessing.std
    )
    names = model.classes if classes is None else models.read_classes(classes)
    return replace(model, preprocessing=preprocessing, classes=names)


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


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} frames/s" if speed else "")


@contextmanager
def _bar(source: Source) -> Iterator[Callable[[], object]]:
    """Yields a function to call after each frame; shows a bar if stderr is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=source.frames)
        yield lambda: bar.advance(task)


def _say(message: str) -> None:
    print(f"fastcam: {message}", file=sys.stderr)


def _print_json(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)
