"""Comparison of a recording's cameras: what their residuals say beside what is known already."""

import numpy as np
import pytest

from models.geometry.agreement import Agreement
from pipeline.findings import Finding
from stages.check import Check

FINE, FAR = [4.0, 6.0, 5.0], [4.0, 6.0, 50.0]


def check(lasting_mm, person=(1.0, 1.0, 1.0), left_out_mm=(40.0, 40.0)):
    """left_out_mm: median over the frames, and lower quartile of what lasts."""
    lasting_px, residual_px = np.array(lasting_mm) / 5, np.full(3, 10.0)
    left_out_px, least_px = (np.full(3, mm) / 5 for mm in left_out_mm)
    agreement = Agreement(np.array(person), residual_px, left_out_px, lasting_px, least_px, np.full(3, 0.005))
    return Check(("a", "b", "c"), 40, True, np.ones((3, 3)), np.ones(3), agreement, None)


@pytest.mark.parametrize(
    ("lasting_mm", "known", "codes"),
    [
        (FINE, [], []),
        ([4.0, np.nan, 6.0], [], []),  # residuals of 50 mm that do not last are noise
        (FAR, [], ["cameras_disagree"]),
        (FAR, [Finding("camera_off", "", "a")], []),  # a wrong camera bends the triangulation for all
        (FAR, [Finding("camera_alone", "", "c")], []),
        (FAR, [Finding("camera_alone", "", "a")], ["cameras_disagree"]),
        (FAR, [Finding("fps_assumed", "")], ["cameras_disagree"]),
        ([np.nan, np.nan, np.nan], [], []),
    ],
)
def test_errors_that_last_are_said_where_nothing_explains_them(lasting_mm, known, codes):
    assert [f.code for f in check(lasting_mm).findings(known)] == codes


@pytest.mark.parametrize(
    ("left_out_mm", "codes"),
    [
        ((80.0, 40.0), []),
        ((150.0, 60.0), ["cameras_disagree"]),
        ((150.0, 20.0), []),  # a person is hidden before the camera in most frames
    ],
)
def test_what_the_others_say_counts_where_all_bend_to_each_other(left_out_mm, codes):
    assert [f.code for f in check(FINE, left_out_mm=left_out_mm).findings()] == codes


@pytest.mark.parametrize(("left_out_mm", "codes"), [(80.0, []), (110.0, ["cameras_disagree"])])
def test_a_camera_that_seldom_shows_the_person_must_be_farther_off(left_out_mm, codes):
    found = check([np.nan] * 3, left_out_mm=(150.0, left_out_mm))
    assert [f.code for f in found.findings()] == codes


@pytest.mark.parametrize(("alone", "codes"), [("c", []), ("a", ["cameras_disagree"])])
def test_a_camera_that_is_alone_casts_no_doubt_on_the_others(alone, codes):
    found = check(FINE, left_out_mm=[[40.0, 40.0, 750.0]] * 2)
    assert [f.code for f in found.findings([Finding("camera_alone", "", alone)])] == codes


def test_nobody_agreed_on_is_said_alone():
    assert [f.code for f in check([np.nan] * 3, person=(0, 0, 0)).findings()] == ["no_agreement"]


@pytest.mark.parametrize(("known", "cameras"), [([], ["c"]), ([Finding("camera_off", "", "c")], [])])
def test_a_camera_that_never_shows_the_person_is_named(known, cameras):
    found = check(FINE, person=(1.0, 1.0, 0.0)).findings(known)
    assert [(f.code, f.camera) for f in found] == [("camera_shows_nobody", name) for name in cameras]
