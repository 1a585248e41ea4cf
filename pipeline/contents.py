"""Description of a results store, as attributes and arrays: recording, cameras, body and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from importlib import metadata
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.cameras import CAMERA_ARRAYS, Rig
from pipeline.config import differences
from pipeline.schema import FIXED, PERSON, REGRESSION, ArrayKind, angle_kind
from pipeline.skeleton import BODY_25, SMPL_24, Skeleton

STORE_FORMAT: Final = "multispin"
VERSION: Final = 3


@dataclass(frozen=True)
class Contents:
    """Description of a store, complete before its first window is written."""

    rig: Rig
    rate: Fraction
    """Frames a second."""
    time_s: NDArray[np.float64]
    """(T,)"""
    frame_index: NDArray[np.int64]
    """(V, T) index of each camera's video frame at each time; −1 for none."""
    body: Mapping[str, str]
    """Name and sha256 of the body model."""
    config: Mapping[str, Any]
    """Whole configuration of the run."""
    window: int = 24
    """Frames a window."""
    num_betas: int = 10
    regression: bool = False
    """True with a regressor, whose poses are stored, too."""
    skeleton: Skeleton = SMPL_24
    """Of the joints."""
    keypoint_skeleton: Skeleton = BODY_25
    angles: Mapping[str, str] = field(default_factory=dict)
    """Name and definition of each stored joint angle, in order."""

    @classmethod
    def read(cls, attributes: Mapping[str, Any], array: Callable[[str], NDArray[Any]]) -> Contents:
        """Contents of a store with these attributes; ``array`` reads one of ``arrays`` by its path."""
        # Stores of earlier versions have no ``up``, skeletons and angles.
        skeletons = {name: Skeleton.of(table) for name, table in attributes.get("skeletons", {}).items()}
        angles = attributes.get("angles", {"names": [], "definitions": []})
        return cls(
            rig=Rig(
                tuple(attributes["cameras"]),
                **{name: array(f"cameras/{name}") for name in CAMERA_ARRAYS},
                known_up=np.array(attributes["up"], np.float64) if "up" in attributes else None,
                fisheye=tuple(attributes.get("fisheye", ())),
            ),
            rate=Fraction(*attributes["fps"]),
            time_s=array("time_s"),
            frame_index=array("cameras/frame_index"),
            body=attributes["body"],
            config=attributes["config"],
            window=attributes["window"],
            num_betas=attributes["betas"],
            regression=attributes["regression"],
            angles=dict(zip(map(str, angles["names"]), map(str, angles["definitions"]), strict=True)),
            skeleton=skeletons.get("joints", SMPL_24),
            keypoint_skeleton=skeletons.get("keypoints", BODY_25),
        )

    @property
    def windows(self) -> int:
        """Number of windows, without reading which are done."""
        return -(-len(self.time_s) // self.window)

    @cached_property
    def person_arrays(self) -> Mapping[str, ArrayKind]:
        """Arrays of a person that are written window by window."""
        angles = {"angles": angle_kind(self.angles)} if self.angles else {}
        return {**PERSON, **angles, **(REGRESSION if self.regression else {})}

    def shape(self, name: str, frames: int) -> list[int]:
        """Shape of a person's array over a number of frames."""
        sizes = {"T": frames, "V": len(self.rig), "B": self.num_betas, "K": len(self.keypoint_skeleton)}
        sizes |= {"J": len(self.skeleton), "L": len(self.skeleton) - 1, "A": len(self.angles), **FIXED}
        return [sizes[axis] for axis in self.person_arrays[name].axes.split()]

    def attributes(self) -> dict[str, Any]:
        """Attributes of the store, as JSON."""
        return {
            "format": STORE_FORMAT,
            "version": VERSION,
            "software": f"multispin {metadata.version('multispin')}",
            "config": dict(self.config),
            "body": dict(self.body),
            "fps": [self.rate.numerator, self.rate.denominator],
            "cameras": list(self.rig.names),
            **({"fisheye": list(self.rig.fisheye)} if any(self.rig.fisheye) else {}),
            "up": self.rig.up.tolist(),
            "window": self.window,
            "betas": self.num_betas,
            "regression": self.regression,
            "angles": {"names": [*self.angles], "definitions": [*self.angles.values()]},
            "skeletons": {
                "joints": asdict(self.skeleton),
                "keypoints": asdict(self.keypoint_skeleton),
            },
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the recording by their path in the store."""
        cameras = {f"cameras/{name}": np.asarray(getattr(self.rig, name)) for name in CAMERA_ARRAYS}
        return {**cameras, "time_s": self.time_s, "cameras/frame_index": self.frame_index}

    def digest(self) -> str:
        """SHA-256 of recording, cameras, body, configuration and software."""
        digest = hashlib.sha256(json.dumps(self.attributes(), sort_keys=True).encode())
        for array in self.arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def changes(self, now: Contents, ignore: Sequence[str] = ()) -> list[str]:
        """Differences of ``now`` that change what is stored, a line each.

        ignore: sections of the configuration that do not. ``up`` may differ, as drawings and angles alone
        depend on it.
        """

        def compared(contents: Contents) -> dict[str, Any]:
            table = contents.attributes()
            config = {k: v for k, v in table["config"].items() if k not in ignore}
            return {k: v for k, v in table.items() if k != "up"} | {"config": config}

        arrays, now_arrays = self.arrays(), now.arrays()
        changes = [*differences(compared(self), compared(now))]
        changes += [f"{k} differs" for k in arrays if not np.array_equal(arrays[k], now_arrays[k])]
        return changes
