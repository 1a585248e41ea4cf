"""Inspection of a recording: every finding about it, made once, for ``info`` and ``run`` alike.

Not a stage that batches flow through: before the first frame, order of the points, unit and up are found out
(``inspect``); on demand, the cameras are compared (``check_recording``); after a run, the cameras it did
without are named (``left_out``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.agreement import (
    MIN_FRAMES,
    Agreement,
    Disagreement,
    Stretch,
    best_bodies,
    compare_cameras,
    find_disagreement,
    find_exchanged,
    look_alone,
    people_at_once,
    stretches_of,
)
from models.geometry.body_size import HEIGHT_BY_LIMBS, HEIGHT_M, LIMBS_M, find_scale, find_unit, limb_sum
from models.geometry.misplaced import MIN_CAMERAS, Misplaced, find_misplaced
from models.geometry.picture_scale import APPLIED, find_picture_scale
from models.geometry.point_order import (
    TOP_CONFIDENCE,
    USUAL_TOP,
    decide_order,
    decide_order_in_pictures,
    find_scales,
    share_outside,
)
from models.geometry.up import angle_deg, axis_name, find_up
from pipeline.calibrations.checks import UNITS, calibration_doubts, in_metres
from pipeline.calibrations.estimate import is_estimated
from pipeline.cameras import Array, Rig
from pipeline.errors import InputError
from pipeline.files import reading
from pipeline.findings import Finding
from pipeline.formats.keypoints import read_views
from pipeline.formats.keypoints.files import NO_FILE, Floats
from pipeline.formats.keypoints.points import PointOrder, orders_with, to_pixels
from pipeline.recording import Recording
from pipeline.skeleton import POINT_ORDERS
from pipeline.summary import MissingData
from pipeline.timeline import spread
from pipeline.verdicts import TRIANGULATION, Verdict

MAX_DISAGREEING_SHARE: Final = 0.8
"""Share of the sampled frames, in which a camera shows somebody and some cameras agree, from which on a
camera is named that agrees with no other. ``AGREES`` decides on a closer look."""
MAX_LEFT_OUT_SHARE: Final = 0.5
"""Share of the frames in which a camera and another show somebody, from which on a camera is named that a run
did not use."""
MAX_OUTSIDE_SHARE: Final = 0.05
"""Share of a camera's keypoints outside its picture that is not worth a word."""
MAX_SPAN_M: Final = 100.0
"""Distance between cameras above which the unit cannot be metres, where the person does not tell it."""
SQUARE_M: Final = (0.004, 0.2)
"""Sides of the squares of calibration boards, metres."""
_SAMPLE: Final = 40
"""Frames, spread over the recording, on which point order, scales and unit are checked."""

DOUBTS: Final = frozenset(
    {"camera_alone", "camera_off", "cameras_disagree", "cameras_exchanged", "no_agreement"}
)
"""Codes of the findings that a camera is not where its calibration says, or shows others."""
NOT_THE_PERSON: Final = "not the person"
"""Reason that a camera with people in its keypoints does not show the person."""
ALONE: Final = "no second view"
"""Reason that a camera is the only one with people: nobody can tell whether it shows the person."""


def inspect(recording: Recording) -> Recording:
    """The recording, ready to be read: point order known, rig in metres, up decided, all of it among its
    findings. One that is inspected already, or whose people are still to be detected, is returned as it is.

    Reads some forty frames of keypoints, more where the person is seldom there.

    Raises:
        InputError: the keypoint files hold nobody, points in no known order, or in one that cannot be told.
    """
    if recording.known_order is not None or not recording.has_keypoints:
        return recording
    with reading(recording.path):
        if recording.calibration is not None and len(recording.rig) > 1:
            return replace(_inspect_bodies(recording), as_found=recording)
        return replace(_inspect_pictures(recording), as_found=recording)


def _inspect_bodies(recording: Recording) -> Recording:
    """Point order, unit and up from the bodies on which the views of a calibrated rig agree."""
    folder, rig, files, stated = recording.path, recording.rig, recording.keypoints, recording.stated
    numbers, have = _files_at(recording)
    both = np.flatnonzero(have.sum(0) >= 2)
    if not len(both):
        raise InputError(
            f"{folder}: at no time do two cameras have a keypoint file; check the frame numbers in the names"
        )
    points = _point_count(recording, numbers[:, spread(both, 10 * _SAMPLE)])
    wanted = _stated_order(recording)
    known = PointOrder(
        wanted or orders_with(points)[0], "", picture_scale=stated.keypoints.picture_scale or (1.0, 1.0)
    )
    unit = stated.calibration.unit
    units = dict(UNITS) if unit is None else {"m": 1.0}
    findings: list[Finding] = []
    try:
        for count in (_SAMPLE, 10 * _SAMPLE):  # more where the person is seldom there
            raw = read_views(files, numbers[:, spread(both, count)], points)
            known = find_scales(raw, known)
            image = to_pixels(raw, known, rig.size)
            guess, bodies = find_unit(rig, image, units)
            if len(bodies) >= _SAMPLE // 4 or count >= len(both):
                break
        scale = 1.0
        if guess is None:
            scaled = find_scale(rig, image)
            scale, bodies = scaled or (1.0, best_bodies(rig, image))
        if stated.keypoints.scale is None:
            lengths = [UNITS[guess]] if guess else [scale] if scale != 1.0 else [*units.values()]
            resized, found = _find_picture_scale(rig, image, known, lengths)
            findings += resized
            if found != known:
                known, image = found, to_pixels(raw, found, rig.size)
                scale, (guess, bodies) = 1.0, find_unit(rig, image, units)
                if guess is None:
                    bodies = best_bodies(rig, image)
        known, doubts = decide_order(bodies, known, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    if not len(bodies):
        sentence = (
            "in the frames looked at, no two views agree on a person: calibration, its unit, "
            "keypoint frame numbers or synchronisation may be wrong"
        )
        findings.append(Finding("no_agreement", sentence))
    metres = (stated.calibration.metres_per_unit or 1.0) * UNITS[guess or "m"]
    findings += _doubt_size(limb_sum(bodies, [known.name]) / scale, metres)
    span = float(np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1).max())
    if guess is None and scale == 1.0 and unit is None and span > MAX_SPAN_M:
        guess = "mm"
    if guess is not None and guess != "m":
        rig = in_metres(rig, UNITS[guess])
        sentence = (
            f"the calibration is taken to be in {guess}: the cameras stand up to {span * UNITS[guess]:.1f} m "
            f"apart then, not {span:.0f} m, {_tall(bodies, known)}; state it in recording.yaml, "
            f"calibration: {{unit: {guess}}}"
        )
        findings.append(Finding("unit_guessed", sentence))
    findings += _doubt_scales(rig, image, known)
    findings += doubt_cameras(rig, image)
    findings += doubts
    findings += [Finding("camera_copied", sentence) for sentence in calibration_doubts(rig)]
    people = people_at_once(rig, image)
    return _ready(recording, rig, known, findings, people, _trunks(bodies, known))


def _find_picture_scale(
    rig: Rig, image: Floats, known: PointOrder, metres_per_unit: Sequence[float]
) -> tuple[list[Finding], PointOrder]:
    """Finding that the keypoints were made on resized pictures, and the points' scale by it."""
    for metres in metres_per_unit:
        found = find_picture_scale(in_metres(rig, metres), image, orders_with(known.points))
        if found is None:
            continue
        applied = found.gain >= APPLIED
        sentence = (
            f"the keypoints seem to be made on pictures of another size than the videos': times "
            f"{found.stated} the cameras agree {found.gain:.1f} times better on a body. "
            f"{'That is applied' if applied else 'They are taken as they are'}; recording.yaml can state it, "
            f"keypoints: {{scale: {found.stated}}}"
            f"{', or that it is 1' if applied else ''}"
        )
        scale = found.factor if applied else known.picture_scale
        return [Finding("keypoints_resized", sentence)], replace(known, picture_scale=scale)
    return [], known


def _inspect_pictures(recording: Recording) -> Recording:
    """Point order and scales as far as pictures tell them: without a calibration, or with one camera."""
    folder, rig = recording.path, recording.rig
    numbers, have = _files_at(recording)
    any_file = np.flatnonzero(have.any(0))
    if not len(any_file):
        raise InputError(
            f"{folder}: no keypoint file belongs to a frame of the recording; check the frame numbers in the "
            "names"
        )
    points = _point_count(recording, numbers[:, spread(any_file, 10 * _SAMPLE)])
    wanted = _stated_order(recording)
    try:
        raw = read_views(recording.keypoints, numbers[:, spread(any_file, 4 * _SAMPLE)], points)
        scale = recording.stated.keypoints.picture_scale or (1.0, 1.0)
        known = PointOrder(wanted or orders_with(points)[0], "", picture_scale=scale)
        known = find_scales(raw, known)
        image = to_pixels(raw, known, rig.size)
        known, doubts = decide_order_in_pictures(image, known, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    findings = [*_doubt_scales(rig, image, known), *doubts]
    people = max(people_at_once(rig.select((name,)), image[[v]]) for v, name in enumerate(rig.names))
    return _ready(recording, rig, known, findings, people, np.empty((0, 3)))


def _ready(
    recording: Recording,
    rig: Rig,
    known: PointOrder,
    findings: Sequence[Finding],
    people: int,
    trunks: Array,
) -> Recording:
    up, doubts = _decide_up(recording, rig, trunks)
    if recording.detected_order:
        known = replace(known, how="detected")
    notes = [(k, f"{v}: {known.name}, {known.how}" if k == "keypoints" else v) for k, v in recording.notes]
    return replace(
        recording,
        rig=replace(rig, known_up=up),
        known_order=known,
        notes=(*notes, ("people", f"{people} at once")),
        findings=(*recording.findings, *findings, *doubts),
    )


def _stated_order(recording: Recording) -> str | None:
    return recording.detected_order or recording.stated.keypoints.format


def _decide_up(recording: Recording, rig: Rig, trunks: Array) -> tuple[Array | None, list[Finding]]:
    """Up (3,) in the world of a calibration: stated, else that of estimated cameras, else from people and
    cameras; None where the cameras are still to be estimated, whose world has z up."""
    stated = recording.stated.up
    if recording.calibration is None:
        sentence = (
            "recording.yaml: up is not used where there is no calibration: z is up among estimated cameras"
        )
        return None, [] if stated is None else [Finding("up_unused", sentence)]
    if stated is not None:
        return np.array(stated), []
    if is_estimated(recording.calibration):
        return np.array([0.0, 0.0, 1.0]), []
    found = find_up(rig, trunks)
    up = axis_name(found.up)
    if found.rival is not None:
        sentence = (
            f"which way is up is in doubt: {up} is taken, and {axis_name(found.rival)} is as likely by how "
            f"people and cameras stand; state it in recording.yaml, up: {up}"
        )
        return found.up, [Finding("up_doubtful", sentence)]
    if found.tilted is not None:
        x, y, z = found.tilted
        sentence = (
            f"the calibration's world leans: {up} is taken to be up, and people and cameras stand "
            f"{angle_deg(found.tilted, found.up):.0f}° off it; recording.yaml can state that, "
            f"up: [{x:.2f}, {y:.2f}, {z:.2f}]"
        )
        return found.up, [Finding("up_doubtful", sentence)]
    return found.up, []


def _trunks(bodies: Array, known: PointOrder) -> Array:
    """(N, 3) from hips to neck of bodies (N, K, 3) in the files' order; NaN where not seen."""
    names = POINT_ORDERS[known.name]

    def middle(joint: str) -> Array:
        return np.asarray((bodies[:, names.index(f"L{joint}")] + bodies[:, names.index(f"R{joint}")]) / 2)

    return middle("Shoulder") - middle("Hip")


def _files_at(recording: Recording) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(V, T) number of each camera's keypoint file, −1 for none, and where there is such a file."""
    numbers = recording.keypoint_numbers(np.arange(len(recording)))
    have = [
        np.zeros(len(n), bool) if c is None else c.has(n)
        for c, n in zip(recording.keypoints, numbers, strict=True)
    ]
    return numbers, np.stack(have)


def _tall(bodies: Array, known: PointOrder) -> str:
    """The height of the person by whom a unit is decided, in words."""
    height = HEIGHT_BY_LIMBS * limb_sum(bodies, [known.name])
    return "and nobody shows it" if math.isnan(height) else f"and the person is {height:.1f} m tall"


def _doubt_size(limbs: float, metres: float) -> list[Finding]:
    """A finding where a person with arms and legs of this sum (in the calibration's lengths times ``metres``)
    would be too tall or too small for a human. NaN limbs say nothing."""
    height = HEIGHT_BY_LIMBS * limbs
    if math.isnan(height) or HEIGHT_M[0] <= height <= HEIGHT_M[1]:
        return []
    factor = LIMBS_M / limbs
    unit = metres * factor
    child = " unless it is a small child," if 0.6 < height < HEIGHT_M[0] else ""
    suspect = "the unit of the calibration or the size of its board is wrong"
    if SQUARE_M[0] <= unit <= SQUARE_M[1]:
        suspect = (
            f"the lengths of the calibration look like squares of its board, of about {1000 * unit:.0f} mm, "
            "or its unit is wrong"
        )
    sentence = (
        f"by arms and legs the person is {height:.2f} m tall:{child} {suspect}. Lengths {factor:.3g} "
        "times as long would make it an adult of "
        f"{HEIGHT_BY_LIMBS * LIMBS_M:.1f} m; recording.yaml: calibration: {{unit: {unit:.3g}}}"
    )
    return [Finding("person_size", sentence)]


def _doubt_scales(rig: Rig, image: Floats, known: PointOrder) -> list[Finding]:
    findings = []
    for name, share in zip(rig.names, share_outside(image, rig.size), strict=True):
        if share > MAX_OUTSIDE_SHARE:
            sentence = (
                f"camera {name}: {100 * share:.0f} % of the keypoints lie outside its picture: were they "
                "made on pictures of another size?"
            )
            findings.append(Finding("coordinates_outside", sentence, name))
    unusual = [
        f"{name} {TOP_CONFIDENCE * scale:.2f}"
        for name, scale in zip(rig.names, known.confidence_scale, strict=False)
        if not USUAL_TOP[0] <= TOP_CONFIDENCE * scale <= USUAL_TOP[1]
    ]
    if unusual:
        sentence = (
            f"keypoint confidences reach unusual values ({', '.join(unusual)}): those of each camera are "
            f"scaled to reach {TOP_CONFIDENCE}"
        )
        findings.append(Finding("confidence_scaled", sentence))
    if known.normalised:
        sentence = "keypoint coordinates lie between 0 and 1: taken as fractions of the picture"
        findings.append(Finding("coordinates_normalised", sentence))
    return findings


def sample(recording: Recording) -> Floats:
    """Everybody (V, T, P, K, 3) in some frames of an inspected recording: pixels and confidence."""
    return recording.people(spread(np.arange(len(recording)), _SAMPLE))


def doubt_cameras(rig: Rig, image: Floats) -> list[Finding]:
    """Cameras that show people (V, T, P, K, 3) but elsewhere than the others, or other people than they."""
    found, misplaced = find_disagreement(rig, image, _SAMPLE), find_misplaced(rig, image)
    if found is not None and found.exchanged is not None:
        return [_exchanged(rig.names, found.exchanged)]
    alone = _alone(rig.names, found) if found is not None else []
    if misplaced is None:
        return alone
    finding = _misplaced(rig.names, misplaced)
    nobody = finding.camera is None and len(rig) > MIN_CAMERAS  # any of them could be called alone
    return [finding, *(f for f in alone if not nobody and f.camera != finding.camera)]


def _misplaced(cameras: Sequence[str], found: Misplaced) -> Finding:
    v = int(np.nanargmax(found.offset_m)) if found.camera is None else found.camera
    off = f"{1000 * found.offset_m[v]:.0f} mm ({found.offset_px[v]:.0f} px)"
    if found.camera is not None:
        return Finding(
            "camera_off",
            f"camera {cameras[v]} is not where the calibration says: it sees the person {off} from where the "
            f"others do, who agree to {1000 * found.rest_m[v]:.0f} mm without it; calibrate it again",
            cameras[v],
        )
    which = (
        "three cannot tell which of them is wrong"
        if len(cameras) == MIN_CAMERAS
        else "whichever is left out, the others do not agree"
    )
    return Finding(
        "cameras_disagree",
        f"the cameras see the person up to {off} from where the others do, and {which}: is this the "
        "calibration of these videos, and has no camera been moved since?",
    )


def _alone(cameras: Sequence[str], found: Disagreement) -> list[Finding]:
    return [
        Finding(
            "camera_alone",
            f"camera {name} shows somebody but agrees with no other view in {a} of {n} sampled frames: "
            "moved, out of sync, exchanged with another camera, or somebody else?",
            name,
            int(a),
        )
        for name, a, n in zip(cameras, found.alone, found.shows, strict=True)
        if a >= max(MIN_FRAMES, MAX_DISAGREEING_SHARE * n)
    ]


def _exchanged(cameras: Sequence[str], pair: tuple[int, int]) -> Finding:
    one, other = (cameras[v] for v in pair)
    return Finding(
        "cameras_exchanged",
        f"cameras {one} and {other} are exchanged: with the keypoints of the other, each agrees with the "
        "rest; exchange the names of their keypoints and videos, or of their calibrations",
    )


def _point_count(recording: Recording, numbers: NDArray[np.int64]) -> int:
    """Points a person in the files of these numbers (V, T): one number, of a known order. Raises
    ``InputError``."""
    folder, stated_name = recording.path, _stated_order(recording)
    per_camera: dict[str, int] = {}
    looked = 0
    for name, camera, wanted_numbers in zip(recording.rig.names, recording.keypoints, numbers, strict=True):
        counts: Counter[int] = Counter()
        for number in wanted_numbers:
            if camera is not None and camera.file(int(number)) is not None:
                looked += 1
                counts.update(camera.point_counts(int(number)))
            if counts.total() >= 10:
                break
        if counts:
            per_camera[name] = counts.most_common(1)[0][0]
    if not per_camera and stated_name:
        return len(POINT_ORDERS[stated_name])
    if not per_camera:
        raise InputError(f"{folder}: nobody in any of the {looked} keypoint files looked at")
    found = set(per_camera.values())
    if len(found) > 1:
        shown = ", ".join(f"{n} {c}" for n, c in per_camera.items())
        raise InputError(f"{folder}: the cameras' numbers of keypoints differ ({shown}); all need one format")
    points = found.pop()
    if stated_name and len(POINT_ORDERS[stated_name]) != points:
        stated_points = len(POINT_ORDERS[stated_name])
        raise InputError(
            f"{folder / 'recording.yaml'}: keypoints.format {stated_name} has {stated_points} points, the "
            f"files have {points}"
        )
    if not orders_with(points):
        shown = ", ".join(f"{n} ({len(p)})" for n, p in POINT_ORDERS.items())
        raise InputError(f"{folder}: {points} keypoints a person fit none of the known formats: {shown}")
    return points


@dataclass(frozen=True)
class Check:
    """A closer look at the cameras of a recording. V cameras."""

    cameras: tuple[str, ...]
    frames: int
    """Count of the frames looked at."""
    compared: bool
    """The cameras were compared; else each stands alone, and all that takes two is NaN or None."""
    distance_m: Array
    """(V, V) from camera to camera."""
    files: Array
    """(V,) share of the time line for which there is a keypoint file."""
    agreement: Agreement
    """Where cameras were not compared, ``person`` is about the one of whom there is most to see."""
    swapped: tuple[int, int] | None
    """Two cameras that agree with the others once each takes the other's keypoints, if there are such."""

    @property
    def residual_mm(self) -> Array:
        """(V,) triangulation residual at the person; NaN where nobody was triangulated."""
        return 1000 * self.agreement.residual_px * self.agreement.metres_per_px

    def verdicts(self, findings: Sequence[Finding]) -> list[Verdict | None]:
        """Verdict on each camera's residual; none is good or usable that findings doubt.

        A camera that stands elsewhere bends the triangulation to itself: its residual alone says little.
        """
        doubted = {finding.camera for finding in findings if finding.code in DOUBTS}
        nobody_named = None in doubted
        return [
            "look at it" if nobody_named or name in doubted else TRIANGULATION.verdict(float(mm))
            for name, mm in zip(self.cameras, self.residual_mm, strict=True)
        ]

    def triangulation(self, findings: Sequence[Finding]) -> dict[str, dict[str, float | str | None]]:
        """Camera → its residual and verdict, for a summary; empty where cameras were not compared."""

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
        """A table for people: a head, then one row a camera. findings: about the recording."""

        def shown(value: float) -> str:
            return "-" if np.isnan(value) else f"{value:.1f}"

        if not self.compared:
            shares = zip(self.cameras, self.files, self.agreement.person, strict=True)
            alone = [(n, f"{100 * files:.0f} %", f"{100 * person:.0f} %") for n, files, person in shares]
            return [("camera", "files", "shows somebody"), *alone]
        head = (
            "camera",
            "nearest",
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
        left_out_mm = 1000 * self.agreement.left_out_px * self.agreement.metres_per_px
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

    def findings(self) -> list[Finding]:
        """Everything that looks wrong; empty when all is well."""
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
            found.append(_exchanged(self.cameras, self.swapped))
        return found


def check_recording(recording: Recording) -> Check:
    """Look at up to 480 frames of an inspected recording in up to four stretches and compare the cameras.

    Where they stand must be known for that. Without a calibration, or with one camera, each is looked at
    alone.
    """
    rig, frames = recording.rig, len(recording)
    stretches = []
    for at in stretches_of(frames):
        people = recording.people(at)
        xy, confidence = recording.undistort(people[..., :2]), people[..., 2].astype(np.float64)
        stretches.append(Stretch(xy, confidence, recording.timeline.time_s[at]))
    centres, pair = rig.centres, None
    compared = recording.placed and len(rig) > 1
    if compared:
        pair = find_exchanged(rig, sample(recording))
        agreement = compare_cameras(rig, stretches)
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    else:
        agreement = look_alone(rig, stretches)
        distance = np.full((len(rig), len(rig)), np.nan)
    return Check(
        cameras=rig.names,
        frames=sum(len(s.time_s) for s in stretches),
        compared=compared,
        distance_m=distance,
        files=_files_at(recording)[1].mean(1),
        agreement=agreement,
        swapped=pair,
    )


def missing_data(recording: Recording, seen: NDArray[np.bool_]) -> tuple[MissingData, ...]:
    """Count, camera by camera, why the person is not there.

    seen: (V, T) the camera shows the person, as the results have it. Files of other instants are read again.
    """
    shows = seen.copy()
    found: list[list[tuple[int, str, Path | None]]] = []
    for v, camera in enumerate(recording.keypoints):
        found.append([])
        at = np.flatnonzero(~seen[v])
        for instant, number in zip(at, recording.keypoint_numbers(at)[v], strict=True):
            file, reason = None, NO_FILE if number >= 0 else "no video frame"
            if camera is not None and (file := camera.file(int(number))) is not None:
                people, reason = camera.people(int(number), recording.point_order.points)
                shows[v, instant] = len(people) > 0
            found[v].append((int(instant), reason, file))
    alone = (shows.sum(0) == 1) & (len(shows) > 1)
    out = []
    for v, instants in enumerate(found):
        frames: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for t, reason, file in instants:
            if shows[v, t]:
                reason = ALONE if alone[t] else NOT_THE_PERSON
            if file is not None:
                examples.setdefault(reason, file.name)
            frames[reason] += 1
        out.append(MissingData(dict(frames), examples))
    return tuple(out)


def left_out(
    cameras: Sequence[str], missing: Sequence[MissingData], seen: NDArray[np.bool_]
) -> list[Finding]:
    """A sentence for each camera that shows people but, mostly, not the one whom the others show.

    missing, seen: as of ``missing_data``. The results are then those of the other cameras.
    """
    unused = np.array([m.frames.get(NOT_THE_PERSON, 0) for m in missing])
    return [
        Finding(
            "camera_left_out",
            f"camera {name} was left out of the fit in {out} of the {shows} frames in which it and another "
            "show somebody, as that is not where the others see the person: exchanged with another camera, "
            "moved, out of sync, or somebody else? The command info looks into it",
            name,
            int(out),
        )
        for name, out, shows in zip(cameras, unused, unused + seen.sum(1), strict=True)
        if out >= max(MIN_FRAMES, MAX_LEFT_OUT_SHARE * shows)
    ]
