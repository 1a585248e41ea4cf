import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_software import BLUE, RED, STRONG, camera, sphere, whole

from models.rendering import moderngl, software
from pipeline.errors import InputError

SIZE = (640, 480)


@pytest.fixture
def gl():
    """In a thread of its own, as a context is bound to its thread."""
    with ThreadPoolExecutor(1) as pool:
        try:
            name = pool.submit(moderngl.renderer).result()
        except InputError as error:
            pytest.skip(str(error))
        assert name
        yield lambda *args, **more: pool.submit(moderngl.draw, *args, **more).result()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dist", [(0.0,) * 8, STRONG])
def test_it_draws_what_software_draws(gl, dist, antialias):
    """Two people who cross, an off-centre principal point, fx ≠ fy."""
    rig = camera(dist)
    a, faces = sphere((-0.15, 0, 0.0), 0.4)
    b, _ = sphere((0.15, 0, 0.1), 0.4)
    args = np.stack([a, b]), faces, rig, 0, np.array([BLUE, RED])
    found = [draw(*args, antialias=antialias) for draw in (gl, software.draw)]
    alpha = [whole(p, SIZE) > 127 for p in found]
    assert (alpha[0] & alpha[1]).sum() / (alpha[0] | alpha[1]).sum() >= 0.999
    inside = alpha[0] & alpha[1]
    depth = [whole(p, SIZE, "inverse_z")[inside] for p in found]
    assert (np.abs(depth[0] - depth[1]) < 1e-4).mean() > 0.999
    rgb = [whole(p, SIZE, "rgb").astype(int)[inside] for p in found]
    front = [c[:, 0] > c[:, 2] for c in rgb]
    assert (front[0] == front[1]).mean() > 0.999
    assert np.abs(rgb[0] - rgb[1]).mean() < 0.5


def test_a_mesh_turned_inside_out_shows_its_far_side(gl):
    rig = camera(rotation=(0, 0, 0), t=(0, 0, 0))
    vertices, faces = sphere((0, 0, 3), 0.5, inside_out=True)
    picture = gl(vertices[None], faces, rig, 0, np.array([BLUE]), antialias=False)
    u, v = (round(float(c)) for c in rig.K[0, :2, 2])
    assert 1 / whole(picture, SIZE, "inverse_z")[v, u] == pytest.approx(3.5, abs=2e-3)


def test_pictures_of_every_size_come_after_one_another(gl):
    vertices, faces = sphere()
    for z in (3, 1.2, 8, 3):
        rig = camera(t=(0, 0, z))
        args = vertices[None], faces, rig, 0, np.array([BLUE])
        np.testing.assert_allclose(gl(*args).alpha.astype(int), software.draw(*args).alpha, atol=128)
        assert gl(*args).alpha.mean() == pytest.approx(software.draw(*args).alpha.mean(), rel=2e-3)


def test_what_cannot_be_seen_is_not_drawn(gl):
    vertices, faces = sphere()
    behind = vertices[None] - np.array([0, 0, 10.0], np.float32)
    assert gl(behind, faces, camera(), 0, np.array([BLUE])) is None
    both = np.stack([np.full_like(vertices, np.nan), vertices])
    one = gl(vertices[None], faces, camera(), 0, np.array([BLUE]))
    np.testing.assert_allclose(gl(both, faces, camera(), 0, np.array([RED, BLUE])).rgb, one.rgb, atol=1)


def test_two_threads_draw_at_once_as_one_does(gl):
    vertices, faces = sphere()
    args = vertices[None], faces, camera(), 0, np.array([BLUE])
    alone = gl(*args)
    with ThreadPoolExecutor(2) as pool:
        for picture in pool.map(lambda _: moderngl.draw(*args), range(8)):
            np.testing.assert_array_equal(picture.rgb, alone.rgb)


def test_a_missing_moderngl_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "moderngl", None)
    vertices, faces = sphere(n=8)
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match=r"multispin\[gl\].*backend=software"):
        pool.submit(moderngl.draw, vertices[None], faces, camera(), 0, np.array([BLUE])).result()
