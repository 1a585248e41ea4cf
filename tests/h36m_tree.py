"""Small trees of Human3.6M's layout. No real file was at hand: names and shapes are SPIN's."""

from __future__ import annotations

from pathlib import Path

import cdflib.cdfwrite
import h5py
import numpy as np

from models.datasets.h36m import CAMERAS

FRAMES = 12


def write_cdf(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = file.with_name("plain.cdf")  # the library takes what is behind the first dot for a suffix
    cdf = cdflib.cdfwrite.CDF(plain, cdf_spec={"Compressed": 0})
    spec = {
        "Variable": "Pose", "Data_Type": 45, "Num_Elements": 1, "Rec_Vary": True,
        "Dim_Sizes": list(values.shape),
    }  # fmt: skip
    cdf.write_var(spec, var_data=values[None])
    cdf.close()
    plain.replace(file)


def write_masks(file: Path, boxes: list[tuple[int, int, int, int]]) -> None:
    """As MATLAB 7.3 does: references to arrays whose axes are the other way round."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as mat:
        references = np.empty((len(boxes), 1), h5py.ref_dtype)
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            mask = np.zeros((100, 120), np.uint8)
            mask[y0:y1, x0:x1] = 1
            references[i, 0] = mat.create_dataset(f"#refs#/{i}", data=mask.T).ref
        mat.create_dataset("Masks", data=references, dtype=h5py.ref_dtype)


def truth(name: str, size: int) -> np.ndarray:
    """(T, 32, size) mm or pixels, different for every frame and camera."""
    rng = np.random.default_rng([size, *name.encode()])
    return rng.uniform(100, 900, (FRAMES, 32, size))


def make(root: Path, subjects: tuple[str, ...] = ("S9",), names: tuple[str, ...] = ()) -> Path:
    names = names or tuple(f"{a}.{c}" for a in ("Directions", "WalkingDog 1", "_ALL") for c in CAMERAS[:2])
    for subject in subjects:
        for name in names:
            features = root / subject / "MyPoseFeatures"
            write_cdf(features / "D3_Positions_mono" / f"{name}.cdf", truth(name, 3).reshape(FRAMES, 96))
            write_cdf(features / "D2_Positions" / f"{name}.cdf", truth(name, 2).reshape(FRAMES, 64))
            boxes = [(10 + i, 20, 50 + i, 80) for i in range(FRAMES)]
            write_masks(root / subject / "MySegmentsMat" / "ground_truth_bb" / f"{name}.mat", boxes)
            video = root / subject / "Videos" / f"{name}.mp4"
            video.parent.mkdir(exist_ok=True)
            video.touch()
    return root
