"""Human3.6M from small trees of its layout. No real file was at hand: names and shapes are SPIN's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from h36m_tree import FRAMES, make, truth, write_masks
from scipy.spatial.transform import Rotation

from models.datasets.h36m import missing, parts, rows
from models.datasets.rows import to_arrays
from models.synthetic.cameras import look_at
from pipeline.calibrations.human36m import CAMERAS, read_metadata
from pipeline.errors import InputError
from pipeline.skeleton import EXTRA_24, EXTRA_24_OF_H36M_17

# Of the 32 joints; 13 and 16 are the neck, too, 14 the face, 15 the top of the head.
JOINT = {
    "Pelvis (MPII)": 11, "RHip": 1, "RKnee": 2, "RAnkle": 3, "LHip": 6, "LKnee": 7, "LAnkle": 8,
    "Spine (H36M)": 12, "Neck (LSP)": 24, "Jaw (H36M)": 14, "Head (H36M)": 15, "LShoulder": 17,
    "LElbow": 18, "LWrist": 19, "RShoulder": 25, "RElbow": 26, "RWrist": 27,
}  # fmt: skip


def test_every_fifth_frame_has_its_own_pose(tmp_path: Path) -> None:
    found = parts(make(tmp_path), "test")
    assert [p.name for p in found] == [
        "S9/Directions.54138969", "S9/Directions.55011271", "S9/WalkingDog 1.54138969",
        "S9/WalkingDog 1.55011271",
    ]  # fmt: skip
    assert missing(found) == "S11 not there"
    got = list(rows(found[0], 5))
    assert [r.imgname for r in got] == [f"S9/Videos/Directions.54138969.mp4#{i}" for i in (0, 5, 10)]
    for r, i in zip(got, (0, 5, 10), strict=True):
        xyz, xy = truth("Directions.54138969", 3)[i], truth("Directions.54138969", 2)[i]
        for name, at in JOINT.items():
            j = EXTRA_24.index(name)
            np.testing.assert_allclose(r.S[j], [*(xyz[at] - xyz[11]) / 1000, 1], atol=1e-12, err_msg=name)
            np.testing.assert_allclose(r.part[j], [*xy[at], 1], err_msg=name)
        assert not r.S[[j for j in range(24) if j not in EXTRA_24_OF_H36M_17]].any()
        np.testing.assert_allclose(r.box[:2], [30 + i, 50])  # of the mask of the same frame
        assert r.box[2] == pytest.approx(0.9 * 60)


def test_picture_one_is_frame_zero(tmp_path: Path) -> None:
    """SPIN reads a frame of the video before its loop, which pairs each picture with the pose before it."""
    root = make(tmp_path, names=("WalkingDog 1.54138969",))
    (root / "images").mkdir()
    for i in range(1, FRAMES + 1):
        (root / "images" / f"S9_WalkingDog_1.54138969_{i:06d}.jpg").touch()
    (part,) = parts(root, "test")
    got = list(rows(part, 5))
    assert [r.imgname[-10:-4] for r in got] == ["000001", "000006", "000011"]
    xyz = truth("WalkingDog 1.54138969", 3)[5]
    np.testing.assert_allclose(got[1].S[EXTRA_24.index("RHip"), :3], (xyz[1] - xyz[11]) / 1000)
    assert got[1].id == "h36m/S9/WalkingDog_1/54138969/000006"
    assert got[1].action == "WalkDog"


def test_cameras_of_an_instant_are_one_group(tmp_path: Path) -> None:
    found = parts(make(tmp_path), "test")
    arrays = to_arrays([r for p in found for r in rows(p, 5)])
    assert len(arrays["id"]) == 12
    pairs = {
        g: [(i, c) for i, c, h in zip(arrays["id"], arrays["camera"], arrays["group"], strict=True) if h == g]
        for g in arrays["group"]
    }
    assert len(pairs) == 6
    for views in pairs.values():
        (a, first), (b, second) = views
        assert (first, second) == CAMERAS[:2]
        assert a.replace(first, "") == b.replace(second, "")


def metadata(file: Path, towards: bool) -> tuple[np.ndarray, np.ndarray]:
    """Write one whose angles are those of the rotation to the camera, or from it; R and centres, mm."""
    rng = np.random.default_rng(0)
    centre = np.array([[3000.0, 3000], [-3000, 3200], [3100, -2900], [-3000, -3000]])
    centres = np.concatenate([centre, np.full((4, 1), 1600)], 1)[:, None] + rng.uniform(-99, 99, (4, 11, 3))
    forward = -centres * [1, 1, 0.3]
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    R = look_at(forward)
    given = R if towards else R.swapaxes(-1, -2)
    angles = Rotation.from_matrix(given.reshape(-1, 3, 3)).as_euler("XYZ").reshape(4, 11, 3)
    inner = [[1145.0 + c, 1143, 512, 515, -0.2, 0.24, -0.02, -0.0009, -0.0016] for c in range(4)]
    w0 = [*np.concatenate([angles, centres], -1).ravel(), *np.ravel(inner)]
    file.write_text(f"<metadata><dbcameras/><w0>[{' '.join(repr(float(x)) for x in w0)}]</w0></metadata>")
    return R, centres


@pytest.mark.parametrize("towards", [True, False])
def test_metadata_gives_cameras_that_stand_upright(tmp_path: Path, towards: bool) -> None:
    file = tmp_path / "metadata.xml"
    R, centres = metadata(file, towards)
    for subject in (1, 9, 11):
        for c in range(4):
            rig = read_metadata(file, subject)
            K, dist, r, t = rig.K[c], rig.dist[c], rig.R[c], rig.t[c]
            np.testing.assert_allclose(r, R[c, subject - 1], atol=1e-9)
            np.testing.assert_allclose(-r.T @ t, centres[c, subject - 1] / 1000, atol=1e-9)
            assert K.tolist() == [[1145 + c, 0, 512], [0, 1143, 515], [0, 0, 1]]
            # OpenCV's order has the tangential coefficients before k3.
            assert dist.tolist() == [-0.2, 0.24, -0.0009, -0.0016, -0.02, 0, 0, 0]


def test_rows_have_their_cameras(tmp_path: Path) -> None:
    root = make(tmp_path, ("S9", "S11"), ("Eating.60457274",))
    nine, eleven = parts(root, "test")
    assert np.isnan(next(rows(nine, 5)).R).all()
    R, _ = metadata(root / "metadata.xml", True)
    np.testing.assert_allclose(next(rows(nine, 5)).R, R[3, 8], atol=1e-9)
    np.testing.assert_allclose(next(rows(eleven, 5)).R, R[3, 10], atol=1e-9)


def test_what_is_wrong_is_said_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="D3_Positions_mono"):
        parts(tmp_path, "train")
    root = make(tmp_path, names=("Eating.60457274",))
    (part,) = parts(root, "test")
    masks = root / "S9" / "MySegmentsMat" / "ground_truth_bb" / "Eating.60457274.mat"
    write_masks(masks, [(1, 1, 5, 5)] * 7)
    with pytest.raises(InputError, match="boxes of 7 frames, but the poses have 12"):
        list(rows(part, 5))
    write_masks(masks, [(1, 1, 5, 5)] * 5 + [(1, 1, 1, 1)] + [(1, 1, 5, 5)] * 6)
    with pytest.raises(InputError, match="frame 6 has an empty mask"):
        list(rows(part, 5))
    masks.write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"60457274.mat: cannot be read"):
        list(rows(part, 5))
    write_masks(masks, [(1, 1, 5, 5)] * FRAMES)
    (root / "S9" / "Videos" / "Eating.60457274.mp4").unlink()
    with pytest.raises(InputError, match=r"neither the picture images/S9_Eating.60457274_000001.jpg"):
        list(rows(part, 5))
    (root / "S9" / "MyPoseFeatures" / "D3_Positions_mono" / "Eating.60457274.cdf").write_bytes(b"no cdf")
    with pytest.raises(InputError, match=r"60457274.cdf: cannot be read"):
        list(rows(part, 5))
    (tmp_path / "metadata.xml").write_text("<metadata><w0>[1 2 3]</w0></metadata>")
    with pytest.raises(InputError, match="w0: expected 300 numbers, got 3"):
        read_metadata(tmp_path / "metadata.xml", 1)


@pytest.mark.parametrize("module", ["cdflib", "h5py"])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    (part,) = parts(make(tmp_path, names=("Eating.60457274",)), "test")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs {module}: pip install -e '.\[datasets\]'"):
        list(rows(part, 5))
