"""The stage: every chunk in order, people's own samples, restarts, frames without a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from recordings import ring
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.body import load_body
from models.regressor import Regression
from pipeline.batches import KeypointBatch, PoseBatch
from stages.regress import RegressConfig, chunks_together, regress

VIEWS, PEOPLE, WINDOW = 3, 2, 8
RIG, BODY = ring(VIEWS), load_body()


def chunks(frames: int, first: int = 0, blind: tuple[int, ...] = ()) -> Iterator[KeypointBatch]:
    """Every point of person p in frame t is at pixel (t, p); frames ``blind`` show nothing."""
    for start in range(first, frames, WINDOW):
        t = torch.arange(start, min(start + WINDOW, frames))
        xy = torch.stack(torch.meshgrid(t, torch.arange(PEOPLE), indexing="ij"), -1).float()
        xy = xy[None, :, :, None].expand(VIEWS, -1, -1, 25, -1).clone()
        trust = torch.ones(VIEWS, len(t), PEOPLE, 25)
        for f in blind:
            if start <= f < start + WINDOW:
                xy[:, f - start], trust[:, f - start] = torch.nan, 0
        yield KeypointBatch(
            start=start,
            rate=Fraction(30),
            time_s=t / 30.0,
            image_px=xy,
            xy_px=xy,
            confidence=trust,
            anchor=torch.zeros(PEOPLE, 4),
        )


class Echo:
    """Says of the person at pixel (t, p): turned by t/100 about the world's z, at (t, p, 1) metres."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self, xy_px: Tensor, confidence: Tensor, K: Tensor, R: Tensor | None = None, t: Tensor | None = None
    ) -> Regression:
        assert R is not None
        assert t is not None
        self.batches.append(len(xy_px))
        n = len(xy_px)
        seen = (confidence > 0).sum(-1) >= 6
        at = xy_px[:, :, 0].nan_to_num().amax(1)
        turn = torch.from_numpy(Rotation.from_rotvec(at[:, :1].numpy() / 100 * [0, 0, 1.0]).as_matrix())
        world = torch.cat([at, torch.ones(n, 1)], -1)
        transl = (R @ world[:, None, :, None])[..., 0] + t
        # The translation is added after posing: of the pelvis at rest, the camera turns only what is added.
        rest = BODY.keypoints.joints_template[0].float()
        transl += (R @ rest[:, None])[..., 0] - rest
        pose = torch.eye(3).expand(n, 23, 3, 3).clone()
        pose[~seen.any(1)] = torch.nan
        return Regression(pose, torch.zeros(n, 10), R @ turn.float()[:, None], transl, seen)


def run(net: Echo | None, size: int, **given: object) -> list[PoseBatch]:
    items = given.pop("items", None) or chunks(50)
    return list(regress(items, RegressConfig(batch_size=size), RIG, BODY, net, window=WINDOW, **given))


@pytest.mark.parametrize("size", [1, 7, 16, 40, 1000])
def test_every_chunk_in_order_with_its_own_people(size: int) -> None:
    net = Echo()
    out = run(net, size)
    assert [b.start for b in out] == list(range(0, 50, WINDOW))
    for given, b in zip(chunks(50), out, strict=True):
        assert torch.equal(given.xy_px, b.keypoints.xy_px)
        t = given.xy_px[0, :, :, 0, 0]
        assert torch.allclose(b.transl[..., 0], t, atol=1e-3)
        assert torch.allclose(b.transl[..., 1], given.xy_px[0, :, :, 0, 1], atol=1e-3)
        want = Rotation.from_rotvec(t.reshape(-1, 1).numpy() / 100 * [0, 0, 1.0]).as_matrix()
        assert np.allclose(b.global_orient.reshape(-1, 3, 3), want, atol=1e-4)
    assert sum(net.batches) == 50 * PEOPLE
    assert max(net.batches) <= size
    full = chunks_together(RegressConfig(batch_size=size), WINDOW) * WINDOW * PEOPLE
    assert len(net.batches) == sum(
        -(-min(full, 50 * PEOPLE - a) // size) for a in range(0, 50 * PEOPLE, full)
    )


def test_a_frame_that_shows_nobody_has_no_pose_and_spoils_no_other() -> None:
    clean, out = run(Echo(), 16), run(Echo(), 16, items=chunks(50, blind=(3, 20)))
    for a, b in zip(clean, out, strict=True):
        for f in range(len(b.transl)):
            blind = b.start + f in (3, 20)
            assert bool(b.posed[f].any()) != blind
            for name in ("global_orient", "body_pose", "betas", "transl"):
                said = getattr(b, name)[f]
                assert said.isnan().all() if blind else torch.equal(said, getattr(a, name)[f])


def test_a_restart_gives_the_same_batches() -> None:
    whole = Echo()
    out = run(whole, 16)
    together = chunks_together(RegressConfig(batch_size=16), WINDOW)
    assert together == 2
    again = Echo()
    rest = run(again, 16, items=chunks(50, first=2 * WINDOW), start=3 * WINDOW)
    assert [b.start for b in rest] == [b.start for b in out[3:]]
    assert again.batches == whole.batches[len(whole.batches) - len(again.batches) :]
    for a, b in zip(out[3:], rest, strict=True):
        assert torch.equal(a.transl, b.transl)


def test_without_a_net_nothing_is_said_and_nothing_waits() -> None:
    items = chunks(50)
    stream = regress(items, RegressConfig(), RIG, BODY, None, window=WINDOW)
    first = next(stream)
    assert first.start == 0
    assert not first.posed.any()
    assert next(items).start == WINDOW


def test_as_many_betas_as_the_body_has() -> None:
    thin = replace(
        BODY,
        shapedirs=BODY.shapedirs[..., :4],
        keypoints=replace(
            BODY.keypoints,
            joints_shapedirs=BODY.keypoints.joints_shapedirs[..., :4],
            points_shapedirs=BODY.keypoints.points_shapedirs[..., :4],
        ),
    )
    (b, *_) = regress(chunks(8), RegressConfig(), RIG, thin, Echo(), window=WINDOW)
    assert b.betas.shape == (8, PEOPLE, 4)
    assert b.posed.all()
