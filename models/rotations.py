"""Rotations as matrices: exponential and logarithm, alignment of directions, the nearest rotation.

Batched over leading axes, for any float dtype and device; gradients flow. Angles in radians.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Vectors (..., 3) → matrices (..., 3, 3) with skew(v) @ w = v × w."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape, 3)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of 3 × 3 matrices (..., 3, 3); on a GPU elementwise: its matrix product takes them one by one."""
    if a.device.type == "cpu":
        return a @ b
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def axis_angle_to_matrix(v: Tensor) -> Tensor:
    """The exponential map: axis-angle (..., 3) → rotations (..., 3, 3). Rodrigues' formula, smooth at 0."""
    t2 = (v * v).sum(-1)[..., None, None]
    small = t2 < 1e-6
    t = torch.where(small, torch.ones_like(t2), t2).sqrt()
    a = torch.where(small, 1 - t2 / 6, torch.sin(t) / t)
    # 1 − cos t cancels at small t; 2 sin²(t/2) does not.
    b = torch.where(small, 0.5 - t2 / 24, 2 * torch.sin(t / 2) ** 2 / t**2)
    k = skew(v)
    return torch.eye(3, dtype=v.dtype, device=v.device) + a * k + b * product(k, k)


def matrix_to_axis_angle(r: Tensor) -> Tensor:
    """The logarithm: rotations (..., 3, 3) → axis-angle (..., 3) with angle in [0, π].

    Through the quaternion whose largest component is known best, so right to rounding up to and at π.
    """
    q = _matrix_to_quaternion(r)
    w, xyz = q[..., :1], q[..., 1:]
    q = torch.where(w < 0, -q, q)  # the shorter way round
    w, xyz = q[..., :1], q[..., 1:]
    s2 = (xyz * xyz).sum(-1, keepdim=True)
    small = s2 < 1e-7
    s = torch.where(small, torch.ones_like(s2), s2).sqrt()
    scale = torch.where(small, 2 + s2 / 3, 2 * torch.atan2(s, w) / s)
    v: Tensor = scale * xyz
    return v


def _matrix_to_quaternion(r: Tensor) -> Tensor:
    """Rotations (..., 3, 3) → unit quaternions (..., 4), w first, of either sign (Shepperd's method)."""
    m = [[r[..., i, j] for j in range(3)] for i in range(3)]
    # Row i is 4 qᵢ q, exact for every i; the one with the largest diagonal divides best.
    rows = torch.stack(
        [
            1 + m[0][0] + m[1][1] + m[2][2],
            m[2][1] - m[1][2],
            m[0][2] - m[2][0],
            m[1][0] - m[0][1],
            m[2][1] - m[1][2],
            1 + m[0][0] - m[1][1] - m[2][2],
            m[0][1] + m[1][0],
            m[0][2] + m[2][0],
            m[0][2] - m[2][0],
            m[0][1] + m[1][0],
            1 - m[0][0] + m[1][1] - m[2][2],
            m[1][2] + m[2][1],
            m[1][0] - m[0][1],
            m[0][2] + m[2][0],
            m[1][2] + m[2][1],
            1 - m[0][0] - m[1][1] + m[2][2],
        ],
        -1,
    ).reshape(*r.shape[:-2], 4, 4)
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    return torch.nn.functional.normalize(row, dim=-1)


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
    """The smallest rotation (..., 3, 3) that turns direction a (..., 3) into direction b (..., 3).

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
    return axis_angle_to_matrix(axis * angle)


def nearest_rotation(m: Tensor) -> Tensor:
    """The rotation (..., 3, 3) nearest to a matrix (..., 3, 3) in the Frobenius norm (Schönemann 1966).

    As Kabsch: for m = Σ w b aᵀ of centred points it is the rotation that turns points a into points b best.
    """
    u, _, vh = torch.linalg.svd(m)
    sign = torch.linalg.det(u @ vh)
    flip = torch.ones(m.shape[:-1], dtype=m.dtype, device=m.device)
    flip[..., 2] = sign
    rotation: Tensor = (u * flip[..., None, :]) @ vh
    return rotation


def geodesic_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angle (...) in degrees between rotations (..., 3, 3)."""
    return torch.rad2deg(matrix_to_axis_angle(a.mT @ b).norm(dim=-1))
