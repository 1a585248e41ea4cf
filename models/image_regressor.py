"""Image regressors: crops of a person from several views → SMPL, as SPIN and Multi-SPIN.

An encoder for each view, a fusion over the views, and SPIN's iterative head (Kolotouros et al. 2019, after
Kanazawa et al. 2018). The head gives root orientation and camera of each view's features, and body pose and
shape of the fused features.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from models.body import KeypointBody, pelvis_at_rest
from models.crops import CROP_PX, Contrast
from models.encoders import FEATURE_SIZES, EncoderName, extract_features, make_encoder
from models.fusion import FusionName, Single, make_fusion
from models.priors import load_pose_prior
from models.regressors.regression import Regression, average_rotations, blank_unseen
from models.rotations import rotation_between, solve_3x3
from models.weights import read_weights, save_weights
from pipeline.config import reason
from pipeline.errors import InputError
from pipeline.skeleton import SMPL_24

_log = logging.getLogger(__name__)

ITERATIONS: Final = 3
CROP_SIZES: Final = range(128, CROP_PX + 1, 32)
_MIN_SCALE: Final = 0.1
"""Least scale of a person in the crop, SPIN's s, 12 of 224 pixels: less is no person, or no weights."""
SMPL_PELVIS: Final = (-0.0018, -0.2233, 0.0282)
"""J_pelvis of the neutral SMPL at betas 0, metres, where the body that ships has its origin."""
POSE_SIGMA_RAD: Final = 0.35
"""Expected error of a joint rotation, as an image regressor does not estimate it."""


@dataclass(frozen=True)
class ImageConfig:
    """Architecture of an image regressor, and how its crops are made."""

    encoder: EncoderName = "resnet50"
    fusion: FusionName = "attention"
    contrast: Contrast = "none"
    body: Literal["anny", "smpl"] = "anny"
    """Body model of the betas and of the pelvis at rest: the one that ships, or SMPL."""
    size: int = CROP_PX
    """Side of its crops, pixels: 128 to 224, in steps of the encoders' 32."""
    spin_camera: bool = False
    """Trained as SPIN and the reference are: as if the camera looked straight at the crop, wherever in the
    picture that is."""

    def __post_init__(self) -> None:
        if self.size not in CROP_SIZES:
            raise ValueError(
                f"crops of {self.size} pixels: expected one of {', '.join(map(str, CROP_SIZES))}"
            )


@dataclass(frozen=True)
class ViewEstimate:
    """Estimate of an image regressor for N people in frames and V views."""

    body_pose: Tensor
    """(N, J − 1, 3, 3)"""
    betas: Tensor
    """(N, 10)"""
    orient: Tensor
    """(N, V, 3, 3) root orientation, body → the camera that looks straight at the crop."""
    camera: Tensor
    """(N, V, 3) SPIN's weak perspective s, tx, ty: scale by half the crop, and metres right and down."""


def spin_six_to_matrix(x: Tensor) -> Tensor:
    """SPIN's 6D rotations (..., 6), 3 × 2 matrices row by row, → (..., 3, 3) by Gram–Schmidt."""
    a, b = x.view(*x.shape[:-1], 3, 2).unbind(-1)
    first = nn.functional.normalize(a, dim=-1)
    second = nn.functional.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


class IterativeHead(nn.Module):
    """SPIN's regressor of D features: three steps that update pose, shape and camera.

    Each step is two linear layers, without activations, and an output layer on the features and the state.
    """

    init_pose: Tensor
    init_shape: Tensor
    init_cam: Tensor

    def __init__(self, size: int) -> None:
        """size: D. The initial state is the pose prior's mean, upright before the camera; loaded weights have
        their own."""
        super().__init__()
        self.fc1 = nn.Linear(size + 157, 1024)
        self.drop1 = nn.Dropout()
        self.fc2 = nn.Linear(1024, 1024)
        self.drop2 = nn.Dropout()
        self.decpose, self.decshape, self.deccam = (nn.Linear(1024, k) for k in (6 * len(SMPL_24), 10, 3))
        for layer in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)
        self.register_buffer("init_pose", torch.from_numpy(_mean_six()))
        self.register_buffer("init_shape", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (M, D) → rotations (M, J, 3, 3), the root's body → crop's camera; betas (M, 10); camera
        (M, 3)."""
        pose, shape, cam = (
            x.expand(len(features), -1) for x in (self.init_pose, self.init_shape, self.init_cam)
        )
        for _ in range(ITERATIONS):
            x = self.drop1(self.fc1(torch.cat([features, pose, shape, cam], 1)))
            x = self.drop2(self.fc2(x))
            pose, shape, cam = self.decpose(x) + pose, self.decshape(x) + shape, self.deccam(x) + cam
        return spin_six_to_matrix(pose.view(-1, len(SMPL_24), 6)), shape, cam


def _mean_six() -> NDArray[np.float32]:
    """Mean of the pose prior, upright before the camera, as SPIN's 6D rotations (1, 6 J)."""
    prior = load_pose_prior()
    mean = (prior.weights[:, None] * prior.means).sum(0).double().reshape(-1, 3)
    rotations = roma.rotvec_to_rotmat(torch.cat([mean.new_tensor([[math.pi, 0, 0]]), mean]))
    return np.asarray(rotations[:, :, :2].reshape(1, -1), np.float32)


class ImageRegressor(nn.Module):
    """Crops of V views → ``ViewEstimate``; of known cameras → ``Regression``."""

    def __init__(self, config: ImageConfig, *, imagenet: bool = False, seed: int = 0) -> None:
        """imagenet: the encoder starts from ImageNet's weights. seed: of all other weights."""
        super().__init__()
        self.config = config
        self.features = size = FEATURE_SIZES[config.encoder]
        """Length of the encoder's feature vector."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = make_encoder(config.encoder, imagenet=imagenet)
            self.fusion = make_fusion(config.fusion, size)
            self.head = IterativeHead(size)

    def forward(self, images: Tensor, seen: Tensor) -> ViewEstimate:
        """images (N, V, 3, size, size) normalised, seen (N, V) bool: the other views are left out."""
        size = self.config.size
        if images.shape[-3:] != (3, size, size) or images.shape[:2] != seen.shape:
            raise ValueError(
                f"images {tuple(images.shape)} and seen {tuple(seen.shape)} must be "
                f"(N, V, 3, {size}, {size}) and (N, V)"
            )
        encoded = extract_features(self.encoder, images[seen])
        features = encoded.new_zeros(*seen.shape, self.features)
        features[seen] = encoded
        return self.estimate(features, seen)

    def estimate(self, features: Tensor, seen: Tensor) -> ViewEstimate:
        """features (N, V, D) of the views, seen (N, V) bool; undefined for a person whom no view shows."""
        outputs = self.head(features.flatten(0, 1))
        view_rotations, view_betas, camera = (x.view(*seen.shape, *x.shape[1:]) for x in outputs)
        if isinstance(self.fusion, Single):
            rotations, betas, valid = view_rotations, view_betas, seen
        else:
            fused, valid = self.fusion(features, seen)
            outputs = self.head(fused.flatten(0, 1))
            rotations, betas, _ = (x.view(*valid.shape, *x.shape[1:]) for x in outputs)
        pose = _mean_pose(rotations[:, :, 1:], valid)
        return ViewEstimate(pose, _mean_betas(betas, valid), view_rotations[:, :, 0], camera)

    def regress(
        self, features: Tensor, seen: Tensor, box: Tensor, K: Tensor, body: KeypointBody
    ) -> Regression:
        """features (N, V, D) of the views; seen (N, V) bool; box (N, V, 3) of the crops: centre x, y and
        side, pixels of the pinhole camera K (N, V, 3, 3); body: the model that ``config.body`` names."""
        estimate = self.estimate(features, seen)
        orient, transl = place_body(estimate, box, K, body)
        sigma = torch.full_like(estimate.body_pose[..., 0, 0], POSE_SIGMA_RAD)
        return blank_unseen(Regression(estimate.body_pose, estimate.betas, orient, transl, seen, sigma))


def place_body(estimate: ViewEstimate, box: Tensor, K: Tensor, body: KeypointBody) -> tuple[Tensor, Tensor]:
    """Root orientation (N, V, 3, 3) and SMPL translation (N, V, 3), metres, in the camera's own frame.

    The estimate is in the frame of a camera in the same place that looks straight at the crop's middle
    (``crop_camera``, of focal length f). The depth follows from the scale: 2 f / (side s), where SPIN has
    2 · 5000 / (224 s). box (N, V, 3) and K (N, V, 3, 3) as in ``ImageRegressor.regress``.
    """
    box = torch.where(box.isfinite(), box, 1)
    turn, focal = crop_camera(box, K)
    s, x, y = estimate.camera.unbind(-1)
    depth = 2 * focal / (box[..., 2] * s.clamp(min=_MIN_SCALE))
    rest = pelvis_at_rest(body, estimate.betas)[:, None]
    pelvis = (turn @ (rest + torch.stack([x, y, depth], -1))[..., None])[..., 0]
    return turn @ estimate.orient, pelvis - rest


def weak_perspective(transl: Tensor, betas: Tensor, box: Tensor, K: Tensor, body: KeypointBody) -> Tensor:
    """SPIN's s, tx, ty (N, V, 3) of an SMPL translation (N, V, 3): the inverse of ``place_body``."""
    turn, focal = crop_camera(box, K)
    rest = pelvis_at_rest(body, betas)[:, None]
    x, y, depth = ((turn.mT @ (rest + transl)[..., None])[..., 0] - rest).unbind(-1)
    return torch.stack([2 * focal / (box[..., 2] * depth), x, y], -1)


def crop_camera(box: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Camera that looks straight at the middle of a crop, in the place of the camera K.

    Its rotation (..., 3, 3), from its axes to those of the camera K, and its focal length (...), pixels.
    """
    middle = torch.cat([box[..., :2], torch.ones_like(box[..., 2:])], -1)
    ray = solve_3x3(K, middle)
    ahead = torch.zeros_like(ray)
    ahead[..., 2] = 1
    focal = (K[..., 0, 0] + K[..., 1, 1]) / 2 * ray.norm(dim=-1)
    return rotation_between(ahead, ray), focal


def _mean_pose(rotations: Tensor, valid: Tensor) -> Tensor:
    """Mean (N, J − 1, 3, 3) of hypotheses (N, H, J − 1, 3, 3) that are ``valid`` (N, H), on the manifold."""
    if rotations.shape[1] == 1:
        return rotations[:, 0]
    n, _, joints = rotations.shape[:3]
    by_joint = rotations.transpose(1, 2).flatten(0, 1)
    return average_rotations(by_joint, valid.repeat_interleave(joints, 0)).view(n, joints, 3, 3)


def _mean_betas(betas: Tensor, valid: Tensor) -> Tensor:
    """Mean (N, 10) of hypotheses (N, H, 10) that are ``valid`` (N, H)."""
    weight = valid.to(betas.dtype)[..., None]
    return (betas * weight).sum(1) / weight.sum(1).clamp(min=1)


def save_image_regressor(net: ImageRegressor, path: Path) -> None:
    """Write weights and configuration as safetensors, atomically."""
    save_weights(path, net.state_dict(), {"kind": "images", **asdict(net.config)})


_REMEDY: Final = "Give a .safetensors that the command `train` has made, or SPIN's model_checkpoint.pt."


def load_image_regressor(path: Path) -> ImageRegressor:
    """Network of a file of ``save_image_regressor``, or of SPIN's or the reference's ``.pt``.

    A ``.pt`` holds a state dict, alone or under the key ``model``, whose names tell the network; no code in
    it is run. A fusion of the reference gives a warning. In evaluation mode, without gradients, on the CPU.

    Raises:
        InputError: the file cannot be read, or its keys or shapes are not those of any network; the message
            lists the missing and the unexpected ones.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror}). Check the path.") from error
    if path.suffix == ".safetensors":
        config, tensors = _read_safetensors(path, content)
    else:
        config, tensors = _read_checkpoint(path)
    if path.suffix != ".safetensors" and config.fusion != "single":
        _log.warning(
            f"{path}: weights of the reference's {config.fusion} fusion, whose training had no loss on the "
            "fused pose: body poses may be anything. Train on from them with --init, or take SPIN's weights."
        )
    with torch.device("meta"):  # no time spent on random weights
        net = ImageRegressor(config)
    _load_weights(net, tensors, path)
    return net.requires_grad_(False).eval()


def _read_safetensors(path: Path, content: bytes) -> tuple[ImageConfig, dict[str, Tensor]]:
    try:
        tensors, values = read_weights(content)
        if values.pop("kind") != "images":
            raise ValueError("of another kind of network")
        return TypeAdapter(ImageConfig).validate_python(values), tensors
    except ValidationError as error:
        reasons = "; ".join(reason(e) for e in error.errors())
        raise InputError(f"{path}: weights of an unknown network: {reasons}. {_REMEDY}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: holds no weights of an image regressor, or is damaged. {_REMEDY}"
        ) from error


def _read_checkpoint(path: Path) -> tuple[ImageConfig, dict[str, Tensor]]:
    try:
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(
            f"{path}: holds no PyTorch weights, or is damaged, or has code in it, which is not run. {_REMEDY}"
        ) from error
    state = raw.get("model", raw) if isinstance(raw, Mapping) else None
    named = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(k): v for k, v in named if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(
            f"{path}: holds no weights, neither a state dict alone nor one under the key 'model'. {_REMEDY}"
        )
    return _convert_names(tensors)


_HEAD: Final = ("fc1.", "fc2.", "decpose.", "decshape.", "deccam.", "init_")


def _convert_names(tensors: Mapping[str, Tensor]) -> tuple[ImageConfig, dict[str, Tensor]]:
    """Recognise a network by its weights' names in SPIN or the reference, and rename them to those here."""
    if not any(k.startswith("regressor.") for k in tensors):  # SPIN's HMR: encoder and head in one
        renamed = {("head." if k.startswith(_HEAD) else "encoder.") + k: v for k, v in tensors.items()}
        return ImageConfig("resnet50", "single", "stretch", "smpl", spin_camera=True), renamed
    new_prefix = {"resnet.": "encoder.", "encoder.": "encoder.", "regressor.": "head."}
    new_prefix |= {"mlp.": "fusion.net.", "conv1d.": "fusion.net."}
    prefixes = {p for p in new_prefix if any(k.startswith(p) for k in tensors)}
    encoder: EncoderName = "resnet50" if "resnet." in prefixes else "convnext_tiny"
    fusion: FusionName = "mlp" if "mlp." in prefixes else "conv1d" if "conv1d." in prefixes else "average"
    renamed = {}
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        number, _, name = rest.partition(".")
        if prefix == "mlp" and number.isdecimal():  # here a layer that joins the two views comes first
            rest = f"{int(number) + 1}.{name}"
        renamed[new_prefix.get(f"{prefix}.", f"{prefix}.") + rest] = value
    return ImageConfig(encoder, fusion, "none", "smpl", spin_camera=True), renamed


def _load_weights(net: ImageRegressor, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights by key; counters of normalisation layers may be missing. Raises ``InputError``."""
    expected = net.state_dict()
    missing = [k for k in expected if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in expected]
    misshaped = [
        f"{k} {tuple(v.shape)} instead of {tuple(expected[k].shape)}"
        for k, v in tensors.items()
        if k in expected and v.shape != expected[k].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        reasons = "; ".join(
            f"{name}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
            for name, keys in problems.items()
            if keys
        )
        c = net.config
        raise InputError(f"{path}: not the weights of {c.encoder} with fusion {c.fusion}. {reasons}.")
    counters = (k for k in expected if k.endswith("num_batches_tracked"))
    zeros = {k: torch.zeros((), dtype=torch.long) for k in counters}
    net.load_state_dict({**zeros, **tensors}, assign=True)
