"""Real boards beside OpenCV alone: reprojection error of the joint adjustment, and lens, of each camera.

    python tests/benchmarks/real_boards.py SOURCE... --board chessboard:9x6:25mm [--json FILE --name NAME]

SOURCE is one of ``calibration board``. The same corners of the same pictures go to ``cv2.calibrateCamera``,
which places the board anew before each camera and picture, and, of each pair of cameras, to
``cv2.stereoCalibrate``, which holds it together as we do, but trusts every corner. ``lens_px``: error of our
lens with the board placed anew, as ``opencv_alone_px`` is of OpenCV's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.geometry.board_calibration import BoardCalibration, calibrate_with_board
from models.geometry.boards import Board, parse_board
from pipeline.array_types import Array
from stages.calibration import _corners, _instants, _videos

FLAGS = cv2.CALIB_FIX_K3  # as many coefficients as ours


def rms(off: Array) -> float:
    return float(np.sqrt((off**2).sum(-1).mean()))


def compare(found: BoardCalibration, px: Array, board: Board) -> dict[str, object]:
    rig, report = found.rig, {}
    corners = board.corners.astype(np.float32)
    for v, name in enumerate(rig.names):
        size = tuple(int(n) for n in rig.size[v])
        views = np.flatnonzero(found.used[v])
        seen = [np.isfinite(px[v, t, :, 0]) for t in views]
        pixels = [px[v, t, s].astype(np.float32) for t, s in zip(views, seen, strict=True)]
        points = [corners[s] for s in seen]
        alone, k, *_ = cv2.calibrateCamera(points, pixels, size, None, None, flags=FLAGS)
        off = []
        for p, q in zip(points, pixels, strict=True):
            _, r, t = cv2.solvePnP(p, q, rig.K[v], rig.dist[v])
            r, t = cv2.solvePnPRefineLM(p, q, rig.K[v], rig.dist[v], r, t)
            off.append(cv2.projectPoints(p, r, t, rig.K[v], rig.dist[v])[0][:, 0] - q)
        report[name] = {
            "pictures": len(views),
            "joint_px": round(float(found.error_px[v]), 4),
            "lens_px": round(rms(np.concatenate(off)), 4),
            "opencv_alone_px": round(alone, 4),
            "focal_px": round(float(rig.K[v, 0, 0]), 2),
            "opencv_focal_px": round(float(k[0, 0]), 2),
        }
    for a, b in combinations(range(len(rig)), 2):
        both = np.flatnonzero(found.used[a] & found.used[b])
        seen = [np.isfinite(px[a, t, :, 0]) & np.isfinite(px[b, t, :, 0]) for t in both]
        both, seen = zip(*((t, s) for t, s in zip(both, seen, strict=True) if s.sum() >= 6), strict=True)
        data = [[px[v, t, s].astype(np.float32) for t, s in zip(both, seen, strict=True)] for v in (a, b)]
        points = [corners[s] for s in seen]
        lenses = [x for v in (a, b) for x in (rig.K[v].copy(), rig.dist[v, :5].copy())]
        size = tuple(int(n) for n in rig.size[a])
        error, *_, r, t, _, _ = cv2.stereoCalibrate(
            points, *data, *lenses, size, flags=FLAGS | cv2.CALIB_USE_INTRINSIC_GUESS
        )
        apart = float(np.linalg.norm(rig.centres[a] - rig.centres[b]))
        turned = float(np.degrees(np.linalg.norm(cv2.Rodrigues(rig.R[b] @ rig.R[a].T @ r.T)[0])))
        pair = calibrate_with_board([rig.names[v] for v in (a, b)], px[[a, b]], board, rig.size[[a, b]])
        report[f"{rig.names[a]} {rig.names[b]}"] = {
            "pictures": len(both),
            "pair_px": round(float(np.sqrt((pair.error_px**2).mean())), 4),
            "opencv_stereo_px": round(error, 4),
            "apart_mm": round(1000 * apart, 1),
            "opencv_apart_mm": round(1000 * float(np.linalg.norm(t)), 1),
            "turned_deg": round(turned, 3),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="+", type=Path)
    parser.add_argument("--board", required=True)
    parser.add_argument("--every", type=float, default=0.25)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--name", default="board", help="key of the result in the file")
    args = parser.parse_args()
    board = parse_board(args.board)
    videos, offsets = _videos(args.source)
    index = _instants(videos, offsets, args.every, 200)
    px = np.stack([_corners(v, i, board) for v, i in zip(videos.values(), index, strict=True)])
    sizes = np.array([v.size for v in videos.values()])
    report = compare(calibrate_with_board([*videos], px, board, sizes), px, board)
    print(json.dumps(report, indent=1))
    if args.json:
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}
        args.json.write_text(json.dumps({**kept, args.name: report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
