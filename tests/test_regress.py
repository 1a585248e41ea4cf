"""The stage: every chunk in order, people's own samples, restarts, frames without a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from recordings import ring
from scenes import Scene, scene
from scipy.spatial.transform import Rotation
from torch import Tensor

from models.body import Body, load_body, pelvis_at_rest, pose_keypoints
from models.fusion import FusionName
from models.image_regressor import (
    SMPL_PELVIS,
    ImageConfig,
    ImageRegressor,
    save_image_regressor,
)
from models.regressors.calibrated import CalibratedNet
from models.regressors.keypoint_nets import save_regressor
from models.regressors.regression import Regression
from models.rotations import geodesic_degrees
from pipeline.batches import FrameBatch, KeypointBatch, PoseBatch
from pipeline.errors import InputError
from stages.regress import RegressConfig, chunks_per_group, describe, digest, load_net, regress

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
            ids=torch.arange(PEOPLE),
            time_s=t / 30.0,
            image_px=xy,
            xy_px=xy,
            confidence=trust,
        )


class Echo(CalibratedNet):
    """Says of the person at pixel (t, p): turned by t/100 about the world's z, at (t, p, 1) metres."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.device = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[int] = []

    def forward(
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
        orient = R @ turn.float()[:, None]
        return Regression(pose, torch.zeros(n, 10), orient, transl, seen, torch.full((n, 23), 0.2))


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
    full = chunks_per_group(RegressConfig(batch_size=size), net, WINDOW, VIEWS) * WINDOW * PEOPLE
    assert len(net.batches) == sum(
        -(-min(full, 50 * PEOPLE - a) // size) for a in range(0, 50 * PEOPLE, full)
    )


def test_a_frame_that_shows_nobody_has_no_pose_and_spoils_no_other() -> None:
    clean, out = run(Echo(), 16), run(Echo(), 16, items=chunks(50, blind=(3, 20)))
    for a, b in zip(clean, out, strict=True):
        for f in range(len(b.transl)):
            blind = b.start + f in (3, 20)
            assert bool(b.posed[f].any()) != blind
            for name in ("global_orient", "body_pose", "betas", "transl", "pose_sigma"):
                said = getattr(b, name)[f]
                assert said.isnan().all() if blind else torch.equal(said, getattr(a, name)[f])


def test_a_restart_gives_the_same_batches() -> None:
    whole = Echo()
    out = run(whole, 16)
    together = chunks_per_group(RegressConfig(batch_size=16), whole, WINDOW, VIEWS)
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


def test_the_default_network_after_a_restart_to_the_last_bit() -> None:
    d = scene(3, "person", frames=200)
    cfg = RegressConfig(batch_size=48)
    net = load_net(cfg)
    assert net is not None
    given = [*of_scene(d)]
    out = list(regress(iter(given), cfg, d.rig, BODY, net, window=24))
    assert all(b.posed.all() for b in out)
    for first in (1, 3, 4):
        again = first - first % chunks_per_group(cfg, net, 24, len(d.rig))
        rest = list(regress(iter(given[again:]), cfg, d.rig, BODY, net, window=24, start=first * 24))
        assert [b.start for b in rest] == [b.start for b in out[first:]]
        for a, b in zip(out[first:], rest, strict=True):
            for name in ("global_orient", "body_pose", "betas", "transl", "pose_sigma"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_the_default_network_says_where_the_person_is() -> None:
    d = scene(3, "person", frames=48)
    cfg = RegressConfig()
    out = list(regress(of_scene(d), cfg, d.rig, BODY, load_net(cfg), window=24))
    rotations = torch.cat([torch.cat([b.global_orient[:, :, None], b.body_pose], 2) for b in out])[:, 0]
    betas, transl = (torch.cat([getattr(b, name) for b in out])[:, 0] for name in ("betas", "transl"))
    keypoints = BODY.keypoints.to(dtype=torch.float32)
    joints, _ = pose_keypoints(keypoints, rotations, betas, transl)
    miss = (joints - d.joints.float()).norm(dim=-1) * 1000
    assert miss[:, 0].mean() < 80
    assert miss.mean() < 90


def of_scene(d: Scene) -> Iterator[KeypointBatch]:
    for start in range(0, d.xy.shape[1], 24):
        stop = min(start + 24, d.xy.shape[1])
        xy = torch.tensor(d.xy[:, start:stop, None], dtype=torch.float32)
        yield KeypointBatch(
            start=start,
            rate=Fraction(int(d.rate)),
            ids=torch.tensor([0]),
            time_s=torch.arange(start, stop, dtype=torch.float64) / d.rate,
            image_px=xy,
            xy_px=xy,
            confidence=torch.tensor(d.confidence[:, start:stop, None], dtype=torch.float32),
        )


def elsewhere() -> Body:
    """A body of the user's own, whose pelvis at rest is where SMPL has it."""
    move, k = torch.tensor(SMPL_PELVIS, dtype=torch.float64), BODY.keypoints
    moved = replace(k, joints_template=k.joints_template + move, points_template=k.points_template + move)
    return replace(BODY, sha256="another", keypoints=moved)


def pelvis(out: list[PoseBatch], body: Body) -> Tensor:
    return torch.cat(
        [pelvis_at_rest(body.keypoints, b.betas.flatten(0, 1).double()) + b.transl.flatten(0, 1) for b in out]
    )


def test_another_body_stands_where_the_networks_own_does() -> None:
    d, net = scene(3, "person", frames=24), load_net(RegressConfig())
    own, other = (
        list(regress(of_scene(d), RegressConfig(), d.rig, b, net, window=24)) for b in (BODY, elsewhere())
    )
    assert torch.allclose(pelvis(own, BODY), pelvis(other, elsewhere()), atol=1e-5)
    assert (own[0].transl - other[0].transl).norm(dim=-1).min() > 0.2
    assert own[0].betas.abs().max() > 0.01
    assert not other[0].betas.any(), "of another space of shapes"


# --- Networks on pictures -----------------------------------------------------------------------------------


def people_in_pictures(frames: int, first: int = 0) -> Iterator[KeypointBatch]:
    """Person p stands in the p-th half of every picture, but view 1 does not show person 0 in frame 5, and
    has a keypoint of person 1 far outside of frame 7."""
    for start in range(first, frames, WINDOW):
        t = torch.arange(start, min(start + WINDOW, frames))
        g = torch.Generator().manual_seed(1)
        points = torch.rand(25, 2, generator=g) * 40 + torch.tensor([20.0, 30.0])
        xy = points + torch.tensor([[0.0, 0], [80, 0]])[:, None]
        xy = xy.expand(VIEWS, len(t), -1, -1, -1).clone()
        trust = torch.ones(VIEWS, len(t), PEOPLE, 25)
        if start <= 5 < start + WINDOW:
            xy[1, 5 - start, 0], trust[1, 5 - start, 0] = torch.nan, 0
        if start <= 7 < start + WINDOW:
            xy[1, 7 - start, 1, 0] = 1e8
        yield KeypointBatch(start, Fraction(30), torch.arange(PEOPLE), t / 30.0, xy, xy, trust)


def level(t: int, v: int, p: int) -> int:
    return 30 + 3 * t + v + 100 * p


def filmed(frames: int, start: int) -> Iterator[FrameBatch]:
    """Left half and right half have a grey that tells frame, view and half; view 2 has no frame 3."""
    for first in range(start, frames, 3):
        views = []
        for v in range(VIEWS):
            pictures: list[av.VideoFrame | None] = []
            for t in range(first, min(first + 3, frames)):
                image = np.full((144, 160), 128, np.uint8)
                image[:96, :80], image[:96, 80:] = level(t, v, 0), level(t, v, 1)
                frame = av.VideoFrame.from_ndarray(image, "yuv420p")
                pictures.append(None if (v, t) == (2, 3) else frame)
            views.append(tuple(pictures))
        yield FrameBatch(first, tuple(views))


class Brightness(torch.nn.Module):
    """The mean of a crop of 160 pixels, back in the range of luma."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 160, 160)
        self.batches.append(len(images))
        red = images[:, 0].mean((1, 2)) * 0.229 + 0.485
        return (red * 219 + 16)[:, None].expand(-1, 2048)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> ImageRegressor:
    """Its ``said`` keeps what it is asked of: features and which views are seen."""
    net = ImageRegressor(ImageConfig("resnet50", "average", size=160)).eval().requires_grad_(False)
    net.encoder = Brightness()
    regress_of = net.regress
    net.said = []

    def spy(features: Tensor, seen: Tensor, *rest: Tensor) -> Regression:
        net.said.append((features[..., 0].clone(), seen.clone()))
        return regress_of(features, seen, *rest)

    monkeypatch.setattr(net, "regress", spy)
    return net


@pytest.mark.parametrize("size", [5, 24, 1000])
def test_crops_of_every_view_person_and_frame_find_their_place(net: ImageRegressor, size: int) -> None:
    cfg, frames = RegressConfig(batch_size=size), 20
    stream = regress(
        people_in_pictures(frames), cfg, RIG, BODY, net, window=WINDOW, decode=lambda at: filmed(frames, at)
    )
    out = list(stream)
    assert [len(b.transl) for b in out] == [8, 8, 4]
    features, seen = (torch.cat(x).view(frames, PEOPLE, VIEWS) for x in zip(*net.said, strict=True))
    for t, p, v in np.ndindex(frames, PEOPLE, VIEWS):
        shown = (v, t) != (2, 3) and (t, p, v) not in [(5, 0, 1), (7, 1, 1)]
        assert bool(seen[t, p, v]) == shown
        if shown:
            assert abs(float(features[t, p, v]) - level(t, v, p)) < 0.6
    assert max(net.encoder.batches) <= size
    assert sum(net.encoder.batches) == int(seen.sum())
    assert all(b.posed.all() for b in out)


def test_contrast_is_stretched_before_a_crop_is_resized(net: ImageRegressor) -> None:
    net.config = replace(net.config, contrast="stretch")
    list(
        regress(
            people_in_pictures(8),
            RegressConfig(),
            RIG,
            BODY,
            net,
            window=WINDOW,
            decode=lambda at: filmed(8, at),
        )
    )
    features, seen = (torch.cat(x) for x in zip(*net.said, strict=True))
    # Every crop is of one grey, and its darkest value becomes 0.
    assert seen.sum() > 20
    assert (features[seen] - 16).abs().max() < 0.6


def test_a_person_is_placed_by_the_crop_that_was_cut(
    net: ImageRegressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the box, of which whole pixels are cut: without distortion the two agree in every view."""
    rig = replace(RIG, dist=np.zeros_like(RIG.dist))
    boxes: list[Tensor] = []
    said = net.regress

    def spy(features: Tensor, seen: Tensor, box: Tensor, *rest: Tensor) -> Regression:
        boxes.append(box)
        return said(features, seen, box, *rest)

    monkeypatch.setattr(net, "regress", spy)
    items = [replace(c, xy_px=c.image_px) for c in people_in_pictures(8)]
    list(
        regress(iter(items), RegressConfig(), rig, BODY, net, window=WINDOW, decode=lambda at: filmed(8, at))
    )
    box = torch.cat(boxes)
    found = box[box.isfinite().all(-1)].double()
    first = found[:, :2] - found[:, 2:] / 2 + 0.5
    assert len(found) > 20
    # Height and width may differ by a pixel, whose half is in the edges of the mean side.
    assert ((4 * first).round() / 4 - first).abs().max() < 1e-4


def test_a_network_of_smpls_body_places_the_body_that_ships_too(net: ImageRegressor) -> None:
    """Seen by one camera, where the network's own word is all there is."""
    said = []
    for body, means in ((elsewhere(), "smpl"), (BODY, "smpl"), (BODY, "anny")):
        net.config = replace(net.config, body=means)
        items = (
            replace(c, image_px=c.image_px[:1], xy_px=c.xy_px[:1], confidence=c.confidence[:1])
            for c in people_in_pictures(8)
        )
        stream = regress(
            items,
            RegressConfig(),
            RIG.select(RIG.names[:1]),
            body,
            net,
            window=WINDOW,
            decode=lambda at: (FrameBatch(f.start, f.pictures[:1]) for f in filmed(8, at)),
        )
        said.append(pelvis(list(stream), body))
    assert torch.allclose(said[0], said[1], atol=2e-2), "but for what the shape moves"
    apart = float((said[1] - said[2]).norm(dim=-1).mean())
    assert abs(apart - torch.tensor(SMPL_PELVIS).norm()) < 0.02


def test_a_restart_with_pictures_reads_them_from_its_own_frame(net: ImageRegressor) -> None:
    cfg, asked = RegressConfig(batch_size=24), []

    def decode(at: int) -> Iterator[FrameBatch]:
        asked.append(at)
        return filmed(20, at)

    out = list(regress(people_in_pictures(20), cfg, RIG, BODY, net, window=WINDOW, decode=decode))
    rest = regress(
        people_in_pictures(20, WINDOW), cfg, RIG, BODY, net, window=WINDOW, start=WINDOW, decode=decode
    )
    for a, b in zip(out[1:], rest, strict=True):
        assert torch.equal(a.transl, b.transl)
    assert asked == [0, WINDOW]


def test_an_abandoned_stage_stops_its_decoder(net: ImageRegressor) -> None:
    closed = []

    def decode(at: int) -> Iterator[FrameBatch]:
        try:
            yield from filmed(200, at)
        finally:
            closed.append(True)

    cfg = RegressConfig(batch_size=24)
    stream = regress(people_in_pictures(200), cfg, RIG, BODY, net, window=WINDOW, decode=decode)
    next(stream)
    stream.close()
    assert closed


def test_pictures_are_needed_where_a_network_looks_at_them(net: ImageRegressor) -> None:
    with pytest.raises(InputError, match="no videos"):
        next(regress(people_in_pictures(8), RegressConfig(), RIG, BODY, net, window=WINDOW))


@pytest.mark.cuda
def test_on_a_gpu_the_same() -> None:
    d = scene(3, "person", frames=24)
    there, here = RegressConfig(device="cuda"), RegressConfig(device="cpu")
    (a,), (b,) = (regress(of_scene(d), c, d.rig, BODY, load_net(c), window=24) for c in (there, here))
    assert (a.transl - b.transl).norm(dim=-1).max() < 1e-3
    assert geodesic_degrees(a.body_pose, b.body_pose).max() < 0.5


@pytest.mark.cuda
@pytest.mark.parametrize("fusion", ["attention", "mlp"])
def test_on_a_gpu_pictures_give_the_same(fusion: FusionName) -> None:
    """In groups of which the first is computed, the second recorded, and the others replayed."""
    frames = 5 * WINDOW
    there, here = (RegressConfig(device=d, batch_size=WINDOW * PEOPLE * VIEWS) for d in ("cuda", "cpu"))
    config = ImageConfig("resnet50", fusion)
    a, b = (
        list(
            regress(
                people_in_pictures(frames),
                cfg,
                RIG,
                BODY,
                ImageRegressor(config).eval().requires_grad_(False).to(cfg.device),
                window=WINDOW,
                decode=partial(filmed, frames),
            )
        )
        for cfg in (there, here)
    )
    assert len(a) == len(b) == 5
    for c, e in zip(a, b, strict=True):
        assert torch.equal(c.posed, e.posed)
        shown = c.posed
        assert geodesic_degrees(c.body_pose, e.body_pose)[shown].max() < 2, "bfloat16 in the encoder"
        assert (c.betas - e.betas)[shown].abs().max() < 0.05


# --- Which network ------------------------------------------------------------------------------------------


def test_networks_by_name_and_file(tmp_path: Path) -> None:
    assert load_net(RegressConfig(weights="none")) is None
    assert describe(RegressConfig(weights="none"), None).startswith("none")
    default = load_net(RegressConfig())
    assert isinstance(default, CalibratedNet)
    save_regressor(default, tmp_path / "own.safetensors")
    own = load_net(RegressConfig(weights=str(tmp_path / "own.safetensors")))
    assert isinstance(own, CalibratedNet)
    assert digest(own) == digest(default)
    assert describe(RegressConfig(), default).startswith("calibrated keypoints; weights: default (")
    own.start[0] += 1
    assert digest(own) != digest(default)
    pictures = ImageRegressor(ImageConfig("convnext_tiny_pooled", "average"))
    save_image_regressor(pictures, tmp_path / "pictures.safetensors")
    loaded = load_net(RegressConfig(weights=str(tmp_path / "pictures.safetensors")))
    assert isinstance(loaded, ImageRegressor)
    assert digest(loaded) == digest(pictures)
    said = describe(RegressConfig(weights="pictures.safetensors"), loaded)
    assert "convnext_tiny_pooled on pictures, views fused by average; weights: pictures.safetensors (" in said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "nowhere.pt"}, r"nowhere\.pt: cannot read"),
        ({"weights": "nowhere.safetensors"}, r"nowhere\.safetensors: cannot read.*default, .* or none"),
        ({"device": "cuda:99"}, r"regress\.device .*: cuda:99 cannot be used"),
        ({"device": "toaster"}, r"regress\.device .*: toaster cannot be used"),
    ],
)
def test_mistakes(values: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_net(RegressConfig(**values))


@pytest.mark.parametrize("name", ["notes.txt", "notes.safetensors", "notes.pt"])
def test_a_file_of_something_else_is_refused_with_what_is_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("epochs went well\n" * 20)
    with pytest.raises(InputError) as told:
        load_net(RegressConfig(weights=str(tmp_path / name)))
    text = str(told.value)
    assert text.startswith(f"regress.weights: {tmp_path / name}: holds no ")
    assert "the command `train` has made" in text
    assert "default, the network that ships, or none" in text
    assert "Error" not in text, "of the exception nobody learns anything"
