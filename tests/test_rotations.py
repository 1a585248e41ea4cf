"""Rotation maps against the matrix exponential, their own inverses and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.rotations import (
    axis_angle_to_matrix,
    geodesic_degrees,
    matrix_to_axis_angle,
    nearest_rotation,
    right_jacobian_inverse,
    rotation_between,
    skew,
)


def vectors(*scales: float) -> Tensor:
    """Random axis-angle vectors (n, 3) of each of the lengths."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(len(scales), 50, 3, generator=g, dtype=torch.float64)
    v = v / v.norm(dim=-1, keepdim=True)
    return (v * torch.tensor(scales, dtype=torch.float64)[:, None, None]).reshape(-1, 3)


LENGTHS = (0.0, 1e-12, 1e-8, 1e-5, 9e-4, 1.1e-3, 1e-2, 0.5, 2.0, 3.0, 3.14)


def test_exponential_is_the_matrix_exponential() -> None:
    v = vectors(*LENGTHS)
    assert (axis_angle_to_matrix(v) - torch.linalg.matrix_exp(skew(v))).abs().max() < 1e-13


def test_logarithm_inverts_the_exponential() -> None:
    v = vectors(*LENGTHS)
    assert (matrix_to_axis_angle(axis_angle_to_matrix(v)) - v).abs().max() < 1e-12


def test_logarithm_at_half_a_turn() -> None:
    v = vectors(math.pi, math.pi - 1e-9)
    back = matrix_to_axis_angle(axis_angle_to_matrix(v))
    assert (axis_angle_to_matrix(back) - axis_angle_to_matrix(v)).abs().max() < 1e-12


def test_single_precision_keeps_its_digits() -> None:
    v = vectors(*LENGTHS)
    back = matrix_to_axis_angle(axis_angle_to_matrix(v.float())).double()
    assert (axis_angle_to_matrix(back) - axis_angle_to_matrix(v)).abs().max() < 2e-6


@pytest.mark.parametrize("length", [0.0, 1e-4, 0.09, 0.11, 2.0, 3.0])
def test_right_jacobian_inverse(length: float) -> None:
    v = vectors(length)
    h = 1e-6
    sides = [
        matrix_to_axis_angle(
            axis_angle_to_matrix(v)[:, None] @ axis_angle_to_matrix(sign * h * torch.eye(3, dtype=v.dtype))
        )
        for sign in (1, -1)
    ]
    numeric = ((sides[0] - sides[1]) / (2 * h)).mT
    assert (right_jacobian_inverse(v) - numeric).abs().max() < 1e-8


def test_rotation_between_is_the_shortest() -> None:
    a, b = vectors(1.0), vectors(0.5).flip(0)
    r = rotation_between(a, b)
    turned = (r @ a[..., None])[..., 0]
    assert (turned - b / b.norm(dim=-1, keepdim=True)).abs().max() < 1e-12
    angle = torch.acos(((a * b).sum(-1) / b.norm(dim=-1)).clamp(-1, 1)) * (180 / math.pi)
    assert (geodesic_degrees(r, torch.eye(3, dtype=a.dtype)) - angle).abs().max() < 1e-6


def test_rotation_between_opposite_and_equal() -> None:
    a = vectors(1.0)
    assert ((rotation_between(a, -a) @ a[..., None])[..., 0] + a).abs().max() < 1e-12
    assert (rotation_between(a, a) - torch.eye(3, dtype=a.dtype)).abs().max() < 1e-12


def test_nearest_rotation_recovers_kabsch_and_is_proper() -> None:
    g = torch.Generator().manual_seed(1)
    points = torch.randn(50, 6, 3, generator=g, dtype=torch.float64)
    truth = axis_angle_to_matrix(vectors(2.5))
    moved = points @ truth.mT
    assert (nearest_rotation(moved.mT @ points) - truth).abs().max() < 1e-10
    anything = nearest_rotation(torch.randn(50, 3, 3, generator=g, dtype=torch.float64))
    assert (torch.linalg.det(anything) - 1).abs().max() < 1e-10
