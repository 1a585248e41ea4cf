"""Crops against whole frames turned to RGB and warped by OpenCV and Pillow."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from models.crops import SIZE, crop, normalised, person_box
from models.rendering.overlay import yuv_matrix
from pipeline.video import planes

Pixels = NDArray[np.uint8]
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


def to_rgb(yuv: torch.Tensor) -> NDArray[np.float64]:
    """(224, 224, 3) 0–255, from what ``normalised`` gives."""
    matrix = torch.from_numpy(yuv_matrix(5, 480))[None]
    out = normalised(yuv[None], matrix, "none")[0].permute(1, 2, 0).double().numpy()
    return np.asarray((out * STD + MEAN) * 255)


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
    sx, sy = (x1 - x0) / SIZE, (y1 - y0) / SIZE
    warp = np.array([[sx, 0, x0 + sx / 2 - 0.5], [0, sy, y0 + sy / 2 - 0.5]])
    want = cv2.warpAffine(rgb, warp, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    miss = np.abs(to_rgb(crop(planes(frame), box)) - want)
    # At the picture's edge the warp blends into the black outside, Pillow's filter does not.
    known = cv2.warpAffine(
        np.ones_like(rgb), warp, (SIZE, SIZE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
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
    want = np.asarray(Image.fromarray(patch).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    miss = np.abs(to_rgb(crop(planes(frame), box)) - want)
    assert miss.mean() < 1.2  # most of it from 8-bit chroma at half the size
    assert np.quantile(miss, 0.999) < 9
    luma = planes(frame)[0]
    patch = np.full((y1 - y0, x1 - x0), 16, np.float32)  # Pillow does not round between its passes then
    patch[inside[0].start - y0 : inside[0].stop - y0, inside[1].start - x0 : inside[1].stop - x0] = luma[
        inside
    ]
    want = np.asarray(Image.fromarray(patch).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.abs(crop(planes(frame), box)[0].numpy() - want).max() < 0.01


@pytest.mark.parametrize("size", [128, 192])
def test_a_smaller_crop_of_the_same_square(size: int) -> None:
    """What a half and a quarter of the pixels show is the mean of what all show."""
    frame, _ = picture()
    box = (300.0, 240.0, 400.0)
    large, small = crop(planes(frame), box), crop(planes(frame), box, size=size)
    assert small.shape == (3, size, size)
    again = torch.nn.functional.interpolate(large[None], (size, size), mode="area")[0]
    assert (again - small).abs().mean() < 1.5


def test_fine_stripes_do_not_alias() -> None:
    y = np.tile(np.array([16, 235], np.uint8), (448, 224))
    grey = np.full((224, 224), 128, np.uint8)
    out = crop((y, grey, grey), (224.0, 224.0, 448.0))
    assert (out[0, 2:-2, 2:-2] - 125.5).abs().max() < 1


def test_chroma_lies_where_the_standard_puts_it() -> None:
    """A ramp in x: chroma sample i is at luma column 2 i, not between 2 i and 2 i + 1."""
    y = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    u = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (128, 1))
    out = crop((y, u, u.T.copy()), (128.0, 128.0, 200.0))
    middle = slice(20, -20)
    assert (out[0] - out[1])[middle, middle].abs().max() < 0.02
    down = torch.from_numpy(np.arange(256, dtype=np.float32))
    rows = crop((y.T.copy(), u, u.T.copy()), (128.0, 128.0, 200.0))
    assert len(down) == 256
    assert (rows[0] - rows[2] - 0.5)[middle, middle].abs().max() < 0.02


def test_a_box_off_the_picture_is_black() -> None:
    frame, _ = picture()
    for box in ((-500.0, 100.0, 200.0), (320.0, 2000.0, 300.0)):
        assert np.abs(to_rgb(crop(planes(frame), box))).max() < 1e-3


def test_stretched_contrast_reaches_from_black_to_white() -> None:
    frame, _ = picture()
    yuv = torch.stack([crop(planes(frame), b) for b in ((300.0, 240.0, 100.0), (200.0, 200.0, 300.0))])
    matrix = torch.from_numpy(yuv_matrix(5, 480)).expand(2, 3, 4)
    plain, stretched = (normalised(yuv, matrix, c).double() for c in ("none", "stretch"))
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
