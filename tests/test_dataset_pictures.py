"""Pictures of data sets by name: files in RGB, and the right frames of videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models.datasets.pictures import read_pictures
from models.rendering.overlay import yuv_matrix
from pipeline.errors import InputError
from pipeline.video import VideoWriter, to_rgb


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames whose brightness is 5 times their number, and a red picture."""
    out = tmp_path_factory.mktemp("pictures")
    (out / "a b").mkdir()
    with VideoWriter(out / "a b" / "film.mp4", Fraction(25)) as video:
        for i in range(40):
            video.write(np.full((64, 96, 3), 5 * i, np.uint8))
    cv2.imwrite(str(out / "red#1.png"), np.full((8, 8, 3), [0, 0, 255], np.uint8))
    return out


def test_pictures_come_in_the_order_of_their_names(root: Path) -> None:
    numbers = [31, 2, 2, 39, 0, 17]
    names = [f"a b/film.mp4#{i}" for i in numbers]
    found = read_pictures(root, [*names[:3], "red#1.png", *names[3:]])
    assert found.pop(3)[0, 0].tolist() == [255, 0, 0]
    for picture, i in zip(found, numbers, strict=True):
        assert picture.shape == (64, 96, 3)
        assert picture.dtype == np.uint8
        assert abs(float(picture.mean()) - 5 * i) < 2


@pytest.mark.parametrize("space", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("height", [480, 720])
def test_a_frames_colours_are_those_that_the_other_stages_see(space: int, height: int) -> None:
    yuv = np.full((height * 3 // 2, 64), 120, np.uint8)
    yuv[height : height * 5 // 4] = 100
    yuv[height * 5 // 4 :] = 180
    frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
    frame.colorspace = space
    matrix = yuv_matrix(space, height).astype(float)
    want = np.linalg.solve(matrix[:, :3], [120, 100, 180] - matrix[:, 3])
    assert (want > 0).all()
    assert (want < 255).all()
    assert np.abs(to_rgb(frame)[9, 9] - want).max() < 2


def test_what_is_not_there_is_said(root: Path) -> None:
    with pytest.raises(InputError, match=r"gone.png: cannot be read as a picture"):
        read_pictures(root, ["gone.png"])
    with pytest.raises(InputError, match=r"film.mp4: has 40 frames, but the data's rows name frame 40"):
        read_pictures(root, ["a b/film.mp4#40"])
    with pytest.raises(InputError, match=r"other.mp4: no such video"):
        read_pictures(root, ["other.mp4#3"])
