"""Alignment of directions, and the Jacobian of the logarithm against finite differences."""

from __future__ import annotations

import math

import pytest
import roma
import torch
from torch import Tensor

from models.rotations import geodesic_degrees, right_jacobian_inverse, rotation_between, solve_3x3


def vectors(*scales: float) -> Tensor:
    """Random axis-angle vectors (n, 3) of each of the lengths."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(len(scales), 50, 3, generator=g, dtype=torch.float64)
    v = v / v.norm(dim=-1, keepdim=True)
    return (v * torch.tensor(scales, dtype=torch.float64)[:, None, None]).reshape(-1, 3)


@pytest.mark.parametrize("length", [0.0, 1e-4, 0.09, 0.11, 2.0, 3.0])
def test_right_jacobian_inverse(length: float) -> None:
    v = vectors(length)
    h = 1e-6
    sides = [
        roma.rotmat_to_rotvec(
            roma.rotvec_to_rotmat(v)[:, None] @ roma.rotvec_to_rotmat(sign * h * torch.eye(3, dtype=v.dtype))
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


def test_systems_of_three_equations() -> None:
    g = torch.Generator().manual_seed(0)
    A, x = torch.randn(50, 3, 3, generator=g), torch.randn(50, 3, generator=g)
    A = A @ A.mT + 0.1 * torch.eye(3)
    b = (A @ x[..., None])[..., 0]
    for scale in (1.0, 1e-14, 1e14):  # whose cubes are no float32
        torch.testing.assert_close(solve_3x3(scale * A, scale * b), x, atol=2e-4, rtol=1e-3)
    upper = torch.tensor([[1400.0, 3, 960], [0, 1390, 540], [0, 0, 1]])
    ray = solve_3x3(upper, torch.tensor([100.0, 900, 1]))
    torch.testing.assert_close(ray, torch.linalg.solve(upper, torch.tensor([100.0, 900, 1])))
