"""Layout of a recording's folder: where videos, keypoints and calibration lie, and which belong together."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final
from unicodedata import normalize

from pipeline.calibrations import (
    calibration_files,
    calibrations_in,
    find_calibration,
    is_calibration_place,
    unread_calibrations,
)
from pipeline.calibrations.checks import plain
from pipeline.calibrations.estimate import is_estimated
from pipeline.cameras import Rig
from pipeline.errors import InputError
from pipeline.findings import Finding
from pipeline.footage import find_videos
from pipeline.formats.keypoints import find_camera_files, index_keypoints
from pipeline.results import DETECTIONS, STORE
from pipeline.settings import SETTINGS, Stated, read_stated, stated_path

_KEYPOINT_FOLDERS: Final = (
    "keypoints", "pose", "openpose", "annots", ".", "pose-sync", "pose-associated", "predictions",
    "alphapose", "pose-2d-filtered", "pose-2d", "annotations",
)  # fmt: skip
_SESSION_LEVELS: Final = 2
"""Folders above a trial that may hold its session's calibration: Pose2Sim has a participant's between,
caliscope ``recordings``."""
_TOOL_MARK: Final = re.compile(r"DLC_.*|(\.\w{2,4})?\.predictions.*|\.analysis")
"""Ends of names that DeepLabCut and SLEAP put behind that of the video."""


def is_recording(folder: Path, inherit: Path | None = None) -> bool:
    """True for a folder with keypoints where ``find_recording`` looks, or with videos.

    Videos that lie in the folder itself make it one if there is a calibration, or neither a recording nor
    results beside them.
    """
    chain = folder_chain(folder, inherit)
    stated = read_stated(chain)
    somewhere = stated.keypoints.path
    if (somewhere is None or (folder / somewhere).is_dir()) and find_keypoints(folder, stated, [])[0]:
        return True
    videos = find_videos(folder, [])
    if not videos:
        return False
    if any(file.parent != folder for file in videos.values()):
        return True
    if any(find_calibration(place)[0] for place in chain):
        return True
    return not (folder / STORE).exists() and not recordings_in(folder)


def sources(folder: Path, inherit: Path | None = None) -> Iterator[Path]:
    """Everything that a run of this folder reads: files of settings and cameras, videos, folders of
    keypoints.

    Raises ``InputError`` or ``OSError`` where it cannot be told.
    """
    chain = folder_chain(folder, inherit)
    yield from (file for place in chain if (file := place / SETTINGS).exists())
    stated = read_stated(chain)
    calibration = calibration_of(chain, stated, [], [])
    if calibration is not None:
        yield from calibration_files(calibration)
    yield from find_videos(folder, []).values()
    keypoints = find_keypoints(folder, stated, [])[0]
    yield from dict.fromkeys(path if path.exists() else path.parent for path in keypoints.values())
    if not keypoints and (folder / DETECTIONS).exists():
        yield folder / DETECTIONS


def folder_chain(folder: Path, inherit: Path | None) -> tuple[Path, ...]:
    """The folders from ``inherit`` down to ``folder``."""
    if inherit is None:
        return (folder,)
    steps = folder.relative_to(inherit).parts
    return tuple(inherit.joinpath(*steps[:n]) for n in range(len(steps) + 1))


def calibration_of(
    chain: Sequence[Path], stated: Stated, notes: list[tuple[str, str]], findings: list[Finding]
) -> Path | None:
    """The nearest calibration: the folder's own, then those of the folders above, and of the one that these
    are in: a trial's session."""
    folder, wanted = chain[-1], stated.calibration.path
    path: Path | None = None
    others: tuple[Path, ...] = ()
    for place in reversed(chain):
        if wanted is None:
            path, others = find_calibration(place)
        elif (place / wanted).exists() or place == chain[0]:
            path, others = stated_path(place, wanted, "calibration.path"), ()
            if path.is_dir():
                where = path
                path, others = find_calibration(where)
                if path is None:
                    raise InputError(
                        f"{place / 'recording.yaml'}: calibration.path: {where} holds no calibration"
                    )
        else:
            continue
        if path is not None:
            break
    if path is None:
        path, others = _calibration_above(chain, findings)
    if path is None:
        return None
    path = calibration_files(path)[0]
    shown = [os.path.relpath(p, folder) for p in (path, *others)]
    notes.append(("calibration", shown[0]))
    if others:
        sentence = (
            f"several calibrations: {shown[0]} is used, not {', '.join(shown[1:])}; recording.yaml can name "
            "another, calibration: {path: ...}"
        )
        findings.append(Finding("calibration_chosen", sentence))
    return path


def _calibration_above(
    chain: Sequence[Path], findings: list[Finding]
) -> tuple[Path | None, tuple[Path, ...]]:
    """Calibration one or two folders up, a trial's session or that of its participant, which is told; else
    what looks like one and is not read, by name."""
    unread = [file for place in chain for file in unread_calibrations(place)]
    if unread:
        names = ", ".join(os.path.relpath(p, chain[-1]) for p in unread[:5])
        sentence = (
            f"{names}: looks like a calibration but is of no format that can be read, so it is not used; "
            "docs/formats.md lists those that can"
        )
        findings.append(Finding("calibration_unread", sentence))
    for above in chain[0].absolute().parents[:_SESSION_LEVELS]:
        try:
            path, others = find_calibration(above, session=True)
        except (InputError, OSError) as error:
            findings.append(Finding("calibration_unread", f"the calibrations above are not used: {error}"))
            return None, ()
        if path is not None and not is_estimated(path):  # estimated: results of a run lie there
            sentence = (
                f"the calibration is that of the folder above, {os.path.relpath(path, chain[-1])}; one in "
                f"{chain[-1].name or 'the recording'} itself would come first"
            )
            findings.append(Finding("calibration_above", sentence))
            return path, others
    if misplaced := _calibrations_elsewhere(chain[-1]):
        first = misplaced[0].relative_to(chain[-1])
        sentence = (
            f"{first} looks like a calibration and is not used, as it lies where none is looked for; name it "
            f"in recording.yaml, calibration: {{path: {first}}}"
        )
        findings.append(Finding("calibration_unread", sentence))
    return None, ()


def _calibrations_elsewhere(folder: Path) -> list[Path]:
    """Files of calibrations in folders of a recording in which none is looked for, but for results and
    keypoints."""
    others = (p for p in sorted(folder.iterdir()) if p.name.casefold() not in _KEYPOINT_FOLDERS)
    places = (p for p in others if p.is_dir() and not p.name.startswith("."))
    own = (p for p in places if not is_calibration_place(p.name) and not (p / STORE).exists())
    return [files[0] for place in own for files in calibrations_in(place) if not is_estimated(files[0])]


def recordings_in(folder: Path, levels: int = _SESSION_LEVELS) -> list[str]:
    """Recordings in a folder, and in those folders in it that are none, by their path."""
    inner = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not is_calibration_place(p.name)):
        try:
            calibration = find_calibration(sub)[0]
            # A run on the videos here leaves its cameras in its results, which are no recording.
            stands = calibration is not None and not is_estimated(calibration)
            if stands or is_recording(sub, inherit=folder):
                inner.append(sub.name)
            elif levels > 1 and not sub.name.startswith("."):
                inner += [f"{sub.name}/{name}" for name in recordings_in(sub, levels - 1)]
        except (InputError, OSError):
            continue
    return inner


def _keypoint_places(folder: Path) -> list[Path]:
    """The folder and those in it that are called after keypoints, in order of precedence; case does not
    count."""
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    named = [p for name in _KEYPOINT_FOLDERS if name != "." for p in inside if p.name.casefold() == name]
    at = _KEYPOINT_FOLDERS.index(".")
    before = [p for p in named if _KEYPOINT_FOLDERS.index(p.name.casefold()) < at]
    return [*before, folder, *named[len(before) :]]


def find_keypoints(folder: Path, stated: Stated, findings: list[Finding]) -> tuple[dict[str, Path], str]:
    """Keypoint folders by camera, from the first place that has any, and that place."""
    if stated.keypoints.path is not None:
        place = stated_path(folder, stated.keypoints.path, "keypoints.path")
        cameras = _cameras_in(place)
        if not cameras or [*cameras] == [place.name]:  # nothing, or the files of one camera alone
            raise InputError(
                f"{folder / 'recording.yaml'}: keypoints.path: {place} holds no keypoints of a camera"
            )
        return cameras, f"{stated.keypoints.path.rstrip('/')}/ (stated)"
    places = []
    for place in _keypoint_places(folder):
        cameras = _cameras_in(place, "*_json" if place == folder else "*")
        if cameras:
            places.append(("." if place == folder else place.name, cameras))
    if not places:
        return {}, ""
    name, cameras = places[0]
    others = [p for p, _ in places[1:]]
    shown = "" if name == "." else f"{name}/"
    if others:
        also = ", ".join("*_json beside it" if p == "." else f"{p}/" for p in others)
        findings.append(
            Finding(
                "keypoints_elsewhere",
                f"keypoints are taken from {shown or '*_json'}; {also} not used (recording.yaml can name "
                "one: keypoints: {path: ...})",
            )
        )
    return cameras, shown or "<camera>_json"


def _cameras_in(place: Path, names: str = "*") -> dict[str, Path]:
    """Keypoints in a folder by camera: the name of the camera's folder, without ``_json``, or file."""
    found: dict[str, Path] = {}
    for path in find_camera_files(place, names):
        name = path.stem if path.is_file() else path.name.removesuffix("_json")
        name = normalize("NFC", _TOOL_MARK.sub("", name))
        if name in found:
            raise InputError(
                f"{place}: two sets of keypoints of camera {name}: {found[name].name}, {path.name}; move one "
                "away"
            )
        found[name] = path
    return found


_MAYBE_KEYPOINTS: Final = MappingProxyType(
    {
        ".json": "OpenPose's, a folder a camera",
        ".pkl": "MMPose's JSON, or an npz of frames × people × points × 3",
        **dict.fromkeys((".csv", ".h5"), "tables of DeepLabCut or SLEAP"),
        **dict.fromkeys((".mat", ".txt", ".xml"), "an npz of frames × people × points × 3"),
    }
)
"""Suffixes that keypoints have, and the nearest thing that is read."""


def unread_keypoints(folder: Path, stated: Stated) -> list[Finding]:
    """Findings on files that lie where keypoints are looked for, and are of no format."""
    findings = []
    stated_place = stated.keypoints.path
    places = [folder / stated_place] if stated_place else _keypoint_places(folder)
    for place in (p for p in places if p != folder and p.is_dir()):
        cameras = find_camera_files(place)
        also = {path.stem for path in cameras if path.suffix}  # a table that lies there in two formats
        flat = any(not path.exists() for path in cameras)
        files, folders = _listing(place, {path.name for path in cameras})
        inside = [*files, *(f"{name}/{file}" for name in folders for file in _listing(place / name)[0])]
        for suffix, nearest in _MAYBE_KEYPOINTS.items():
            unread = [n for n in inside if n.lower().endswith(suffix) and Path(n).stem not in also]
            if unread and not (flat and suffix == ".json"):
                sentence = (
                    f"{len(unread)} {suffix} files in {place.relative_to(folder)}/ are not read, the first "
                    f"is {unread[0]}; the nearest that would be: {nearest}"
                )
                findings.append(Finding("keypoints_unread", sentence, None, len(unread)))
    return findings


def misplaced_keypoints(folder: Path) -> list[Finding]:
    """A finding on keypoints that lie in a recording, up to two folders down, where none are looked for."""

    def places(place: Path, depth: int) -> Iterator[Path]:
        yield place
        for sub in sorted(p for p in place.iterdir() if depth and p.is_dir() and p.name[0] != "."):
            if not is_calibration_place(sub.name) and not (sub / STORE).exists():
                yield from places(sub, depth - 1)

    for place in places(folder, 2):
        if any(_holds_people(path) for path in find_camera_files(place)):
            shown = os.path.relpath(place, folder)
            sentence = (
                f"keypoints lie in {shown}/, where none are looked for, and are not read; name it in "
                f"recording.yaml, keypoints: {{path: {shown}}}"
            )
            return [Finding("keypoints_unread", sentence)]
    return []


def _holds_people(path: Path) -> bool:
    """True where one of the first frames of what may be a camera's keypoints has somebody in it."""
    try:
        files = index_keypoints(path)
        return any(files.point_counts(int(number)) for number in files.numbers[:10])
    except InputError:
        return False


def _listing(folder: Path, but: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Names of the files in a folder, and of the folders, without hidden ones and these."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name not in but and not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(folders)


THE_CALIBRATION: Final = "the calibration"
"""What names the cameras where there is one, in messages."""


_LISTED: Final = 20
"""Names that a message lists."""


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts cam2 before cam10."""
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p.casefold()) for p in re.split(r"(\d+)", name) if p]


def _loose(name: str) -> str:
    """A name without what tools change: case, width of letters, leading zeros, and what parts its words."""
    words = re.sub(r"[\s._-]+", "_", plain(normalize("NFKC", name)))
    return re.sub(r"(?<!\d)0+(?=\d)", "", words)


def _distinct(names: Iterable[str]) -> dict[str, str]:
    """Part of each name that not all begin or end with, by name: 1 of int_cam1_img."""
    split = {
        n: [p for p in re.findall(r"\d+|[^\W\d_]+", _loose(n)) if p not in ("cam", "camera")] for n in names
    }
    parts = [*split.values()]
    if len(parts) < 2:
        return dict.fromkeys(split, "")

    def shared(parts: Sequence[list[str]]) -> int:
        """Count of parts that all begin with."""
        differ = (i for i, column in enumerate(zip(*parts, strict=False)) if len({*column}) > 1)
        return next(differ, min(map(len, parts)))

    first = shared(parts)
    last = shared([p[first:][::-1] for p in parts])
    return {name: " ".join(p[first : len(p) - last]) for name, p in split.items()}


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names, key=natural)
    more = [f"{len(shown) - _LISTED} more"] if len(shown) > _LISTED else []
    return ", ".join([*shown[:_LISTED], *more]) or "none"


def _pair_alike(
    pairs: dict[str, str],
    left: list[str],
    known_as: Mapping[str, str],
    found_as: Mapping[str, str],
    known: Mapping[str, str],
) -> None:
    """Move the names in ``left`` to ``pairs`` that alone are spelt as one camera without a pair."""
    owners: dict[str, set[str]] = {}
    for name, spelt in known_as.items():
        owners.setdefault(spelt, set()).update({known[name]} - pairs.keys())
    alike = Counter(found_as[name] for name in left)
    for name in list(left):
        of = owners.get(found_as[name], set()).difference(pairs)
        if len(of) == alike[found_as[name]] == 1:
            pairs[of.pop()] = name
            left.remove(name)


def pair_names(
    folder: Path,
    found: Iterable[str],
    known: Mapping[str, str],
    what: str,
    whose: str,
    findings: list[Finding],
) -> dict[str, str]:
    """Camera → found name. Equal names go together, then those that differ in case or leading zeros.

    Where no two names are alike, those go together that are told apart by the same: 1 of Camera1 and
    int_cam1_img. What is left then is a guess, and said: one on either side, or all of them in sorted order.
    known: camera by every name that it has. what, whose: for messages, what is found and what names the
    cameras.

    Raises ``InputError`` when nothing tells which is which.
    """
    names, cameras = sorted(found, key=natural), sorted({*known.values()}, key=natural)
    pairs: dict[str, str] = {}
    left = list(names)
    for spelt in (str, _loose):
        _pair_alike(pairs, left, {name: spelt(name) for name in known}, {n: spelt(n) for n in names}, known)
    apart, own = _distinct(cameras), _distinct(names)
    same_start = min(apart.values(), default="") == min(own.values(), default="")
    if not pairs and same_start and {*own.values()} <= {*apart.values()}:
        _pair_alike(pairs, left, apart, own, known)
    if not left:
        return pairs
    rest = [camera for camera in cameras if camera not in pairs]
    if not pairs and len(left) == len(rest):
        pairs = dict(zip(rest, left, strict=True))
        shown = ", ".join(f"{k} = {f}" for k, f in pairs.items())
        sentence = (
            f"the names in {whose} and those of the {what} differ: paired in sorted order: {shown}; "
            f"if that is wrong, {named_so(pairs) if whose == THE_CALIBRATION else 'rename one side'}"
        )
        findings.append(Finding("names_paired_in_order", sentence))
        return pairs
    sides = (whose, cameras), ("the videos", sorted(known.keys() - {*cameras}, key=natural))
    counted = [side for side in sides if _count_from_elsewhere(side[1], names)]
    if len(left) == len(rest) == 1 and left[0] not in known and not counted:
        findings.append(
            Finding(
                "name_paired",
                f"names differ: camera {rest[0]} of {whose} is taken to be {left[0]} of the {what}, as each "
                "is the only one left over; give both the same name",
                camera=rest[0],
            )
        )
        return pairs | {rest[0]: left[0]}
    remedy = f", or say which it is in recording.yaml, calibration: {{names: {{{left[0]}: ...}}}}"
    remedy = remedy if whose == THE_CALIBRATION and rest else ""
    if counted:
        whose, cameras = counted[0]
        reason = "they may count from different numbers, or one name may be wrong"
    elif rest:
        reason = f"nothing tells which of {_listed(rest)} is meant by {_listed(left)}"
    else:
        reason = f"{whose} has no camera for {_listed(left)}"
        remedy = " or move what is not calibrated away"
    raise InputError(
        f"{folder}: {what} are of the cameras {_listed(names)}, {whose} of {_listed(cameras)}: {reason}; "
        f"rename one side{remedy}"
    )


def named_so(pairs: Mapping[str, str]) -> str:
    """Advice to state the pairing: calibration's name → that of the video or keypoints."""
    shown = ", ".join(f"{found}: {name}" for name, found in pairs.items())
    return f"state it in recording.yaml, calibration: {{names: {{{shown}}}}}"


def _count_from_elsewhere(known: Sequence[str], found: Sequence[str]) -> bool:
    """True for two sorted lists of names that differ in numbers alone, by as much in every name: cam0 to
    cam3, cam1 to cam4."""

    def parts(name: str) -> tuple[list[str], list[int]]:
        split = re.split(r"(\d+)", name.casefold())
        return split[::2], [int(number) for number in split[1::2]]

    if len(known) != len(found):
        return False
    steps = set()
    for (words, numbers), (other_words, others) in zip(map(parts, known), map(parts, found), strict=True):
        if words != other_words:
            return False
        steps.add(tuple(b - a for a, b in zip(numbers, others, strict=True)))
    return len(steps) == 1


def match_cameras(
    folder: Path,
    rig: Rig,
    videos: Mapping[str, Path],
    folders: Mapping[str, Path],
    whose: str,
    stated: Mapping[str, str],
    findings: list[Finding],
) -> tuple[Rig, dict[str, Path], dict[str, Path], tuple[str, ...]]:
    """The cameras that have a video or keypoints, under the names of these, each one's files, and the names
    that they had where these were paired in sorted order; none where they were alike.

    whose: what the names of the rig are from, for messages. stated: names in the rig by those of videos and
    keypoints. Raises ``InputError``.
    """
    for own in stated.values():
        if [plain(n) for n in rig.names].count(plain(own)) != 1:
            raise InputError(
                f"{folder / SETTINGS}: calibration.names: {whose} has no camera {own!r}; it has "
                f"{_listed(rig.names)}"
            )
    given = {plain(own): name for name, own in stated.items()}
    rig = replace(rig, names=tuple(given.get(plain(n), n) for n in rig.names))
    known = {n: n for n in rig.names}
    videos_of = pair_names(folder, videos, known, "videos", whose, findings)
    known |= {video: camera for camera, video in videos_of.items()}
    folders_of = pair_names(folder, folders, known, "keypoints", whose, findings)

    used = [n for n in rig.names if n in videos_of or n in folders_of]
    unused = [n for n in rig.names if n not in used]
    if unused:
        sentence = f"calibrated but without video and keypoints, so left out: {', '.join(unused)}"
        findings.append(Finding("camera_unused", sentence))
    for name in used:
        if videos and name not in videos_of:
            sentence = f"camera {name} has keypoints but no video: it is drawn on grey"
            findings.append(Finding("video_without", sentence, name))
    rig = rig.select(used)
    names = tuple(videos_of.get(n) or folders_of[n] for n in used)
    if len(set(names)) < len(names):
        names = tuple(used)
    return (
        replace(rig, names=names),
        {new: videos[videos_of[old]] for old, new in zip(used, names, strict=True) if old in videos_of},
        {new: folders[folders_of[old]] for old, new in zip(used, names, strict=True) if old in folders_of},
        tuple(used) if any(f.code == "names_paired_in_order" for f in findings) else (),
    )
