from dataclasses import replace

import pytest
import torch
from builders import WINDOW, batch


def test_axes_must_agree_also_between_nested_batches():
    fit = batch(1)
    with pytest.raises(
        ValueError, match=r"SmplParams.transl has 8 along T .* has|FitBatch.joints has 5 along T"
    ):
        replace(fit, joints=fit.joints[:5])
    with pytest.raises(ValueError, match=r"xy_px has 3 along 2 .* its definition has 2"):
        replace(fit.keypoints, xy_px=torch.zeros(2, WINDOW, 1, 25, 3))


def test_rank_is_checked_with_the_axes_in_the_message():
    with pytest.raises(ValueError, match=r"SmplParams.transl has shape \(3,\), expected axes \(T, P, 3\)"):
        replace(batch(1).params, transl=torch.zeros(3))


def test_map_reaches_every_tensor():
    fit = batch(1)
    seen: list[torch.Tensor] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    fit.map(note)
    assert len(seen) == 5 + 4 + 5
    assert fit.nbytes == sum(x.nbytes for x in seen)
    halved = fit.map(lambda x: x.half())
    assert halved.params.betas.dtype == halved.keypoints.xy_px.dtype == torch.float16
    assert fit.params.betas.dtype == torch.float32


def test_frames_cuts_every_time_axis_and_moves_the_start():
    fit = batch(1)
    part = fit.frames(2, 5)
    assert part.start == WINDOW + 2
    assert part.keypoints.xy_px.shape[1] == part.params.transl.shape[0] == part.reprojection_px.shape[1] == 3
    assert torch.equal(part.joints, fit.joints[2:5])
    assert torch.equal(part.keypoints.xy_px, fit.keypoints.xy_px[:, 2:5])
    assert torch.equal(part.params.betas, fit.params.betas)


def test_repr_shows_shapes_not_numbers():
    text = repr(batch(1))
    assert f"xy_px=float32[2, {WINDOW}, 1, 25, 2]" in text
    assert "tensor(" not in text
