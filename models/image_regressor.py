"""Image regressors: crops of a person from several views → SMPL, as SPIN and Multi-SPIN do it.

An encoder for each view, a fusion over the views, and SPIN's iterative head (Kolotouros et al. 2019, after
Kanazawa et al. 2018). Root orientation and camera are those of each view's own pass through the head; body
pose and shape those of the fused pass.
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
from models.crops import SIZE, Contrast
from models.encoders import SIZES, EncoderName, encode, make_encoder
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
CROP_SIZES: Final = range(128, SIZE + 1, 32)
_LEAST_SIZE: Final = 0.1
"""A person is no smaller in the crop than this by SPIN's s, 12 of 224 pixels: less is no person, or no
weights."""
SMPL_PELVIS: Final = (-0.0018, -0.2233, 0.0282)
"""Metres: J_pelvis of the neutral SMPL at betas 0, where the body that ships has its origin."""
POSE_SIGMA: Final = 0.35
"""Radians by which a rotation is expected to be off: an image regressor does not say."""


@dataclass(frozen=True)
class ImageConfig:
    """Architecture of an image regressor, and the look of its crops."""

    encoder: EncoderName = "resnet50"
    fusion: FusionName = "attention"
    contrast: Contrast = "none"
    body: Literal["anny", "smpl"] = "anny"
    """Body of its betas and of the pelvis at rest: the one that ships, or SMPL."""
    size: int = SIZE
    """Side of its crops, pixels: 128 to 224, in steps of the encoders' 32."""
    spin_camera: bool = False
    """Trained as SPIN's and the reference's: as if the picture's camera looked straight at the crop, wherever
    in the picture that is."""

    def __post_init__(self) -> None:
        if self.size not in CROP_SIZES:
            raise ValueError(
                f"crops of {self.size} pixels: expected one of {', '.join(map(str, CROP_SIZES))}"
            )


@dataclass(frozen=True)
class ViewEstimate:
    """Estimate of an image regressor for N people in frames, V views."""

    body_pose: Tensor
    """(N, J − 1, 3, 3)"""
    betas: Tensor
    """(N, 10)"""
    orient: Tensor
    """(N, V, 3, 3) of the root, body → the camera that looks straight at the crop."""
    camera: Tensor
    """(N, V, 3) SPIN's weak perspective s, tx, ty: size by the crop's half, and metres right and down."""


def spin_six_to_matrix(x: Tensor) -> Tensor:
    """SPIN's 6 numbers (..., 6) → rotations (..., 3, 3): a 3×2 matrix, row by row, whose columns are made
    the first two of a rotation."""
    a, b = x.view(*x.shape[:-1], 3, 2).unbind(-1)
    first = nn.functional.normalize(a, dim=-1)
    second = nn.functional.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)


class IterativeHead(nn.Module):
    """SPIN's regressor: three steps, each of which adds to pose, shape and camera what two linear layers and
    an output layer make of the features and the state so far. There is no activation between the layers."""

    init_pose: Tensor
    init_shape: Tensor
    init_cam: Tensor

    def __init__(self, size: int) -> None:
        """size: of the features. The initial state is the mean pose of the motions that the pose prior was
        made from, upright before the camera; weights that are loaded bring their own."""
        super().__init__()
        self.fc1 = nn.Linear(size + 157, 1024)
        self.drop1 = nn.Dropout()
        self.fc2 = nn.Linear(1024, 1024)
        self.drop2 = nn.Dropout()
        self.decpose, self.decshape, self.deccam = (nn.Linear(1024, k) for k in (6 * len(SMPL_24), 10, 3))
        for layer in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)
        self.register_buffer("init_pose", torch.from_numpy(_standing()))
        self.register_buffer("init_shape", torch.zeros(1, 10))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (M, D) → rotations (M, J, 3, 3), the root's into the crop's camera; betas (M, 10); camera
        (M, 3)."""
        pose, shape, cam = (
            x.expand(len(features), -1) for x in (self.init_pose, self.init_shape, self.init_cam)
        )
        for _ in range(ITERATIONS):
            x = self.drop1(self.fc1(torch.cat([features, pose, shape, cam], 1)))
            x = self.drop2(self.fc2(x))
            pose, shape, cam = self.decpose(x) + pose, self.decshape(x) + shape, self.deccam(x) + cam
        return spin_six_to_matrix(pose.view(-1, len(SMPL_24), 6)), shape, cam


def _standing() -> NDArray[np.float32]:
    """(1, 6 J) the pose prior's mean, upright before the camera."""
    prior = load_pose_prior()
    mean = (prior.weights[:, None] * prior.means).sum(0).double().reshape(-1, 3)
    turned = roma.rotvec_to_rotmat(torch.cat([mean.new_tensor([[math.pi, 0, 0]]), mean]))
    return np.asarray(turned[:, :, :2].reshape(1, -1), np.float32)


class ImageRegressor(nn.Module):
    """Crops of V views → ``ViewEstimate``; of known cameras → ``Regression``."""

    def __init__(self, config: ImageConfig, *, imagenet: bool = False, seed: int = 0) -> None:
        """imagenet: the encoder begins with the weights of ImageNet. seed: of all other weights."""
        super().__init__()
        self.config = config
        self.features = size = SIZES[config.encoder]
        """Numbers that the encoder makes of a crop."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = make_encoder(config.encoder, imagenet=imagenet)
            self.fusion = make_fusion(config.fusion, size)
            self.head = IterativeHead(size)

    def forward(self, images: Tensor, seen: Tensor) -> ViewEstimate:
        """images (N, V, 3, size, size) normalised, seen (N, V) bool: the others are not looked at."""
        size = self.config.size
        if images.shape[-3:] != (3, size, size) or images.shape[:2] != seen.shape:
            raise ValueError(
                f"images {tuple(images.shape)} and seen {tuple(seen.shape)} must be "
                f"(N, V, 3, {size}, {size}) and (N, V)"
            )
        found = encode(self.encoder, images[seen])
        features = found.new_zeros(*seen.shape, self.features)
        features[seen] = found
        return self.estimate(features, seen)

    def estimate(self, features: Tensor, seen: Tensor) -> ViewEstimate:
        """features (N, V, D) of the views, seen (N, V) bool. Where nothing is seen, any value."""
        each = self.head(features.flatten(0, 1))
        own, own_betas, camera = (x.view(*seen.shape, *x.shape[1:]) for x in each)
        if isinstance(self.fusion, Single):
            turned, betas, there = own, own_betas, seen
        else:
            fused, there = self.fusion(features, seen)
            each = self.head(fused.flatten(0, 1))
            turned, betas, _ = (x.view(*there.shape, *x.shape[1:]) for x in each)
        return ViewEstimate(
            _mean_pose(turned[:, :, 1:], there), _mean_betas(betas, there), own[:, :, 0], camera
        )

    def regress(
        self, features: Tensor, seen: Tensor, box: Tensor, K: Tensor, body: KeypointBody
    ) -> Regression:
        """features (N, V, D) of the views; seen (N, V) bool; box (N, V, 3) of the crops: centre x, y and
        side, pixels of the pinhole camera K (N, V, 3, 3); body: what ``config.body`` means."""
        estimate = self.estimate(features, seen)
        orient, transl = place_body(estimate, box, K, body)
        sigma = torch.full_like(estimate.body_pose[..., 0, 0], POSE_SIGMA)
        return blank_unseen(Regression(estimate.body_pose, estimate.betas, orient, transl, seen, sigma))


def place_body(estimate: ViewEstimate, box: Tensor, K: Tensor, body: KeypointBody) -> tuple[Tensor, Tensor]:
    """Root orientation (N, V, 3, 3) and SMPL translation (N, V, 3), metres, in the camera's own frame.

    The crop is what a camera in the same place sees that looks straight at its middle, at pixel scale focal
    length / cosine. From there the person is turned to the camera's own axes, as far away as makes it as
    large: 2 f / (side s cos), where SPIN has 2 · 5000 / (224 s). box (N, V, 3) and K (N, V, 3, 3) as in
    ``ImageRegressor.regress``.
    """
    box = torch.where(box.isfinite(), box, 1)
    turn, focal = crop_camera(box, K)
    s, x, y = estimate.camera.unbind(-1)
    away = 2 * focal / (box[..., 2] * s.clamp(min=_LEAST_SIZE))
    rest = pelvis_at_rest(body, estimate.betas)[:, None]
    pelvis = (turn @ (rest + torch.stack([x, y, away], -1))[..., None])[..., 0]
    return turn @ estimate.orient, pelvis - rest


def camera_of(transl: Tensor, betas: Tensor, box: Tensor, K: Tensor, body: KeypointBody) -> Tensor:
    """SPIN's s, tx, ty (N, V, 3) that ``place_body`` takes to ``transl`` (N, V, 3)."""
    turn, focal = crop_camera(box, K)
    rest = pelvis_at_rest(body, betas)[:, None]
    x, y, away = ((turn.mT @ (rest + transl)[..., None])[..., 0] - rest).unbind(-1)
    return torch.stack([2 * focal / (box[..., 2] * away), x, y], -1)


def crop_camera(box: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """The camera that looks straight at the middle of a crop: its rotation (..., 3, 3) from its own axes to
    those of the camera K, and its focal length (...), pixels."""
    middle = torch.cat([box[..., :2], torch.ones_like(box[..., 2:])], -1)
    ray = solve_3x3(K, middle)
    ahead = torch.zeros_like(ray)
    ahead[..., 2] = 1
    focal = (K[..., 0, 0] + K[..., 1, 1]) / 2 * ray.norm(dim=-1)
    return rotation_between(ahead, ray), focal


def _mean_pose(turned: Tensor, there: Tensor) -> Tensor:
    """(N, H, J − 1, 3, 3) hypotheses, (N, H) whether there → their mean (N, J − 1, 3, 3) on the manifold."""
    if turned.shape[1] == 1:
        return turned[:, 0]
    n, _, joints = turned.shape[:3]
    each = turned.transpose(1, 2).flatten(0, 1)
    return average_rotations(each, there.repeat_interleave(joints, 0)).view(n, joints, 3, 3)


def _mean_betas(betas: Tensor, there: Tensor) -> Tensor:
    """(N, H, 10), (N, H) → (N, 10)."""
    weight = there.to(betas.dtype)[..., None]
    return (betas * weight).sum(1) / weight.sum(1).clamp(min=1)


def save_image_regressor(net: ImageRegressor, path: Path) -> None:
    """Weights as safetensors, with the configuration in their metadata; the whole file or nothing."""
    save_weights(path, net.state_dict(), {"kind": "images", **asdict(net.config)})


_GIVE: Final = "Give a .safetensors that the command `train` has made, or SPIN's model_checkpoint.pt."


def load_image_regressor(path: Path) -> ImageRegressor:
    """A network of weights that ``save_image_regressor`` wrote, or of SPIN's or the reference's ``.pt``.

    A ``.pt`` holds a state dict, alone or under the key ``model``; what network it is follows from its
    names. Nothing in it is run. A fusion of the reference is warned of. In evaluation mode, no gradients,
    on the CPU.

    Raises:
        InputError: the file cannot be read, or its keys or shapes are not those of any network; the message
            says which are missing and which unexpected.
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
    with torch.device("meta"):  # no time for random numbers that are not kept
        net = ImageRegressor(config)
    _fill(net, tensors, path)
    return net.requires_grad_(False).eval()


def _read_safetensors(path: Path, content: bytes) -> tuple[ImageConfig, dict[str, Tensor]]:
    try:
        tensors, values = read_weights(content)
        if values.pop("kind") != "images":
            raise ValueError("of another kind of network")
        return TypeAdapter(ImageConfig).validate_python(values), tensors
    except ValidationError as error:
        reasons = "; ".join(reason(e) for e in error.errors())
        raise InputError(f"{path}: weights of a network that there cannot be: {reasons}. {_GIVE}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: holds no weights of an image regressor, or is damaged. {_GIVE}") from error


def _read_checkpoint(path: Path) -> tuple[ImageConfig, dict[str, Tensor]]:
    try:
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(
            f"{path}: holds no PyTorch weights, or is damaged, or has code in it, which is not run. {_GIVE}"
        ) from error
    found = raw.get("model", raw) if isinstance(raw, Mapping) else {}
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(
            f"{path}: holds no weights, neither a state dict alone nor one under the key 'model'. {_GIVE}"
        )
    return _recognised(tensors)


_HEAD: Final = ("fc1.", "fc2.", "decpose.", "decshape.", "deccam.", "init_")


def _recognised(tensors: Mapping[str, Tensor]) -> tuple[ImageConfig, dict[str, Tensor]]:
    """Configuration and own names of weights that are named as in SPIN or in the reference."""
    if not any(k.startswith("regressor.") for k in tensors):  # SPIN's HMR: encoder and head in one
        named = {("head." if k.startswith(_HEAD) else "encoder.") + k: v for k, v in tensors.items()}
        return ImageConfig("resnet50", "single", "stretch", "smpl", spin_camera=True), named
    own = {"resnet.": "encoder.", "encoder.": "encoder.", "regressor.": "head."}
    own |= {"mlp.": "fusion.net.", "conv1d.": "fusion.net."}
    prefixes = {p for p in own if any(k.startswith(p) for k in tensors)}
    encoder: EncoderName = "resnet50" if "resnet." in prefixes else "convnext_tiny"
    fusion: FusionName = "mlp" if "mlp." in prefixes else "conv1d" if "conv1d." in prefixes else "average"
    renamed = {}
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        new = own.get(f"{prefix}.", f"{prefix}.")
        number, _, of = rest.partition(".")
        if prefix == "mlp" and number.isdecimal():  # ours begins with a layer that joins the two views
            rest = f"{int(number) + 1}.{of}"
        renamed[new + rest] = value
    return ImageConfig(encoder, fusion, "none", "smpl", spin_camera=True), renamed


def _fill(net: ImageRegressor, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load by key; counters of normalisation layers may be missing, as in old files."""
    want = net.state_dict()
    missing = [k for k in want if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in want]
    wrong = [
        f"{k} {tuple(v.shape)} instead of {tuple(want[k].shape)}"
        for k, v in tensors.items()
        if k in want and v.shape != want[k].shape
    ]
    if missing or unexpected or wrong:
        reasons = "; ".join(
            f"{name}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
            for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
            if keys
        )
        c = net.config
        raise InputError(f"{path}: not the weights of {c.encoder} with fusion {c.fusion}. {reasons}.")
    counters = {k: torch.zeros((), dtype=torch.long) for k in want if k.endswith("num_batches_tracked")}
    net.load_state_dict({**counters, **tensors}, assign=True)
