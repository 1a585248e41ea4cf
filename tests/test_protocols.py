"""The protocols' tables against the names of the joints that they mean."""

from __future__ import annotations

import json
import re

import pytest

from models.evaluation.protocols import PROTOCOLS, Protocol
from pipeline.skeleton import EXTRA_24, EXTRA_24_OF_H36M_17, H36M_17

LSP = [
    "RAnkle", "RKnee", "RHip", "LHip", "LKnee", "LAnkle", "RWrist", "RElbow", "RShoulder", "LShoulder",
    "LElbow", "LWrist", "Neck", "Head",
]  # fmt: skip


def test_there_are_the_published_ones() -> None:
    assert list(PROTOCOLS) == ["h36m-p1", "h36m-p2", "mpi-inf-3dhp", "3dpw"]


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=str)
def test_rows_and_truth_are_the_same_joints(protocol: Protocol) -> None:
    extra = ["Pelvis", "Spine", "Jaw"] if protocol.name == "mpi-inf-3dhp" else []
    assert [H36M_17.names[i] for i in protocol.predicted] == LSP + extra
    if protocol.true is not None:
        assert [EXTRA_24.names[i].split(" ")[0] for i in protocol.true] == LSP + extra
        assert [EXTRA_24_OF_H36M_17[i] for i in protocol.predicted] == list(protocol.true)


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("h36m-p1", ["images/S11_Eating.54138969_000001.jpg", "S9/Videos/Eating.54138969.mp4#5"],
         ["images/S1_Eating.54138969_000001.jpg", "S8/Videos/Eating.54138969.mp4#5"]),
        ("mpi-inf-3dhp", ["mpi_inf_3dhp_test_set/TS6/imageSequence/img_000001.jpg"],
         ["S1/Seq1/imageFrames/video_0/frame_000001.jpg"]),
        ("3dpw", ["imageFiles/downtown_arguing_00/image_00001.jpg"], ["TS1/imageSequence/img_000001.jpg"]),
    ],
)  # fmt: skip
def test_pictures_of_the_test_set_are_told_from_others(name: str, own: list[str], others: list[str]) -> None:
    pattern = PROTOCOLS[name].pictures
    assert all(re.search(pattern, x) for x in own)
    assert not any(re.search(pattern, x) for x in others)


def test_what_a_number_depends_on_is_spelled_out() -> None:
    for name, protocol in PROTOCOLS.items():
        said = json.loads(json.dumps(protocol.description()))
        assert said["name"] == name
        assert said["joints"][:14] == LSP
        assert {"sampling", "truth", "predicted", "regressor_rows", "root", "measures"} <= set(said)
        assert "left first" in said["regressor_rows"]
    assert "univ_annot3" in PROTOCOLS["mpi-inf-3dhp"].truth
    assert {"pck150", "auc"} <= set(PROTOCOLS["mpi-inf-3dhp"].measures)
    assert sorted(PROTOCOLS["mpi-inf-3dhp"].description()["near"]) == sorted(LSP)
    assert PROTOCOLS["h36m-p2"].camera == "60457274"
    assert PROTOCOLS["h36m-p1"].camera is None
    assert PROTOCOLS["3dpw"].true is None
