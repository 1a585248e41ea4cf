"""Damped step of the fit, by Cholesky factors H = L Lᵀ of block-pentadiagonal matrices.

``BandedFactor`` is LAPACK's, one problem after the other; ``CyclicFactor`` eliminates half of the frames of
all problems at once, for a GPU. Each has its own order of the rows of L.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import blas, lapack
from torch import Tensor

from models.fit.system import System


def step(sys: System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Pose step (N, F, M) and shape step (N, S) of the damped system; NaN where it is not positive definite.

    The shape follows from the Schur complement of the poses, which needs L⁻¹ of the border alone.
    """
    banded = sys.grad.device.type == "cpu" and sys.grad.shape[1] > 1
    cholesky = (BandedFactor if banded else CyclicFactor)(sys, damping)
    half = cholesky.forward(torch.cat([sys.grad[..., None], sys.border], -1))
    pose, border = half[..., :1], half[..., 1:]
    shape = sys.shape_grad
    if shape.shape[1]:
        hessian = sys.shape + torch.diag_embed(damping[:, None] * sys.shape.diagonal(dim1=1, dim2=2))
        factor, info = torch.linalg.cholesky_ex(hessian - border.mT @ border)
        change = -torch.cholesky_solve(shape[..., None] - border.mT @ pose, factor)
        change = change.masked_fill(info[:, None, None] > 0, torch.nan)
        pose, shape = pose + border @ change, change[..., 0]
    return -cholesky.backward(pose)[..., 0], shape


class BandedFactor:
    """Cholesky factor by LAPACK's banded routines, one problem after the other."""

    def __init__(self, sys: System, damping: Tensor) -> None:
        n, frames, m = sys.grad.shape
        # LAPACK's lower band stores each column from the diagonal down. The rows of a frame's block row
        # [upper triangle of H_tt | H_t,t+1 | H_t,t+2] are that when each starts one entry later: a stride.
        # The entry past a row's end is in the zeroed triangle of the next.
        stored = sys.grad.new_zeros(n, frames, 3 * m * m + m)
        rows = stored[..., : 3 * m * m].view(n, frames, m, 3 * m)
        rows[..., :m] = sys.diag.triu()
        if frames > 1:
            rows[:, :-1, :, m : 2 * m] = sys.next1
        if frames > 2:
            rows[:, :-2, :, 2 * m :] = sys.next2
        s = stored.stride()
        band = stored.as_strided((n, frames, m, 3 * m), (s[0], s[1], 3 * m + 1, 1)).contiguous()
        band[..., 0] *= 1 + damping[:, None, None]
        single = sys.grad.dtype == torch.float32
        factor = lapack.spbtrf if single else lapack.dpbtrf
        self.frames = frames
        self.substitute = lapack.stbtrs if single else lapack.dtbtrs
        self.divide = blas.strsm if single else blas.dtrsm
        self.bands = [factor(b.numpy().T, lower=1, overwrite_ab=1) for b in band.flatten(1, 2)]

    def forward(self, rhs: Tensor) -> Tensor:
        """L⁻¹ rhs: (N, F, M, R) → (N, F M, R)."""
        if rhs.shape[-1] == 1:
            return self._solve(rhs.flatten(1, 2), "N")
        # LAPACK solves them one at a time. Matrix products frame by frame are three times as fast.
        m = rhs.shape[2]
        out = rhs.clone()
        for x, (band, info) in zip(out.numpy(), self.bands, strict=True):
            if info:
                x[:] = np.nan
                continue
            # Lᵀ by frames, each row one entry later; entries below its diagonal are never read.
            upper = torch.from_numpy(band.T).as_strided((len(x), m, 3 * m), (3 * m * m, 3 * m - 1, 1)).numpy()
            for t in range(len(x)):
                for gap in range(1, min(t, 2) + 1):
                    x[t] -= upper[t - gap, :, gap * m : (gap + 1) * m].T @ x[t - gap]
                x[t] = self.divide(1, upper[t, :, :m].T, x[t].T, side=1, lower=1, trans_a=1).T
        return out.flatten(1, 2)

    def backward(self, rhs: Tensor) -> Tensor:
        """L⁻ᵀ rhs: (N, F M, R) → (N, F, M, R)."""
        return self._solve(rhs, "T").view(len(rhs), self.frames, -1, rhs.shape[2])

    def _solve(self, rhs: Tensor, trans: str) -> Tensor:
        out = torch.full_like(rhs, torch.nan)
        for i, (band, info) in enumerate(self.bands):
            if info == 0:
                x, _ = self.substitute(band, rhs[i].numpy(), uplo="L", trans=trans)
                out[i] = torch.from_numpy(x).view(rhs[i].shape)
        return out


class CyclicFactor:
    """Cholesky factor by cyclic reduction over blocks of two frames.

    Each batched step eliminates every second block that is left: log₂ of the frames in all (Golub and Van
    Loan, Matrix Computations, section 4.5.4).
    """

    def __init__(self, sys: System, damping: Tensor) -> None:
        self.frames = sys.grad.shape[1]
        main, down = _pairs(sys, damping)
        self.indefinite: Tensor = torch.zeros(len(main), dtype=torch.bool, device=main.device)
        self.levels: list[tuple[Tensor, Tensor, Tensor]] = []
        """Per level: L⁻¹ of the eliminated blocks, and L⁻¹ times their left and right couplings."""
        while main.shape[1] > 1:
            inverse = self._inverse_factor(main[:, 1::2])
            left = inverse @ down[:, ::2]
            right = inverse[:, : (main.shape[1] - 1) // 2] @ down[:, 1::2].mT
            main = main[:, ::2].clone()
            main[:, : left.shape[1]] -= left.mT @ left
            main[:, 1 : right.shape[1] + 1] -= right.mT @ right
            down = -(right.mT @ left[:, : right.shape[1]])
            self.levels.append((inverse, left, right))
        self.last = self._inverse_factor(main)

    def _inverse_factor(self, blocks: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(blocks)
        self.indefinite |= (info > 0).any(1)
        eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
        inverse: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        return inverse

    def forward(self, rhs: Tensor) -> Tensor:
        """L⁻¹ rhs: (N, F, M, R) → (N, rows, R), level after level."""
        group = min(self.frames, 2)
        if self.frames % group:
            rhs = torch.cat([rhs, torch.zeros_like(rhs[:, :1])], 1)
        rest = rhs.reshape(len(rhs), -1, group * rhs.shape[2], rhs.shape[3])
        halves = []
        for inverse, left, right in self.levels:
            half = inverse @ rest[:, 1::2]
            rest = rest[:, ::2].clone()
            rest[:, : left.shape[1]] -= left.mT @ half
            rest[:, 1 : right.shape[1] + 1] -= right.mT @ half[:, : right.shape[1]]
            halves.append(half)
        halves.append(self.last @ rest)
        half = torch.cat(halves, 1).flatten(1, 2)
        return half.masked_fill(self.indefinite[:, None, None], torch.nan)

    def backward(self, rhs: Tensor) -> Tensor:
        """L⁻ᵀ rhs: (N, rows, R) → (N, F, M, R)."""
        counts = [inverse.shape[1] for inverse, _, _ in self.levels] + [1]
        *halves, half = torch.split(rhs.view(len(rhs), sum(counts), -1, rhs.shape[2]), counts, 1)
        x = self.last.mT @ half
        for (inverse, left, right), half in zip(reversed(self.levels), reversed(halves), strict=True):
            right_part = right @ x[:, 1 : right.shape[1] + 1]
            half = half - left @ x[:, : left.shape[1]]
            half[:, : right.shape[1]] -= right_part
            odd = inverse.mT @ half
            merged = x.new_empty(len(x), x.shape[1] + odd.shape[1], *x.shape[2:])
            merged[:, ::2], merged[:, 1::2] = x, odd
            x = merged
        group = min(self.frames, 2)
        x = x.reshape(len(x), x.shape[1] * group, -1, rhs.shape[2])[:, : self.frames]
        return x.masked_fill(self.indefinite[:, None, None, None], torch.nan)


def _pairs(sys: System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Block-tridiagonal form over pairs of frames of the damped matrix: main blocks (N, P, 2M, 2M), of which
    only the lower triangle is set, and the blocks below (N, P − 1, 2M, 2M)."""
    n, frames, m = sys.grad.shape
    diag = sys.diag + torch.diag_embed(damping[:, None, None] * sys.diag.diagonal(dim1=-2, dim2=-1))
    if frames == 1:
        return diag, diag[:, :0]
    if frames % 2:  # pad with an uncoupled frame
        one = torch.eye(m, dtype=diag.dtype, device=diag.device).expand(n, 1, m, m)
        diag = torch.cat([diag, one], 1)
    pairs = diag.shape[1] // 2
    next1 = torch.cat([sys.next1, diag.new_zeros(n, 2 * pairs - sys.next1.shape[1], m, m)], 1)
    next2 = torch.cat([sys.next2, diag.new_zeros(n, 2 * pairs - sys.next2.shape[1], m, m)], 1)
    main = diag.new_zeros(n, pairs, 2 * m, 2 * m)
    main[..., :m, :m], main[..., m:, m:] = diag[:, ::2], diag[:, 1::2]
    main[..., m:, :m] = next1[:, ::2].mT
    down = diag.new_zeros(n, pairs - 1, 2 * m, 2 * m)  # rows of pair i + 1, columns of pair i
    down[..., :m, :m], down[..., m:, m:] = next2[:, :-2:2].mT, next2[:, 1:-2:2].mT
    down[..., :m, m:] = next1[:, 1:-2:2].mT
    return main, down
