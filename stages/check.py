"""Comparison of a recording's cameras with their calibration and with one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.agreement import (
    MIN_FRAMES,
    Agreement,
    Disagreement,
    check_each_camera,
    choose_stretches,
    compare_cameras,
    find_disagreement,
    find_exchanged,
)
from models.geometry.between_frames import people_between
from models.geometry.misplaced import MAX_REMAINING_M, MIN_CAMERAS, Misplaced, find_misplaced
from pipeline.array_types import Array, Floats
from pipeline.cameras import Rig
from pipeline.findings import Finding
from pipeline.recording import Recording
from pipeline.timeline import spread
from pipeline.verdicts import TRIANGULATION, Verdict

MAX_DISAGREEING_SHARE: Final = 0.8
"""Share of the sampled frames with a person in a camera, on which cameras agree, from which on a camera that
agrees with no other is named. ``MIN_AGREEING_SHARE`` decides on a closer look."""
MAX_LASTING_MM: Final = 20
"""Lasting error of a camera's points against the triangulation from all, beyond which cameras do not agree.
In right recordings it reached 11, with the shipped detector and people who hide each other 17."""
MAX_LEFT_OUT_MM: Final = 50
"""The same against the triangulation from the others, in the quarter of the frames where it is least. Right
recordings reached 39, with people who hide each other."""
MAX_LEFT_OUT_SELDOM_MM: Final = 100
"""The same where the camera shows the person in less than half of its frames with people; 65 there."""
SAMPLE_FRAMES: Final = 40
"""Frames, spread over the recording, on which point order, scales, unit and cameras are checked."""
DOUBTS: Final = frozenset(
    {"camera_alone", "camera_off", "cameras_disagree", "cameras_exchanged", "no_agreement"}
)
"""Codes of findings on a camera that is misplaced or shows other people."""
_CHECK: Final = (
    "check that the calibration is that of these videos, that they are in step, and that no camera was moved"
)


def files_at(recording: Recording) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(V, T) number of each camera's keypoint file, −1 for none, and true where the file exists."""
    numbers = recording.keypoint_numbers(np.arange(len(recording)))
    have = [
        np.zeros(len(n), bool) if c is None else c.has(n)
        for c, n in zip(recording.keypoints, numbers, strict=True)
    ]
    return numbers, np.stack(have)


def sample(recording: Recording) -> Floats:
    """People (V, T, P, K, 3) in ``SAMPLE_FRAMES`` frames of an inspected recording: pixels and confidence."""
    return people_between(recording, spread(np.arange(len(recording)), SAMPLE_FRAMES))


def doubt_cameras(rig: Rig, image: Floats) -> list[Finding]:
    """Findings on cameras whose people (V, T, P, K, 3) are elsewhere or other people than the others'."""
    found, misplaced = find_disagreement(rig, image, SAMPLE_FRAMES), find_misplaced(rig, image)
    if found is not None and found.exchanged is not None:
        return [_exchanged_finding(rig.names, found.exchanged)]
    alone = _alone_findings(rig.names, found) if found is not None else []
    if misplaced is None:
        return alone
    finding = _misplaced_finding(rig.names, misplaced)
    nobody = finding.camera is None and len(rig) > MIN_CAMERAS  # any of them could be called alone
    return [finding, *(f for f in alone if not nobody and f.camera != finding.camera)]


def _misplaced_finding(cameras: Sequence[str], found: Misplaced) -> Finding:
    v = int(np.nanargmax(found.offset_m)) if found.camera is None else found.camera
    off = f"{1000 * found.offset_m[v]:.0f} mm ({found.offset_px[v]:.0f} px)"
    if found.camera is not None:
        return Finding(
            "camera_off",
            f"camera {cameras[v]} is not where the calibration says: it sees the person {off} from where the "
            f"others do, which agree to {1000 * found.remaining_m[v]:.0f} mm without it; calibrate it again",
            cameras[v],
        )
    reason = "whichever is left out, the others do not agree"
    if len(cameras) == MIN_CAMERAS:
        reason = "three cannot tell which of them is wrong"
    elif (found.remaining_m < MAX_REMAINING_M).any():
        reason = "it cannot be told which of them is wrong"
    return Finding(
        "cameras_disagree",
        f"the cameras see the person up to {off} from where the others do, and {reason}; {_CHECK}",
    )


def _alone_findings(cameras: Sequence[str], found: Disagreement) -> list[Finding]:
    return [
        Finding(
            "camera_alone",
            f"camera {name} shows a person but agrees with no other view in {a} of {n} sampled frames: "
            "it was moved, is out of step, is exchanged with another camera, or shows somebody else",
            name,
            int(a),
        )
        for name, a, n in zip(cameras, found.disagreeing, found.compared, strict=True)
        if a >= max(MIN_FRAMES, MAX_DISAGREEING_SHARE * n)
    ]


def _exchanged_finding(cameras: Sequence[str], pair: tuple[int, int]) -> Finding:
    one, other = (cameras[v] for v in pair)
    return Finding(
        "cameras_exchanged",
        f"cameras {one} and {other} are exchanged: with the keypoints of the other, each agrees with the "
        "rest; exchange the names of their keypoints and videos, or of their calibrations",
    )


@dataclass(frozen=True)
class Check:
    """Agreement of V cameras of a recording, with findings."""

    cameras: tuple[str, ...]
    frames: int
    """Number of frames compared."""
    compared: bool
    """True where cameras were compared; else values that take two cameras are NaN or None."""
    distance_m: Array
    """(V, V) distance between cameras."""
    files: Array
    """(V,) share of the time line with a keypoint file."""
    agreement: Agreement
    """Without a comparison, ``person`` refers to the most visible one."""
    swapped: tuple[int, int] | None
    """Two cameras that agree with the others once their keypoints are exchanged, if any."""

    @property
    def left_out_mm(self) -> Array:
        """(V,) reprojection error of the other cameras' points, at the person; NaN with two cameras."""
        return 1000 * self.agreement.left_out_px * self.agreement.metres_per_px

    @property
    def residual_mm(self) -> Array:
        """(V,) triangulation residual at the person; NaN where nobody was triangulated."""
        return 1000 * self.agreement.residual_px * self.agreement.metres_per_px

    def verdicts(self, findings: Sequence[Finding]) -> list[Verdict | None]:
        """Verdict on each camera's residual, never good or usable for a camera that findings doubt.

        A misplaced camera bends the triangulation to itself: its residual alone says little.
        """
        doubted = {finding.camera for finding in findings if finding.code in DOUBTS}
        nobody_named = None in doubted
        return [
            "look at it" if nobody_named or name in doubted else TRIANGULATION.verdict(float(mm))
            for name, mm in zip(self.cameras, self.residual_mm, strict=True)
        ]

    def triangulation(self, findings: Sequence[Finding]) -> dict[str, dict[str, float | str | None]]:
        """Camera → residual and verdict, for a summary; empty without a comparison."""

        def known(value: float) -> float | None:
            return None if math.isnan(value) else round(value, 3)

        cells = zip(
            self.cameras, self.agreement.residual_px, self.residual_mm, self.verdicts(findings), strict=True
        )
        return {
            name: {"residual_px": known(float(px)), "residual_mm": known(float(mm)), "verdict": verdict}
            for name, px, mm, verdict in (cells if self.compared else ())
        }

    def rows(self, findings: Sequence[Finding] = ()) -> list[tuple[str, ...]]:
        """Table for the screen: a head, then one row a camera. findings: about the recording."""

        def shown(value: float) -> str:
            return "-" if np.isnan(value) else f"{value:.1f}"

        if not self.compared:
            shares = zip(self.cameras, self.files, self.agreement.person, strict=True)
            alone = [(n, f"{100 * files:.0f} %", f"{100 * person:.0f} %") for n, files, person in shares]
            return [("camera", "files", "shows somebody"), *alone]
        head = (
            "camera",
            "baseline",
            "files",
            "shows person",
            "residual px",
            "mm",
            "left out px",
            "mm",
            "verdict",
        )
        rows: list[tuple[str, ...]] = [head]
        nearest = self.distance_m + np.diag(np.full(len(self.cameras), np.inf))
        verdicts = self.verdicts(findings)
        left_out_mm = self.left_out_mm
        for v, name in enumerate(self.cameras):
            rows.append(
                (
                    name,
                    f"{nearest[v].min():.2f} m",
                    f"{100 * self.files[v]:.0f} %",
                    f"{100 * self.agreement.person[v]:.0f} %",
                    shown(float(self.agreement.residual_px[v])),
                    shown(float(self.residual_mm[v])),
                    shown(float(self.agreement.left_out_px[v])),
                    shown(float(left_out_mm[v])),
                    verdicts[v] or "-",
                )
            )
        return rows

    def findings(self, known: Sequence[Finding] = ()) -> list[Finding]:
        """Findings beside the ``known`` ones of the recording; empty when all is well."""
        agreement = self.agreement
        if not self.compared:
            return [
                Finding(
                    "camera_shows_nobody",
                    f"camera {name} shows nobody in the frames looked at: without a calibration, nothing "
                    "tells where it stands; leave it out",
                    name,
                )
                for name, share in zip(self.cameras, agreement.person, strict=True)
                if not share
            ]
        found = []
        if not agreement.person.any():
            sentence = "no two cameras agree on a person: check calibration, frame numbers, synchronisation"
            found.append(Finding("no_agreement", sentence))
        if self.swapped is not None:
            found.append(_exchanged_finding(self.cameras, self.swapped))
        doubts = [f for f in (*known, *found) if f.code in DOUBTS]
        if agreement.person.any() and not doubts:
            found += [
                Finding(
                    "camera_shows_nobody",
                    f"camera {name} shows the person in none of the {self.frames} frames looked at: check "
                    "its keypoints and its pictures",
                    name,
                )
                for name, files, share in zip(self.cameras, self.files, agreement.person, strict=True)
                if files and not share
            ]
        alone = {f.camera for f in doubts if f.code == "camera_alone"}
        others = np.array([name not in alone for name in self.cameras])
        mm = 1000 * agreement.metres_per_px
        lasting_mm, left_out_mm = agreement.lasting_px * mm, agreement.least_left_out_px * mm
        limit_mm = np.where(np.isnan(lasting_mm), MAX_LEFT_OUT_SELDOM_MM, MAX_LEFT_OUT_MM)
        off = others & ((lasting_mm > MAX_LASTING_MM) | (left_out_mm > limit_mm))
        enough = self.frames >= MIN_FRAMES
        if enough and len(alone) == len(doubts) and off.any():
            worst_mm = np.nanmax(np.stack([lasting_mm, left_out_mm])[:, off])
            found.append(
                Finding(
                    "cameras_disagree",
                    f"the cameras do not agree on the person: one of them sees points {worst_mm:.0f} mm off; "
                    f"{_CHECK}",
                )
            )
        return found


def check_recording(recording: Recording) -> Check:
    """Compare the cameras of an inspected recording in up to 480 frames, in up to four stretches.

    Without a calibration, or with one camera, each is checked alone.
    """
    rig, stretches = recording.rig, choose_stretches(len(recording))
    people = people_between(recording, np.concatenate(stretches))
    xy, confidence = rig.undistort_views(people[..., :2]), people[..., 2].astype(np.float64)
    times_s = [recording.timeline.time_s[at] for at in stretches]
    centres, pair = rig.centres, None
    compared = recording.placed and len(rig) > 1
    if compared:
        pair = find_exchanged(rig, sample(recording))
        agreement = compare_cameras(rig, xy, confidence, times_s)
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    else:
        agreement = check_each_camera(rig, xy, confidence, times_s)
        distance = np.full((len(rig), len(rig)), np.nan)
    return Check(
        cameras=rig.names,
        frames=people.shape[1],
        compared=compared,
        distance_m=distance,
        files=files_at(recording)[1].mean(1),
        agreement=agreement,
        swapped=pair,
    )
