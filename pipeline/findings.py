"""Findings: guesses, doubts and errors about a user's data, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Code = Literal[
    # Files of a recording.
    "keypoints_elsewhere", "keypoints_missing", "keypoints_past_end", "keypoints_renumbered",
    "keypoints_unnumbered", "keypoints_unread", "keypoints_without", "detections_unused", "name_paired",
    "names_paired_by_people", "names_paired_in_order", "video", "video_without", "videos_elsewhere",
    "videos_unread", "results_inside",
    # Cameras.
    "calibration_above", "calibration_chosen", "calibration_unread", "distortion_scaled",
    "calibration_estimated", "calibration_missing", "calibration_rescaled", "calibration_edited",
    "camera_alone", "camera_copied", "camera_left_out", "camera_off", "camera_shows_nobody",
    "camera_unused", "cameras_disagree", "cameras_exchanged", "no_agreement", "focal_unused",
    "pixels_not_square",
    "size_guessed", "unit_guessed", "up_doubtful", "up_unused",
    # Time.
    "clock_unknown", "clocks_set", "fps_assumed", "fps_unused",
    "frame_missing", "frames_unused", "rates_differ", "sound_contradicts", "sound_unused", "sound_used",
    # Keypoints and the person.
    "coordinates_normalised", "coordinates_outside", "confidence_scaled", "format_doubtful",
    "format_unchecked", "keypoints_resized", "limbs_doubtful", "people_left_out",
    "person_size", "sides_exchanged",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding about a recording or its results."""

    code: Code
    sentence: str
    """Message: the fact, then the remedy."""
    camera: str | None = None
    """Camera concerned, if a single one."""
    frames: int | None = None
    """Number of frames, or keypoint files, concerned."""
