"""Rotations and 3 × 3 systems beyond roma: Jacobian of the logarithm, alignment of directions, degrees.

Batched over leading axes, for any float dtype and device; gradients flow. Angles in radians.
"""

from __future__ import annotations

from functools import partial

import roma
import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Vectors (..., 3) → matrices (..., 3, 3) with skew(v) @ w = v × w."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape, 3)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices (..., 3, 3); on a GPU elementwise, as its matrix product takes them one by one."""
    if a.device.type == "cpu":
        return a @ b
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def right_jacobian_inverse(v: Tensor) -> Tensor:
    """J⁻¹ (..., 3, 3) with log(exp(v) exp(δ)) = v + J⁻¹(v) δ + O(δ²), for |v| < 2π.

    Solà, Deray, Atchuthan, A micro Lie theory (2018), eq. 144.
    """
    t2 = (v * v).sum(-1)[..., None, None]
    small = t2 < 1e-2
    t = torch.where(small, torch.ones_like(t2), t2).sqrt()
    half = t / 2
    c = torch.where(small, 1 / 12 + t2 / 720 + t2**2 / 30240, (1 - half / torch.tan(half)) / t**2)
    k = skew(v)
    inverse: Tensor = torch.eye(3, dtype=v.dtype, device=v.device) + k / 2 + c * product(k, k)
    return inverse


def rotation_between(a: Tensor, b: Tensor) -> Tensor:
    """Smallest rotation (..., 3, 3) that takes direction a (..., 3) to direction b (..., 3).

    Any length but zero. Where a and b are opposite, half a turn about some axis across a.
    """
    a, b = a + torch.zeros_like(b), b + torch.zeros_like(a)
    a = torch.nn.functional.normalize(a, dim=-1, eps=1e-30)
    b = torch.nn.functional.normalize(b, dim=-1, eps=1e-30)
    axis = torch.linalg.cross(a, b, dim=-1)
    sin = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sin, (a * b).sum(-1, keepdim=True))
    # An axis across a, for the opposite case: the unit vector least along a, made orthogonal to it.
    least = torch.nn.functional.one_hot(a.abs().argmin(-1), 3).to(a.dtype)
    across = torch.linalg.cross(a, least, dim=-1)
    across = across / across.norm(dim=-1, keepdim=True)
    tiny = sin < 1e-7
    axis = torch.where(tiny, across, axis / torch.where(tiny, torch.ones_like(sin), sin))
    rotation: Tensor = roma.rotvec_to_rotmat(axis * angle)
    return rotation


def solve_3x3(A: Tensor, b: Tensor) -> Tensor:
    """x (..., 3) of A x = b with A (..., 3, 3), by Cramer's rule: a few kernels on a GPU, without pivots."""
    scale = A.abs().amax((-1, -2))  # the determinant of small numbers would underflow
    a0, a1, a2 = (A / scale[..., None, None]).unbind(-1)
    b = b / scale[..., None]
    cross = partial(torch.linalg.cross, dim=-1)
    normal = cross(a1, a2)
    determinants = [(b * normal).sum(-1), (a0 * cross(b, a2)).sum(-1), (a0 * cross(a1, b)).sum(-1)]
    solution: Tensor = torch.stack(determinants, -1) / (a0 * normal).sum(-1, keepdim=True)
    return solution


def geodesic_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angle (...) in degrees between rotations (..., 3, 3)."""
    return torch.rad2deg(roma.rotmat_geodesic_distance(a, b))
