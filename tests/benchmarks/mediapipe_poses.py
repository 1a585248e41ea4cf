"""MediaPipe's own landmarks of some frames, and the ROIs it places them in, for ``detector_conversion.py``.

    python tests/benchmarks/mediapipe_poses.py VIDEOS OUT.npz [--every 4]

Runs in an environment of its own, after ``pip install mediapipe==0.10.21 av`` there: MediaPipe needs numpy
below 2, and the script nothing of this project. Model full, static mode: each frame is detected afresh.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from mediapipe.python.solution_base import SolutionBase

GRAPH = "mediapipe/modules/pose_landmark/pose_landmark_cpu.binarypb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=4)
    args = parser.parse_args()
    side = {
        "model_complexity": 1,
        "smooth_landmarks": False,
        "enable_segmentation": False,
        "smooth_segmentation": False,
        "use_prev_landmarks": False,
    }
    outputs = ["pose_landmarks", "pose_rect_from_detection"]
    rows: list[tuple[str, int, list[float], list[list[float]]]] = []
    with SolutionBase(binary_graph_path=GRAPH, side_inputs=side, outputs=outputs) as pose:
        for video in sorted(args.videos.iterdir()):
            with av.open(str(video)) as container:
                for frame_number, frame in enumerate(container.decode(video=0)):
                    if frame_number % args.every:
                        continue
                    picture = frame.to_ndarray(format="rgb24")
                    found = pose.process({"image": picture})
                    if found.pose_landmarks is None:
                        continue
                    h, w = picture.shape[:2]
                    r = found.pose_rect_from_detection
                    roi = [r.x_center * w, r.y_center * h, r.width * w, r.rotation]
                    points = [[p.x * w, p.y * h] for p in found.pose_landmarks.landmark]
                    rows.append((video.name, frame_number, roi, points))
    video_names, frames, rois, landmarks = zip(*rows, strict=True)
    np.savez(args.out, video=video_names, frame=frames, roi=np.array(rois), xy_px=np.array(landmarks))
    print(f"{args.out}: {len(rows)} pictures")


if __name__ == "__main__":
    main()
