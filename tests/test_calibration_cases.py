"""Recordings as other tools leave them: their calibration is used, or what is wrong with it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recordings import SHARED

from pipeline.calibrations import read_calibration
from pipeline.errors import InputError
from pipeline.findings import Code
from pipeline.recording import find_recording
from stages.graph import RunConfig, run
from stages.inspect import inspect

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="needs the shared cases")


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        ("pose2sim_calibration_folder", set()),
        ("pose2sim_trial_of_session/Trial_1", {"calibration_above"}),
        ("easymocap_cameras_folder", set()),
        ("freemocap_calibration_name", {"unit_guessed", "names_paired_in_order"}),
        ("names_nfd", set()),
        ("board_in_squares", {"person_size"}),
        ("board_too_large", {"person_size"}),
        ("board_too_small", {"person_size"}),
    ],
)
def test_the_calibration_that_lies_there_is_used(case: str, codes: set[Code]) -> None:
    """Cameras as the truth has them: the joints then are, too."""
    found = inspect(find_recording(CASES / case))
    truth = read_calibration(CASES / "_truth" / "calibration.toml")
    assert codes <= {f.code for f in found.findings}
    assert not {"no_agreement", "camera_alone"} & {f.code for f in found.findings}
    np.testing.assert_allclose(found.rig.K, truth.K, rtol=1e-4, atol=0.05)
    if "person_size" not in codes:
        order = np.argsort(found.rig.centres[:, 0])
        want = truth.centres[np.argsort(truth.centres[:, 0])]
        np.testing.assert_allclose(found.rig.centres[order], want, atol=2e-3)


def test_squares_of_a_board_are_named_as_the_unit() -> None:
    found = inspect(find_recording(CASES / "board_in_squares"))
    (sentence,) = [f.sentence for f in found.findings if f.code == "person_size"]
    assert "squares of its board, of about 39 mm" in sentence


def test_a_run_that_fits_nobody_names_the_size_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 24 frames could be fitted.*2\.8. m tall"):
        run(find_recording(CASES / "board_too_large"), tmp_path / "out", RunConfig())


def test_a_session_says_how_many_recordings_it_holds() -> None:
    with pytest.raises(InputError, match="holds 2 recordings: Trial_1, Trial_2"):
        find_recording(CASES / "pose2sim_trial_of_session")
