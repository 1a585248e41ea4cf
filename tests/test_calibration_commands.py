"""Commands around calibrations: convert and show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from calibration_files import TRUTH, put
from recordings import assert_same_rig, ring
from typer.testing import CliRunner

from models.rendering.rig_picture import draw_rig
from pipeline.calibrations import biocv, pose2sim, read_calibration
from pipeline.calibrations.checks import in_metres
from pipeline.errors import InputError
from stages.calibration import app


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_convert_to_toml_and_to_easymocap(tmp_path: Path) -> None:
    source = put(tmp_path, biocv)[0]
    command("convert", source, tmp_path / "new" / "rig.toml")
    assert_same_rig(read_calibration(tmp_path / "new" / "rig.toml"), TRUTH, 1e-9)
    pose2sim.write_calibration(in_metres(ring(3), 1000), tmp_path / "mm.toml")
    command("convert", tmp_path / "mm.toml", tmp_path / "easymocap", "--unit", "mm")
    assert_same_rig(read_calibration(tmp_path / "easymocap" / "extri.yml"), ring(3), 1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "{}/rig.toml", "{}/rig.json"), "ends in .toml, or a folder"),
        (("convert", "{}/rig.toml", "{}/out", "--unit", "inch"), "--unit inch: expected m, cm, mm"),
        (("convert", "{}/rig.toml", "{}/out", "--unit", "-1"), "--unit -1: expected"),
        (("show", "{}/empty"), "holds no calibration of a known format"),
        (("show", "{}/rig.toml", "--out", "{}/rig.jpg"), "ends in .png"),
        (("board", "{}/empty", "--board", "chessboard:9x6:25mm"), "empty: neither a video nor pictures"),
    ],
)
def test_mistakes(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    pose2sim.write_calibration(TRUTH, tmp_path / "rig.toml")
    with pytest.raises(InputError, match=message):
        command(*(word.format(tmp_path) for word in words))


def test_show_prints_and_draws(tmp_path: Path) -> None:
    pose2sim.write_calibration(ring(4), tmp_path / "calibration.toml")
    text = command("show", tmp_path, "--out", tmp_path / "rig.png", "--unit", "m")
    assert "cam04" in text
    assert "1280×720" in text
    picture = cv2.imread(str(tmp_path / "rig.png"))
    assert picture.shape == (720, 1440, 3)
    np.testing.assert_array_equal(
        picture[..., ::-1], draw_rig(read_calibration(tmp_path / "calibration.toml"), "m")
    )


def test_cameras_are_drawn_where_they_stand() -> None:
    """Four on a square around the origin: the dots of the view from above make a square, too."""
    rig = ring(4)
    spot = np.array([[2.0, 2, 1], [2, -2, 1], [-2, -2, 1], [-2, 2, 1]])
    rig.t[:] = -np.einsum("vij,vj->vi", rig.R, spot)
    picture = draw_rig(rig, "m")[:, :720]
    ink = (picture == 40).all(-1).astype(np.uint8)
    dots = cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, _, _, middles = cv2.connectedComponentsWithStats(dots)
    assert count == 5
    side = np.sort(np.linalg.norm(middles[1:, None] - middles[None, 1:], axis=-1), axis=None)[4:]
    np.testing.assert_allclose(side / side[0], [1] * 8 + [2**0.5] * 4, rtol=0.02)
