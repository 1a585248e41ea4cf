"""Commands around calibrations: convert one, show one, and make one with a board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typer import Argument, Option

from pipeline.array_types import Array
from pipeline.errors import InputError
from stages import screen
from stages.usage import make_app

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from models.geometry.boards import Board
    from pipeline.cameras import Rig
    from pipeline.video import VideoInfo

app = make_app(help="Convert a calibration, show one, or make one with a board.")

Source = Annotated[Path, Argument(metavar="IN", help="A calibration's file, or a folder that holds one.")]
Unit = Annotated[str | None, Option(help="Unit of IN: m, cm, mm, or the metres in one, as 0.039.")]


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, Argument(help="FILE.toml, or a folder for EasyMocap's intri.yml and extri.yml.")],
    unit: Unit = None,
) -> None:
    """Write a calibration of any format as TOML, or as EasyMocap's pair. Lengths are those of IN; metres with
    --unit."""
    from pipeline.calibrations import easymocap, pose2sim
    from pipeline.files import writing

    path, rig = _read_rig(source, unit)
    if out.suffix.lower() == ".toml":
        with writing(out, "Choose another."):
            out.parent.mkdir(parents=True, exist_ok=True)
        pose2sim.write_calibration(rig, out)
        screen.print_file(out, f"{len(rig)} cameras of {path}")
        return
    if out.suffix:
        raise InputError(f"{out}: expected a name that ends in .toml, or a folder")
    with writing(out, "Choose another."):
        out.mkdir(parents=True, exist_ok=True)
    easymocap.write_calibration(rig, out)
    screen.print_file(out / "intri.yml", f"{len(rig)} cameras of {path}, with extri.yml")


@app.command()
def show(
    source: Source,
    out: Annotated[Path | None, Option("--out", "-o", help="The picture; else cameras.png.")] = None,
    unit: Unit = None,
) -> None:
    """Print the cameras of a calibration, and draw them from above and from the side."""
    from models.rendering.rig_picture import draw_rig

    path, rig = _read_rig(source, unit)
    named = "m" if unit else "units"
    screen.print_rig(rig, path, named)
    write_picture(out or Path("cameras.png"), draw_rig(rig, named))


@app.command("board")
def calibrate(
    sources: Annotated[
        list[Path],
        Argument(metavar="SOURCE", help="A folder as of a recording, or each camera's video or pictures."),
    ],
    spec: Annotated[
        str, Option("--board", help="charuco:7x5:40mm[:4X4_50] (squares), chessboard:9x6:25mm (corners).")
    ],
    out: Annotated[Path, Option("--out", "-o", help="The calibration; pictures go beside it.")] = Path(
        "calibration.toml"
    ),
    floor: Annotated[
        bool, Option("--board-on-floor", help="It lies on the floor when it is first seen: origin, z up.")
    ] = False,
    fisheye: Annotated[bool, Option("--fisheye", help="Fisheye lenses, OpenCV's model.")] = False,
    every: Annotated[float, Option(min=0.01, help="Seconds from one frame looked at to the next.")] = 0.25,
    most: Annotated[int, Option(min=10, help="Frames of a camera that are looked at, at most.")] = 200,
) -> None:
    """Calibrate cameras with a printed board: lenses, and where each stands.

    Move it about so that every camera sees it in all of its picture and tilted, two or more at a time. The
    videos begin together; recording.yaml can state a frame_offset.
    """
    from models.geometry.board_calibration import MAX_ERROR_PX, calibrate_with_board
    from models.geometry.boards import parse_board
    from models.rendering.rig_picture import draw_coverage, draw_rig
    from pipeline.calibrations.pose2sim import write_calibration
    from pipeline.files import writing

    board = parse_board(spec)
    if out.suffix.lower() != ".toml":
        raise InputError(f"--out {out}: expected a name that ends in .toml")
    videos, offsets = _videos(sources)
    if board.symmetric and len(videos) > 1:
        raise InputError(
            f"--board {spec}: turned by half a turn this board looks the same, so that two cameras cannot "
            "tell its corners: use one with an odd number one way and an even one the other, or ChArUco"
        )
    index = _instants(videos, offsets, every, most)
    px = np.stack(
        [_find_corners(video, row, board) for video, row in zip(videos.values(), index, strict=True)]
    )
    sizes = np.array([video.size for video in videos.values()])
    found = calibrate_with_board([*videos], px, board, sizes, fisheye=fisheye, floor=floor)
    screen.print_board(found, px)
    for name, row, dropped in zip(videos, index, found.dropped, strict=True):
        if dropped.any():
            screen.console.print(f"{name}: dropped frames {', '.join(map(str, row[dropped].tolist()))}")
    if found.floor is not None:
        frames = zip(videos, index[:, found.floor].tolist(), strict=True)
        lies = ", ".join(f"{frame} of {name}" for name, frame in frames if frame >= 0)
        screen.console.print(f"The board lies on the floor, the world's origin, in frame {lies}.")
    for name, error in zip(found.rig.names, found.error_px, strict=True):
        if error > MAX_ERROR_PX:
            screen.warn(
                f"camera {name}: corners lie {error:.1f} px off (root mean square): are the videos in step, "
                "is the board flat, and are its numbers in --board right?"
            )
    with writing(out, "Choose another."):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_calibration(found.rig, out)
    screen.print_file(out)
    write_picture(
        out.with_name(f"{out.stem}-coverage.png"), draw_coverage(found.rig, px, found.used, found.dropped)
    )
    write_picture(out.with_name(f"{out.stem}-cameras.png"), draw_rig(found.rig, "m"))


def _videos(sources: Sequence[Path]) -> tuple[dict[str, VideoInfo], Mapping[str, int]]:
    """Videos by camera, and frame offsets stated in recording.yaml."""
    from pipeline.footage import find_videos, probe_videos
    from pipeline.layout import natural
    from pipeline.settings import read_stated

    offsets: Mapping[str, int] = {}
    if len(sources) == 1 and sources[0].is_dir() and (files := find_videos(sources[0], [])):
        offsets = read_stated(sources).frame_offset
    else:
        files = {path.name if path.is_dir() else path.stem: path for path in sources}
    if len(files) < len(sources) > 1:
        raise InputError("two videos are called the same: the name of its file, or folder, is the camera's")
    videos = probe_videos(files, None, {})
    return {name: videos[name] for name in sorted(videos, key=natural)}, offsets


def _instants(
    videos: Mapping[str, VideoInfo], offsets: Mapping[str, int], every: float, most: int
) -> NDArray[np.int64]:
    """(V, T) frame of each camera at at most ``most`` instants ``every`` seconds apart; −1 for none."""
    from pipeline.timeline import common_timeline, spread

    times = []
    for name, video in videos.items():
        offset = offsets.get(name, 0)
        if not abs(offset) < len(video.times_s):
            raise InputError(f"recording.yaml: frame_offset of {name} is {offset}, past its last frame")
        start = video.times_s[offset] if offset >= 0 else video.times_s[0] + offset / float(video.rate)
        times.append(video.times_s - start)
    line = common_timeline(times, [video.rate for video in videos.values()])
    step = max(1, round(every * float(line.rate)))
    return line.frame_index[:, spread(np.arange(0, len(line), step), most)]


def _find_corners(video: VideoInfo, index: NDArray[np.int64], board: Board) -> Array:
    """(T, N, 2) corners of the board in frames of a video, pixels; NaN where not seen."""
    import cv2

    from pipeline.video import read_frames, to_rgb

    found = np.full((len(index), len(board.corners), 2), np.nan)
    with screen.bar(len(index), "frame", f"find the board in {video.path.name}") as shown:
        for t, frame in enumerate(read_frames(video, index.tolist())):
            if frame is not None:
                found[t] = board.find(np.asarray(cv2.cvtColor(to_rgb(frame), cv2.COLOR_RGB2GRAY), np.uint8))
            shown.update()
    return found


def _read_rig(source: Path, unit: str | None) -> tuple[Path, Rig]:
    """File and cameras of a calibration, in metres with a unit."""
    from pipeline.calibrations import find_calibration, read_calibration
    from pipeline.calibrations.checks import UNITS
    from pipeline.files import reading

    scale = 1.0
    if unit is not None:
        try:
            scale = UNITS[unit] if unit in UNITS else float(unit)
        except ValueError:
            scale = 0.0
        if not 0 < scale < float("inf"):
            raise InputError(f"--unit {unit}: expected {', '.join(UNITS)}, or the metres in one unit")
    path: Path | None = source
    if source.is_dir():
        with reading(source):
            path, others = find_calibration(source)
        if path is None:
            raise InputError(f"{source}: holds no calibration of a known format; see docs/formats.md")
        if others:
            screen.warn(f"{path} is used, not {', '.join(map(str, others))}")
    assert path is not None
    return path, read_calibration(path, metres_per_unit=scale)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG. Raises ``InputError``."""
    import cv2

    from pipeline.files import write_bytes_atomically, writing

    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png")
    with writing(path, "Choose another."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    screen.print_file(path)
