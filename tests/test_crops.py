"""Crops against SPIN's, and against whole frames turned to RGB and warped by OpenCV and Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from models.crops import (
    CROP_PX,
    Optics,
    crop_matrix,
    crop_rgb,
    crop_yuv,
    cut_batch,
    cut_box,
    normalise_rgb,
    person_box,
    resample_batch,
    room_around,
    spin_camera,
    warp_bilinear,
    warp_crop,
    warp_matrix,
    yuv_to_rgb,
)
from models.datasets.rows import read_rows
from models.evaluation.predictions import _Batches
from models.rendering.overlay import yuv_matrix
from models.training.augment import UNCHANGED, augment
from models.training.published import PublishedPeople
from models.training.samples import Sampling
from pipeline.array_types import Pixels
from pipeline.cameras import Rig
from pipeline.video import planes

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def picture(width: int = 640, height: int = 480) -> tuple[av.VideoFrame, Pixels]:
    """A colourful frame without sharp edges, as YUV and as RGB."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(40, 215, (height // 32, width // 32, 3)).astype(np.float32)
    rgb = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
        interpolation="LANCZOS",
    )
    return frame, rgb


def spins_crop(picture: Pixels, box: NDArray[np.float64], size: int, *, stretched: bool = False) -> Pixels:
    """SPIN's ``crop`` without rotation, step by step, resized by Pillow as ``imresize`` does."""
    centre, h = box[:2], box[2]
    t = np.array(
        [[size / h, 0, size * (0.5 - centre[0] / h)], [0, size / h, size * (0.5 - centre[1] / h)], [0, 0, 1]]
    )
    back = np.linalg.inv(t)
    (x0, y0), (x1, y1) = ((back @ [u, u, 1])[:2].astype(int) for u in (0, size))
    out = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    for y in range(max(0, y0), min(y1, len(picture))):
        for x in range(max(0, x0), min(x1, picture.shape[1])):
            out[y - y0, x - x0] = picture[y, x]
    if stretched:
        low, high = float(out.min()), float(out.max())
        out = np.asarray((out - low) * 255 / (high - low) + 0.5, np.uint8)
    return np.asarray(Image.fromarray(out).resize((size, size), Image.Resampling.BILINEAR))


BOXES = [
    (301.3, 223.9, 201.7),
    (200.6, 250.7, 61.3),
    (30.2, 470.1, 180.4),
    (610.4, 10.9, 353.3),
    (5.9, 5.2, 90.5),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [96, 224])
def test_is_spins_crop(box: tuple[float, float, float], size: int) -> None:
    _, rgb = picture()
    noisy = rgb ^ np.random.default_rng(0).integers(0, 32, rgb.shape, dtype=np.uint8)
    off = crop_rgb(noisy, np.array(box), size).astype(int) - spins_crop(noisy, np.array(box), size)
    assert np.abs(off).max() <= 1  # Pillow rounds between its passes


@pytest.mark.parametrize("box", BOXES)
def test_is_spins_crop_with_its_contrast_stretched(box: tuple[float, float, float]) -> None:
    """scipy's ``imresize`` stretches a crop of floats before Pillow resizes it."""
    _, rgb = picture()
    grey = np.asarray(60 + rgb / 3, np.uint8)
    want = spins_crop(grey, np.array(box), 224, stretched=True)
    found = crop_rgb(grey, np.array(box), 224, contrast="stretch")
    assert np.abs(found.astype(int) - want).max() <= 2  # rounded before and between Pillow's passes
    assert np.abs(found.astype(int) - crop_rgb(grey, np.array(box), 224)).max() > 40


@pytest.mark.parametrize("box", BOXES)
def test_the_crop_in_the_middle_of_its_room_is_the_crop(box: tuple[float, float, float]) -> None:
    _, rgb = picture()
    room = room_around(CROP_PX)
    wide = crop_rgb(rgb, np.array(box), CROP_PX, room)
    assert wide.shape == (336, 336, 3)
    assert np.array_equal(wide[room:-room, room:-room], crop_rgb(rgb, np.array(box), CROP_PX))
    alone = np.array(box) * [1, 1, 1.5]
    off = crop_rgb(rgb, alone, 336).astype(float) - wide
    assert np.abs(off).mean() < 4  # two grids, up to a pixel apart


def shift(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """(2,) pixels by which a lies beside b, x and y, by least squares of the brightness."""
    a, b = (x.astype(float).mean(-1)[4:-4, 4:-4] for x in (a, b))
    dy, dx = (g.ravel() for g in np.gradient(b))
    return np.linalg.lstsq(np.stack([dx, dy], 1), -(a - b).ravel())[0]


def test_training_evaluation_and_run_see_the_same_crop(tmp_path: Path) -> None:
    """And SPIN's: to 1/255 and Pillow's rounding, where the frame has a sample of colour for every pixel."""
    size = 128
    frame, _ = picture()
    rgb = to_frame(planes(frame))
    cv2.imwrite(str(tmp_path / "a.png"), rgb[..., ::-1])
    # The upper ones are cut out of the frame, the last hangs over its edge.
    boxes = np.array(
        [(301.3, 223.9, 201.7), (200.6, 250.7, 161.3), (330.2, 240.6, 411.5), (40.2, 450.1, 180.4)]
    )
    n = len(boxes)
    part = np.concatenate([np.repeat(boxes[:, None, :2], 24, 1), np.ones((n, 24, 1))], 2)
    np.savez(
        tmp_path / "rows.npz", imgname=np.array(["a.png"] * n), center=boxes[:, :2], scale=boxes[:, 2] / 200,
        part=part,
    )  # fmt: skip
    rows = read_rows(tmp_path / "rows.npz")
    source = PublishedPeople(tmp_path / "rows.npz", root=tmp_path, sampling=Sampling(1, size))
    order = [source.groups[i][1][0] for i in range(n)]
    views = np.arange(n)[:, None]
    batch = _Batches(rows, views[:, 0], views, n, size, "none", lambda names: [rgb] * len(names))[0]
    assert batch.crops is not None
    spin = _Batches(rows, views[:, 0], views, n, size, "stretch", lambda names: [rgb] * len(names))[0]
    assert spin.crops is not None
    for row in range(n):
        want = spins_crop(rgb, rows["box"][row], size, stretched=True)
        assert np.abs(spin.crops[row].permute(1, 2, 0).numpy().astype(int) - want).max() <= 2
    matrix = torch.from_numpy(yuv_matrix(5, 480))[None]
    for i, row in enumerate(order):
        sample = augment(source[i], np.random.default_rng(0), UNCHANGED, size)
        training = sample.images[0, 0].permute(1, 2, 0).numpy()
        evaluation = batch.crops[row].permute(1, 2, 0).numpy()
        yuv = crop_yuv(planes(frame), rows["box"][row], size)
        run = yuv_to_rgb(yuv[None], matrix)[0].permute(1, 2, 0).numpy()
        want = spins_crop(rgb, rows["box"][row], size)
        for crop in (training, evaluation):
            assert np.abs(crop.astype(int) - want).max() <= 1
        assert np.abs(run - want)[8:-8, 8:-8].mean() < 1.2  # its colours have half the samples
        for crop in (training, evaluation, run):
            assert np.abs(shift(crop, want)).max() < 0.05
        # The keypoint of the row, at the box's centre, is told where the picture has it.
        x0, x1 = (np.trunc(boxes[row, 0] + k * boxes[row, 2] / 2) for k in (-1, 1))
        at = (boxes[row, 0] + 0.5 - x0) * size / (x1 - x0) - 0.5
        assert sample.xy_px[0, 0, 30, 0] == pytest.approx(at, abs=1e-3)


def to_frame(yuv: Sequence[Pixels]) -> Pixels:
    """The RGB picture of a frame's planes, its colours interpolated between their samples."""
    h, w = yuv[0].shape
    x, y = np.meshgrid(np.arange(w) / 2, (np.arange(h) - 0.5) / 2)
    maps = x.astype(np.float32), y.astype(np.float32)
    colours = [cv2.remap(c, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for c in yuv[1:]]
    whole = torch.from_numpy(np.stack([yuv[0], *colours])).float()[None]
    return (
        yuv_to_rgb(whole, torch.from_numpy(yuv_matrix(5, h))[None])[0].permute(1, 2, 0).round().byte().numpy()
    )


def test_a_batch_of_planes_gives_the_crops_of_each() -> None:
    """As a GPU has them: all at once, of any sizes."""
    frames = [planes(picture(*wh)[0]) for wh in ((640, 480), (320, 256), (640, 480))]
    boxes = np.array([[301.3, 223.9, 201.7], [20.2, 250.1, 180.4], [400.2, 100.1, 62.5]])
    alone = torch.stack([crop_yuv(f, box, 96) for f, box in zip(frames, boxes, strict=True)])
    assert (resample_batch(cut_batch(frames, boxes, 96), "cpu") - alone).abs().max() < 1e-3
    with ThreadPoolExecutor(2) as pool:
        assert (resample_batch(cut_batch(frames, boxes, 96, pool), "cpu") - alone).abs().max() < 1e-3


def test_the_matrix_says_where_the_crop_is() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640].astype(float)
    for _ in range(5):
        box = np.array([*rng.uniform(200, 300, 2), rng.uniform(60, 300)])
        at = box[:2] + rng.uniform(-0.3, 0.3, 2) * box[2]
        spot = 250 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (box[2] / 20) ** 2)
        out = crop_rgb(np.repeat(spot.astype(np.uint8)[..., None], 3, 2), box, 128, 32)[..., 0].astype(float)
        row, column = np.mgrid[: len(out), : len(out)]
        found = np.array([(column * out).sum(), (row * out).sum()]) / out.sum()
        want = crop_matrix(box, 128, 32) @ [*at, 1]
        assert np.abs(found - want[:2]).max() < 0.03
        middle = crop_matrix(box, 128) @ [*cut_box(box)[:2], 1]
        assert np.allclose(middle[:2], 63.5)
        assert np.allclose(
            crop_matrix(box, 224) @ spin_camera(box), [[5000, 0, 111.5], [0, 5000, 111.5], [0, 0, 1]]
        )


def lens(dist: tuple[float, ...]) -> Rig:
    k = np.array([[700.0, 0, 322], [0, 690, 236], [0, 0, 1]])
    one = np.eye(3)[None], np.zeros((1, 3)), np.array([[640, 480]])
    return Rig(("a",), k[None], np.array([dist]), *one)


@pytest.mark.parametrize("dist", [(0.0,) * 8, (-0.25, 0.08, 0.002, -0.001, 0, 0, 0, 0)])
@pytest.mark.parametrize("side", [90.0, 330.0])
def test_what_a_lens_bent_is_where_the_pinhole_camera_has_it(dist: tuple[float, ...], side: float) -> None:
    rig = lens(dist)
    box = np.array([200.0, 240.0, side])
    at = box[:2] + np.array([[0, 0], [-0.5, -0.4], [0.45, -0.3], [0.3, 0.5], [-0.4, 0.35]]) * side
    points = np.concatenate([(at - rig.K[0, :2, 2]) / rig.K[0, [0, 1], [0, 1]], np.ones((5, 1))], 1)
    bent = rig.project(points, distorted=True)[0]
    assert not any(dist) or np.abs(bent - at).max() > 1
    y, x = np.mgrid[:480, :640].astype(float)
    frame = sum(200 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * (side / 30) ** 2)) for u, v in bent)
    grey = np.asarray(frame).clip(0, 255).astype(np.uint8)
    of_lens = Optics(rig.K[0], rig.dist[0])
    picture = crop_rgb(np.repeat(grey[..., None], 3, 2), box, 64, 16, of_lens)[..., 0]
    yuv = crop_yuv((grey, grey[::2, ::2], grey[::2, ::2]), box, 64, 16, of_lens)
    assert np.abs(yuv[0].numpy() - picture)[3:, 3:].max() < 20  # black is 16 there
    want = at @ crop_matrix(box, 64, 16)[:2, :2].T + crop_matrix(box, 64, 16)[:2, 2]
    for u, v in want:
        i, j = round(v) - 7, round(u) - 7
        part = picture[i : i + 15, j : j + 15].astype(float)
        row, column = np.mgrid[i : i + 15, j : j + 15]
        centre = (column * part).sum() / part.sum(), (row * part).sum() / part.sum()
        assert np.hypot(centre[0] - u, centre[1] - v) < 0.1


def test_a_lens_that_bends_nothing_changes_nothing() -> None:
    ramp = np.tile(np.linspace(20, 220, 320).astype(np.uint8), (240, 1))
    y = np.repeat(np.repeat(ramp, 2, 0), 2, 1)
    none, glass = (Optics(lens((0,) * 8).K[0], np.array([k, *[0.0] * 7])) for k in (0.0, 1e-12))
    for box in ([300.0, 240, 90], [310, 200, 333]):
        a, b = (crop_yuv((y, ramp, ramp), np.array(box), 64, 16, of_lens) for of_lens in (none, glass))
        assert (a - b).abs().max() < 0.05


def test_a_lens_shows_more_than_a_pinhole_camera_of_its_size() -> None:
    wide = Optics(lens((0,) * 8).K[0], np.array([-0.25, *[0.0] * 7]))
    white = np.full((480, 640, 3), 255, np.uint8)
    out = crop_rgb(white, np.array([-10.0, 240, 20]), 32, 0, wide)  # left of the pinhole's first column
    assert (out == 255).all()
    assert not crop_rgb(white, np.array([-10.5, 240, 19]), 32).any()


def test_a_lens_bends_all_planes_alike() -> None:
    frame, _ = picture()
    rgb = to_frame(planes(frame))
    matrix = torch.from_numpy(yuv_matrix(5, 480))[None]
    of_lens = Optics(lens((0,) * 8).K[0], np.array([-0.2, 0.05, 0, 0, 0, 0, 0, 0]))
    for box in ([300.0, 240, 60], [300, 240, 300], [60, 400, 200]):
        yuv = crop_yuv(planes(frame), np.array(box), 64, 16, of_lens)
        off = yuv_to_rgb(yuv[None], matrix)[0].permute(1, 2, 0).numpy() - crop_rgb(
            rgb, np.array(box), 64, 16, of_lens
        )
        assert np.abs(off).mean() < 1.5
        assert np.quantile(np.abs(off), 0.99) < 8


def test_stripes_do_not_alias_and_the_lens_shows_nothing_outside_of_its_picture() -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    box = np.array([0.0, 240, 400])
    for of_lens in (None, Optics(lens((0,) * 8).K[0], np.array([-1e-4, *[0.0] * 7]))):
        picture = crop_rgb(stripes, box, 64, 16, of_lens)
        assert not picture[:, :44].any()
        assert np.abs(picture[10:-10, 56:-4].astype(float) - 127.5).max() < 12
        for far in ([-900.0, 240, 100], [320, 2000, 100]):
            assert not crop_rgb(stripes, np.array(far), 64, 16, of_lens).any()
    strong = Optics(lens((0,) * 8).K[0], np.array([-0.8, *[0.0] * 7]))  # folds back beyond r = 0.65
    out = crop_rgb(np.full((480, 640, 3), 200, np.uint8), np.array([320.0, 240, 1500]), 96, 0, strong)
    assert not out[:, :12].any()
    assert out[48, 48, 0] == 200


def to_rgb(yuv: torch.Tensor) -> NDArray[np.float64]:
    """(224, 224, 3) 0–255."""
    matrix = torch.from_numpy(yuv_matrix(5, 480))[None]
    return np.asarray(yuv_to_rgb(yuv[None], matrix)[0].permute(1, 2, 0).double().numpy())


@pytest.mark.parametrize(
    "box",
    [
        (300.0, 240.0, 224.0),
        (301.3, 223.9, 201.7),
        (200.5, 250.5, 111.0),
        (30.0, 470.0, 180.0),
        (610.0, 10.0, 150.0),
    ],
)
def test_is_the_affine_warp_of_the_whole_rgb_frame(box: tuple[float, float, float]) -> None:
    frame, rgb = picture()
    cx, cy, side = box
    x0, y0, x1, y1 = (int(np.trunc(c + s * side / 2)) for s in (-1, 1) for c in (cx, cy))
    sx, sy = (x1 - x0) / CROP_PX, (y1 - y0) / CROP_PX
    warp = np.array([[sx, 0, x0 + sx / 2 - 0.5], [0, sy, y0 + sy / 2 - 0.5]])
    want = cv2.warpAffine(rgb, warp, (CROP_PX, CROP_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    miss = np.abs(to_rgb(crop_yuv(planes(frame), np.array(box))) - want)
    # At the picture's edge the warp blends into the black outside, Pillow's filter does not.
    known = cv2.warpAffine(
        np.ones_like(rgb), warp, (CROP_PX, CROP_PX), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    core = cv2.erode(known[..., 0], np.ones((7, 7), np.uint8)) > 0
    outside = cv2.dilate(known[..., 0], np.ones((7, 7), np.uint8)) == 0
    assert miss[core].mean() < 1.2  # most of it from 8-bit chroma at half the size
    assert np.quantile(miss[core], 0.999) < 9
    assert not outside.any() or miss[outside].max() < 0.5


@pytest.mark.parametrize("box", [(320.0, 240.0, 460.0), (320.2, 239.1, 301.0), (400.0, 200.0, 640.0)])
def test_a_crop_that_shrinks_is_pillows_resize(box: tuple[float, float, float]) -> None:
    frame, rgb = picture()
    cx, cy, side = box
    x0, y0, x1, y1 = (int(np.trunc(c + s * side / 2)) for s in (-1, 1) for c in (cx, cy))
    patch = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    inside = slice(max(y0, 0), min(y1, 480)), slice(max(x0, 0), min(x1, 640))
    patch[inside[0].start - y0 : inside[0].stop - y0, inside[1].start - x0 : inside[1].stop - x0] = rgb[
        inside
    ]
    want = np.asarray(Image.fromarray(patch).resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR))
    miss = np.abs(to_rgb(crop_yuv(planes(frame), np.array(box))) - want)
    assert miss.mean() < 1.2  # most of it from 8-bit chroma at half the size
    assert np.quantile(miss, 0.999) < 9
    luma = planes(frame)[0]
    patch = np.full((y1 - y0, x1 - x0), 16, np.float32)  # Pillow does not round between its passes then
    patch[inside[0].start - y0 : inside[0].stop - y0, inside[1].start - x0 : inside[1].stop - x0] = luma[
        inside
    ]
    want = np.asarray(Image.fromarray(patch).resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR))
    assert np.abs(crop_yuv(planes(frame), np.array(box))[0].numpy() - want).max() < 0.01


@pytest.mark.parametrize("size", [128, 192])
def test_a_smaller_crop_of_the_same_square(size: int) -> None:
    """What a half and a quarter of the pixels show is the mean of what all show."""
    frame, _ = picture()
    box = (300.0, 240.0, 400.0)
    large, small = crop_yuv(planes(frame), np.array(box)), crop_yuv(planes(frame), np.array(box), size)
    assert small.shape == (3, size, size)
    again = torch.nn.functional.interpolate(large[None], (size, size), mode="area")[0]
    assert (again - small).abs().mean() < 1.5


def test_fine_stripes_do_not_alias() -> None:
    y = np.tile(np.array([16, 235], np.uint8), (448, 224))
    grey = np.full((224, 224), 128, np.uint8)
    out = crop_yuv((y, grey, grey), np.array((224.0, 224.0, 448.0)))
    assert (out[0, 2:-2, 2:-2] - 125.5).abs().max() < 1


def test_chroma_lies_where_the_standard_puts_it() -> None:
    """A ramp in x: chroma sample i is at luma column 2 i, not between 2 i and 2 i + 1."""
    y = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    u = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
    out = crop_yuv((y, u, u.T.copy()), np.array((128.0, 128.0, 200.0)))
    middle = slice(20, -20)
    assert (out[0] - out[1])[middle, middle].abs().max() < 0.02
    down = torch.from_numpy(np.arange(256, dtype=np.float32))
    rows = crop_yuv((y.T.copy(), u, u.T.copy()), np.array((128.0, 128.0, 200.0)))
    assert len(down) == 256
    assert (rows[0] - rows[2] - 0.5)[middle, middle].abs().max() < 0.02


def test_a_box_off_the_picture_is_black() -> None:
    frame, _ = picture()
    for box in ((-500.0, 100.0, 200.0), (320.0, 2000.0, 300.0)):
        assert np.abs(to_rgb(crop_yuv(planes(frame), np.array(box)))).max() < 1e-3


def slow_warp(picture: np.ndarray, at: np.ndarray, size: tuple[int, int], border: str) -> np.ndarray:
    """Warp pixel by pixel."""
    back, (width, height) = np.linalg.inv(at), size
    h, w = picture.shape[:2]
    out = np.zeros((height, width, 3))
    for v, u in np.ndindex(height, width):
        x, y, _ = back @ [u, v, 1]
        i, j = int(np.floor(y)), int(np.floor(x))
        for row, down in ((i, 1 - (y - i)), (i + 1, y - i)):
            for column, across in ((j, 1 - (x - j)), (j + 1, x - j)):
                if border == "replicate" or (0 <= row < h and 0 <= column < w):
                    at_edge = np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)
                    out[v, u] += down * across * picture[at_edge]
    return out


def test_a_warped_crop_is_the_slow_warp_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (9, 9, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (90, 80), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    at = warp_matrix(np.array([43.3, 40.9, 33.0]), 0.4, 48)
    assert np.abs(warp_crop(picture, at, 48) - slow_warp(picture, at, (48, 48), "black")).max() < 2
    for box in ([43.3, 40.9, 33.0], [60.0, 10.0, 193.0]):
        at = warp_matrix(np.array(box), 0.4, 48)
        for border in ("black", "replicate"):
            found = warp_bilinear(picture, at, (36, 48), border)
            assert np.abs(found - slow_warp(picture, at, (36, 48), border)).max() < 2


def test_a_warped_crop_that_shrinks_does_not_alias() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    out = warp_crop(stripes, warp_matrix(np.array([200.0, 200, 396]), 0.3, 64), 64)
    assert np.abs(out[16:-16, 16:-16].astype(float) - 127.5).max() < 12


def test_stretched_contrast_reaches_from_black_to_white() -> None:
    frame, _ = picture()
    yuv = torch.stack(
        [crop_yuv(planes(frame), np.array(b)) for b in ((300.0, 240.0, 100.0), (200.0, 200.0, 300.0))]
    )
    matrix = torch.from_numpy(yuv_matrix(5, 480)).expand(2, 3, 4)
    rgb = yuv_to_rgb(yuv, matrix)
    plain, stretched = (normalise_rgb(rgb, c).double() for c in ("none", "stretch"))
    mean, std = (torch.from_numpy(x)[:, None, None] for x in (MEAN, STD))
    levels = (stretched * std + mean) * 255
    assert torch.allclose(levels.amin((1, 2, 3)), torch.zeros(2).double(), atol=1e-3)
    assert torch.allclose(levels.amax((1, 2, 3)), torch.full((2,), 255.0).double(), atol=1e-3)
    before = (plain * std + mean) * 255
    low, high = before.amin((1, 2, 3), keepdim=True), before.amax((1, 2, 3), keepdim=True)
    assert torch.allclose(levels, (before - low) / (high - low) * 255, atol=1e-2)


def test_box_of_a_person_as_in_spins_demo() -> None:
    xy = torch.tensor([[[0.0, 10], [100, 30], [50, 300], [900, 900]]])
    seen = torch.tensor([[True, True, True, False]])
    (box,) = person_box(xy, seen)
    assert torch.allclose(box, torch.tensor([50.0, 340 / 3, 1.2 * 290]))
    assert person_box(xy, torch.tensor([[True, False, False, False]])).isnan().all()
    xy[0, 1] = torch.nan
    assert torch.allclose(person_box(xy, seen)[0], torch.tensor([25.0, 155, 1.2 * 290]))
