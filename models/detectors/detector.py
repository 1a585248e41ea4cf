"""Detectors of people in the consecutive pictures of a video: shipped networks, and others by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.detectors.finder import load_finder
from models.detectors.networks import FINDER, LANDMARKS, SHA256, Device, file_digest
from models.detectors.pose_networks import CropNetwork, PictureNetwork, load_pose_network
from models.detectors.tracking import SEARCH_FRAMES, Networks, TrackerState, detect_people, load_networks
from pipeline.array_types import Floats, Pixels
from pipeline.detections import Detector

DetectorState = NDArray[np.float64]


class PeopleDetector(Protocol):
    """Detector that depends on earlier pictures only through a state vector."""

    @property
    def order(self) -> str:
        """Order of the points, a name in ``skeleton.POINT_ORDERS``."""

    @property
    def networks(self) -> Mapping[str, str]:
        """sha256 of each network by its task."""

    def start(self) -> DetectorState:
        """State (S,) before the first picture."""

    def detect(self, picture: Pixels, state: DetectorState) -> tuple[DetectorState, Floats]:
        """State after an RGB picture (H, W, 3), and the people (D, K, 3) in it: x, y, confidence."""


@dataclass(frozen=True)
class TrackingDetector:
    """Detector that tracks people: the finder now and then, landmarks in a crop of each person."""

    tracked: Networks
    every: int
    """Frames from one search for people to the next"""

    @property
    def order(self) -> str:
        return self.tracked.landmarks.order

    @property
    def networks(self) -> Mapping[str, str]:
        return {"finder": self.tracked.finder.sha256, "landmarks": self.tracked.landmarks.network.sha256}

    def start(self) -> DetectorState:
        return TrackerState.start().to_vector()

    def detect(self, picture: Pixels, state: DetectorState) -> tuple[DetectorState, Floats]:
        after, people = detect_people(self.tracked, picture, TrackerState.of_vector(state), self.every)
        return after.to_vector(), people.points


@dataclass(frozen=True)
class PictureDetector:
    """Detector that finds all people in each picture, without state."""

    whole: PictureNetwork

    @property
    def order(self) -> str:
        return self.whole.order

    @property
    def networks(self) -> Mapping[str, str]:
        return {"pictures": self.whole.network.sha256}

    def start(self) -> DetectorState:
        return np.zeros(1)

    def detect(self, picture: Pixels, state: DetectorState) -> tuple[DetectorState, Floats]:
        return state, self.whole.find(picture)


def load_detector(model: str = "heavy", device: Device = "cpu", every: int = SEARCH_FRAMES) -> PeopleDetector:
    """Load a detector. model: ``heavy``, ``full`` or an ONNX file. Raises ``InputError``."""
    if model in LANDMARKS:
        return TrackingDetector(load_networks(model, device), every)
    network = load_pose_network(Path(model), device)
    if isinstance(network, CropNetwork):
        return TrackingDetector(Networks(load_finder(device), network), every)
    return PictureDetector(network)


def is_by(origin: Detector, model: str, every: int) -> bool:
    """True where ``load_detector`` would load the detector of this origin; loads no network."""
    if model in LANDMARKS:
        own = SHA256[LANDMARKS[model]]
    else:
        try:
            own = file_digest(Path(model))
        except OSError:  # loading it says why
            return False
    same_finder = origin.networks.get("finder", SHA256[FINDER]) == SHA256[FINDER]
    return same_finder and own in origin.networks.values() and origin.every == every
