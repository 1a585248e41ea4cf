"""Marker files, read back as OpenSim reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import (
    DOUBTED,
    LOST,
    NEAR,
    POSE2SIM,
    RATE,
    TO_Y,
    T,
    Truth,
    body,
    opensim_tokens,
    whole_take,
    write,
)

from models.formats.long_take import LongTake
from models.formats.trc import encode
from pipeline.skeleton import BODY_25


@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_a_trc_holds_the_markers_with_gaps_where_nothing_is_sure(
    truths: Callable[[str], Truth], tmp_path: Path, up: str
) -> None:
    truth = truths(up)
    said = write(truth, tmp_path / "walk.trc", 0, 2)
    assert said == [f"{4} of {T - 2} frames are not valid: they are left empty."]
    head, keys, values, names, axes, *rows = (tmp_path / "walk.trc").read_text().splitlines()
    assert head.split("\t") == ["PathFileType", "4", "(X/Y/Z)", "walk.trc"]
    meta = dict(zip(keys.split("\t"), values.split("\t"), strict=True))
    assert float(meta["DataRate"]) == pytest.approx(float(RATE), abs=1e-6)
    assert (meta["NumFrames"], meta["NumMarkers"], meta["Units"]) == (str(T - 2), "25", "m")
    assert (meta["OrigDataStartFrame"], meta["CameraRate"]) == ("2", meta["DataRate"])
    assert opensim_tokens(names)[:2] == ["Frame#", "Time"]
    assert opensim_tokens(names)[2::3] == [n.replace("MidHip", "CHip") for n in BODY_25.names]
    assert opensim_tokens(axes)[2:5] == ["X1", "Y1", "Z1"]
    assert opensim_tokens(axes)[-1] == "Z25"
    assert len(rows) == T - 2
    to = POSE2SIM if up == "z" else TO_Y[up]
    for t, row in enumerate(rows, start=2):
        cells = opensim_tokens(row)
        assert len(cells) == 2 + 3 * 25, "OpenSim refuses the file otherwise"
        assert row.count("\t") == axes.count("\t"), (
            "readers of tables take the first column for an index otherwise"
        )
        assert int(cells[0]) == t
        assert float(cells[1]) == pytest.approx(t / float(RATE), abs=1e-6)
        if t in (*LOST, DOUBTED):
            assert set(cells[2:]) == {""}
            continue
        points = np.array(cells[2:], float).reshape(25, 3)
        np.testing.assert_allclose(points, to(truth.points[t]), atol=NEAR)
        assert points[BODY_25.index("Neck"), 1] > points[BODY_25.index("MidHip"), 1] + 0.3


def test_markers_are_called_as_the_points_of_the_store(truths: Callable[[str], Truth]) -> None:
    take = whole_take(truths("z"))
    assert take.point_names == BODY_25.names
    few = replace(take, points=take.points[:, :3], point_names=("MidHip", "Nose", "Hat"))
    text = b"".join(encode(LongTake.of(few), body(), "few.trc"))
    names, axes = text.decode().splitlines()[3:5]
    assert opensim_tokens(names)[2::3] == ["CHip", "Nose", "Hat"]
    assert opensim_tokens(axes)[-1] == "Z3"
