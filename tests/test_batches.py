from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from pipeline.batches import FitBatch, KeypointBatch, SmplParams


def fits(views: int = 2, frames: int = 6, people: int = 1, start: int = 12) -> FitBatch:
    g = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g)

    return FitBatch(
        keypoints=KeypointBatch(
            start=start,
            rate=Fraction(30000, 1001),
            time_s=torch.arange(start, start + frames, dtype=torch.float64) * 1001 / 30000,
            image_px=values(views, frames, people, 25, 2) * 100,
            xy_px=values(views, frames, people, 25, 2) * 100,
            confidence=values(views, frames, people, 25),
            anchor=values(people, 4).double(),
        ),
        params=SmplParams(
            global_orient=torch.eye(3).expand(frames, people, 3, 3),
            body_pose=torch.eye(3).expand(frames, people, 23, 3, 3),
            betas=values(people, 10),
            transl=values(frames, people, 3),
        ),
        joints=values(frames, people, 24, 3),
        keypoints_3d=values(frames, people, 25, 4),
        reprojection_px=values(views, frames, people),
        valid=torch.ones(frames, people, dtype=torch.bool),
        state=values(7).double(),
    )


def test_axes_must_agree_also_between_nested_batches():
    batch = fits(frames=6)
    with pytest.raises(ValueError, match=r"FitBatch.joints has 5 along T .*SmplParams.*|has 6"):
        replace(batch, joints=batch.joints[:5])
    with pytest.raises(ValueError, match=r"xy_px has 3 along .* its definition has 2|has shape"):
        replace(batch.keypoints, xy_px=torch.zeros(2, 6, 1, 25, 3))


def test_rank_is_checked_with_the_axes_in_the_message():
    with pytest.raises(ValueError, match=r"SmplParams.transl has shape \(3,\), expected axes \(T, P, 3\)"):
        replace(fits().params, transl=torch.zeros(3))


def test_map_reaches_every_tensor():
    batch = fits()
    seen: list[torch.Tensor] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    batch.map(note)
    assert len(seen) == 5 + 4 + 5
    assert batch.nbytes == sum(x.nbytes for x in seen)
    doubled = batch.map(lambda x: x.double())
    assert doubled.params.betas.dtype == doubled.keypoints.xy_px.dtype == torch.float64
    assert batch.params.betas.dtype == torch.float32


def test_frames_cuts_every_time_axis_and_moves_the_start():
    part = fits(frames=6, start=12).frames(2, 5)
    assert part.start == 14
    assert part.keypoints.xy_px.shape[1] == part.params.transl.shape[0] == part.reprojection_px.shape[1] == 3
    assert torch.equal(part.joints, fits().joints[2:5])
    assert torch.equal(part.params.betas, fits().params.betas)


def test_repr_shows_shapes_not_numbers():
    text = repr(fits())
    assert "xy_px=float32[2, 6, 1, 25, 2]" in text
    assert "tensor(" not in text
