"""Screen output of the command line: tables, warnings and progress bars."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from tqdm import tqdm

from pipeline.errors import shortened
from pipeline.verdicts import REPROJECTION, TRIANGULATION
from stages.usage import NARROW

if TYPE_CHECKING:  # --help and mistakes are to be told at once, without torch
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from models.evaluation.identity import Identity
    from models.evaluation.protocols import Protocol
    from models.evaluation.scores import Evaluation
    from models.evaluation.stores import Errors
    from models.external import External, ExternalCheck
    from models.geometry.board_calibration import BoardCalibration
    from models.training.trainer import Progress, TrainConfig
    from pipeline.batch.manifest import Entry
    from pipeline.batch.process import Event
    from pipeline.batch.storage import Location
    from pipeline.cameras import Rig
    from pipeline.recording import Recording
    from pipeline.store import Store
    from pipeline.summary import Summary
    from stages.check import Check
    from stages.graph import RunResult
    from stages.sync import Synced

Follow = Callable[[int, Mapping[str, float]], None]
"""Function of the rows of a batch and the mean errors so far."""
_UNLIMITED: Final = 10_000
"""Width of a console that holds any table, columns."""
MAX_WARNED_RECORDINGS: Final = 20
"""Recordings of a batch whose warnings are printed, those with an equal first one together; there may be
thousands."""

_TERMINAL: Final = sys.stdout.isatty()
# Sentences are broken between words in a terminal, and not at all in a file.
console = Console(highlight=False, soft_wrap=not _TERMINAL, width=None if _TERMINAL else 120)


def be_quiet(quiet: bool) -> None:
    """Switch tables, warnings and bars off (True) or on."""
    console.quiet = quiet


def warn(sentence: str) -> None:
    console.print(f"[yellow]warning:[/yellow] {escape(shortened(sentence))}")


class _Printing(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.printed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.printed.append(record.getMessage())
        with tqdm.external_write_mode():
            warn(self.printed[-1])


@contextmanager
def printed_log() -> Iterator[Sequence[str]]:
    """Print warnings of the stages above a bar; yield the list of the printed ones."""
    log, handler = logging.getLogger(), _Printing()
    log.addHandler(handler)
    try:
        yield handler.printed
    finally:
        log.removeHandler(handler)


def print_file(file: object, told: str = "") -> None:
    """Print the path of a written file, and a sentence about it."""
    beside = console.width >= NARROW
    console.print(
        f"  {escape(str(file))}{':' * bool(told)}{escape(f' {told}' * bool(told and beside))}", soft_wrap=True
    )
    if told and not beside:
        console.print(Padding(escape(told), (0, 0, 0, 4)))


def table(title: str, *columns: str) -> Table:
    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
        show_header=bool(columns),
    )  # fmt: skip
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i else "left")
    return made


def print_table(rows: Table) -> None:
    """Print a table; as a list for each row where a narrow terminal would break the cells."""
    for column in rows.columns:
        column.overflow = "fold"
    whole = Measurement.get(console, console.options.update(max_width=_UNLIMITED), rows).maximum
    if whole <= console.width or console.width >= NARROW or not rows.show_header:
        console.print(rows)
        return
    console.print(rows.title, style="bold")
    names, *columns = rows.columns
    for i, name in enumerate(names.cells):
        console.print(name)
        for column in columns:
            if cell := list(column.cells)[i]:
                console.print(f"  {column.header}: {cell}")


def number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def bar(total: int | None, unit: str, desc: str) -> tqdm[Any]:
    return tqdm(total=total, unit=unit, desc=desc, dynamic_ncols=True, disable=console.quiet)


@contextmanager
def late_bar(total: int, unit: str, desc: str) -> Iterator[Callable[[int], None]]:
    """Bar that appears at its first update; yields the function that updates it."""
    shown: list[tqdm[Any]] = []

    def update(count: int) -> None:
        if not shown:
            shown.append(bar(total, unit, desc))
        shown[0].update(count)

    try:
        yield update
    finally:
        for one in shown:
            one.close()


def follow_count(unit: str, desc: str, total: int, finished: Iterator[int]) -> None:
    """Show a bar of ``total`` units while ``finished`` yields the number done."""
    with bar(total, unit, desc) as shown:
        for number in finished:
            shown.update(number - shown.n)
        shown.update(total - shown.n)


def print_recording(found: Recording, where: Location) -> None:
    rows = table(escape(str(where)))
    for row in found.notes:
        rows.add_row(*map(escape, row))
    print_table(rows)
    for warning in found.warnings:
        warn(warning)


def print_sync(found: Recording, synced: Synced) -> Recording:
    """Print the clocks that a run would set; return the recording on their time line."""
    names = found.rig.names
    if len(names) < 2:
        return found
    head, *rows = synced.rows(names)
    shown = table(f"Are the cameras in step? {synced.how}", *head)
    for row in rows:
        shown.add_row(*map(escape, row))
    print_table(shown)
    for finding in synced.findings:
        warn(finding.sentence)
    return found.with_clocks(synced.clocks)


def print_check(found: Recording, check: Check) -> None:
    """Print the agreement of the cameras, and the findings that the recording does not have yet."""
    findings = [f for f in check.findings(found.findings) if f not in found.findings]
    head, *rows = check.rows([*found.findings, *findings])
    question = "Do the cameras agree?" if check.compared else "What do the cameras show?"
    shown = table(f"{question} ({check.frames} frames looked at)", *head)
    for row in rows:
        shown.add_row(*map(escape, row))
    print_table(shown)
    if check.compared:
        console.print(f"{TRIANGULATION.sentence} Left out: from what the other cameras say alone.")
        distances = table("Baselines, metres", "", *check.cameras)
        for name, metres in zip(check.cameras, check.distance_m, strict=True):
            distances.add_row(escape(name), *(f"{d:.2f}" if d else "" for d in metres))
        print_table(distances)
    for finding in findings:
        warn(finding.sentence)
    if not findings:
        console.print(f"Nothing {'else ' * bool(found.warnings)}looks wrong.")


def print_rig(rig: Rig, path: object, unit: str) -> None:
    """Print the cameras of a calibration: lens, place and nearest other camera, in a unit of this name."""
    import numpy as np

    heads = ("picture", "focal px", "field of view", "distortion", f"place, {unit}", f"nearest, {unit}")
    rows = table(escape(str(path)), "camera", *heads)
    gaps = np.linalg.norm(rig.centres[:, None] - rig.centres[None], axis=-1)
    for v, name in enumerate(rig.names):
        w, h = rig.size[v]
        fx, fy = rig.K[v, [0, 1], [0, 1]]
        count = int(np.flatnonzero(rig.dist[v]).max(initial=-1)) + 1
        rows.add_row(
            escape(name), f"{w}×{h}" if w else "–", f"{fx:.1f}, {fy:.1f}",
            f"{rig.field_of_view_deg(v):.0f}°" if w else "–",
            f"{'fisheye ' if rig.fisheye[v] else ''}{count or 'none'}",
            ", ".join(f"{x:.3f}" for x in rig.centres[v]),
            f"{np.delete(gaps[v], v).min():.3f}" if len(rig) > 1 else "–",
        )  # fmt: skip
    print_table(rows)


def print_board(found: BoardCalibration, px: NDArray[np.float64]) -> None:
    """Print each camera that was calibrated with a board: lens, error, and pictures with the board.

    px: (V, T, N, 2) detected corners.
    """
    import numpy as np

    heads = ("focal px", "distortion", "error px", "pictures with the board", "used", "dropped", "corners")
    rows = table("Cameras, by the board", "camera", *heads)
    seen = np.isfinite(px[..., 0])
    for v, name in enumerate(found.rig.names):
        used = found.used[v]
        rows.add_row(
            escape(name), f"{found.rig.K[v, 0, 0]:.1f}",
            ", ".join(f"{k:.4f}" for k in found.rig.dist[v, :4]), f"{found.error_px[v]:.2f}",
            f"{int(seen[v].any(-1).sum())} of {len(used)}", str(int(used.sum())),
            str(int(found.dropped[v].sum())), str(int(seen[v, used].sum())),
        )  # fmt: skip
    print_table(rows)


def print_contents(results: Store, where: Location) -> None:
    c = results.contents
    rows = table(escape(str(where)))
    done, windows = int(results.done.sum()), len(results.done)
    rows.add_row("cameras", ", ".join(c.rig.names))
    rows.add_row("body", f"{c.body['name']} ({c.body['sha256'][:12]})")
    rows.add_row("windows done", f"{done} of {windows}{' (run again to continue)' * (done < windows)}")
    print_table(rows)


def print_summary(summary: Summary) -> None:
    heads = (
        "median px",
        "mm",
        "mean px",
        "verdict",
        "person seen",
        "not seen",
        "of these no picture",
        "sides put right",
    )
    rows = table("Reprojection error", "camera", *heads)
    for c in summary.cameras:
        rows.add_row(
            escape(c.name), number(c.reprojection_median_px), number(c.reprojection_median_mm),
            number(c.reprojection_mean_px), c.verdict or "–",
            str(c.frames_with_person), str(c.frames_without_person), str(c.frames_without_picture),
            "–" if c.sides_exchanged is None else str(c.sides_exchanged),
        )  # fmt: skip
    rows.add_row(
        "all", number(summary.reprojection_median_px), number(summary.reprojection_median_mm),
        number(summary.reprojection_mean_px), summary.verdict or "–",
    )  # fmt: skip
    print_table(rows)
    console.print(REPROJECTION.sentence)
    for p in summary.people:
        first = p.first_frame or 0
        there = "" if p.frames == summary.frames else f", there in frames {first} to {first + p.frames - 1}"
        console.print(
            f"person {p.id}{there}: {p.frames_fitted} of {p.frames} frames fitted, "
            f"{p.frames_bridged} bridged, {p.frames_far_off} too far off, "
            f"{p.frames_without_pose} without a pose; joint acceleration {number(p.jitter_mm)} mm/frame²"
        )


def print_times(result: RunResult, home: Location) -> None:
    """Print the times of each stage; of a run that was complete before, how to start again."""
    if not result.times:
        console.print(escape(f"{home}: everything is done already; nothing to do. --overwrite starts again."))
        return
    rows = table("Where the time went, seconds", "stage", "busy", "starved", "blocked", "batches")
    for t in result.times:
        rows.add_row(t.name, f"{t.busy:.1f}", f"{t.starved:.1f}", f"{t.blocked:.1f}", str(t.items))
    print_table(rows)
    console.print(escape(f"regressor: {result.summary.regressor}"))


def print_result(result: RunResult) -> None:
    """Print the summary of a run, and for each camera the reasons why it does not show the person."""
    from pipeline.batch.manifest import counted

    print_summary(result.summary)
    for camera, missing in result.summary.missing.items():
        if missing.frames:
            reasons = ", ".join(
                f"{reason} in {counted(frames, 'frame')}"
                + (f" (first: {example})" if (example := missing.examples.get(reason)) else "")
                for reason, frames in missing.frames.items()
            )
            console.print(f"{escape(camera)}: {escape(reasons)}")


def print_recordings(dataset: Location, found: Mapping[str, Recording | str]) -> int:
    """Print the recordings of a data set by name, or their errors; return the number of refused ones."""
    from pipeline.batch.manifest import counted

    rows = table(escape(str(dataset)), "recording", "cameras", "frames", "fps", "keypoints", "calibration")
    told: list[tuple[str, str]] = []
    for name, one in found.items():
        if isinstance(one, str):
            rows.add_row(escape(name), *[""] * 4, "[red]refused[/red]")
            told.append((name, f"error: {one}"))
            continue
        told += [(name, warning) for warning in one.warnings]
        calibration = os.path.relpath(one.calibration, one.path) if one.calibration else "none"
        rows.add_row(
            escape(name), str(len(one.rig)), str(len(one)), f"{float(one.timeline.rate):.6g}",
            one.known_order.name if one.known_order else "to be detected", escape(calibration),
        )  # fmt: skip
    print_table(rows)
    for name, text in told:
        warn(f"{name}: {text}")
    refused = sum(isinstance(one, str) for one in found.values())
    console.print(f"{len(found) - refused} of {counted(len(found), 'recording')} can be run.")
    return refused


def follow_batch(events: Iterator[Event], home: Location) -> bool:
    """Show a bar of all recordings and one of each worker, then warnings; return True when all are done."""
    bars: dict[int, tqdm[Any]] = {}
    rows: dict[str, Entry] = {}
    with tqdm(unit="recording", desc="batch", delay=1, dynamic_ncols=True) as whole:
        for event in events:
            row, whole.total = event.row, event.recordings
            if row.state == "running":
                if event.worker not in bars:  # they need a terminal, whose lines can be written again
                    bars[event.worker] = tqdm(
                        position=event.worker + 1, unit="frame", leave=False, disable=None, dynamic_ncols=True
                    )
                own = bars[event.worker]
                if event.total is not None:
                    own.set_description(f"{row.name} {event.task}".strip(), refresh=False)
                    own.reset(event.total)
                own.update(event.frames)
                continue
            rows[row.name] = row
            if row.error:
                again = ", to be tried again" if row.state == "pending" else ""
                tqdm.write(f"{row.name}: failed{again}: {row.error}", file=sys.stderr)
            if row.state != "pending":
                whole.update()
        for own in bars.values():
            own.close()
    return _print_rows(list(rows.values()), home)


def _print_rows(rows: Sequence[Entry], home: Location) -> bool:
    from pipeline.batch.manifest import PAGE, counted
    from pipeline.batch.storage import join
    from pipeline.results import LOG

    alike: dict[str, list[Entry]] = {}
    for row in rows:
        if row.warnings:
            alike.setdefault(row.warnings[0], []).append(row)
    groups = list(alike.items())
    for first, (row, *others) in groups[:MAX_WARNED_RECORDINGS]:
        also = f" and {counted(len(others), 'more recording')}" * bool(others)
        where = join(home, f"{row.name}/{LOG}")
        warn(f"{row.name}{also}: {counted(len(row.warnings), 'warning')}, in {where}; first: {first}")
    if more := sum(len(group) for _, group in groups[MAX_WARNED_RECORDINGS:]):
        warn(f"{counted(more, 'more recording')} with warnings: see {join(home, PAGE)}")
    done = sum(row.state == "done" for row in rows)
    console.print(f"{done} of {counted(len(rows), 'recording')} done.")
    print_file(join(home, PAGE))
    return done == len(rows)


def tells() -> bool:
    """True in the one of several processes of a training that prints."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print_training(cfg: TrainConfig, minutes: float | None, out: Path) -> None:
    """Print network, duration and folder of a training."""
    if tells():
        length = f"{cfg.steps} steps" if minutes is None else f"{minutes:g} minutes"
        kind = "an image network" if cfg.net == "images" else f"a network on keypoints of {cfg.net} cameras"
        console.print(escape(f"Training {kind} for {length} of {cfg.batch} samples, into {out}."))


def print_trained(out: Path) -> None:
    """Print the files of weights, their errors on held-out samples, and the next command."""
    best = out / "best.safetensors"
    print_file(out / "weights.safetensors", "of the last step")
    if best.exists():
        print_file(best, "of the least error")
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    errors = next(
        (found for row in reversed(rows) if (found := {k: v for k, v in row.items() if "_mm" in k})), {}
    )
    shown = ", ".join(f"{name} {value:.1f}" for name, value in errors.items())
    console.print(f"Errors of the last step on held-out samples: {shown or 'none were measured'}.")
    weights = best if best.exists() else out / "weights.safetensors"
    console.print(escape(f"Next: python run_pipeline.py run RECORDING --set regress.weights={weights}"))


def follow_training(steps: Iterator[Progress]) -> None:
    """Show a bar of a training with its rate and loss."""
    shown = tqdm(
        total=100, delay=1, bar_format="{desc} {percentage:.1f}%|{bar}| {remaining} left{postfix}",
        disable=not tells(),
    )  # fmt: skip
    samples, began = 0, time.monotonic()
    with shown:
        for done in steps:
            samples += done.samples
            rate = samples / (time.monotonic() - began)
            shown.set_postfix_str(f"step {done.step}, {rate:.0f} samples/s, loss {done.loss:.3f}", False)
            shown.update(100 * done.share - shown.n)


@contextmanager
def follow_scores(rows: int, dataset: str, every: int) -> Iterator[Follow]:
    """Bar of an evaluation, with the errors of each ``every``-th batch; yields its update function."""
    batches = count(1)
    with bar(rows, "row", dataset) as shown:

        def progress(done: int, means: Mapping[str, float]) -> None:
            shown.update(done)
            if next(batches) % every == 0:
                shown.set_postfix({k: f"{v:.1f}" for k, v in means.items()})

        yield progress
        shown.total = shown.n


def print_truth(errors: Sequence[Errors]) -> None:
    """Print the errors of a demonstration's people against the truth."""
    rows = table("Errors against the truth", "", *(f"person {e.person}" for e in errors))
    rows.add_row("joints, MPJPE", *(f"{e.mpjpe_mm:.1f} mm" for e in errors))
    rows.add_row("joints after alignment, PA-MPJPE", *(f"{e.pa_mpjpe_mm:.1f} mm" for e in errors))
    rows.add_row("vertices, PVE", *(f"{e.pve_mm:.1f} mm" for e in errors))
    rows.add_row("keypoints in the pictures", *(f"{e.keypoints_px:.1f} px" for e in errors))
    rows.add_row("frames compared", *(f"{e.frames} of {e.frames + e.missed}" for e in errors))
    print_table(rows)


def print_errors(errors: Sequence[Errors], who: Identity) -> None:
    """Print the errors of results against a truth, a column for each person, and the identity metrics."""
    names = {
        "person of the truth": "truth", "frames compared": "frames", "frames missed": "missed",
        "MPJPE, world, mm": "mpjpe_mm", "MPJPE, pelves together, mm": "mpjpe_pelvis_mm",
        "PA-MPJPE, mm": "pa_mpjpe_mm", "PVE, world, mm": "pve_mm",
        "acceleration, mm/frame²": "acceleration_mm", "keypoints in the pictures, px": "keypoints_px",
    }  # fmt: skip
    rows = table("Errors against the truth", "person", *(e.person for e in errors))
    for label, name in names.items():
        values = [getattr(e, name) for e in errors]
        rows.add_row(label, *(number(v) if isinstance(v, float) else str(v) for v in values))
    print_table(rows)
    console.print(
        f"who is who: IDF1 {who.idf1:.3f}, MOTA {who.mota:.3f}, {who.switches} identity switches, "
        f"{100 * who.missed:.1f} % missed, {100 * who.false:.1f} % false; joints of matched people "
        f"{number(who.mpjpe_mm)} mm off"
    )


def print_scores(done: Evaluation, protocol: Protocol, dataset: str) -> None:
    """Print the metrics of a network by action, and the number of rows that were not compared."""
    from models.evaluation.scores import UNIT_NAMES

    columns = {UNIT_NAMES[m]: m for m in protocol.measures}
    heads = {
        "mpjpe": "MPJPE mm", "pa_mpjpe": "PA-MPJPE mm", "pve": "PVE mm", "pck150": "PCK@150", "auc": "AUC",
    }  # fmt: skip
    rows = table(f"{protocol.dataset}, {dataset}", "action", *(heads[m] for m in columns.values()), "rows")
    for name, means in [*done.metrics["actions"].items(), ("all", done.metrics)]:
        cells = [_measure(means[key]) for key in columns]
        rows.add_row(escape(name), *cells, str(means["rows"] - means["not_compared"]))
    print_table(rows)
    if missed := done.metrics["not_compared"]:
        warn(f"{missed} of {len(done.row)} rows were not compared: nobody was seen, or no truth is known.")
    if other := done.metrics["rows_of_other_data"]:
        warn(f"{other} of {len(done.row)} rows are not of {dataset}'s test set, by their pictures' names.")


def _measure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def print_external(external: External, check: ExternalCheck) -> None:
    """Print purpose, source and state of a file that cannot ship."""
    here = "[green]here[/]" if check.sound else "[red]not sound[/]" if check.exists else "not here"
    rows = table(f"{escape(str(check.path))}: {here}")
    for label, text in (
        ("for", external.purpose), ("from", external.source), ("terms", external.terms),
        ("given by", external.option), ("says", check.content),
    ):  # fmt: skip
        if text:
            rows.add_row(label, escape(text))
    print_table(rows)


def print_room(pictures: int, nbytes: int) -> None:
    """Print the largest size of the crops on the disk."""
    megabytes = nbytes / 1e6
    room = f"{megabytes:.1f} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"
    console.print(f"{pictures} pictures take up to {room}.")
