"""Pictures of synthetic people: in a room before calibrated cameras, and dressed before clutter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.body import Body
from models.rendering.overlay import composite
from models.rendering.software import Light, draw
from pipeline.array_types import Array, Pixels
from pipeline.cameras import Rig
from pipeline.skeleton import BODY_25, SMPL_24

_NOISE_SIDE_PX: Final = 512
"""Side of the sensor noise from which pictures, which are smaller, get a random crop."""
_PERSON_RGBA: Final = np.array(
    [[0.80, 0.76, 0.71, 1], [0.56, 0.62, 0.68, 1], [0.62, 0.69, 0.60, 1], [0.70, 0.60, 0.66, 1]], np.float32
)
"""Muted, so that an overlay stands out."""


_PARTS: Final = ("skin", "hair", "top", "sleeve", "trousers", "shin", "shoes")
_GARMENT_OF_JOINT: Final = {
    "spine1": "top", "spine2": "top", "spine3": "top", "left_collar": "top", "right_collar": "top",
    "left_shoulder": "top", "right_shoulder": "top", "left_elbow": "sleeve", "right_elbow": "sleeve",
    "pelvis": "trousers", "left_hip": "trousers", "right_hip": "trousers", "left_knee": "shin",
    "right_knee": "shin", "left_ankle": "shoes", "right_ankle": "shoes", "left_foot": "shoes",
    "right_foot": "shoes",
}  # fmt: skip
"""Garment of the vertices of a joint; all others are skin."""


def backdrop(rig: Rig, view: int) -> NDArray[np.uint8]:
    """Picture (H, W, 3) RGB of an empty round room in a camera, with half-metre tiles on the floor.

    The world's x axis is red on the floor and the y axis green. Drawn pixel by pixel through the camera's
    lens, so that lines agree with the calibration.
    """
    w, h = (int(x) for x in rig.size[view])
    u, v = np.meshgrid(np.arange(w, dtype=np.float64), np.arange(h, dtype=np.float64))
    ideal = rig.undistort(view, np.stack([u, v], -1))
    rays = np.concatenate([ideal, np.ones((h, w, 1))], -1) @ np.linalg.inv(rig.K[view]).T @ rig.R[view]
    eye = rig.centres[view]
    down = -rays[..., 2]
    with np.errstate(divide="ignore"):
        reach = np.where(down > 1e-6, eye[2] / down, np.inf)
    # The wall is a cylinder around the origin, with every camera inside.
    radius = max(7.0, 1.3 * float(np.linalg.norm(rig.centres[:, :2], axis=1).max()))
    a = np.maximum(np.square(rays[..., :2]).sum(-1), 1e-12)
    b = rays[..., :2] @ eye[:2]
    wall = (-b + np.sqrt(b * b + a * (radius * radius - eye[:2] @ eye[:2]))) / a
    is_floor = reach < wall
    hit = eye + np.where(is_floor, reach, wall)[..., None] * rays
    x, y, z = np.moveaxis(hit, -1, 0)

    def line(coordinate: Array, spacing: float, width: float) -> Array:
        """Coverage (H, W, 1) of lines at multiples of ``spacing`` of a coordinate (H, W), antialiased."""
        pixel = np.hypot(*np.gradient(coordinate)) + 1e-6
        distance = np.abs(coordinate - spacing * np.round(coordinate / spacing))
        coverage = np.clip((width / 2 - distance) / pixel + 0.5, 0, 1) * np.minimum(1, width / pixel)
        return np.asarray(coverage)[..., None]

    tile = (np.floor(x / 0.5) + np.floor(y / 0.5)) % 2
    floor = np.array([176, 170, 160]) + 10 * tile[..., None]
    lines = np.maximum(line(x, 0.5, 0.015), line(y, 0.5, 0.015))
    floor = floor + lines * (np.array([120, 116, 110]) - floor)
    for coordinate, colour in ((y, (178, 70, 64)), (x, (76, 140, 76))):
        floor = floor + line(coordinate, 2 * radius, 0.03) * (np.array(colour) - floor)
    far = np.clip((np.hypot(x, y) / radius - 0.35) / 0.65, 0, 1)[..., None]
    floor = floor + far * (np.array([150, 150, 152]) - floor)
    up = np.clip(z / 4.0, 0, 1)[..., None]
    above = np.array([142, 148, 158]) + up * (np.array([206, 212, 222]) - np.array([142, 148, 158]))
    picture = np.where(is_floor[..., None], floor, above)
    return np.asarray(np.clip(picture, 0, 255).astype(np.uint8))


def film(vertices: NDArray[np.float32], body: Body, rig: Rig, view: int, room: Pixels) -> Iterator[Pixels]:
    """Draw frames (H, W, 3) of a camera: the room, and meshes (T, P, N, 3), metres, with shadows from light
    above."""
    people = vertices.shape[1]
    colours = _PERSON_RGBA[np.arange(people) % len(_PERSON_RGBA)]
    shadow = np.tile(np.array([0.15, 0.15, 0.18, 0.4], np.float32), (people, 1))
    for frame in vertices:
        flat = frame * np.array([1, 1, 0], np.float32)
        shaded = composite(room, draw(flat, body.faces, rig, view, shadow, antialias=False))
        yield composite(shaded, draw(frame, body.faces, rig, view, colours))


@dataclass(frozen=True)
class Outfit:
    """Clothes and light of a person, for all views."""

    colours: NDArray[np.float32]
    """(parts, 4) for ``draw``."""
    light: Array
    """(3,) unit vector to the light, world."""
    ambient: float

    @staticmethod
    def random(rng: np.random.Generator) -> Outfit:
        """Draw random colours and light."""
        rgb = dict(zip(_PARTS, rng.uniform(0.03, 1, (len(_PARTS), 3)), strict=True))
        for part in _PARTS:
            rgb[part] = rgb[part].mean() + rng.random() * (rgb[part] - rgb[part].mean())
        rgb["skin"] = np.array([0.25, 0.15, 0.1]) + rng.random() * np.array([0.7, 0.62, 0.56])
        rgb["hair"] = rgb["hair"] * rng.uniform(0.1, 0.9)
        rgb["sleeve"] = rgb["top"] if rng.random() < 0.5 else rgb["skin"]
        rgb["shin"] = rgb["trousers"] if rng.random() < 0.7 else rgb["skin"]
        colours = np.ones((len(_PARTS), 4), np.float32)
        colours[:, :3] = np.stack([rgb[p] for p in _PARTS]) * rng.uniform(0.7, 1.1)
        light = rng.normal(size=3)
        return Outfit(colours.clip(0, 1), light / np.linalg.norm(light), rng.uniform(0.3, 0.75))


class Portraits:
    """Renderer of a dressed person before a cluttered background."""

    def __init__(self, body: Body, clutter: float) -> None:
        """clutter: from 0, soft gradients, to 1, shapes and strong noise."""
        self.body, self.clutter = body, clutter
        self._tints = _tints(body)
        self._sensor_noise = np.random.default_rng(1).standard_normal(
            (_NOISE_SIDE_PX, _NOISE_SIDE_PX, 3), np.float32
        )

    def draw(
        self, vertices: NDArray[np.float32], rig: Rig, view: int, outfit: Outfit, rng: np.random.Generator
    ) -> Pixels:
        """Draw a mesh (1, N, 3), metres, in a camera with square pictures: (S, S, 3)."""
        side = int(rig.size[view, 0])
        light = (rig.R[view] @ outfit.light).astype(np.float32)
        drawn = draw(
            vertices, self.body.faces, rig, view, outfit.colours,
            tints=self._tints, light=Light(light, outfit.ambient),
        )  # fmt: skip
        rgb = composite(clutter_picture(side, self.clutter, rng), drawn).astype(np.float32)
        y, x = rng.integers(0, _NOISE_SIDE_PX - side, 2)
        rgb += rng.uniform(0, 8) * self._sensor_noise[y : y + side, x : x + side]
        return rgb.clip(0, 255).astype(np.uint8)


def _tints(body: Body) -> NDArray[np.int32]:
    """(F,) index into ``_PARTS`` of each face."""
    joint = body.weights.argmax(1).numpy()
    part = np.array([_PARTS.index(_GARMENT_OF_JOINT.get(name, "skin")) for name in SMPL_24.names])[joint]
    point = dict(zip(BODY_25.names, body.keypoints.points_template.numpy(), strict=True))
    vertices = body.v_template.numpy()
    eyes, ears = (point[f"L{p}"] + point[f"R{p}"] for p in ("Eye", "Ear"))
    above, behind = vertices[:, 1] > eyes[1] / 2 + 0.04, vertices[:, 2] < ears[2] / 2 - 0.01
    below = vertices[:, 1] < point["Nose"][1] - 0.04
    part[(joint == SMPL_24.index("head")) & (above | behind) & ~below] = _PARTS.index("hair")
    return np.asarray(part[body.faces[:, 0]], np.int32)


def clutter_picture(side: int, clutter: float, rng: np.random.Generator) -> Pixels:
    """Random background (side, side, 3): a gradient of four corners, shapes, and noise of random scale."""
    corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
    corners = corners.mean((0, 1)) + max(clutter, 0.3) * (corners - corners.mean((0, 1)))
    rgb = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.poisson(4 * clutter)):
        colour = rng.uniform(0, 255, 3).tolist()
        corner, size = rng.uniform(-0.2, 1.2, 2) * side, rng.uniform(0.03, 0.6, 2) * side
        turn, shape = rng.uniform(0, 180), rng.integers(3)
        if shape == 0:
            cv2.ellipse(rgb, (corner.tolist(), size.tolist(), turn), colour, -1, cv2.LINE_AA)
        elif shape == 1:
            points = cv2.boxPoints((corner.tolist(), size.tolist(), turn))
            cv2.fillConvexPoly(rgb, points.round().astype(np.int32), colour, cv2.LINE_AA)
        else:
            a, b = rng.integers(0, side, (2, 2)).tolist()
            cv2.line(rgb, a, b, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
    cells = int(rng.integers(3, 40))
    noise = max(clutter, 0.1) * rng.uniform(0, 45) * rng.standard_normal((cells, cells, 3), np.float32)
    rgb = rgb + cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    grey = rgb.mean(2, keepdims=True)
    return np.asarray((grey + rng.random() * (rgb - grey)).clip(0, 255).astype(np.uint8))
