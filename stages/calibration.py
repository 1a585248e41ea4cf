"""Commands around calibrations: convert one, show one, and make one with a board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pipeline.errors import InputError
from stages import screen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.cameras import Rig

app = typer.Typer(no_args_is_help=True, help="Convert a calibration, show one, or make one with a board.")

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

    path, rig = _read(source, unit)
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
    out: Annotated[Path | None, Option("--out", "-o", help="The picture; cameras.png if not given.")] = None,
    unit: Unit = None,
) -> None:
    """Print the cameras of a calibration, and draw them from above and from the side."""
    from models.rendering.rig_picture import draw_rig

    path, rig = _read(source, unit)
    named = "m" if unit else "units"
    screen.print_rig(rig, path, named)
    write_picture(out or Path("cameras.png"), draw_rig(rig, named))


def _read(source: Path, unit: str | None) -> tuple[Path, Rig]:
    """A calibration and its cameras, in metres where the unit is given."""
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

    from pipeline.files import write_whole, writing

    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png")
    with writing(path, "Choose another."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    screen.print_file(path)
