"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="digits, digits-vit, digits-unet, digits-detector (included), a torchvision name, "
        "timm:NAME, hf:FOLDER-OR-NAME or package.module:function.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(help="DEFAULT, none (random weights) or a .safetensors or .pth file."),
]
Classes = Annotated[Path | None, typer.Option(help="A text file with one class name per line.")]
Method = Annotated[
    str,
    typer.Option(
        help="cam, gradcam, gradcam++, layercam, scorecam, ...; auto: gradcam++, or layercam for "
        "boxes."
    ),
]
Layer = Annotated[
    list[str],
    typer.Option(
        help="The layer's dotted name; auto: the last suitable one. fastcam layers lists them. "
        "Give it several times for the mean of several layers."
    ),
]
Target = Annotated[
    str,
    typer.Option(
        help="The class to explain: top1, an id or a name; not:NAME for what speaks against it; "
        "boxes for all that a detector finds."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="The least score of a box, with --target boxes (default: 0.5)."
    ),
]
Colormap = Annotated[str, typer.Option(help="The name of an OpenCV colormap.")]
Alpha = Annotated[float, typer.Option(min=0, max=1, help="The opacity of the hottest parts.")]
Fade = Annotated[
    bool,
    typer.Option(
        "--fade/--no-fade", help="Opacity follows the heat: cold parts stay as they were."
    ),
]
Layout = Annotated[str, typer.Option(help="overlay, side-by-side, heat, contours or outline.")]
Enlarge = Annotated[str, typer.Option(help="How to enlarge maps: bilinear or bicubic.")]
Colorbar = Annotated[bool, typer.Option("--colorbar", help="Show colours and values below.")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        help="The side of the network's input, in pixels. Default: that of the weights; for a "
        "function that returns a plain network 224, cut out of 256.",
    ),
]
Processor = Annotated[
    str | None,
    typer.Option(metavar="FOLDER-OR-NAME", help="A Hugging Face image processor to use."),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MODULE:FUNCTION",
        help="A function from a PIL picture to the network's input (3, h, w).",
    ),
]
Crop = Annotated[
    bool | None,
    typer.Option(
        "--crop/--no-crop",
        help="--crop: the centre, as the model's preprocessing does. --no-crop: the whole picture. "
        "Default: the whole picture, its long side at most 3 times the short one, if the network "
        "takes any size, otherwise the centre.",
        show_default=False,
    ),
]
Mean = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        help="Channel means, for values in [0, 1]. Default: those of the weights; for a function "
        "that returns a plain network 0.485 0.456 0.406, ImageNet's.",
    ),
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        help="Channel standard deviations, for values in [0, 1]. Default: those of the weights; "
        "for a function that returns a plain network 0.229 0.224 0.225, ImageNet's.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU if available.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that fastcam has not written.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
FOUND_LAYER = ["auto"]

# --- of data sets
DataSet = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A folder of pictures (folders in it are labels), a folder of webdataset .tar "
        "files or one of them, a .csv or .parquet file with the columns path and label, or a "
        "Hugging Face data set on disk.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")]
Shard = Annotated[int, typer.Option(min=1, help="Pictures per shard.")]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read pictures (default: one per two cores)."),
]
Engine = Annotated[str, typer.Option(help="local, also under torchrun, or ray for a cluster.")]
Address = Annotated[
    str | None, typer.Option(help="The Ray cluster's (default: that of the environment).")
]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Leave larger pictures out, before decoding them.")
]
CentreCrop = Annotated[
    bool,
    typer.Option(
        "--crop/--no-crop",
        help="--crop: the centre, as the model's preprocessing does. --no-crop: the whole picture.",
    ),
]
