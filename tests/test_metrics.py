"""Error measures against slow twins and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from models.evaluation.metrics import acceleration_error, align_similarity, auc, mpjpe, pa_mpjpe, pck
from pipeline.array_types import Array


@pytest.fixture
def sets() -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    true = rng.normal(size=(5, 24, 3))
    return true + 0.1 * rng.normal(size=true.shape), true


def test_mpjpe_equals_its_slow_twin(sets: tuple[Array, Array]) -> None:
    predicted, true = sets
    slow = [
        sum(np.sqrt(sum((p[i] - t[i]) ** 2 for i in range(3))) for p, t in zip(frame, other, strict=True))
        / 24
        for frame, other in zip(predicted, true, strict=True)
    ]
    np.testing.assert_allclose(mpjpe(predicted, true), slow, rtol=1e-12)


def test_a_shift_is_the_error() -> None:
    points = np.random.default_rng(0).normal(size=(2, 6890, 3))
    moved = points + np.array([0.03, 0.0, 0.04])
    np.testing.assert_allclose(mpjpe(moved, points), 0.05)
    np.testing.assert_allclose(pa_mpjpe(moved, points), 0.0, atol=1e-12)


def test_pa_mpjpe_forgets_a_similarity_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=(3, 4, 24, 3))
    turn = Rotation.random(12, random_state=2).as_matrix().reshape(3, 4, 3, 3)
    moved = 1.7 * np.einsum("...ij,...nj->...ni", turn, true) + rng.normal(size=(3, 4, 1, 3))
    np.testing.assert_allclose(pa_mpjpe(moved, true), 0.0, atol=1e-12)
    mirrored = true * [-1.0, 1.0, 1.0]
    assert (pa_mpjpe(mirrored, true) > 0.3).all(), "a mirror image must not be aligned"


@pytest.mark.parametrize("mirror", [False, True])
def test_alignment_equals_a_numeric_search(sets: tuple[Array, Array], mirror: bool) -> None:
    predicted, true = sets[0][0], sets[1][0]
    if mirror:  # the case in which the plain SVD answer is a reflection
        predicted = predicted * [1.0, 1.0, -1.0]

    def apply(x: Array) -> Array:
        return np.exp(x[6]) * Rotation.from_rotvec(x[:3]).apply(predicted) + x[3:6]

    best = min(
        least_squares(lambda x: (apply(x) - true).ravel(), np.r_[start, 0, 0, 0, -1.0], xtol=1e-14).cost
        for start in Rotation.random(20, random_state=0).as_rotvec()
    )
    aligned = align_similarity(predicted, true)
    assert 0.5 * np.square(aligned - true).sum() == pytest.approx(best, rel=1e-6)


def test_acceleration_error_equals_its_slow_twin(sets: tuple[Array, Array]) -> None:
    predicted, true = sets

    def acceleration(x: Array, t: int, joint: int) -> Array:
        return (x[t + 1, joint] - x[t, joint]) - (x[t, joint] - x[t - 1, joint])

    slow = [
        np.mean([np.linalg.norm(acceleration(predicted, t, j) - acceleration(true, t, j)) for j in range(24)])
        for t in range(1, 4)
    ]
    np.testing.assert_allclose(acceleration_error(predicted, true), slow, rtol=1e-12)
    several = acceleration_error(np.stack([predicted, true]), np.stack([true, true]))
    np.testing.assert_allclose(several, [slow, [0, 0, 0]], rtol=1e-12)
    assert acceleration_error(predicted[:2], true[:2]).shape == (0,)


def test_acceleration_error_knows_a_constant_push_and_no_drift(sets: tuple[Array, Array]) -> None:
    true = sets[1]
    frame = np.arange(5.0)[:, None, None]
    drifting = true + frame * np.array([0.1, -0.2, 0.3])
    np.testing.assert_allclose(acceleration_error(drifting, true), 0, atol=1e-12)
    pushed = true + 0.5 * frame**2 * np.array([0.0, 0.03, 0.04])
    np.testing.assert_allclose(acceleration_error(pushed, true), 0.05)


def test_a_frame_not_compared_has_no_acceleration(sets: tuple[Array, Array]) -> None:
    predicted, true = (s.copy() for s in sets)
    predicted[0, 3, 0] = np.nan
    assert np.isnan(acceleration_error(predicted, true)).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="expected frames"):
        acceleration_error(predicted[0], true[0])


def test_pck_and_auc_equal_their_slow_twins(sets: tuple[Array, Array]) -> None:
    predicted, true = sets
    thresholds = np.arange(0, 0.151, 0.005)
    far = np.array(
        [[np.sqrt(((p - t) ** 2).sum()) for p, t in zip(*f, strict=True)] for f in zip(*sets, strict=True)]
    )
    slow = [sum(1 for d in frame if d < 0.15) / 24 for frame in far]
    np.testing.assert_allclose(pck(predicted, true, 0.15), slow)
    assert 0.1 < np.mean(slow) < 0.9
    area = [sum(sum(1 for d in frame if d < x) / 24 for x in thresholds) / len(thresholds) for frame in far]
    np.testing.assert_allclose(auc(predicted, true, thresholds), area)
    np.testing.assert_allclose(auc(true, true, np.arange(0, 151, 5)), 30 / 31)  # less than 0 is nothing


def test_frames_with_nan_are_not_compared(sets: tuple[Array, Array]) -> None:
    predicted, true = (s.copy() for s in sets)
    whole = mpjpe(predicted, true), pa_mpjpe(predicted, true)
    predicted[1, 3, 0] = np.nan
    true[4] = np.inf
    assert np.isnan(pck(predicted, true, 1.0)[[1, 4]]).all()
    for measure, before in zip((mpjpe, pa_mpjpe), whole, strict=True):
        after = measure(predicted, true)
        assert np.isnan(after[[1, 4]]).all()
        np.testing.assert_array_equal(after[[0, 2, 3]], before[[0, 2, 3]])


def test_points_on_one_spot_end_on_the_centre(sets: tuple[Array, Array]) -> None:
    true = sets[1]
    aligned = align_similarity(np.zeros_like(true), true)
    np.testing.assert_allclose(aligned, np.broadcast_to(true.mean(1, keepdims=True), true.shape))


@pytest.mark.parametrize(
    ("a", "b"), [((2, 24, 3), (3, 24, 3)), ((24, 3), (2, 24, 3)), ((24, 2), (24, 2)), ((3,), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected the same"):
        mpjpe(np.zeros(a), np.zeros(b))
