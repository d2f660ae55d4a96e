"""Files of maps: what is written is read, and every value keeps to float16's rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fastcam import demo, models, video
from fastcam.errors import FastcamError
from fastcam.explainer import Explainer
from fastcam.storage import MapFile, MapWriter, packed, unpacked

VALUES = st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-1, 1, width=32)


@given(st.lists(VALUES, min_size=4, max_size=4))
def test_raw_maps_come_back_up_to_rounding(values):
    raw = torch.tensor(values).reshape(1, 2, 2)
    maps, ranges = packed(raw)
    assert maps.dtype == torch.float16 and 0 <= maps.min() <= maps.max() <= 1
    assert ranges.tolist() == [[min(values), max(values)]]
    span = np.float64(max(values)) - min(values)
    error = (unpacked(maps, ranges).double() - raw).abs().max()
    assert error <= 2**-11 * span + 1e-6 * raw.abs().max()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_map_with_a_value_that_is_not_finite_is_no_map(bad):
    raw = torch.ones(2, 3, 3)
    raw[1, 2, 2] = bad
    maps, ranges = packed(raw)
    assert maps[0].eq(0).all() and ranges[0].tolist() == [1, 1]
    assert maps[1].isnan().all() and ranges[1].isnan().all()
    assert unpacked(maps, ranges)[0].eq(1).all()


def test_rows_and_columns(tmp_path):
    writer = MapWriter(tmp_path / "a.safetensors", {"method": "gradcam"}, {5: "n" * 70_000})
    maps = torch.rand(3, 2, 4, 5)
    for row, each in enumerate(maps):
        writer.write(
            each,
            {row: f"class {row}"},
            ranges=[[row, 1], [2, 3]],
            classes=[row, 5],
            scores=[0.5, row],
            probabilities=[0.25, 0.75],
            extents=(4, 5 - row),
        )
    assert writer.finish(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]
    file = MapFile(tmp_path / "b.safetensors")
    assert len(file) == 3 and file.about == {"method": "gradcam"}
    assert file.names == {0: "class 0", 1: "class 1", 2: "class 2", 5: "n" * 70_000}
    for row, each in enumerate(maps):
        found = file[row]
        assert found["maps"].equal(each.half()[..., : 5 - row])
        assert found["ranges"].tolist() == [[row, 1], [2, 3]]
        assert found["classes"].tolist() == [row, 5]
        assert found["scores"].tolist() == [0.5, row]
    # as any reader of safetensors has it
    assert load_file(tmp_path / "b.safetensors")["maps"].equal(maps.half())
    assert file.column("maps").equal(maps.half())


def test_a_file_of_a_clip(tmp_path):
    explainer = Explainer(models.load("digits"), "gradcam")
    video.explain(demo.asset("clip.mp4"), tmp_path / "maps.safetensors", explainer, target="7")
    file = MapFile(tmp_path / "maps.safetensors")
    assert file.names == {7: "7"} and "times" in file.columns
    assert file[3]["classes"].tolist() == 7
    assert file[3]["maps"].equal(file.column("maps")[3])


def test_other_files(tmp_path):
    (tmp_path / "text").write_text("no")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights")
    for name in ("text", "weights", "missing"):
        with pytest.raises(FastcamError, match=f"{name}: not a file of maps"):
            MapFile(Path(tmp_path / name))
