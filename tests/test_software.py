import cv2
import numba
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from models.compiled import jit
from models.rendering import overlay
from models.rendering.software import (
    LIGHT,
    Light,
    blend,
    draw,
    paint,
    shades,
    to_screen,
    valid_radius,
)
from pipeline.cameras import Rig

BLUE, RED = (0.2, 0.4, 1.0, 1.0), (1.0, 0.3, 0.2, 1.0)
STRONG = (-0.3, 0.09, 0.001, -0.002, 0.004, 0, 0, 0)


def sphere(centre=(0.0, 0.0, 0.0), radius=0.4, n=40, inside_out=False):
    """Vertices (N, 3) and faces, counter-clockwise seen from outside."""
    lat, lon = np.meshgrid(
        np.linspace(0, np.pi, n + 1), np.linspace(0, 2 * np.pi, 2 * n, endpoint=False), indexing="ij"
    )
    v = np.stack([np.sin(lat) * np.cos(lon), np.sin(lat) * np.sin(lon), np.cos(lat)], -1).reshape(-1, 3)
    i, j = (a.ravel() for a in np.meshgrid(range(n), range(2 * n), indexing="ij"))
    a, b = i * 2 * n + j, i * 2 * n + (j + 1) % (2 * n)
    c, d = a + 2 * n, b + 2 * n
    faces = np.concatenate([np.stack([a, c, d], 1), np.stack([a, d, b], 1)]).astype(np.int32)
    if inside_out:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return (v * radius + centre).astype(np.float32), faces


def camera(dist=(0.0,) * 8, size=(640, 480), rotation=(0.1, -0.2, 0.05), t=(0.05, -0.1, 3.0)):
    k = np.array([[700.0, 0, 0.4 * size[0]], [0, 610, 0.56 * size[1]], [0, 0, 1]])
    r = Rotation.from_rotvec(rotation).as_matrix()
    return Rig(("cam",), k[None], np.array([dist], float), r[None], np.array([t], float), np.array([size]))


def opencv(rig, points):
    return cv2.projectPoints(
        points.astype(np.float64), cv2.Rodrigues(rig.R[0])[0], rig.t[0], rig.K[0], rig.dist[0]
    )[0][:, 0]


def whole(picture, size, field="alpha"):
    """A picture's field in an array of the frame's size."""
    part = getattr(picture, field)
    out = np.zeros((size[1], size[0], *part.shape[2:]), part.dtype)
    out[picture.y0 : picture.y0 + part.shape[0], picture.x0 : picture.x0 + part.shape[1]] = part
    return out


@pytest.mark.parametrize("dist", [(0.0,) * 8, STRONG, (0.2, 0, 0, 0, 0, 0.5, 0, 0)])
def test_vertices_land_where_opencv_puts_them(dist):
    rig = camera(dist)
    vertices, faces = sphere(radius=0.9)
    screen = to_screen(vertices[None], faces, rig, 0)
    np.testing.assert_allclose(screen.uv[0], opencv(rig, vertices), atol=1e-3)


@pytest.mark.parametrize("dist", [(0.0,) * 8, STRONG])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_silhouette_lies_where_opencv_projects_it(dist, antialias):
    """Small spheres over the whole picture: the drawn pixels' centre of mass against OpenCV's projection.

    Half a pixel forgotten anywhere, or fx taken for fy, is an error above the bound.
    """
    rig = camera(dist)
    centres = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 5), np.linspace(-0.7, 0.7, 4), [0.0]), -1).reshape(
        -1, 3
    )
    for centre in centres:
        vertices, faces = sphere(centre, 0.08, 24)
        picture = draw(vertices[None], faces, rig, 0, np.array([BLUE]), antialias=antialias)
        uv = opencv(rig, vertices)
        if (uv < 1).any() or (uv > np.array([638, 478])).any():
            continue
        hull = cv2.convexHull(uv.astype(np.float32))[:, 0].astype(np.float64)
        x, y, x1, y1 = *hull.T, *np.roll(hull, -1, 0).T
        cross = x * y1 - x1 * y
        expected = np.array([((x + x1) * cross).sum(), ((y + y1) * cross).sum()]) / (3 * cross.sum())
        rows, columns = np.mgrid[: picture.alpha.shape[0], : picture.alpha.shape[1]]
        weight = picture.alpha / picture.alpha.sum()
        found = np.array([(columns * weight).sum() + picture.x0, (rows * weight).sum() + picture.y0])
        np.testing.assert_allclose(found, expected, atol=0.1)
        assert picture.alpha.sum() / 255 == pytest.approx(abs(cross.sum()) / 2, rel=0.03)


def test_depth_is_that_of_the_near_side():
    rig = camera(rotation=(0, 0, 0), t=(0, 0, 0))
    vertices, faces = sphere((0, 0, 3), 0.5)
    picture = draw(vertices[None], faces, rig, 0, np.array([BLUE]), antialias=False)
    depth = whole(picture, rig.size[0], "inverse_z")
    u, v = (round(float(c)) for c in rig.K[0, :2, 2])
    assert 1 / depth[v, u] == pytest.approx(2.5, abs=2e-3)  # and not 3.5, the far side
    # Everywhere: the nearer intersection of the ray through the pixel's centre with the sphere.
    rows, columns = np.nonzero(depth)
    ray = np.stack([(columns - rig.K[0, 0, 2]) / 700, (rows - rig.K[0, 1, 2]) / 610, np.ones(len(rows))], -1)
    a, b, c = (ray**2).sum(1), -2 * 3 * ray[:, 2], 9 - 0.25
    under = b * b - 4 * a * c
    inside = under > 0.3  # near the rim the depth is steep and the mesh is not a sphere
    near = (-b - np.sqrt(np.maximum(under, 0))) / (2 * a)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(1 / depth[rows, columns][inside], near[inside], atol=5e-3)


def test_a_mesh_turned_inside_out_shows_its_far_side():
    """The silhouette cannot tell; the depth can. So the other depth test would see a wrong facing."""
    rig = camera(rotation=(0, 0, 0), t=(0, 0, 0))
    vertices, faces = sphere((0, 0, 3), 0.5, inside_out=True)
    picture = draw(vertices[None], faces, rig, 0, np.array([BLUE]), antialias=False)
    u, v = (round(float(c)) for c in rig.K[0, :2, 2])
    assert 1 / whole(picture, rig.size[0], "inverse_z")[v, u] == pytest.approx(3.5, abs=2e-3)


def test_shade_follows_the_normal():
    vertices, faces = sphere(n=60)
    normal = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    expected = LIGHT.ambient + (1 - LIGHT.ambient) * np.maximum(normal @ LIGHT.direction, 0)
    poles = np.abs(normal[:, 2]) > 0.999  # here many vertices of the test's sphere lie in one place
    found = shades(vertices.astype(np.float64), faces)
    np.testing.assert_allclose(found[~poles], expected[~poles], atol=0.02)


def test_the_upper_side_is_lit_and_the_lower_is_not():
    rig = camera()
    picture = draw(*[sphere()[0][None], sphere()[1]], rig, 0, np.array([BLUE]))
    rgb, h = picture.rgb.astype(float).sum(-1), picture.alpha.shape[0]
    full = picture.alpha == 255
    upper, lower = rgb[: h // 3][full[: h // 3]].mean(), rgb[-h // 3 :][full[-h // 3 :]].mean()
    assert upper > 1.25 * lower
    np.testing.assert_allclose(picture.rgb[full][:, 0] / picture.rgb[full][:, 2], 0.2, atol=0.02)


def test_nearer_people_hide_those_behind_wherever_they_cross():
    rig = camera(rotation=(0, 0, 0), t=(0, 0, 0))
    a, faces = sphere((-0.15, 0, 3.0), 0.4)
    b, _ = sphere((0.15, 0, 3.1), 0.4)
    colours = np.array([BLUE, RED])
    both = draw(np.stack([a, b]), faces, rig, 0, colours, antialias=False)
    alone = [
        draw(p[None], faces, rig, 0, c[None], antialias=False) for p, c in zip((a, b), colours, strict=True)
    ]
    near = [whole(p, rig.size[0], "inverse_z") for p in alone]
    together = whole(both, rig.size[0], "inverse_z")
    np.testing.assert_array_equal(together, np.maximum(*near))
    is_red = whole(both, rig.size[0], "rgb")[..., 0] > whole(both, rig.size[0], "rgb")[..., 2]
    np.testing.assert_array_equal(is_red[together > 0], (near[1] > near[0])[together > 0])
    swapped = draw(np.stack([b, a]), faces, rig, 0, colours[::-1], antialias=False)
    np.testing.assert_array_equal(swapped.rgb, both.rgb)


def test_what_cannot_be_seen_is_not_drawn():
    vertices, faces = sphere()
    rig = camera()
    colours = np.array([BLUE])
    missing = np.full_like(vertices, np.nan)
    assert draw(missing[None], faces, rig, 0, colours) is None
    assert draw(vertices[None] + np.array([50.0, 0, 0], np.float32), faces, rig, 0, colours) is None
    assert draw(vertices[None] - np.array([0, 0, 10.0], np.float32), faces, rig, 0, colours) is None  # behind
    assert draw(np.zeros((0, len(vertices), 3), np.float32), faces, rig, 0, np.zeros((0, 4))) is None
    both = draw(np.stack([missing, vertices]), faces, rig, 0, np.array([RED, BLUE]))
    one = draw(vertices[None], faces, rig, 0, colours)
    np.testing.assert_allclose(both.rgb.astype(int), one.rgb, atol=1)


def test_a_body_that_the_camera_is_in_front_of_and_behind_does_not_smear():
    """Faces that cross the camera's plane are left out: the rest must lie where OpenCV puts it."""
    rig = camera(rotation=(0, 0, 0), t=(0, 0, 0))
    vertices, faces = sphere((0.3, 0.0, 0.5), 0.52)
    picture = draw(vertices[None], faces[:, ::-1].copy(), rig, 0, np.array([BLUE]))  # seen from inside
    depth = 1 / picture.inverse_z[picture.inverse_z > 0]
    assert depth.min() > 0.05
    assert depth.max() < 1.03


def test_points_beyond_what_the_lens_model_covers_do_not_fold_back():
    """r (1 + k1 r²) turns round at r = 1 / √(−3 k1): farther points would come back into the picture."""
    rig = camera((-0.3, 0, 0, 0, 0, 0, 0, 0), rotation=(0, 0, 0), t=(0, 0, 0))
    limit = valid_radius(rig.dist[0])
    assert limit == pytest.approx(1 / np.sqrt(0.9))
    assert valid_radius(np.zeros(8)) == np.inf
    assert valid_radius(np.array([0.1, 0, 0, 0, 0, 0, 0, 0])) == np.inf
    outside, faces = sphere((1.75 * 2, 0, 2.0), 0.2)
    folded = opencv(rig, outside)
    assert ((folded > 0) & (folded < rig.size[0])).all(1).any(), "the test needs a point that folds back"
    assert draw(outside[None], faces, rig, 0, np.array([BLUE])) is None


def test_antialiased_edges_lie_between():
    vertices, faces = sphere()
    rig = camera()
    alpha = draw(vertices[None], faces, rig, 0, np.array([BLUE])).alpha
    assert set(np.unique(alpha)) == {0, 64, 128, 191, 255}
    plain = draw(vertices[None], faces, rig, 0, np.array([BLUE]), antialias=False).alpha
    assert set(np.unique(plain)) == {0, 255}
    assert alpha.mean() == pytest.approx(plain.mean(), rel=2e-3)
    half = draw(vertices[None], faces, rig, 0, np.array([(*BLUE[:3], 0.5)]), antialias=False)
    assert set(np.unique(half.alpha)) == {0, 128}


def test_nothing_given_is_changed():
    vertices, faces = sphere()
    kept = vertices.copy(), faces.copy()
    draw(vertices[None], faces, camera(), 0, np.array([BLUE]))
    np.testing.assert_array_equal(vertices, kept[0])
    np.testing.assert_array_equal(faces, kept[1])


@pytest.mark.parametrize(("space", "code"), [(1, cv2.COLOR_RGB2YUV), (6, cv2.COLOR_RGB2YUV)])
def test_blending_in_yuv_equals_blending_in_rgb(space, code):
    """Against a plain twin: the picture over grey in RGB, then converted, chroma averaged over 2×2."""
    rig = camera(size=(160, 120), t=(0.4, 0.2, 3))
    vertices, faces = sphere(radius=0.6)
    picture = draw(vertices[None], faces, rig, 0, np.array([(*BLUE[:3], 0.8)]))
    matrix = overlay.yuv_matrix(space, 120)
    start = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(float)
    start[::2, 1::2] = start[1::2, ::2] = start[1::2, 1::2] = start[::2, ::2]  # one colour per 2×2 block

    def yuv(rgb):
        full = rgb @ matrix[:, :3].T + matrix[:, 3]
        chroma = full[..., 1:].reshape(60, 2, 80, 2, 2).mean((1, 3))
        return [full[..., 0], chroma[..., 0], chroma[..., 1]]

    planes = tuple(np.rint(p).astype(np.uint8) for p in yuv(start))
    before = [p.copy() for p in planes]
    blend(planes, picture, matrix)
    a = whole(picture, rig.size[0])[..., None] / 255
    expected = yuv(start * (1 - a) + a * whole(picture, rig.size[0], "rgb"))
    for found, want, was in zip(planes, expected, before, strict=True):
        np.testing.assert_allclose(found, want, atol=1.3)
        scale = found.shape[0] / 120
        top = int(picture.y0 * scale)
        np.testing.assert_array_equal(found[:top], was[:top])  # nothing outside the box
    white = matrix @ np.array([255, 255, 255, 1])
    np.testing.assert_allclose(white, [235, 128, 128], atol=1e-3)
    still = overlay.composite(np.rint(start).astype(np.uint8), picture)
    np.testing.assert_allclose(still, start * (1 - a) + a * whole(picture, rig.size[0], "rgb"), atol=1)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(160, 120), (161, 121), (1400, 70)])
def test_painting_is_blending_what_was_drawn(size, antialias):
    """In bands as in one, for even and odd frames, with padding at the ends of rows, cut off or not."""
    rig = camera(size=size, t=(0.4, 0.2, 2))
    (a, faces), (b, _) = sphere((0.1, 0, 0), 0.7), sphere((-0.9, 0.4, 0.3), 0.6)
    for people in (a[None], np.stack([a, b])):
        args = people, faces, rig, 0, np.array([(*BLUE[:3], 0.8), RED])[: len(people)]
        matrix = overlay.yuv_matrix(1, size[1])
        rng = np.random.default_rng(0)
        shapes = size[::-1], *[((size[1] + 1) // 2, (size[0] + 1) // 2)] * 2
        memory = [rng.integers(0, 255, (h, w + 32)).astype(np.uint8) for h, w in shapes]
        found, want = (
            tuple(m.copy()[:, :w] for m, (_, w) in zip(memory, shapes, strict=True)) for _ in range(2)
        )
        paint(found, matrix, *args, antialias=antialias)
        blend(want, draw(*args, antialias=antialias), matrix)
        for x, y, before in zip(found, want, memory, strict=True):
            np.testing.assert_array_equal(x, y)
            assert (x != before[:, : x.shape[1]]).any()
    paint(found, matrix, people - np.array([0, 0, 50], np.float32), *args[1:])  # behind the camera
    np.testing.assert_array_equal(found[0], want[0])


def test_blending_reaches_the_last_row_and_column_of_an_odd_frame():
    rig = camera(size=(161, 121), rotation=(0, 0, 0), t=(0, 0, 3))
    vertices, faces = sphere(radius=3 * 0.99)
    vertices[:, 2] *= 0.1
    picture = draw(vertices[None], faces, rig, 0, np.array([BLUE]))
    planes = np.zeros((121, 161), np.uint8), np.zeros((61, 81), np.uint8), np.zeros((61, 81), np.uint8)
    blend(planes, picture, overlay.yuv_matrix(1, 121))
    assert (picture.alpha == 255).all()
    assert planes[0].min() > 16
    assert planes[1].min() > 128  # blue, also where the block holds one pixel only
    np.testing.assert_allclose(planes[1][-1, -1], planes[1][-2, -2], atol=4)


def test_the_mosaic_shows_every_view_whole():
    sizes = [(1088, 1920), (1920, 1080), (640, 480), (720, 1280), (3840, 2160)]
    for n in range(1, 6):
        grid = overlay.plan_mosaic(sizes[:n], (1920, 1080))
        assert grid.size[0] <= 1920
        assert grid.size[1] <= 1080
        covered = np.zeros(grid.size[::-1], int)
        for (w, h), (x, y, bw, bh) in zip(sizes, grid.boxes, strict=False):
            assert not any(v % 2 for v in (x, y, bw, bh))
            assert bw / bh == pytest.approx(w / h, rel=0.02)
            covered[y : y + bh, x : x + bw] += 1
        assert covered.max() == 1
        assert not covered[-grid.footer :].any()
    four = overlay.plan_mosaic([(1088, 1920)] * 4, (1920, 1080))
    assert len({y for _, y, _, _ in four.boxes}) == 1  # portrait views stand side by side
    assert len({x for x, _, _, _ in overlay.plan_mosaic([(1920, 1080)] * 4, (1920, 1080)).boxes}) == 2


def test_compiling_works_where_no_cache_can_be_written():
    """numba refuses to cache a function without a file in the same way as one in a folder it cannot write."""
    names = {}
    exec("def add(a, b):\n    return a + b", names)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(names["add"])
    assert jit(names["add"])(1, 2) == 3


def test_faces_have_their_own_colours():
    """A sphere of two halves is, left and right of the seam, the sphere of one colour."""
    vertices, faces = sphere()
    rig, people = camera(rotation=(0, 0, 0), t=(0, 0, 3)), vertices[None]
    tints = (vertices[faces].mean(1)[:, 0] > 0).astype(np.int32)
    colours = np.array([RED, BLUE])
    both = draw(people, faces, rig, 0, colours, tints=tints)
    ones = [draw(people, faces, rig, 0, colours[[k]]) for k in range(2)]
    assert both.alpha.shape == ones[0].alpha.shape
    seam = both.rgb.shape[1] // 2
    for half, one in ((np.s_[:, : seam - 4], ones[0]), (np.s_[:, seam + 5 :], ones[1])):
        assert (both.alpha[half] > 0).any()
        np.testing.assert_allclose(both.rgb[half].astype(int), one.rgb[half], atol=1)
    np.testing.assert_array_equal(both.alpha, ones[0].alpha)


def test_light_comes_from_where_it_is():
    vertices, faces = sphere()
    rig, people = camera(rotation=(0, 0, 0), t=(0, 0, 3)), vertices[None]
    colours = np.array([[1, 1, 1, 1]], np.float32)
    left, right = (
        draw(people, faces, rig, 0, colours, light=Light(np.array([x, 0, 0], np.float32), 0.2)).rgb[..., 0]
        for x in (-1, 1)
    )
    across = left.shape[1]
    assert left[:, : across // 3].max() > 220
    assert right[:, : across // 3].max() < 60
    assert np.abs(left[:, ::-1].astype(float) - right).mean() < 3
