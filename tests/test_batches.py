from dataclasses import replace

import pytest
import torch
from builders import COCO_17, WINDOW, batch, on_coco

from pipeline.batches import DetectionBatch, PoseBatch, check_points, joined
from pipeline.skeleton import BODY_25, SMPL_24


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


def test_points_are_as_many_as_the_skeleton_has():
    fit = batch(1)
    with pytest.raises(ValueError, match=r"KeypointBatch.image_px has 25 along K .* its skeleton has 17"):
        replace(fit.keypoints, skeleton=COCO_17)
    shape = 1, 2, 1, 25
    detections = DetectionBatch(0, 30, torch.zeros(1, 2), torch.zeros(*shape, 2), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"DetectionBatch.image_px has 25 along K .* its skeleton has 17"):
        replace(detections, skeleton=COCO_17)
    with pytest.raises(ValueError, match=r"FitBatch.joints has 23 along J .* its skeleton has 24"):
        replace(fit, joints=fit.joints[:, :, 1:])
    for poses in (fit, PoseBatch.blank(fit.keypoints, 10)):
        with pytest.raises(ValueError, match=r"body_pose has 23 along L .* its skeleton has 16"):
            replace(poses, skeleton=COCO_17)


def test_the_skeleton_stays_with_the_points():
    fit = on_coco(batch(0))
    longer = joined([fit, on_coco(batch(1))]).frames(2, WINDOW + 3).prepend_missing(1)
    longer = longer.people(torch.tensor([0, 5]))
    assert longer.keypoints.skeleton is COCO_17
    assert longer.keypoints.xy_px.shape[3] == len(COCO_17)
    check_points(fit, SMPL_24, COCO_17)
    with pytest.raises(ValueError, match="has 17 keypoints, expected 25"):
        check_points(fit, SMPL_24, BODY_25)
    mirrored = replace(BODY_25, names=tuple(BODY_25.names[i] for i in BODY_25.flips))
    with pytest.raises(ValueError, match="has 25 keypoints of other names or bones, expected 25"):
        check_points(batch(0), SMPL_24, mirrored)


def test_map_reaches_every_tensor():
    fit = batch(1)
    seen: list[torch.Tensor] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    fit.map(note)
    assert len(seen) == 4 + 4 + 5
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


def test_people_are_picked_by_id_and_missing_ones_are_missing():
    fit = batch(1)
    both = fit.people(torch.tensor([0, 7]))
    assert both.keypoints.ids.tolist() == [0, 7]
    assert torch.equal(both.joints[:, 0], fit.joints[:, 0])
    assert torch.isnan(both.joints[:, 1]).all()
    assert torch.isnan(both.params.betas[1]).all()
    assert (both.keypoints.confidence[:, :, 1] == 0).all()
    assert (both.status[:, 1] == 0).all()
    assert not both.valid[:, 1].any()
    assert both.people(torch.tensor([7, 0])).keypoints.ids.tolist() == [7, 0]
    again = both.people(torch.tensor([0]))
    assert torch.equal(again.reprojection_px, fit.reprojection_px)
    assert fit.people(torch.tensor([0])) is fit
    assert fit.people(torch.zeros(0, dtype=torch.int64)).joints.shape == (WINDOW, 0, 24, 3)


def test_joined_batches_are_cut_into_what_they_were():
    whole = joined([batch(0), batch(1)])
    assert len(whole.valid) == 2 * WINDOW
    assert torch.equal(whole.frames(WINDOW, 2 * WINDOW).keypoints.image_px, batch(1).keypoints.image_px)
    assert whole.frames(WINDOW, 2 * WINDOW).start == batch(1).start


def test_blank_frames_before_a_batch_are_missing():
    longer = batch(0).prepend_missing(3)
    assert torch.equal(longer.joints[3:], batch(0).joints)
    assert torch.isnan(longer.joints[:3]).all()
    assert (longer.keypoints.confidence[:, :3] == 0).all()


def test_what_is_carried_is_the_state_of_every_stage():
    fit = batch(0)
    assert fit.carried.keys() == {*fit.state, *fit.keypoints.state}
    assert fit.state
    assert fit.keypoints.state


def test_detections_have_clocks_of_their_views():
    shape = 3, 4, 2, 25
    good = DetectionBatch(0, 30, torch.zeros(3, 4), torch.zeros(*shape, 2), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"time_s has 2 along V|has 3 along V .* has 2"):
        replace(good, time_s=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"confidence has 5 along D .* has 2"):
        replace(good, confidence=torch.zeros(3, 4, 5, 25))
