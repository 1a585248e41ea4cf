"""Inspection of a recording: every finding about it, made once, for ``info`` and ``run`` alike.

Not a stage that batches flow through: before the first frame, order of the points, unit and up are found out
(``inspect``); after a run, the cameras it did without are named (``left_out``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.geometry.agreement import (
    MIN_FRAMES,
    count_people_at_once,
    find_bodies,
    select_disjoint,
    triangulate_best_people,
)
from models.geometry.body_size import (
    ADULT_HEIGHT_M,
    HEIGHT_BY_LIMBS,
    HEIGHT_M,
    LIMBS_M,
    find_scale,
    find_unit,
    limb_sum,
)
from models.geometry.pairing import pair_by_people
from models.geometry.picture_scale import PictureScale, agree_on_body, find_camera_scales, find_picture_scale
from models.geometry.point_order import (
    TOP_CONFIDENCE,
    USUAL_TOP,
    decide_order,
    decide_order_in_pictures,
    find_scales,
    share_outside,
)
from models.geometry.up import angle_deg, axis_name, find_up
from pipeline.array_types import Array, Floats
from pipeline.calibrations import has_unit
from pipeline.calibrations.checks import UNITS, calibration_doubts, in_metres
from pipeline.calibrations.estimate import is_estimated
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.files import reading
from pipeline.findings import Finding
from pipeline.formats.keypoints import read_views
from pipeline.formats.keypoints.files import NO_FILE, find_number
from pipeline.formats.keypoints.points import PointOrder, orders_with, to_body_25, to_pixels
from pipeline.layout import named_so
from pipeline.recording import Recording
from pipeline.skeleton import POINT_ORDERS
from pipeline.summary import MissingData
from pipeline.timeline import spread
from stages.check import SAMPLE_FRAMES, doubt_cameras, files_at, sample

MAX_LEFT_OUT_SHARE: Final = 0.5
"""Share of the frames in which a camera and another show somebody, from which on a camera is named that a run
did not use."""
MAX_OUTSIDE_SHARE: Final = 0.05
"""Share of a camera's keypoints outside its picture that is not worth a word."""
MAX_SPAN_M: Final = 100.0
"""Distance between cameras above which the unit cannot be metres, where the person does not tell it."""
_USUAL_SPAN_M: Final = 6.0
"""Distance between cameras by which a unit is chosen where keypoints do not tell it."""
SQUARE_M: Final = (0.004, 0.2)
"""Sides of the squares of calibration boards, metres."""

NOT_THE_PERSON: Final = "not the person"
"""Reason that a camera with people in its keypoints does not show the person."""
ALONE: Final = "no second view"
"""Reason that a camera is the only one with people: nobody can tell whether it shows the person."""


def inspect(recording: Recording) -> Recording:
    """The recording, ready to be read: point order known, rig in metres, up decided, all of it among its
    findings. One that is inspected already, or whose people are still to be detected, is returned as it is.

    Reads some forty frames of keypoints, more where the person is seldom there: of the whole time line, also
    where a range is taken. Only what is said about the cameras is that range's.

    Raises:
        InputError: the keypoint files hold nobody, points in no known order, or in one that cannot be told.
    """
    if recording.known_order is not None or not recording.has_keypoints:
        return recording
    with reading(recording.path):
        if recording.calibration is not None and len(recording.rig) > 1:
            return replace(_inspect_bodies(recording), uninspected=recording)
        return replace(_inspect_pictures(recording), uninspected=recording)


def _inspect_bodies(recording: Recording) -> Recording:
    """Point order, unit and up from the bodies on which the views of a calibrated rig agree."""
    folder, rig, files, stated = recording.path, recording.rig, recording.keypoints, recording.stated
    numbers, have = files_at(recording.uncut)  # a few frames do not tell what all do
    both = np.flatnonzero(have.sum(0) >= 2)
    if not (files_at(recording)[1].sum(0) >= 2).any():
        raise InputError(
            f"{folder}: at no time do two cameras have a keypoint file; check the frame numbers in the names"
        )
    points = _point_count(recording, numbers[:, spread(both, 10 * SAMPLE_FRAMES)])
    wanted = _stated_order(recording)
    known = PointOrder(wanted or orders_with(points)[0], "", picture_scale=_stated_scales(recording))
    unit = stated.calibration.unit
    units = dict(UNITS) if unit is None else {"m": 1.0}
    likely = min(units.values(), key=lambda m: abs(math.log(max(_span(rig) * m, 1e-9) / _USUAL_SPAN_M)))
    findings: list[Finding] = []
    try:
        for count in (SAMPLE_FRAMES, 10 * SAMPLE_FRAMES):  # more where the person is seldom there
            raw = read_views(files, numbers[:, spread(both, count)], points)
            known = find_scales(raw, known)
            image = to_pixels(raw, known, rig.size)
            if recording.paired:
                recording = pair_by_people(recording, in_metres(rig, likely), image, orders_with(points))
                rig = recording.rig
            guess, bodies = find_unit(rig, image, units)
            if len(bodies) >= SAMPLE_FRAMES // 4 or count >= len(both):
                break
        scale = 1.0
        if guess is None:
            scaled = find_scale(rig, image)
            scale, bodies = scaled or (1.0, triangulate_best_people(rig, image))
        orders = orders_with(known.points)
        agreed = in_metres(rig, UNITS[guess] if guess else scale)
        if stated.keypoints.scale is None and not agree_on_body(agreed, image, orders):
            metres = UNITS[guess] if guess else likely
            found = find_picture_scale(in_metres(rig, metres), image, orders)
            findings += [found.finding] if found else []
            if found and found.applied:
                known = replace(known, picture_scale=(found.factor,) * len(rig))
                image = to_pixels(raw, known, rig.size)
                scale, (guess, bodies) = 1.0, find_unit(rig, image, units)
                if guess is None:
                    bodies = triangulate_best_people(rig, image)
        known, doubts = decide_order(bodies, known, wanted)
    except InputError as error:
        pairs = dict(zip(recording.paired, rig.names, strict=False))
        asked = f"; if cameras are paired wrongly, {named_so(pairs)}" if pairs else ""
        raise InputError(f"{folder}: {error}{asked}") from None
    if not len(bodies):
        sentence = (
            "in the frames looked at, no two views agree on a person: calibration, its unit, "
            "keypoint frame numbers or synchronisation may be wrong"
        )
        findings.append(Finding("no_agreement", sentence))
    rig, told = _in_found_unit(recording, rig, bodies, known, guess, scale)
    findings += told
    camera_doubts = doubt_cameras(rig, to_body_25(image, known.name))
    if camera_doubts and (resized := _resized_cameras(recording, rig, raw, known)):
        known, told = resized
        image, camera_doubts, findings = to_pixels(raw, known, rig.size), [], [*findings, *told]
    findings += _doubt_scales(rig, image, known)
    as_body_25 = to_body_25(image, known.name)
    if recording.uncut is not recording:
        as_body_25 = sample(replace(recording, rig=rig, known_order=known))
        camera_doubts = doubt_cameras(rig, as_body_25)
    findings += camera_doubts
    findings += _seen_by_one(rig, as_body_25)
    findings += doubts
    findings += calibration_doubts(rig)
    people = count_people_at_once(rig, image)
    return _ready(recording, rig, known, findings, people, _trunks(bodies, known))


def _stated_scales(recording: Recording) -> tuple[tuple[float, float], ...]:
    names = recording.rig.names
    stated = recording.stated.keypoints.scales(names)
    return tuple(stated.get(name, (1.0, 1.0)) for name in names) if stated else ()


def _resized_cameras(
    recording: Recording, rig: Rig, raw: Floats, known: PointOrder
) -> tuple[PointOrder, list[Finding]] | None:
    """The order with factors of single cameras' keypoints (V, T, P, K, 3), as in the files, that make the
    cameras agree and are not stated; None where there are none."""
    stated = recording.stated.keypoints.scales(rig.names)
    found = find_camera_scales(rig, to_pixels(raw, known, rig.size))
    before = known.picture_scale or ((1.0, 1.0),) * len(rig)
    scales: dict[str, PictureScale] = {}
    for v, ((x, y), name) in enumerate(zip(before, rig.names, strict=True)):
        own = found[v] if v in found and name not in stated else PictureScale((1, 1), 1)
        scales[name] = replace(own, factor=(x * own.factor[0], y * own.factor[1]))
    known = replace(known, picture_scale=tuple(scale.factor for scale in scales.values()))
    resized = {name: scale for name, scale in scales.items() if scale.factor != (1, 1)}
    told = [s.finding_of(name, resized) for name, s in resized.items() if s.gain > 1]
    agree = told and not doubt_cameras(rig, to_body_25(to_pixels(raw, known, rig.size), known.name))
    return (known, told) if agree else None


def _in_found_unit(
    recording: Recording, rig: Rig, bodies: Array, known: PointOrder, guess: str | None, scale: float
) -> tuple[Rig, list[Finding]]:
    """The rig in metres, and what is found about its unit.

    guess: unit in which the bodies (N, K, 3) are a human's; without one they are so at ``scale`` metres a
    unit."""
    unit, calibration = recording.stated.calibration.unit, recording.calibration
    limbs, span = limb_sum(bodies, [known.name]) / scale, _span(rig)
    if unit is None and calibration and not has_unit(calibration) and limbs > 0:
        metres = UNITS[guess or "m"] * LIMBS_M / limbs
        sentence = (
            f"{calibration.name} has no unit: its lengths are taken to be {metres:.3g} m, which makes the "
            f"person {HEIGHT_BY_LIMBS * LIMBS_M:.1f} m tall; state it in recording.yaml, calibration: "
            f"{{unit: {metres:.3g}}}"
        )
        return in_metres(rig, metres), [Finding("unit_guessed", sentence)]
    stated = recording.stated.calibration.metres_per_unit or 1.0
    usual = ADULT_HEIGHT_M if unit is None else HEIGHT_M
    findings = _doubt_size(limbs, stated * UNITS[guess or "m"], usual)
    if guess is None and scale == 1.0 and unit is None and span > MAX_SPAN_M:
        guess = "mm"
    if guess is None or guess == "m":
        return rig, findings
    sentence = (
        f"the calibration is taken to be in {guess}: the cameras stand up to {span * UNITS[guess]:.1f} m "
        f"apart then, not {span:.0f} m, {_tall(bodies, known)}"
    )
    if not findings:  # which name another unit
        sentence += f"; state it in recording.yaml, calibration: {{unit: {guess}}}"
    return in_metres(rig, UNITS[guess]), [*findings, Finding("unit_guessed", sentence)]


def _seen_by_one(rig: Rig, image: Floats) -> list[Finding]:
    """Findings about people (V, T, P, K, 3) whom one camera alone shows for most of the time, beside others
    on whom it agrees with another."""
    bodies = find_bodies(rig, image).person
    # Two views may meet by chance; three do not, even if people who hide each other share a detection.
    t, h, v = np.nonzero((bodies >= 0) & ((bodies >= 0).sum(-1, keepdims=True) > 2))
    agreed = np.zeros(image.shape[:3], bool)
    agreed[v, t, bodies[t, h, v]] = True
    for frame, people in enumerate(bodies):
        for view, p in set().union(*select_disjoint(people)):
            agreed[view, frame, p] = True
    shows = 2 * (image[..., 2] > 0).sum(-1) >= image.shape[3]  # parts of somebody are nobody
    alone = ((shows & ~agreed).any(2) & agreed.any(2)).sum(1)
    return [
        Finding(
            "people_left_out",
            f"people left out: in {n} of {total} sampled frames camera {name} shows a person whom no "
            "other does; two cameras must see a person",
            name,
            int(n),
        )
        for name, n, total in zip(rig.names, alone, shows.any(2).sum(1), strict=True)
        if n >= MIN_FRAMES and 2 * n > total
    ]


def _span(rig: Rig) -> float:
    """Largest distance between two cameras, in the rig's unit."""
    return float(np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1).max())


def _inspect_pictures(recording: Recording) -> Recording:
    """Point order and scales as far as pictures tell them: without a calibration, or with one camera."""
    folder, rig = recording.path, recording.rig
    numbers, have = files_at(recording.uncut)
    any_file = np.flatnonzero(have.any(0))
    if not files_at(recording)[1].any():
        raise InputError(
            f"{folder}: no keypoint file belongs to a frame of the recording; check the frame numbers in the "
            "names"
        )
    points = _point_count(recording, numbers[:, spread(any_file, 10 * SAMPLE_FRAMES)])
    wanted = _stated_order(recording)
    try:
        raw = read_views(recording.keypoints, numbers[:, spread(any_file, 4 * SAMPLE_FRAMES)], points)
        known = PointOrder(wanted or orders_with(points)[0], "", picture_scale=_stated_scales(recording))
        known = find_scales(raw, known)
        image = to_pixels(raw, known, rig.size)
        known, doubts = decide_order_in_pictures(image, known, wanted)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    findings = [*_doubt_scales(rig, image, known), *doubts]
    people = max(count_people_at_once(rig.select((name,)), image[[v]]) for v, name in enumerate(rig.names))
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
        known = replace(known, how=next(f.order_known_by for f in recording.keypoints if f))
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


def _tall(bodies: Array, known: PointOrder) -> str:
    """The height of the person by whom a unit is decided, in words."""
    height = HEIGHT_BY_LIMBS * limb_sum(bodies, [known.name])
    return "and nobody shows it" if math.isnan(height) else f"and the person is {height:.1f} m tall"


def _doubt_size(limbs: float, metres: float, usual: tuple[float, float]) -> list[Finding]:
    """A finding where a person with arms and legs of this sum (in the calibration's lengths times ``metres``)
    would be taller or smaller than usual. NaN limbs say nothing."""
    height = HEIGHT_BY_LIMBS * limbs
    if math.isnan(height) or usual[0] <= height <= usual[1]:
        return []
    factor = LIMBS_M / limbs
    unit = metres * factor
    child = " unless it is a child," if 0.6 < height < ADULT_HEIGHT_M[0] else ""
    suspect = "the unit of the calibration or the size of its board is wrong"
    if SQUARE_M[0] <= unit <= SQUARE_M[1] and not 0.5 < factor < 2:
        suspect = (
            f"the lengths of the calibration look like squares of its board, of about {1000 * unit:.0f} mm, "
            "or its unit is wrong"
        )
    sentence = (
        f"by arms and legs the person is {height:.2f} m tall:{child} {suspect}. Lengths {factor:.3g} "
        "times as long would make it an adult of "
        f"{HEIGHT_BY_LIMBS * LIMBS_M:.1f} m; recording.yaml: calibration: {{unit: {unit:.3g}}}"
    )
    if HEIGHT_M[0] <= height <= HEIGHT_M[1]:
        sentence += f", or {{unit: {metres:g}}} if the person is so tall"
    return [Finding("person_size", sentence)]


def _doubt_scales(rig: Rig, image: Floats, known: PointOrder) -> list[Finding]:
    findings = []
    for name, share in zip(rig.names, share_outside(image, rig.size), strict=True):
        if share > MAX_OUTSIDE_SHARE:
            sentence = (
                f"camera {name}: {100 * share:.0f} % of the keypoints lie outside its picture; check that "
                "they were made on pictures of its size"
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


def missing_data(recording: Recording, seen: NDArray[np.bool_]) -> tuple[MissingData, ...]:
    """Count, camera by camera, why the person is not there.

    seen: (V, T) the camera shows the person, as the results have it. Files of other instants are read again.
    """
    shows = seen.copy()
    found: list[list[tuple[int, str, str | None]]] = []
    for v, camera in enumerate(recording.keypoints):
        found.append([])
        at = np.flatnonzero(~seen[v])
        for instant, number in zip(at, recording.keypoint_numbers(at)[v], strict=True):
            example, reason = None, NO_FILE if number >= 0 else "no video frame"
            if camera is not None and (file := camera.file(int(number))) is not None:
                people, reason = camera.people(int(number), recording.point_order.points)
                shows[v, instant] = len(people) > 0
                named = find_number(file.stem)
                example = file.name if named and int(named[1]) == number else f"frame {number}"
            found[v].append((int(instant), reason, example))
    alone = (shows.sum(0) == 1) & (len(shows) > 1)
    out = []
    for v, instants in enumerate(found):
        frames: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for t, reason, example in instants:
            if shows[v, t]:
                reason = ALONE if alone[t] else NOT_THE_PERSON
            if example is not None:
                examples.setdefault(reason, example)
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
