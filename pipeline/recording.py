"""A recording: calibrated cameras, videos and keypoint files of a folder, on a common time line.

``stages/inspect.py`` finds point order, scales and unit from the keypoints, and checks the cameras by them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from pipeline.array_types import Array, Floats
from pipeline.calibrations import read_calibration
from pipeline.calibrations.checks import check_intrinsics
from pipeline.calibrations.estimate import is_estimated
from pipeline.calibrations.pose2sim import is_corrected
from pipeline.cameras import Rig
from pipeline.clocks import Clock, OwnTimes, stated_clocks
from pipeline.detections import Detections
from pipeline.errors import InputError
from pipeline.files import reading
from pipeline.findings import Finding
from pipeline.footage import ASSUMED_FPS, find_videos, probe_videos, unread_videos
from pipeline.formats.keypoints import index_keypoints, read_views
from pipeline.formats.keypoints.files import MIN_CONFIDENCE, KeypointFiles
from pipeline.formats.keypoints.points import PointOrder, to_body_25, to_pixels
from pipeline.layout import (
    THE_CALIBRATION,
    calibration_of,
    find_keypoints,
    folder_chain,
    match_cameras,
    misplaced_keypoints,
    natural,
    pair_names,
    recordings_in,
    unread_keypoints,
)
from pipeline.numbering import Numbered, Numbering, find_numbering, numbering_doubts
from pipeline.results import DETECTIONS, Results
from pipeline.settings import SETTINGS, Stated, StatedKeypoints, read_stated
from pipeline.timeline import Timeline
from pipeline.video import VideoInfo

FOCAL_BY_SIDE: Final = 1.0
"""Assumed focal length by the picture's longer side: 53° across, between phones (0.75 to 0.9) and cameras (1
to 1.4)."""

_LEVEL_R: Final = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
"""World (z up) → level camera that looks along y."""

TO_DETECT: Final = "none: run detects people in the videos"
"""Note of a recording without keypoints."""


@dataclass(frozen=True)
class Recording:
    """Content of a recording's folder. Cameras are in the order of ``rig``."""

    path: Path
    rig: Rig
    """Picture sizes and intrinsics of the videos; lengths in the calibration's unit, in metres after
    inspection. Without a calibration, intrinsics are assumed and poses unknown: see ``placed``."""
    videos: tuple[VideoInfo | None, ...]
    keypoints: tuple[KeypointFiles | None, ...]
    first_frame: int
    """Number of the keypoint file of a camera's frame 0."""
    step: Fraction
    """Frames between consecutive file numbers: 2 for counted files of every second frame."""
    own_times: OwnTimes
    clocks: tuple[Clock, ...]
    """(V,) as stated; as estimated after synchronisation."""
    timeline: Timeline
    calibration: Path | None
    focal_stated: tuple[bool, ...]
    """(V,) true for cameras without a calibration whose focal length is stated."""
    stated: Stated
    """Settings of recording.yaml."""
    notes: tuple[tuple[str, str], ...]
    """Description of the folder's content: rows (name, text) for the screen."""
    findings: tuple[Finding, ...]
    """Facts about the recording that are guessed, doubtful or wrong."""
    known_order: PointOrder | None = None
    """None before inspection."""
    uninspected: Recording | None = None
    """The recording before inspection; None in itself."""
    span: tuple[int, int | None] = (0, None)
    """Range ``start, end`` of the whole time line that is taken; None: to its end."""
    files: tuple[Path, ...] = ()
    """Videos of a recording that consists of these alone."""
    paired: tuple[str, ...] = ()
    """Calibration's names of the cameras, where their pairing with the files is not by name."""

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def point_order(self) -> PointOrder:
        """Order of the points in keypoint files. Raises ``ValueError`` before inspection."""
        if self.known_order is None:
            raise ValueError(f"{self.path}: the keypoint format is not known: inspect the recording first")
        return self.known_order

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences of the findings."""
        return tuple(f.sentence for f in self.findings)

    @property
    def placed(self) -> bool:
        """True with known extrinsics: from a calibration, or of a single camera. Else those of ``rig`` are
        placeholders until ``stages/calibrate.py`` estimates them."""
        return self.calibration is not None or len(self.rig) == 1

    @property
    def has_keypoints(self) -> bool:
        """True where some camera has keypoints; else people are yet to be detected in the videos."""
        return any(files is not None for files in self.keypoints)

    @property
    def detected_order(self) -> str | None:
        """Point order of the detector that made the keypoints; None for files of unknown order."""
        orders = {files.known_order for files in self.keypoints if files is not None}
        return orders.pop() if len(orders) == 1 else None

    @property
    def videos_by_name(self) -> dict[str, VideoInfo]:
        """Video of each camera that has one."""
        return {name: v for name, v in zip(self.rig.names, self.videos, strict=True) if v is not None}

    def with_detections(self, detections: Detections, frames: Mapping[str, range] | None = None) -> Recording:
        """The recording with the people detected in its videos as keypoints, in all or these ``frames`` of
        each camera. Settings of keypoint files no longer apply."""
        people = detections.people(frames)
        files = tuple(people.get(name) or None for name in self.rig.names)
        notes = tuple((k, detections.path.name if k == "keypoints" else v) for k, v in self.notes)
        stated = self.stated.model_copy(update={"keypoints": StatedKeypoints(scale=1.0)})
        return replace(self, keypoints=files, first_frame=0, step=Fraction(1), stated=stated, notes=notes)

    def without_keypoints(self) -> Recording:
        """The recording before inspection, without keypoints, to detect people in its videos.

        Raises ``InputError`` where a camera has no video.
        """
        if self.uninspected is not None:
            return self.uninspected.without_keypoints()
        for name, video in zip(self.rig.names, self.videos, strict=True):
            if video is None:
                raise InputError(
                    f"{self.path}: camera {name} has no video to detect people in. Leave detect.when "
                    "at missing, or move its keypoints away."
                )
        notes = tuple(
            (k, TO_DETECT if k == "keypoints" else v) for k, v in self.notes if k != "frame numbers"
        )
        findings = tuple(f for f in self.findings if not f.code.startswith("keypoints_"))
        return replace(self, keypoints=(None,) * len(self.rig), notes=notes, findings=findings)

    @property
    def uncut(self) -> Recording:
        """The recording over the whole time line of its cameras."""
        line = self.own_times.timeline(self.clocks)
        return self if self.span == (0, None) else replace(self, timeline=line, span=(0, None))

    def part(self, cameras: Sequence[str], start: int, end: int | None) -> Recording:
        """The recording of some cameras (none named: all) and frames ``start:end``, before inspection.

        Raises ``InputError`` for cameras or frames that it lacks.
        """
        names, line, stop = self.rig.names, self.timeline, len(self) if end is None else end
        if unknown := [name for name in cameras if name not in names]:
            raise InputError(
                f"{self.path}: there is no camera {', '.join(unknown)}. The cameras are: {', '.join(names)}."
            )
        if not 0 <= start < stop <= len(self):
            raise InputError(
                f"{self.path}: no frames {start} to {stop}; the recording has 0 to {len(self) - 1}, and the "
                "end is the frame after the last."
            )
        keep = [v for v, name in enumerate(names) if not cameras or name in cameras]
        if len(keep) == len(names) and stop - start == len(self):
            return self
        kept = [names[v] for v in keep]
        return replace(
            self,
            rig=self.rig.select(kept),
            paired=tuple(self.paired[v] for v in keep if self.paired),
            videos=tuple(self.videos[v] for v in keep),
            keypoints=tuple(self.keypoints[v] for v in keep),
            focal_stated=tuple(self.focal_stated[v] for v in keep),
            own_times=self.own_times.select(keep),
            clocks=tuple(self.clocks[v] for v in keep),
            timeline=line.select(keep).cut(start, end),
            span=(start, end),
            notes=(*self.notes, ("taken", f"{', '.join(kept)}; frames {start} to {stop - 1}")),
            findings=tuple(f for f in self.findings if f.camera is None or f.camera in kept),
        )

    def keypoint_numbers(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """(V, len(frames)) keypoint file number of each camera at these instants; −1 for none."""
        return Numbering(self.first_frame, self.step).of(self.timeline.frame_index[:, frames])

    def people(self, frames: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE) -> Floats:
        """Detections at instants (T,) in BODY_25: (V, T, D, K, 3) of x, y (distorted pixels of the video) and
        confidence; NaN, NaN, 0 where missing."""
        return self.people_in(self.timeline.frame_index[:, frames], min_confidence)

    def people_in(self, index: NDArray[np.int64], min_confidence: float = MIN_CONFIDENCE) -> Floats:
        """Detections in frames (V, N) of each camera, −1 for none: (V, N, D, K, 3) as ``people``."""
        order, numbers = self.point_order, Numbering(self.first_frame, self.step).of(index)
        raw = read_views(self.keypoints, numbers, order.points)
        return to_body_25(to_pixels(raw, order, self.rig.size, min_confidence), order.name)

    def with_clocks(self, clocks: Sequence[Clock]) -> Recording:
        """The recording on the time line of other clocks.

        Raises ``InputError`` where the cameras then share no time.
        """
        if tuple(c.numbers for c in clocks) == tuple(c.numbers for c in self.clocks):
            return replace(self, clocks=tuple(clocks))
        line = self.own_times.timeline(clocks).cut(*self.span)
        if not len(line):
            raise InputError(f"{self.path}: the cameras share no time: {self.own_times.spans(clocks)}")
        kept = [f for f in self.findings if f.code not in ("frames_unused", "rates_differ", "frame_missing")]
        findings = (*kept, *self.own_times.findings(line))
        notes = tuple((k, describe_line(line) if k == "time line" else v) for k, v in self.notes)
        return replace(self, clocks=tuple(clocks), timeline=line, findings=findings, notes=notes)

    def camera_times(self, frames: NDArray[np.int64]) -> Array:
        """(V, len(frames)) seconds on each camera's own clock, from its first frame; NaN without a frame."""
        index = self.timeline.frame_index[:, frames]
        own = [
            i / float(rate) if video is None else video.times_s[np.maximum(i, 0)] - video.times_s[0]
            for i, rate, video in zip(index, self.timeline.rates, self.videos, strict=True)
        ]
        return np.where(index >= 0, np.stack(own), np.nan)


def describe_line(line: Timeline) -> str:
    """Describe a time line's length and rate."""
    return f"{len(line)} frames, {line.duration_s:.2f} s at {float(line.rate):.6g} fps"


def find_recording(path: Path | str, inherit: Path | None = None) -> Recording:
    """Open a recording: find and match the files of its folder.

    Reads the calibration, the time stamps of the videos and the names of the keypoint files only.
    inherit: a folder above, whose recording.yaml and calibration, like those of the folders between, hold
    unless a lower folder has its own.

    Raises:
        InputError: something is missing, contradictory or unreadable; with the remedy.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder} does not exist")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file; a recording is a folder (videos/, keypoints/, calibration.toml), or, for "
            "run, the video of each camera"
        )
    with reading(folder):
        return _find(folder, folder_chain(folder, inherit))


def open_videos(files: Sequence[Path]) -> Recording:
    """Open a recording that consists of these video files, one a camera, named after its file.

    Other files of their folders are ignored. Raises ``InputError`` as ``find_recording`` does.
    """
    by_name: dict[str, Path] = {}
    for file in (file.absolute() for file in files):
        if not file.is_file():
            fault = "is a folder" if file.is_dir() else "no such file"
            raise InputError(f"{file}: {fault}; give one folder, or the video of each camera")
        name = normalize("NFC", file.stem)
        if name in by_name:
            raise InputError(f"two videos of camera {name}: {by_name[name]} and {file}; rename one")
        by_name[name] = file
    folder = Path(os.path.commonpath([file.parent for file in by_name.values()]))
    with reading(folder):
        return replace(_find(folder, (), by_name), files=tuple(by_name.values()))


def _find(folder: Path, chain: Sequence[Path], only: Mapping[str, Path] | None = None) -> Recording:
    """Open ``folder``.

    chain: folders whose settings and calibration hold, from the top down. only: videos by camera, of a
    recording that consists of these alone.
    """
    stated = read_stated(chain)
    findings: list[Finding] = []
    notes: list[tuple[str, str]] = []

    calibration = None if only else calibration_of(chain, stated, notes, findings)
    scale = stated.calibration.metres_per_unit or 1.0
    rig = read_calibration(calibration, metres_per_unit=scale) if calibration else None
    folders: dict[str, Path] = {}
    unread: list[Finding] = []
    keypoints_at = TO_DETECT
    video_files = dict(only or {})
    if not only:
        video_files = find_videos(folder, findings)
        findings += unread_videos(folder)
        folders, where = find_keypoints(folder, stated, findings)
        keypoints_at = where or keypoints_at
        unread = unread_keypoints(folder, stated)
        unread += [] if folders else misplaced_keypoints(folder)
        findings += unread
    if not folders:
        _check_videos(folder, video_files, unread, calibrated=rig is not None or only is not None)
    whose = THE_CALIBRATION
    if rig is None:
        whose = "the videos" if len(video_files) >= len(folders) else "the keypoints"
        rig, video_files = _unknown_rig(folder, video_files, folders, findings)
    names = stated.calibration.names if calibration else {}
    rig, matched_videos, matched_folders, paired = match_cameras(
        folder, rig, video_files, folders, whose, names, findings
    )

    files: tuple[KeypointFiles | None, ...] = (None,) * len(rig)
    if folders:
        files = _index(folder, rig, matched_folders, stated.keypoints.mapping, findings)
    numbers = {n: f.numbers for n, f in zip(rig.names, files, strict=True) if f}
    probed = probe_videos(matched_videos, stated.rate, numbers)
    videos = tuple(probed.get(n) for n in rig.names)
    for name, video in zip(rig.names, videos, strict=True):
        findings += [Finding("video", sentence, name) for sentence in (video.warnings if video else ())]
    focal_stated = (False,) * len(rig)
    if calibration:
        rig = _fit_sizes(rig, videos, calibration, findings)
        findings += _doubt_calibration(calibration, stated)
    else:
        rig, focal_stated = _guess_intrinsics(folder, rig, videos, stated, findings)

    cameras = Numbered(rig.names, tuple(len(v.times_s) if v else None for v in videos), files)
    pictures = next((v.first_number for v in videos if v and v.pictures), None)
    numbering = find_numbering(cameras, stated.keypoints, pictures, notes, findings)
    own_times, clocks, timeline = _timeline_of(folder, cameras, videos, stated, numbering, findings)
    notes.append(("keypoints", keypoints_at))
    notes.append(("time line", describe_line(timeline)))
    for v, name in enumerate(rig.names):
        notes.append((f"camera {name}", _describe(videos[v], files[v], rig.size[v], folder)))
    recording = Recording(
        path=folder,
        rig=rig,
        videos=videos,
        keypoints=files,
        first_frame=numbering.first,
        step=numbering.step,
        own_times=own_times,
        clocks=clocks,
        timeline=timeline,
        calibration=calibration,
        focal_stated=focal_stated,
        stated=stated,
        notes=tuple(notes),
        findings=tuple(findings),
        paired=paired if calibration else (),
    )
    return recording if recording.has_keypoints or only else _with_earlier(recording)


def _doubt_calibration(calibration: Path, stated: Stated) -> list[Finding]:
    """Findings about a calibration's file, and about settings that it overrides."""
    findings = []
    if is_corrected(calibration):
        sentence = (
            f"{calibration.name}: distortion is taken 64 times as large as it says, as Pose2Sim divides "
            "that of Qualisys by 64; put the .qca.txt in its place if that is wrong"
        )
        findings.append(Finding("distortion_scaled", sentence))
    if is_estimated(calibration):
        sentence = (
            f"{calibration.name} was estimated from a person: lengths in metres are only as good as the "
            "body's, and up is a guess"
        )
        findings.append(Finding("calibration_estimated", sentence))
    if stated.focal_px is not None:
        sentence = "recording.yaml: focal_px is not used where there is a calibration"
        findings.append(Finding("focal_unused", sentence))
    return findings


def _check_videos(
    folder: Path, videos: Mapping[str, Path], unread: Sequence[Finding], *, calibrated: bool
) -> None:
    """Raise ``InputError`` for a folder without keypoints that has no videos either, or folders of
    recordings."""
    loose = not calibrated and all(file.parent == folder for file in videos.values())
    inner = recordings_in(folder) if loose or not videos else []
    if inner:
        count = f"{len(inner)} recordings" if len(inner) > 1 else "1 recording"
        raise InputError(
            f"{folder} is not a recording but holds {count}: {', '.join(inner[:5])}"
            f"{', ...' if len(inner) > 5 else ''}; give one of them, or run all: "
            f"python run_pipeline.py batch {folder} --out OUT"
        )
    if not videos:
        raise InputError(
            f"{folder}: no keypoints found; expected keypoints/<camera>/*.json, or another format of "
            "docs/formats.md. Nor videos in which to detect people: videos/<camera>.mp4, or the videos alone"
            f"{'. '.join(['', *(f.sentence for f in unread)])}"
        )


def reopen(results: Results, stated: Path | None = None) -> Recording:
    """Open the recording of results: the stated folder, else that of their summary.

    Raises ``InputError`` where it is unknown, missing or unusable.
    """
    folder = results.recording(stated)
    files = () if stated else results.video_files
    return open_videos(files) if files else find_recording(folder)


def _with_earlier(recording: Recording) -> Recording:
    """The recording with the detections that ``detect`` left in its folder, if complete and of its videos."""
    path = recording.path / DETECTIONS
    if not path.exists():
        return recording
    detections = Detections(path)
    if detections.is_of(recording.videos_by_name) and not any(detections.missing()):
        return recording.with_detections(detections)
    sentence = (
        f"{path} is not used: unfinished, or of other videos; continue it: python run_pipeline.py detect "
        f"{recording.path}"
    )
    return replace(recording, findings=(*recording.findings, Finding("detections_unused", sentence)))


def _index(
    folder: Path,
    rig: Rig,
    folders: Mapping[str, Path],
    mapping: Mapping[str, str],
    findings: list[Finding],
) -> tuple[KeypointFiles | None, ...]:
    """Index the keypoint files of each camera, None without; raises ``InputError`` for fewer than two."""
    indexed: list[KeypointFiles | None] = []
    for name in rig.names:
        files = None
        if name in folders:
            files = index_keypoints(folders[name]).in_known_order(mapping)
            if files.unnumbered:
                sentence = f"{files.path}: {files.unnumbered} JSON files without a frame number are not used"
                findings.append(Finding("keypoints_unnumbered", sentence, name, files.unnumbered))
        if not files:
            sentence = f"camera {name} has no keypoints: it takes no part in the fit"
            findings.append(Finding("keypoints_without", sentence, name))
        indexed.append(files or None)
    if len(rig) > 1 and sum(f is not None for f in indexed) < 2:
        raise InputError(
            f"{folder}: fewer than two of the {len(rig)} cameras have keypoint files; add those of another, "
            "or make a recording of that camera alone"
        )
    return tuple(indexed)


def _unknown_rig(
    folder: Path, videos: Mapping[str, Path], folders: Mapping[str, Path], findings: list[Finding]
) -> tuple[Rig, dict[str, Path]]:
    """Uncalibrated cameras, named after the videos or after the keypoint folders if these are more, and their
    videos."""
    names = sorted(videos if len(videos) >= len(folders) else folders, key=natural)
    paired = pair_names(folder, folders, {n: n for n in names}, "keypoints", "the videos", [])
    without = [n for n in names if n not in paired] if folders else []
    if without:
        sentence = (
            "without a calibration, cameras without keypoints cannot be located and are left out: "
            f"{', '.join(without)}"
        )
        findings.append(Finding("camera_unused", sentence))
        names = [n for n in names if n in paired]
    v = len(names)
    rig = Rig(
        tuple(names),
        np.tile(np.eye(3), (v, 1, 1)),
        np.zeros((v, 8)),
        np.tile(_LEVEL_R, (v, 1, 1)),
        np.zeros((v, 3)),
        np.zeros((v, 2), dtype=np.int64),
    )
    return rig, {n: file for n, file in videos.items() if n not in without}


def _guess_intrinsics(
    folder: Path, rig: Rig, videos: Sequence[VideoInfo | None], stated: Stated, findings: list[Finding]
) -> tuple[Rig, tuple[bool, ...]]:
    """Pinhole intrinsics of stated or assumed focal length, and (V,) true where it is stated."""
    focal = stated.focal_px
    for name in focal if isinstance(focal, dict) else ():
        if name not in rig.names:
            raise InputError(
                f"{folder / 'recording.yaml'}: focal_px: no camera is called {name!r}; "
                f"known: {', '.join(rig.names)}"
            )
    k, sizes, is_stated = [], [], []
    for name, video in zip(rig.names, videos, strict=True):
        size = video.size if video else stated.picture_size
        if size is None:
            remedy = "state its picture size in recording.yaml, picture_size: [width, height]"
            raise InputError(
                f"{folder}: camera {name} has neither a calibration nor a video: "
                + ". ".join([remedy, *(f.sentence for f in findings if f.code == "calibration_unread")])
            )
        own = focal.get(name) if isinstance(focal, dict) else focal
        is_stated.append(own is not None)
        f = own or FOCAL_BY_SIDE * max(size)
        k.append([[f, 0, (size[0] - 1) / 2], [0, f, (size[1] - 1) / 2], [0, 0, 1]])
        sizes.append(size)
    rig = replace(rig, K=np.array(k, np.float64), size=np.array(sizes, np.int64))
    for v, name in enumerate(rig.names):
        check_intrinsics(rig, v, f"{folder / 'recording.yaml'}, focal_px of camera {name!r}")
    sentence = "no calibration found: "
    if len(rig) == 1:
        sentence += "the camera is taken to stand still, and run guesses from the person which way is up"
    else:
        sentence += "the cameras are taken to stand still, and run estimates from the person where they stand"
    if not all(is_stated):
        open_names = [n for n, stated in zip(rig.names, is_stated, strict=True) if not stated]
        if len(rig) == 1:
            sentence += f"; its focal length is taken as {FOCAL_BY_SIDE:g} × the picture's longer side"
        else:
            sentence += f" and the focal lengths of {', '.join(open_names) if any(is_stated) else 'all'}"
        sentence += "; recording.yaml can state it: focal_px: ..."
    findings.append(Finding("calibration_missing", sentence))
    return rig, tuple(is_stated)


def _fit_sizes(
    rig: Rig, videos: Sequence[VideoInfo | None], calibration: Path, findings: list[Finding]
) -> Rig:
    """Scale the intrinsics to the videos' picture sizes. Raises ``InputError`` for another aspect ratio."""
    for v, (name, video) in enumerate(zip(rig.names, videos, strict=True)):
        w, h = (int(n) for n in rig.size[v])
        if not w:
            # The calibration lacks the picture size: the video's, or about twice the principal point.
            guess = video.size if video else (round(2 * rig.K[v, 0, 2] + 1), round(2 * rig.K[v, 1, 2] + 1))
            size = rig.size.copy()
            size[v] = guess
            rig = replace(rig, size=size)
            source = "the video's" if video else "twice the principal point"
            sentence = (
                f"{calibration.name} has no picture size for camera {name}: taken as {source}, "
                f"{guess[0]}x{guess[1]}"
            )
            findings.append(Finding("size_guessed", sentence, name))
            check_intrinsics(rig, v, f"{calibration}, camera {name!r}")
        elif video and video.size != (w, h):
            ratio = (video.size[0] / video.size[1]) / (w / h)
            if abs(ratio - 1) > 0.01:
                hint = "; is the video turned by 90°?" if abs(ratio * (w / h) ** 2 - 1) < 0.02 else ""
                raise InputError(
                    f"{video.path}: frames are {video.size[0]}x{video.size[1]}, but camera {name} was "
                    f"calibrated at {w}x{h} ({calibration.name}): the aspects differ by over 1 %, so the "
                    f"calibration cannot be rescaled{hint}"
                )
            rig = rig.resized(v, video.size)
            sentence = (
                f"camera {name}: calibration rescaled from {w}x{h} to the {video.size[0]}x{video.size[1]} of "
                "its video"
            )
            findings.append(Finding("calibration_rescaled", sentence, name))
    return rig


def _timeline_of(
    folder: Path,
    cameras: Numbered,
    videos: Sequence[VideoInfo | None],
    stated: Stated,
    numbering: Numbering,
    findings: list[Finding],
) -> tuple[OwnTimes, tuple[Clock, ...], Timeline]:
    """Times of each camera's frames, stated clocks, and the common time line. Raises ``InputError``."""
    names, files, yaml_path = cameras.names, cameras.files, folder / SETTINGS
    fps = _stated_rate(stated, [v.rate for v in videos if v and not v.pictures], findings)
    times, rates, first = list[Array](), list[Fraction](), list[int]()
    for name, video, camera in zip(names, videos, files, strict=True):
        rates.append(video.rate if video else fps)
        if video:
            own = video.times_s - video.times_s[0]
            first.append(0)
        else:
            assert camera is not None  # every camera has a video or keypoints
            low, high = (numbering.frame(int(camera.numbers[i])) for i in (0, -1))
            last_file = camera.file(int(camera.numbers[-1]))
            if high < 0:
                raise InputError(
                    f"{last_file} is the last file of {name}, but its number is below keypoints.first_frame "
                    f"({numbering.first}) in {yaml_path}"
                )
            if high > 50_000_000:
                raise InputError(
                    f"{last_file}: frame {high} is too high; the last number in a file's name is its frame"
                )
            own = np.arange(high + 1) / float(fps)
            first.append(max(low, 0))
        times.append(own)
    findings += numbering_doubts(cameras, numbering)
    own_times = OwnTimes(names, tuple(times), tuple(rates), tuple(first))
    clocks = stated_clocks(yaml_path, own_times, stated.frame_offset, stated.sync)
    timeline = own_times.timeline(clocks)
    if not len(timeline):
        raise InputError(
            f"{folder}: the cameras share no time: {own_times.spans(clocks)}; recording.yaml: check "
            f"{'sync' if stated.sync else 'frame_offset'}"
        )
    findings += own_times.findings(timeline)
    return own_times, clocks, timeline


def _stated_rate(stated: Stated, video_rates: Sequence[Fraction], findings: list[Finding]) -> Fraction:
    """Frames a second of cameras without a video."""
    if stated.rate is not None:
        sentence = "recording.yaml: fps is not used where there is a video, which has time stamps"
        findings += [Finding("fps_unused", sentence)] if video_rates else []
        return stated.rate
    if video_rates:
        return min(video_rates)
    sentence = (
        f"no video, so the frame rate is unknown: {ASSUMED_FPS} fps assumed; state fps in recording.yaml"
    )
    findings.append(Finding("fps_assumed", sentence))
    return ASSUMED_FPS


def _describe(
    video: VideoInfo | None, files: KeypointFiles | None, size: NDArray[np.int64], folder: Path
) -> str:
    """Describe a camera's video and keypoints."""
    footage = "no video"
    if video:
        present = f"{sum(map(bool, video.pictures))} of " if not all(video.pictures) else ""
        footage = (
            f"{video.path.relative_to(folder)} ({video.codec} {size[0]}x{size[1]}, "
            f"{present}{len(video.times_s)} frames at {float(video.rate):.6g} fps)"
        )
    keypoints = f"{len(files)} {files.unit} in {files.path.relative_to(folder)}" if files else "no keypoints"
    return f"{footage}, {keypoints}"
