"""Renderer by PyTorch3D's rasteriser, the same pictures as ``models/rendering/software.py``.

For CUDA devices; on a CPU it takes minutes for a full frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.rendering.software import Picture, Planes, blend, resolve, to_screen
from pipeline.array_types import Floats
from pipeline.cameras import Rig
from pipeline.errors import InputError


def paint(
    planes: Planes,
    matrix: NDArray[np.float32],
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
) -> None:
    """Draw people into a video frame as ``software.paint``."""
    if (picture := draw(vertices, faces, rig, view, colours, antialias=antialias)) is not None:
        blend(planes, picture, matrix)


def draw(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
) -> Picture | None:
    """Draw people as ``software.draw``, on the CUDA device if there is one.

    Raises ``InputError`` when PyTorch3D is not installed or does not fit the installed torch.
    """
    try:
        from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
        from pytorch3d.structures import Meshes
    except ImportError as error:
        raise InputError(
            f"render.backend=pytorch3d: PyTorch3D cannot be imported ({error}). Install it with "
            "pip install -e '.[pytorch3d]', or use render.backend=software."
        ) from error
    screen = to_screen(vertices, faces, rig, view)
    if screen is None:
        return None
    samples = 2 if antialias else 1
    x0, y0, x1, y1 = screen.box
    height, width = (y1 - y0) * samples, (x1 - x0) * samples
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # PyTorch3D's screen: x to the left, y up, the shorter side from −1 to 1, edges at half pixels.
    uv = (torch.from_numpy(screen.uv).to(device) - torch.tensor([x0, y0], device=device) + 0.5) * samples
    ndc = (torch.tensor([width, height], device=device) - 2 * uv) / min(width, height)
    inverse_z = torch.from_numpy(screen.inverse_z).to(device)
    triangles = torch.from_numpy(faces).to(device, torch.int64)

    people, points = inverse_z.shape
    offsets = torch.arange(people, device=device) * points
    all_faces = (triangles[None] + offsets[:, None, None]).reshape(-1, 3)
    inverse_z = inverse_z.flatten()
    all_faces = all_faces[(inverse_z[all_faces] > 0).all(1)]
    if not len(all_faces):
        return None
    xyz = torch.cat([ndc.reshape(-1, 2), 1 / inverse_z[:, None].clamp(min=1e-6)], 1)
    # A flipped x turns clockwise into counter-clockwise, so that PyTorch3D's back faces are the true ones.
    face_index, _, weights, _ = rasterize_meshes(
        Meshes(xyz[None], all_faces[None]),
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=False,
        cull_backfaces=True,
    )
    face, weight = face_index[0, ..., 0], weights[0, ..., 0, :]
    corners = all_faces[face.clamp(min=0)]
    # 1/z and shade are linear on the screen.
    nearest = torch.where(face >= 0, (inverse_z[corners] * weight).sum(-1), 0)
    shade = (torch.from_numpy(screen.shade).to(device).flatten()[corners] * weight).sum(-1)
    shade += 2 * torch.div(corners[..., 0], points, rounding_mode="floor")  # 2 × person, see ``resolve``
    return resolve(nearest.cpu().numpy(), shade.cpu().numpy(), colours, samples, (x0, y0))
