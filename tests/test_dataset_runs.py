"""Runs that are killed, run in several processes or on several machines: the files are the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from data_sets import contents, make, start

from fastcam import dataset, models
from fastcam.explainer import Explainer
from fastcam.storage import MapFile

OPTIONS = (
    *("--model", "digits", "--methods", "gradcam,layercam", "--top-k", "3"),
    *("--shard", "16", "--batch", "4"),
)


def explain(source: Path, out: Path, *options: str, **environment: str) -> dict[str, object]:
    process = start("fastcam", "dataset", source, out, *OPTIONS, "--json", *options, **environment)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode in (0, 1), stderr
    return json.loads(stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures of two sizes, one of them broken, and their maps."""
    source = make(tmp_path_factory.mktemp("pictures"), 120, ((48, 48), (48, 64)))
    (source / "00050.png").write_bytes(b"not a picture")
    out = tmp_path_factory.mktemp("maps") / "out"
    report = explain(source, out, "--workers", "1")
    assert (report["pictures"], report["failed"], report["complete"]) == (120, 1, True)
    return source, out


def run(source: Path, out: Path) -> None:
    os.setsid()  # with the processes that it starts, one group
    explainer = Explainer(models.load("digits"), ["gradcam", "layercam"])
    dataset.explain(source, out, explainer, top_k=3, shard=16, batch=4, workers=1)


def forked(source: Path, out: Path) -> BaseProcess:
    """As the command line, but without a new interpreter, which takes longer than the run."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(source, out))
    process.start()
    return process


def test_killed_five_times_at_random(made, tmp_path):
    """The whole group is killed, as if the machine had failed; the same call goes on."""
    source, expected = made
    out = tmp_path / "out"
    moments = random.Random(time.time_ns())
    kills = 0
    while kills < 5:
        process = forked(source, out)
        process.join(moments.uniform(0.2, 0.7))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            process.join()
        else:  # it was quicker than that: from the beginning
            assert contents(out) == contents(expected)
            shutil.rmtree(out)
    process = forked(source, out)
    process.join(60)
    assert process.exitcode == 0
    assert contents(out) == contents(expected)


def test_readers_end_with_the_process_that_has_started_them(made, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(made[0], tmp_path / "out")
    )
    process.start()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (readers := children.read_text().split()):
        time.sleep(0.01)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while any(map(running, readers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, readers))


def running(process: str) -> bool:
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def shards(out: Path) -> int:
    """Also of those that are being written."""
    folder = out / "shards"
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_interrupted(made, tmp_path):
    source, expected = made
    out = tmp_path / "out"
    process = start("fastcam", "dataset", source, out, *OPTIONS, "--workers", "1")
    while not shards(out):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.splitlines()[-1] == "fastcam: interrupted; finished output is kept"
    assert not list((out / "shards").glob(".*"))
    forked(source, out).join(60)
    assert contents(out) == contents(expected)


def test_torchrun(made, tmp_path):
    source, expected = made
    process = start(
        *("torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"),
        *("-m", "fastcam", "dataset", source, tmp_path / "out", *OPTIONS, "--json"),
    )
    stdout, stderr = process.communicate(timeout=120)
    reports = [json.loads(line) for line in stdout.splitlines()]
    assert sorted(report["explained"] for report in reports) == [56, 64], stderr
    assert [report["complete"] for report in reports].count(True) >= 1
    assert contents(tmp_path / "out") == contents(expected)


def test_two_nodes_of_a_ray_cluster_and_one_that_is_lost(made, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: the local engine was tested alone")
    source, expected = made
    out = tmp_path / "out"
    process = start("ray_run", source, out, PYTHONPATH=_with_tests())
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr
    assert "lost a machine" in stderr
    tables = [pyarrow.parquet.read_table(each / "manifest.parquet") for each in (out, expected)]
    assert tables[0].equals(tables[1])
    for path in sorted((expected / "shards").glob("*/*.safetensors")):
        ours, local = MapFile(out / path.relative_to(expected)), MapFile(path)
        assert ours.columns == local.columns and ours.names == local.names
        maps = [each.column("maps").float().numpy() for each in (ours, local)]
        np.testing.assert_allclose(*maps, atol=1e-3, rtol=0)


def _with_tests() -> str:
    folder = Path(__file__).parent
    return os.pathsep.join([str(folder.parent), str(folder)])
