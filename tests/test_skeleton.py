"""Skeletons: trees, mirror images, and the orders of keypoint files."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pipeline.skeleton import (
    BODY_25,
    EXTRA_24,
    EXTRA_24_OF_H36M_17,
    H36M_17,
    MIDPOINTS,
    POINT_ORDERS,
    SMPL_24,
    SMPL_OF_BODY_25,
    Skeleton,
    find_order,
)

SKELETONS = pytest.mark.parametrize("skeleton", [SMPL_24, BODY_25, EXTRA_24, H36M_17])


def other_side(name: str) -> str:
    """Name of a point's mirror image, by the names alone."""
    for a, b in (("left_", "right_"), ("L", "R")):
        for one, other in ((a, b), (b, a)):
            rest = name.removeprefix(one)
            if rest != name and (one.islower() or rest[0].isupper()):
                return other + rest
    return name


@SKELETONS
def test_flips_exchange_left_and_right(skeleton: Skeleton) -> None:
    assert [skeleton.names[i] for i in skeleton.flips] == [other_side(n) for n in skeleton.names]
    assert sum(i != j for i, j in enumerate(skeleton.flips)) >= 12


@SKELETONS
def test_names_are_found(skeleton: Skeleton) -> None:
    assert [skeleton.index(n) for n in skeleton.names] == [*range(len(skeleton))]
    with pytest.raises(ValueError, match="tuple"):
        skeleton.index("nobody")


@pytest.mark.parametrize(("skeleton", "root"), [(SMPL_24, "pelvis"), (BODY_25, "Neck")])
def test_bones_make_one_tree_that_is_its_own_mirror_image(skeleton: Skeleton, root: str) -> None:
    assert [n for n, p in zip(skeleton.names, skeleton.parents, strict=True) if p < 0] == [root]
    for point in range(len(skeleton)):
        steps = 0
        while skeleton.parents[point] >= 0:
            point, steps = skeleton.parents[point], steps + 1
            assert steps < len(skeleton)
    mirrored = {(skeleton.flips[a], skeleton.flips[b]) for a, b in skeleton.bones}
    assert mirrored == {*skeleton.bones}


def test_parents_come_before_children_in_smpl() -> None:
    assert all(parent < child for parent, child in SMPL_24.bones)
    assert SMPL_24.parents[:4] == (-1, 0, 0, 0)
    assert SMPL_24.names[SMPL_24.parents[SMPL_24.index("left_wrist")]] == "left_elbow"


def test_points_that_are_no_tree_or_no_mirror_image_are_refused() -> None:
    with pytest.raises(ValueError, match="no permutation of 2"):
        Skeleton(("a", "b"), (0, 0))
    with pytest.raises(ValueError, match="no tree of 2"):
        Skeleton(("a", "b"), (0, 1), ((0, 2),))
    with pytest.raises(ValueError, match="no tree of 2"):
        Skeleton(("a", "b"), (0, 1), ((0, 1), (0, 1)))


def test_a_skeleton_comes_back_from_json() -> None:
    for skeleton in (SMPL_24, H36M_17):
        again = Skeleton.of(json.loads(json.dumps(asdict(skeleton))))
        assert again == skeleton
        assert hash(again) == hash(skeleton)
    assert SMPL_24.bone_ends.tolist() == [[*bone] for bone in SMPL_24.bones]
    assert H36M_17.bone_ends.shape == (0, 2)


def test_names_of_one_skeleton_are_those_of_another() -> None:
    assert {*SMPL_OF_BODY_25} < {*BODY_25.names}
    assert {*SMPL_OF_BODY_25.values()} < {*SMPL_24.names}
    for point, at in zip(H36M_17.names, EXTRA_24_OF_H36M_17, strict=True):
        assert EXTRA_24.names[at].split(" ")[0] == point
    for order, names in POINT_ORDERS.items():
        assert len({*names}) == len(names)
        assert str(len(names)) == order.rstrip("b").split("_")[-1]
        limbs = ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")
        assert {side + limb for side in "LR" for limb in limbs} <= {*names}
    assert {*POINT_ORDERS["blazepose_33"]} & {*BODY_25.names} == (
        {*BODY_25.names} - {*MIDPOINTS, "LSmallToe", "RSmallToe"}
    )
    assert {*MIDPOINTS, *sum(MIDPOINTS.values(), ())} < {*BODY_25.names}


def test_an_order_is_found_as_people_spell_it() -> None:
    assert [find_order(n) for n in ("BODY_25", "COCO-17", "halpe_26")] == ["body_25", "coco_17", "halpe_26"]
    with pytest.raises(ValueError, match="'coco' is not one of body_25, body_25b, "):
        find_order("coco")
