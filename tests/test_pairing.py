"""Pairing of cameras with keypoints by the people: sorted order is put right where it is wrong, and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import figure, ring, seen, write_recording

from models.geometry.pairing import find_pairing, reordered
from pipeline.recording import find_recording
from pipeline.timeline import spread
from stages.check import SAMPLE_FRAMES
from stages.inspect import inspect

EVEN = ring(12)
RIG = EVEN.select([EVEN.names[v] for v in (0, 1, 3, 7)])
"""Cameras that no turn leads to one another."""
TIME_S = np.arange(24) / 10


@pytest.mark.parametrize("names", [("d", "c", "b", "a"), ("b", "c", "d", "a"), ("a", "c", "b", "d")])
def test_cameras_are_paired_as_the_people_tell(tmp_path: Path, names: tuple[str, ...]) -> None:
    people = seen(RIG, figure(TIME_S), "body_25", noise_px=2)
    folder = write_recording(tmp_path, RIG, [people], calibrated=replace(RIG, names=names))
    found = inspect(find_recording(folder))
    codes = [f.code for f in found.findings if f.code != "fps_assumed"]
    assert codes == ["names_paired_by_people"]
    np.testing.assert_allclose(found.rig.select(RIG.names).t, RIG.t, atol=1e-9)
    assert dict(zip(found.paired, found.rig.names, strict=True)) == dict(zip(names, RIG.names, strict=True))
    (told,) = [f.sentence for f in found.findings if f.code == codes[0]]
    line = told.split("recording.yaml, ")[1]
    (folder / "recording.yaml").write_text(line)
    stated = inspect(find_recording(folder))
    assert [f.code for f in stated.findings] == ["fps_assumed"]
    np.testing.assert_allclose(stated.rig.select(RIG.names).t, RIG.t, atol=1e-9)


def test_cameras_are_paired_by_people_who_are_seldom_there(tmp_path: Path) -> None:
    people = seen(RIG, figure(np.arange(100) / 10), "body_25", noise_px=2)
    people[:, spread(np.arange(100), SAMPLE_FRAMES)] = np.nan, np.nan, 0
    names = ("a", "c", "b", "d")
    found = inspect(
        find_recording(write_recording(tmp_path, RIG, [people], calibrated=replace(RIG, names=names)))
    )
    assert dict(zip(found.paired, found.rig.names, strict=True)) == dict(zip(names, RIG.names, strict=True))


def test_what_fits_two_ways_is_left() -> None:
    """Every camera of an even ring may stand where the next one does."""
    four = EVEN.select([EVEN.names[v] for v in (0, 3, 6, 9)])
    image = seen(four, figure(TIME_S[:8]), noise_px=2)[:, :, None].astype(np.float32)
    for order in ((0, 1, 2, 3), (1, 2, 3, 0), (1, 0, 2, 3)):
        assert find_pairing(reordered(four, order), image, ["body_25"]) is None


def test_exchanged_pairs_of_many_cameras() -> None:
    names = [EVEN.names[v] for v in (0, 1, 3, 4, 6, 9, 11)]
    rig = EVEN.select(names)
    rig = replace(rig, t=rig.t + np.random.default_rng(0).normal(0, 0.4, rig.t.shape))
    image = seen(rig, figure(TIME_S[:8]), "body_25", noise_px=1)[:, :, None].astype(np.float32)
    wrong = (1, 0, 2, 5, 4, 3, 6)
    assert find_pairing(reordered(rig, wrong), image, ["body_25"]) == wrong
    assert find_pairing(rig, image, ["body_25"]) is None
