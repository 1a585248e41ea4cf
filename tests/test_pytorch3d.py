import sys

import numpy as np
import pytest
from test_software import BLUE, RED, STRONG, camera, sphere, whole

from models.rendering import pytorch3d, software
from pipeline.errors import InputError

SMALL = (120, 90)


def small(dist=(0.0,) * 8):
    """An off-centre principal point, fx ≠ fy, few pixels: PyTorch3D is slow on the CPU."""
    return camera(dist, SMALL, t=(0.05, -0.1, 14.0))


@pytest.mark.parametrize("dist", [(0.0,) * 8, STRONG])
def test_the_back_ends_draw_the_same_picture(dist):
    pytest.importorskip("pytorch3d", reason="the extra pytorch3d is not installed")
    rig = small(dist)
    a, faces = sphere((-0.25, 0, 0), 0.8, 24)
    b, _ = sphere((0.3, 0.1, 0.3), 0.8, 24)
    people, colours = np.stack([a, b]), np.array([BLUE, RED])
    found = [m.draw(people, faces, rig, 0, colours, antialias=False) for m in (pytorch3d, software)]
    alpha = [whole(p, SMALL) > 0 for p in found]
    assert (alpha[0] & alpha[1]).sum() / (alpha[0] | alpha[1]).sum() >= 0.995
    inside = alpha[0] & alpha[1]
    depth = [1 / whole(p, SMALL, "inverse_z")[inside] for p in found]
    np.testing.assert_allclose(*depth, atol=0.02)
    rgb = [whole(p, SMALL, "rgb").astype(int)[inside] for p in found]
    first = [c[:, 0] > c[:, 2] for c in rgb]  # which person is in front
    assert (first[0] == first[1]).mean() > 0.995
    same = first[0] == first[1]
    assert np.abs(rgb[0] - rgb[1])[same].mean() < 1


def test_antialiasing_agrees_too():
    pytest.importorskip("pytorch3d", reason="the extra pytorch3d is not installed")
    vertices, faces = sphere(radius=0.7, n=16)
    found = [m.draw(vertices[None], faces, small(), 0, np.array([BLUE])) for m in (pytorch3d, software)]
    alpha = [whole(p, SMALL).astype(int) for p in found]
    assert (np.abs(alpha[0] - alpha[1]) > 64).mean() < 1e-3
    assert alpha[0].mean() == pytest.approx(alpha[1].mean(), rel=0.01)


def test_a_mesh_turned_inside_out_shows_its_far_side():
    pytest.importorskip("pytorch3d", reason="the extra pytorch3d is not installed")
    vertices, faces = sphere(radius=0.7, n=16, inside_out=True)
    picture = pytorch3d.draw(vertices[None], faces, small(), 0, np.array([BLUE]), antialias=False)
    assert picture.inverse_z.max() < 1 / (14 - 0.3)


def test_nothing_to_see_is_none():
    pytest.importorskip("pytorch3d", reason="the extra pytorch3d is not installed")
    vertices, faces = sphere(n=8)
    behind = vertices[None] - np.array([0, 0, 50], np.float32)
    assert pytorch3d.draw(behind, faces, small(), 0, np.array([BLUE])) is None


def test_a_missing_pytorch3d_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch3d.renderer.mesh.rasterize_meshes", None)
    vertices, faces = sphere(n=8)
    with pytest.raises(InputError, match=r"pip install -e '.\[pytorch3d\]'.*render.backend=software"):
        pytorch3d.draw(vertices[None], faces, small(), 0, np.array([BLUE]))
