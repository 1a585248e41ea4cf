"""Pose networks by file: small ones of each family, that see coloured spots, and files of no family."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import FLOAT, HALF, external_data, onnx_file

from models.detectors import pose_networks, tracking
from models.detectors.detector import PictureDetector, TrackingDetector, is_by, load_detector
from models.detectors.finder import FoundPeople
from models.detectors.networks import Network, file_digest, load_file
from models.detectors.pose_networks import (
    MAX_BOX_IOU,
    PAD_GREY,
    CropNetwork,
    PictureNetwork,
    load_pose_network,
)
from models.detectors.rois import COCO_JOINTS
from pipeline.detections import Detector
from pipeline.errors import InputError
from pipeline.skeleton import POINT_ORDERS

WIDTH, HEIGHT = 192, 256
SPOTS = np.array([[300.0, 140.0], [330.0, 300.0], [270.0, 420.0]])
"""Places of a red, a green and a blue spot in the picture, pixels."""


def picture() -> np.ndarray:
    """Soft spots, wide enough to be seen in any network's picture."""
    y, x = np.mgrid[:600, :800]
    spots = [255 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 9.0**2)) for a, b in SPOTS]
    return np.stack(spots, -1).astype(np.uint8)


def channels(points: int) -> np.ndarray:
    """Colour that each point is: red, green, blue, red, ..."""
    return np.arange(points, dtype=np.int64) % 3


def simcc(
    points: int, batch: int | str = "batch", swapped: bool = False, half: bool = False, alone: bool = False,
    free: bool = False,
) -> bytes:  # fmt: skip
    """RTMPose of which each point is where its colour is brightest. half: 16-bit floats in and out; alone:
    takes one picture at a time, whatever it says; free: says that it takes any size."""
    sides = {"rx": WIDTH, "ry": HEIGHT}
    repeat = {n: np.repeat(np.eye(size, dtype=np.float32), 2, 1) for n, size in sides.items()}
    nodes = [
        ("Cast", ["input"], ["floats"], {"to": FLOAT}),
        ("Reshape", ["floats", "shape" if alone else "any_shape"], ["one"], {}),
        ("Gather", ["one", "which"], ["picked"], {"axis": 1}),
        ("ReduceMax", ["picked"], ["x"], {"axes": [2], "keepdims": 0}),
        ("ReduceMax", ["picked"], ["y"], {"axes": [3], "keepdims": 0}),
        ("MatMul", ["x", "rx"], ["along_x"], {}),
        ("MatMul", ["y", "ry"], ["along_y"], {}),
        ("Cast", ["along_x"], ["simcc_x"], {"to": HALF if half else FLOAT}),
        ("Cast", ["along_y"], ["simcc_y"], {"to": HALF if half else FLOAT}),
    ]
    outputs = {"simcc_x": (batch, points, 2 * WIDTH), "simcc_y": (batch, points, 2 * HEIGHT)}
    if swapped:
        outputs = dict(reversed(outputs.items()))
    shape = {"input": (batch, 3, "height", "width") if free else (batch, 3, HEIGHT, WIDTH)}
    shapes = {"shape": np.array([1, 3, HEIGHT, WIDTH]), "any_shape": np.zeros(4, np.int64)}
    constants = {"which": channels(points), **shapes, **repeat}
    return onnx_file(nodes, constants, shape, outputs, HALF if half else FLOAT)


def heatmaps(points: int) -> bytes:
    """ViTPose: the brightness of every fourth pixel, from the first to the last."""
    rows, columns = (np.linspace(0, n - 1, n // 4).round().astype(np.int64) for n in (HEIGHT, WIDTH))
    nodes = [
        ("Gather", ["pixels", "which"], ["picked"], {"axis": 1}),
        ("Gather", ["picked", "rows"], ["tall"], {"axis": 2}),
        ("Gather", ["tall", "columns"], ["warm"], {"axis": 3}),
        ("Sigmoid", ["warm"], ["heatmaps"], {}),
    ]
    constants = {"which": channels(points), "rows": rows, "columns": columns}
    out = {"heatmaps": ("b", points, HEIGHT // 4, WIDTH // 4)}
    return onnx_file(nodes, constants, {"pixels": ("b", 3, HEIGHT, WIDTH)}, out)


def constant(outputs: dict[str, np.ndarray], shape: tuple[int | str, ...] = (1, 3, 640, 640)) -> bytes:
    """A network that gives the same whatever it is shown."""
    nodes = [
        ("ReduceMin", ["x"], ["least"], {"keepdims": 0}),
        ("Mul", ["least", "zero"], ["nothing"], {}),
        *(("Add", [f"{n}_", "nothing"], [n], {}) for n in outputs),
    ]
    constants = {"zero": np.zeros((), np.float32)} | {f"{n}_": a for n, a in outputs.items()}
    return onnx_file(nodes, constants, {"x": shape}, {n: a.shape for n, a in outputs.items()})


def kept(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "mine.onnx"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "points"),
    [
        (simcc(17), 17),
        (simcc(26, 1), 26),
        (simcc(133, swapped=True), 133),
        (simcc(17, half=True), 17),
        (simcc(17, alone=True), 17),
        (simcc(17, free=True), 17),
        (heatmaps(17), 17),
        (heatmaps(26), 26),
    ],
)
def test_a_crop_networks_points_come_back_to_the_picture(tmp_path: Path, content: bytes, points: int) -> None:
    network = load_pose_network(kept(tmp_path, content))
    assert isinstance(network, CropNetwork)
    assert len(POINT_ORDERS[network.order]) == points
    roi = np.array([[310.0, 280.0, 420.0, 0.0], [300.0, 300.0, 600.0, 0.0]])
    found = network.place(network.cut(picture(), roi), roi)
    assert np.abs(found.xy_px - SPOTS[channels(points)]).max() < 1.6, "pixels, of crops by 2.3"
    assert found.confidence.min() > 0.7
    assert (found.person > 0.7).all()
    box = SPOTS.max(0) - SPOTS.min(0)
    side = 1.25 * max(box[1], box[0] * HEIGHT / WIDTH)
    assert found.next_roi == pytest.approx(np.tile([300, 280, side, 0], (2, 1)), abs=4)
    dark = network.place(network.cut(0 * picture(), roi), roi)
    assert (dark.person < 0.3).all()
    assert np.isnan(dark.next_roi[:, :3]).all()


@pytest.mark.parametrize("content", [simcc(17), heatmaps(17)])
def test_nobody_is_found_in_no_crops_by_a_network_of_free_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def load(*args: Any) -> Network:
        known = load_file(*args)
        return replace(known, outputs={n: (None,) * len(shape) for n, shape in known.outputs.items()})

    monkeypatch.setattr(pose_networks, "load_file", load)
    network = load_pose_network(kept(tmp_path, content))
    assert isinstance(network, CropNetwork)
    nowhere = np.zeros((0, 4))
    found = network.place(network.cut(picture(), nowhere), nowhere)
    assert found.points.shape == (0, 17, 3)
    assert found.next_roi.shape == (0, 4)


def test_a_crop_network_tracks_whom_the_finder_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = np.concatenate([SPOTS[channels(17)], np.full((17, 1), 0.5)], 1)[None]
    searches, searched = [], []

    def find(network: object, picture: np.ndarray) -> FoundPeople:
        searches.append(picture)
        beside = coco + np.array([8, -8, 0])
        return FoundPeople(beside, np.zeros((1, 4)), np.ones(1))

    monkeypatch.setattr(tracking, "find_people", find)
    detector = load_detector(str(kept(tmp_path, simcc(17))), every=3)
    assert isinstance(detector, TrackingDetector)
    assert detector.order == "coco_17"
    assert {*detector.networks} == {"finder", "landmarks"}
    state = detector.start()
    for _ in range(4):
        state, people = detector.detect(picture(), state)
        searched.append(len(searches))
        assert people.shape == (1, 17, 3)
        assert np.abs(people[0, list(COCO_JOINTS), :2] - coco[0, list(COCO_JOINTS), :2]).max() < 2
    assert searched == [1, 1, 1, 2]


def boxes() -> tuple[np.ndarray, np.ndarray]:
    """Boxes (4, 5), corners and score, and points (4, 17, 3): two people, one found twice, and nobody."""
    corners = np.array([[100, 50, 200, 400], [102, 55, 203, 402], [400, 100, 520, 480], [10, 10, 30, 30]])
    boxes = np.concatenate([corners, [[0.8], [0.9], [0.7], [0.1]]], 1).astype(np.float32)
    at = np.linspace(0, 1, 17)[None, :, None]
    xy = boxes[:, None, :2] * (1 - at) + boxes[:, None, 2:4] * at
    return boxes, np.concatenate([xy, np.full((4, 17, 1), 0.6)], -1).astype(np.float32)


def rtmo() -> bytes:
    dets, points = boxes()
    return constant({"dets": dets[None], "keypoints": points[None]})


def yolo() -> bytes:
    dets, points = boxes()
    middle, size = (dets[:, :2] + dets[:, 2:4]) / 2, dets[:, 2:4] - dets[:, :2]
    rows = np.concatenate([middle, size, dets[:, 4:], points.reshape(4, -1)], 1)
    rows = np.concatenate([rows, np.zeros((96, 56), np.float32)])
    return constant({"output0": np.ascontiguousarray(rows.T[None])})


def yolo_nms() -> bytes:
    dets, points = boxes()
    rows = np.concatenate([dets, np.zeros((4, 1), np.float32), points.reshape(4, -1)], 1)
    rows = np.concatenate([rows[[1, 2, 3]], np.zeros((297, 57), np.float32)])
    return constant({"output0": rows[None]}, ("b", 3, "h", "w"))


@pytest.mark.parametrize(("content", "shift"), [(rtmo(), (0, 0)), (yolo(), (0, 140)), (yolo_nms(), (0, 140))])
def test_a_picture_networks_people_come_back_to_the_picture(
    tmp_path: Path, content: bytes, shift: tuple[int, int]
) -> None:
    detector = load_detector(str(kept(tmp_path, content)))
    assert isinstance(detector, PictureDetector)
    wide = np.zeros((720, 1280, 3), np.uint8)
    state, people = detector.detect(wide, detector.start())
    assert state.tolist() == [0]
    _, points = boxes()
    want = points[[1, 2]]
    want[..., :2] = (want[..., :2] - shift) * 2
    assert people.shape == (2, 17, 3), f"two boxes that overlap by more than {MAX_BOX_IOU} are one person's"
    assert people == pytest.approx(want, abs=1e-3)


def test_whole_pictures_are_laid_and_coloured_as_each_family_wants_them(tmp_path: Path) -> None:
    red = np.zeros((100, 200, 3), np.uint8)
    red[..., 0] = 200
    first, last = (load_pose_network(kept(tmp_path, content)) for content in (rtmo(), yolo()))
    assert isinstance(first, PictureNetwork)
    assert isinstance(last, PictureNetwork)
    inputs, scale, shift = first.letterbox(red)
    assert (scale, shift.tolist()) == (3.2, [0, 0])
    assert inputs[:, 100, 100].tolist() == [0, 0, 200], "blue first"
    assert inputs[:, 400, 100].tolist() == [PAD_GREY] * 3
    inputs, scale, shift = last.letterbox(red)
    assert (scale, shift.tolist()) == (3.2, [0, 160])
    assert inputs[:, 320, 100] == pytest.approx([200 / 255, 0, 0])
    assert inputs[:, 100, 100] == pytest.approx([PAD_GREY / 255] * 3)


@pytest.mark.parametrize(
    ("outputs", "shape", "has"),
    [
        ((1, 25, 64, 48), (1, 3, 256, 192), r"\(1, 25, 64, 48\)"),
        ((1, 1000), (1, 3, 224, 224), r"\(1, 1000\)"),
        ((1, 17, 64, 48), (1, 256, 192, 3), r"\(1, 256, 192, 3\)"),
        ((1, 84, 100), (1, 3, 640, 640), r"\(1, 84, 100\)"),
        ((8, 17, 64, 48), (8, 3, 256, 192), r"\(8, 3, 256, 192\)"),
    ],
    ids=["25 points", "classes", "channels last", "boxes alone", "eight at a time"],
)
def test_a_file_of_no_family_is_named_with_what_it_has(
    tmp_path: Path, outputs: tuple[int, ...], shape: tuple[int, ...], has: str
) -> None:
    file = kept(tmp_path, constant({"out": np.zeros(outputs, np.float32)}, shape))
    with pytest.raises(InputError, match=rf"mine\.onnx: takes .*{has}.*expected .*of RTMPose.*of YOLO-pose"):
        load_pose_network(file)


def test_what_is_no_file_is_told_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*Give heavy, full, or an ONNX file"):
        load_pose_network(tmp_path / "heavi")
    with pytest.raises(InputError, match=r"onnxruntime .* cannot load it"):
        load_pose_network(kept(tmp_path, simcc(17)[:5000]))


def test_weights_that_lie_beside_the_file_belong_to_it(tmp_path: Path) -> None:
    file, weights = tmp_path / "mine.onnx", tmp_path / "part 1.bin"
    file.write_bytes(external_data("part 1.bin"))
    digests = []
    for content in (b"some", b"others"):
        weights.write_bytes(content)
        digests.append(file_digest(file))
    weights.unlink()
    (tmp_path / "mine.onnx.data").write_bytes(b"of another file")
    assert len({*digests, file_digest(file)}) == 3
    assert file_digest(file) == sha256(file.read_bytes()).hexdigest()


def test_a_network_without_an_input_is_told(tmp_path: Path) -> None:
    no_input = onnx_file(
        [("Identity", ["k"], ["c"], {})], {"k": np.zeros((1, 17, 9, 9), np.float32)}, {}, {"c": (1, 17, 9, 9)}
    )
    with pytest.raises(InputError, match=r"takes \{\} and gives"):
        load_pose_network(kept(tmp_path, no_input))


def test_a_network_that_cannot_be_read_is_not_that_of_the_detections(tmp_path: Path) -> None:
    """``is_by`` looks at the file before ``load_detector`` says what is wrong with it."""
    (tmp_path / "m.onnx").mkdir()
    assert not is_by(Detector("blazepose_33", {}, 8), str(tmp_path / "m.onnx"), 8)
