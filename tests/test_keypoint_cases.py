"""Recordings as other tools leave keypoints and videos: read to the truth's joints, or told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from recordings import SHARED

from models.geometry.agreement import triangulate_best_people
from pipeline.findings import Code
from pipeline.recording import find_recording
from pipeline.skeleton import BODY_25, SMPL_24, SMPL_OF_BODY_25
from stages.inspect import inspect

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="needs the shared cases")


@pytest.mark.parametrize(
    ("case", "order", "codes"),
    [
        ("coco_wholebody_133", "coco_wholebody_133", {"fps_assumed"}),
        ("openpose_coco18", "coco_18", {"fps_assumed"}),
        ("keypoints_half_size", "body_25", {"keypoints_resized"}),
        ("easymocap_images", "body_25", {"fps_assumed", "size_guessed", "video_without"}),
        ("score_one_camera", "body_25", {"fps_assumed", "confidence_scaled"}),
        ("alphapose_list", "coco_17", set()),
    ],
)
def test_triangulated_keypoints_lie_where_the_truth_is(case: str, order: str, codes: set[Code]) -> None:
    """Points of the body that are joints of SMPL, by the cameras' rays alone."""
    found = inspect(find_recording(CASES / case))
    assert found.point_order.name == order
    assert {f.code for f in found.findings} <= codes
    frames = np.arange(24)
    bodies = triangulate_best_people(found.rig, found.people(frames))
    assert len(bodies) == 24
    truth = zarr.open_group(CASES / "_truth" / "truth.zarr", mode="r")
    at = np.abs(np.asarray(truth["time_s"])[:, None] - found.timeline.time_s[frames]).argmin(0)
    joints = np.asarray(truth["people/0/joints"])[at]
    points = [BODY_25.index(name) for name in SMPL_OF_BODY_25]
    wanted = [SMPL_24.index(name) for name in SMPL_OF_BODY_25.values()]
    off_mm = 1000 * np.linalg.norm(bodies[:, points] - joints[:, wanted], axis=-1)
    assert np.nanmedian(off_mm) < 23  # 3 px of noise
    assert np.isfinite(off_mm).mean() > 0.85


@pytest.mark.parametrize("factor", [1 / 4, 3 / 4, 2])
def test_any_factor_of_resized_pictures_is_found(tmp_path: Path, factor: float) -> None:
    """Also with points that are missing or elsewhere, and where a person so small suits another unit."""
    shutil.copytree(CASES / "keypoints_half_size", tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("keypoints/*/*.json"):
        document = json.loads(file.read_text())
        for person in document["people"]:
            points = np.array(person["pose_keypoints_2d"]).reshape(-1, 3)
            points[:, :2] = (points[:, :2] + 0.5) * 2 * factor - 0.5
            points[points[:, 2] == 0] = 0
            person["pose_keypoints_2d"] = points.ravel().tolist()
        file.write_text(json.dumps(document))
    found = inspect(find_recording(tmp_path))
    assert found.point_order.picture_scale[0] == pytest.approx((1 / factor, 1 / factor), rel=0.01)


def test_a_camcorders_videos_say_when() -> None:
    found = inspect(find_recording(CASES / "camcorder_mts"))
    assert [f.code for f in found.findings] == []
    assert found.timeline.rate == 50
    assert found.timeline.time_s[-1] == pytest.approx(0.98)
    assert [v.path.name for v in found.videos if v] == ["cam01.MTS", "cam02.MTS", "cam03.MTS"]
