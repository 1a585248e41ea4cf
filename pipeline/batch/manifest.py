"""Manifest of a batch: a row per recording, as batch.json and as the page batch.html."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Literal
from urllib.parse import quote

from pydantic import TypeAdapter

from pipeline.batch.storage import Location, absolute, read_text, write_text
from pipeline.files import decoding
from pipeline.results import LOG, THUMBNAIL
from pipeline.verdicts import REPROJECTION

MANIFEST: Final = "batch.json"
PAGE: Final = "batch.html"
MIN_FITTED_SHARE: Final = 0.9
"""Share of fitted frames below which something can be mended, as docs/results.md explains."""
RecordingState = Literal["pending", "running", "done", "failed"]


@dataclass(frozen=True)
class Entry:
    """One recording in the manifest."""

    name: str
    """Its folder relative to the data set, with slashes; also its folder in OUT."""
    state: RecordingState = "pending"
    inputs: str = ""
    """Digest of the configuration and of all files read, see ``fingerprint``."""
    attempts: int = 0
    error: str = ""
    frames: int | None = None
    fps: float | None = None
    """Frame rate of the recording."""
    seconds: float | None = None
    """Duration of the last attempt."""
    fitted: float | None = None
    """Share of fitted frames among those with people, summed over the people."""
    reprojection_px: float | None = None
    """Median reprojection error over all cameras, in the pictures."""
    reprojection_mm: float | None = None
    """Median reprojection error at the people."""
    verdict: str | None = None
    """Verdict on the error in mm, by ``REPROJECTION``."""
    warnings: tuple[str, ...] = ()
    """Warnings of the recording and its run; of the recording only after a failed run."""
    files: tuple[str, ...] = ()
    """Results of the run, relative to the recording's folder in OUT."""
    report: str = ""
    """Report page, relative to OUT."""


def read_manifest(out: Location) -> dict[str, Entry]:
    """Read the rows of the manifest by name; none without a manifest.

    Raises ``InputError`` where it is damaged or unreadable.
    """
    text = read_text(out, MANIFEST)
    if text is None:
        return {}
    with decoding(f"{out}/{MANIFEST}", "Remove it: complete results are found and kept."):
        rows = TypeAdapter(list[Entry]).validate_python(json.loads(text)["recordings"])
    return {row.name: row for row in rows}


def write_manifest(out: Location, dataset: Location, rows: Mapping[str, Entry]) -> None:
    """Write the manifest and its page. Raises ``InputError``."""
    by_name = [rows[name] for name in sorted(rows)]
    states = Counter(row.state for row in by_name)
    source = str(absolute(dataset))
    document = {"dataset": source, "states": dict(states), "recordings": [asdict(row) for row in by_name]}
    write_text(out, MANIFEST, json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_text(out, PAGE, page(source.rpartition("/")[2], by_name))


_HEADS: Final = (
    "", "recording", "state", "frames", "fps", "fitted", "reprojection px", "mm", "verdict", "seconds",
    "attempts", "messages",
)  # fmt: skip
_STYLE: Final = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #8884; }
th { vertical-align: bottom; font-size: .85em; opacity: .7; }
tr > :nth-child(-n+3), tr > :last-child { text-align: left; }
td:first-child { width: 10rem; }
td:nth-child(n+3):not(:last-child) { white-space: nowrap; }
img { display: block; width: 10rem; border-radius: 4px; }
.little { font-weight: 600; color: #cf222e; }
td:last-child { min-width: 19rem; max-width: 40rem; overflow-wrap: anywhere; }
@media (max-width: 1100px) {
 table, tbody { display: block; }
 tr { display: flow-root; padding: .5rem 0; border-bottom: 1px solid #8884; }
 th { display: none; }
 td { display: inline-block; border: 0; padding: .1rem .5rem; }
 td:first-child { float: left; padding: .1rem .5rem .1rem 0; }
 td:empty { display: none; }
 td:nth-child(n+4):not(:last-child)::before { content: attr(title) " "; opacity: .7; }
 td:last-child { display: flow-root; min-width: 0; max-width: none; }
}
td p { margin: 0; white-space: pre-wrap; }
.done td:nth-child(3) { color: #1a7f37; }
.failed td:nth-child(3) { font-weight: 600; }
.failed td:nth-child(3), .error { color: #cf222e; }
"""


def page(title: str, rows: Sequence[Entry]) -> str:
    """HTML page of the rows, which opens from disk; names and messages are escaped."""

    def number(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def address(path: str) -> str:
        return html.escape(quote(os.fsencode(path)))

    def link(path: str, text: str) -> str:
        return f'<a href="{address(path)}">{text}</a>'

    def line(row: Entry) -> str:
        name = html.escape(row.name)
        if row.report:
            name = link(row.report, name)
        notes = f'<p class="error">{html.escape(row.error)}</p>' if row.error else ""
        notes += "".join(f"<p>{html.escape(text)}</p>" for text in row.warnings)
        if row.attempts:
            notes += f"<p>{link(f'{row.name}/{LOG}', LOG)}</p>"
        picture = ""
        if THUMBNAIL in row.files:
            picture = f'<img src="{address(f"{row.name}/{THUMBNAIL}")}" alt="" loading="lazy">'
            picture = link(row.report, picture) if row.report else picture
        share = "" if row.fitted is None else f"{100 * row.fitted:.0f} %"
        if row.fitted is not None and row.fitted < MIN_FITTED_SHARE:
            share = f'<span class="little">{share}</span>'
        cells = (
            number(row.frames), number(row.fps, 2), share, number(row.reprojection_px, 1),
            number(row.reprojection_mm), row.verdict or "", number(row.seconds), str(row.attempts or ""),
        )  # fmt: skip
        return (
            f'<tr class="{row.state}"><td>{picture}</td><td>{name}</td><td>{row.state}</td>'
            + "".join(f'<td title="{head}">{c}</td>' for head, c in zip(_HEADS[3:-1], cells, strict=True))
            + f"<td>{notes}</td></tr>"
        )

    states = Counter(row.state for row in rows)
    counts = ", ".join(f"{states[s]} {s}" for s in ("done", "running", "pending", "failed") if states[s])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:">
<link rel="icon" href="data:,">
<title>{html.escape(title)} – Multi-SPIN</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{counted(len(rows), "recording")}: {counts}. \
Written {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}.</p>
<table>
<tr>{"".join(f"<th>{head}</th>" for head in _HEADS)}</tr>
{chr(10).join(map(line, rows))}
</table>
<p>{REPROJECTION.sentence}</p>
</body>
</html>
"""


def counted(count: int, noun: str) -> str:
    """Count with its noun in singular or plural: ``1 recording``, ``2 recordings``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
