"""SPIN's forward pass and the multi-view ones by hand, files of weights, and where people stand."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

from models.body import load_body, pose_keypoints
from models.crops import Contrast
from models.encoders import FEATURE_SIZES, EncoderName
from models.fusion import FusionName
from models.image_regressor import (
    ImageConfig,
    ImageRegressor,
    ViewEstimate,
    load_image_regressor,
    place_body,
    save_image_regressor,
    spin_six_to_matrix,
    weak_perspective,
)
from models.rotations import geodesic_degrees
from models.weights import save_weights
from pipeline.array_types import Array
from pipeline.errors import InputError

FOCAL_PX = 5000.0
"""Of SPIN's camera, pixels of the crop."""


@cache
def network(encoder: EncoderName, fusion: FusionName, contrast: Contrast = "none") -> ImageRegressor:
    """With random weights whose head moves its state by more than rounding."""
    net = (
        ImageRegressor(ImageConfig(encoder, fusion, contrast, "smpl", spin_camera=True))
        .eval()
        .requires_grad_(False)
    )
    g = torch.Generator().manual_seed(4)
    for key, value in net.state_dict().items():
        if "running_mean" in key:
            value.copy_(0.1 * torch.randn(value.shape, generator=g))
        if "running_var" in key:
            value.copy_(0.5 + torch.rand(value.shape, generator=g))
        if key.startswith("head.dec"):
            value.copy_(0.03 * torch.randn(value.shape, generator=g))
        if key.startswith("fusion.outside"):
            value.copy_(0.02 * torch.randn(value.shape, generator=g))
    net.head.init_shape.copy_(torch.linspace(-1, 1, 10))
    return net


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, 224, 224, generator=torch.Generator().manual_seed(2))


def resnet_by_hand(s: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-50 of 3, 4, 6, 3 bottlenecks, the stride in the middle convolution."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = s[f"{name}.running_mean"][:, None, None], s[f"{name}.running_var"][:, None, None]
        x = (x - mean) / (var + 1e-5).sqrt()
        return x * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]

    x = norm("bn1", F.conv2d(x, s["conv1.weight"], stride=2, padding=3)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = norm(f"{at}.bn1", F.conv2d(x, s[f"{at}.conv1.weight"])).relu()
            y = norm(f"{at}.bn2", F.conv2d(y, s[f"{at}.conv2.weight"], stride=stride, padding=1)).relu()
            y = norm(f"{at}.bn3", F.conv2d(y, s[f"{at}.conv3.weight"]))
            if block == 0:
                x = norm(f"{at}.downsample.1", F.conv2d(x, s[f"{at}.downsample.0.weight"], stride=stride))
            x = (x + y).relu()
    return x.mean((2, 3))


def head_by_hand(s: Mapping[str, Tensor], features: Array) -> tuple[Array, Array, Array]:
    """Three steps of residual feedback on the 157 numbers; rotations, betas, camera."""
    w = {k.removeprefix("head."): v.double().numpy() for k, v in s.items() if k.startswith("head.")}

    def linear(name: str, x: Array) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    parts = ("init_pose", "init_shape", "init_cam")
    state = np.tile(np.concatenate([w[p] for p in parts], 1), (len(features), 1))
    for _ in range(3):
        x = linear("fc2", linear("fc1", np.concatenate([features, state], 1)))
        state = state + np.concatenate([linear(d, x) for d in ("decpose", "decshape", "deccam")], 1)
    six = state[:, :144].reshape(-1, 24, 3, 2)
    rotations = np.empty((len(features), 24, 3, 3))
    for n, j in np.ndindex(rotations.shape[:2]):
        a1, a2 = six[n, j].T
        b1 = a1 / np.linalg.norm(a1)
        b2 = a2 - (b1 @ a2) * b1
        b2 /= np.linalg.norm(b2)
        rotations[n, j] = np.stack([b1, b2, np.cross(b1, b2)], 1)
    return rotations, state[:, 144:154], state[:, 154:]


def test_single_view_is_spins_forward() -> None:
    net, x = network("resnet50", "single"), images(2, 1)
    s = net.state_dict()
    encoder = {k.removeprefix("encoder."): v for k, v in s.items() if k.startswith("encoder.")}
    features = resnet_by_hand(encoder, x[:, 0]).double().numpy()
    rotations, betas, camera = head_by_hand(s, features)
    said = net(x, torch.ones(2, 1, dtype=torch.bool))
    assert np.abs(said.orient[:, 0].numpy() - rotations[:, 0]).max() < 1e-5
    assert np.abs(said.body_pose.numpy() - rotations[:, 1:]).max() < 1e-5
    assert np.abs(said.betas.numpy() - betas).max() < 1e-5 * np.abs(betas).max()
    assert np.abs(said.camera[:, 0].numpy() - camera).max() < 1e-5 * np.abs(camera).max()
    start = net.head.init_pose.view(24, 3, 2)[1:, :, 0].numpy()
    assert np.abs(rotations[:, 1:, :, 0] - start).max() > 0.1, "the head must have moved"


@pytest.mark.parametrize(
    ("encoder", "fusion"),
    [
        ("resnet50", "average"),
        ("resnet50", "mlp"),
        ("convnext_tiny", "mlp"),
        ("convnext_tiny", "conv1d"),
        ("convnext_tiny_pooled", "attention"),
    ],
)
def test_two_views_take_root_and_camera_from_each_and_the_body_from_both(
    encoder: EncoderName, fusion: FusionName
) -> None:
    """The fused features themselves are held to their definition in test_fusion.py."""
    net = deepcopy(network(encoder, fusion)).double()
    s, both = net.state_dict(), torch.ones(2, 2, dtype=torch.bool)
    rng = torch.Generator().manual_seed(6)
    features = torch.randn(2, 2, FEATURE_SIZES[encoder], generator=rng).abs().double()
    said = net.estimate(features, both)
    fused, there = net.fusion(features, both)
    rotations, betas, _ = head_by_hand(s, fused[there].numpy())
    assert np.abs(said.body_pose.numpy() - rotations[:, 1:]).max() < 1e-9
    assert np.abs(said.betas.numpy() - betas).max() < 1e-9
    for v in range(2):
        own, _, camera = head_by_hand(s, features[:, v].numpy())
        assert np.abs(said.orient[:, v].numpy() - own[:, 0]).max() < 1e-9
        assert np.abs(said.camera[:, v].numpy() - camera).max() < 1e-9
        assert np.abs(own[:, 1:] - rotations[:, 1:]).max() > 1e-3, "the fused pose must be another one"


def test_pairs_and_single_views_are_averaged_on_the_manifold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rotations about one axis: the mean is half-way, whatever their entries are."""
    net = network("resnet50", "single")
    turned = Rotation.from_rotvec(np.array([[0.2, 0, 0], [0.5, 0, 0]])).as_matrix()
    six = torch.from_numpy(turned[:, :, :2].reshape(2, 6)).float()

    def says(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pose = spin_six_to_matrix(six.repeat(len(features) // 2, 1))[:, None].expand(-1, 24, 3, 3)
        return pose, torch.tensor([[1.0], [3.0]]).repeat(len(features) // 2, 10), torch.ones(len(features), 3)

    monkeypatch.setattr(net.head, "forward", says)
    both = net.estimate(torch.zeros(1, 2, 2048), torch.tensor([[True, True]]))
    middle = torch.from_numpy(Rotation.from_rotvec([0.35, 0, 0]).as_matrix()).float()
    assert geodesic_degrees(both.body_pose, middle).max() < 0.2
    assert torch.allclose(both.betas, torch.full((1, 10), 2.0))
    one = net.estimate(torch.zeros(1, 2, 2048), torch.tensor([[False, True]]))
    assert geodesic_degrees(one.body_pose, torch.from_numpy(turned[1]).float()).max() < 0.01
    assert torch.allclose(one.betas, torch.full((1, 10), 3.0))


def test_views_that_are_not_seen_are_not_looked_at() -> None:
    net, x = network("convnext_tiny_pooled", "attention"), images(2, 2)
    seen = torch.tensor([[True, False], [True, True]])
    x[0, 1] = torch.nan
    said = net(x, seen)
    by_view = torch.zeros(2, 2, 768)
    by_view[seen] = net.encoder(x[seen])
    assert torch.allclose(said.body_pose, net.estimate(by_view, seen).body_pose, atol=1e-5)
    alone = net(x[:1, :1], seen[:1, :1])
    assert torch.allclose(said.body_pose[:1], alone.body_pose, atol=1e-5)
    assert torch.allclose(said.orient[0, 0], alone.orient[0, 0], atol=1e-5)
    assert said.body_pose.isfinite().all()


def test_nobody_is_nan() -> None:
    net, body = network("resnet50", "average"), load_body().keypoints
    seen = torch.tensor([[False, False], [True, False]])
    box = torch.tensor([320.0, 240, 200]).expand(2, 2, 3).clone()
    box[~seen] = torch.nan
    K = torch.tensor([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]).expand(2, 2, 3, 3)
    found = net.regress(torch.zeros(2, 2, 2048), seen, box, K, body.to(dtype=torch.float32))
    for x in (found.body_pose, found.betas, found.view_orient, found.view_transl, found.pose_sigma):
        assert x[0].isnan().all()
    for x in (found.body_pose[1], found.betas[1], found.view_orient[1, 0], found.view_transl[1, 0]):
        assert x.isfinite().all()


def test_the_initial_state_is_a_standing_person_before_the_camera() -> None:
    head = ImageRegressor(ImageConfig("resnet50", "single")).head
    columns = head.init_pose.view(24, 3, 2)
    assert torch.allclose((columns**2).sum(1), torch.ones(24, 2), atol=1e-5)
    assert torch.allclose(columns[0], torch.tensor([[1.0, 0], [0, -1], [0, 0]]), atol=1e-6)
    rotations = spin_six_to_matrix(head.init_pose.view(24, 6))
    assert torch.allclose(rotations[:, :, :2], columns, atol=1e-5)
    assert 1 < geodesic_degrees(rotations[1:], torch.eye(3)).max() < 80


# --- Files --------------------------------------------------------------------------------------------------


def spin_names(net: ImageRegressor) -> dict[str, Tensor]:
    """As in SPIN's model_checkpoint.pt: encoder and head side by side."""
    return {k.split(".", 1)[1]: v for k, v in net.state_dict().items()}


def reference_names(net: ImageRegressor) -> dict[str, Tensor]:
    """As in the reference's checkpoints."""
    out = {}
    for key, value in net.state_dict().items():
        part, rest = key.split(".", 1)
        if part == "encoder":
            part = "resnet" if net.config.encoder == "resnet50" else "encoder"
        elif part == "head":
            part = "regressor"
        else:
            part, (_, number, last) = net.config.fusion, rest.split(".")
            rest = f"{int(number) - (part == 'mlp')}.{last}"
        out[f"{part}.{rest}"] = value
    return out


def assert_same(a: ImageRegressor, b: ImageRegressor) -> None:
    assert a.config == b.config
    for (key, x), (other, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(x, y), key


def test_spins_checkpoint_loads_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = network("resnet50", "single", "stretch")
    optimiser = {"state": {}, "param_groups": [{"lr": 5e-5, "params": [0]}]}
    state = {k: v for k, v in spin_names(net).items() if "num_batches" not in k}
    torch.save({"model": state, "optimizer": optimiser, "epoch": 3}, tmp_path / "model_checkpoint.pt")
    assert_same(load_image_regressor(tmp_path / "model_checkpoint.pt"), net)
    torch.save(spin_names(net), tmp_path / "bare.pt")
    assert_same(load_image_regressor(tmp_path / "bare.pt"), net)
    legacy = tmp_path / "legacy.pt"
    torch.save({"model": spin_names(net)}, legacy, _use_new_zipfile_serialization=False)
    assert_same(load_image_regressor(legacy), net)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("encoder", "fusion"),
    [("resnet50", "average"), ("resnet50", "mlp"), ("convnext_tiny", "mlp"), ("convnext_tiny", "conv1d")],
)
def test_the_references_checkpoints_load_by_key_and_their_fusion_is_warned_of(
    tmp_path: Path, encoder: EncoderName, fusion: FusionName, caplog: pytest.LogCaptureFixture
) -> None:
    net = network(encoder, fusion)
    names = reference_names(net)
    if fusion == "mlp":
        assert "mlp.0.weight" in names
    torch.save({"model": names, "epoch": 0}, tmp_path / "2024.pt")
    assert_same(load_image_regressor(tmp_path / "2024.pt"), net)
    (warned,) = caplog.messages
    assert f"2024.pt: weights of the reference's {fusion} fusion" in warned
    save_image_regressor(net, tmp_path / "own.safetensors")
    load_image_regressor(tmp_path / "own.safetensors")
    assert len(caplog.messages) == 1


def test_own_weights_bring_their_configuration(tmp_path: Path) -> None:
    net = network("convnext_tiny_pooled", "attention")
    save_image_regressor(net, tmp_path / "weights.safetensors")
    loaded = load_image_regressor(tmp_path / "weights.safetensors")
    assert_same(loaded, net)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not [*tmp_path.glob("*.part")]


def test_the_crops_size_goes_with_the_weights(tmp_path: Path) -> None:
    net = ImageRegressor(ImageConfig("resnet50", "single", size=128)).eval()
    seen, crops = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 3, 128, 128)
    with torch.no_grad():
        assert net(crops, seen).betas.shape == (1, 10)
    with pytest.raises(ValueError, match=r"128, 128"):
        net(torch.zeros(1, 1, 3, 224, 224), seen)
    save_image_regressor(net, tmp_path / "weights.safetensors")
    assert load_image_regressor(tmp_path / "weights.safetensors").config.size == 128
    config = asdict(net.config)
    del config["size"]  # files of before there were sizes
    save_weights(tmp_path / "old.safetensors", net.state_dict(), {"kind": "images", **config})
    assert load_image_regressor(tmp_path / "old.safetensors").config.size == 224
    save_weights(tmp_path / "odd.safetensors", net.state_dict(), {"kind": "images", **config, "size": 100})
    with pytest.raises(InputError, match="crops of 100 pixels"):
        load_image_regressor(tmp_path / "odd.safetensors")


def test_a_wrong_file_says_which_keys(tmp_path: Path) -> None:
    state = spin_names(network("resnet50", "single"))
    del state["layer3.2.conv1.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["fc2.weight"] = torch.zeros(4, 4)
    torch.save({"model": state}, tmp_path / "wrong.pt")
    with pytest.raises(InputError) as told:
        load_image_regressor(tmp_path / "wrong.pt")
    for words in (
        "wrong.pt",
        "missing: encoder.layer3.2.conv1.weight",
        "unexpected: encoder.extra.weight",
        "head.fc2.weight (4, 4) instead of (1024, 1024)",
    ):
        assert words in str(told.value)
    torch.save({"regressor.fc1.weight": torch.zeros(2), "mlp.weight": torch.zeros(2)}, tmp_path / "mlp.pt")
    with pytest.raises(InputError, match=r"unexpected: fusion\.net\.weight"):
        load_image_regressor(tmp_path / "mlp.pt")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run!",))


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("evil.pt", "text.pt", "empty.pt", "text.safetensors", "none.pt"):
        with pytest.raises(InputError, match=name):
            load_image_regressor(tmp_path / name)
    assert "run!" not in capsys.readouterr().out


# --- Where people stand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cx", "cy"), [(960.0, 540.0), (1500.0, 300.0), (300.0, 700.0)])
def test_the_crops_camera_looks_straight_at_the_crop(cx: float, cy: float) -> None:
    """There the person is as SPIN's camera has it; only the focal length, and so the distance, are others."""
    body, f, side = load_body().keypoints, 1000.0, 200.0
    K = torch.tensor([[f, 0, 960], [0, f, 540], [0, 0, 1]], dtype=torch.float64)
    up = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    s, tx, ty = camera = torch.tensor([0.8, 0.05, 0.3], dtype=torch.float64)
    pose = torch.eye(3, dtype=torch.float64).expand(1, 23, 3, 3)
    betas = torch.linspace(-1, 1, 10, dtype=torch.float64)[None]
    box = torch.tensor([[[cx, cy, side]]], dtype=torch.float64)
    orient, transl = place_body(
        ViewEstimate(pose, betas, up[None, None], camera[None, None]), box, K[None, None], body
    )
    _, points = pose_keypoints(body, torch.cat([orient[0], pose[0]]), betas[0], transl[0, 0])
    ray = np.array([(cx - 960) / f, (cy - 540) / f, 1])
    axis = np.cross([0, 0, 1], ray)
    turn, _ = Rotation.align_vectors(np.stack([ray, axis]), np.stack([[0, 0, 1], axis])) if axis.any() else (
        Rotation.identity(), 0,
    )  # fmt: skip
    looking = turn.inv().apply(points.numpy())
    _, there = pose_keypoints(body, torch.cat([up[None], pose[0]]), betas[0], camera.new_zeros(3))
    away = 2 * f / (side * float(s) / np.linalg.norm(ray))
    want = there.numpy() + np.array([float(tx), float(ty), away])
    assert np.allclose(looking, want, atol=1e-9)
    # The picture stretches what is off its middle outwards, not across: there the body is as large as in
    # the crop.
    px = ((points / points[:, 2:]) @ K[:2].T).numpy() - [cx, cy]
    out = np.array([cx - 960, cy - 540])
    across = np.array([-out[1], out[0]]) / np.linalg.norm(out) if out.any() else np.array([0.0, 1.0])
    by_crop = side / 2 * float(s) * want[:, :2] @ across
    assert np.abs(px @ across - by_crop).max() < 0.06 * np.ptp(by_crop)


def test_a_person_straight_ahead_is_as_spin_has_it() -> None:
    body = load_body().keypoints
    K = torch.tensor([[FOCAL_PX, 0, 112], [0, FOCAL_PX, 112], [0, 0, 1]], dtype=torch.float64)
    said = ViewEstimate(
        torch.eye(3, dtype=torch.float64).expand(1, 23, 3, 3),
        torch.zeros(1, 10, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64)[None, None],
        torch.tensor([[[0.9, 0.1, -0.2]]], dtype=torch.float64),
    )
    box = torch.tensor([[[112.0, 112, 224]]], dtype=torch.float64)
    orient, transl = place_body(said, box, K[None, None], body)
    assert torch.allclose(orient[0, 0], torch.eye(3, dtype=torch.float64))
    want = torch.tensor([0.1, -0.2, 2 * FOCAL_PX / (224 * 0.9)], dtype=torch.float64)
    assert torch.allclose(transl[0, 0], want, rtol=1e-6)
    empty = place_body(replace(said, camera=torch.zeros(1, 1, 3).double()), box, K[None, None], body)[1]
    assert empty.isfinite().all()


def test_the_camera_is_what_places_the_body() -> None:
    rng = np.random.default_rng(3)
    said = ViewEstimate(
        torch.eye(3).expand(5, 23, 3, 3), torch.from_numpy(rng.normal(size=(5, 10))).float(),
        torch.eye(3).expand(5, 1, 3, 3), torch.from_numpy(rng.uniform(0.3, 1, (5, 1, 3))).float(),
    )  # fmt: skip
    box = torch.from_numpy(rng.uniform(200, 500, (5, 1, 3))).float()
    K = torch.tensor([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]]).expand(5, 1, 3, 3)
    body = load_body().keypoints.to(dtype=torch.float32)
    _, transl = place_body(said, box, K, body)
    back = weak_perspective(transl, said.betas, box, K, body)
    torch.testing.assert_close(back, said.camera, atol=1e-4, rtol=1e-4)
