"""Gauss–Newton normal equations of the fit, with exact Jacobians.

Rotations are perturbed on the right (R ← R Exp δ). A posed keypoint is linear in the global rotations, so its
derivatives are matrix products; the cameras fold into one 3 × 3 system a keypoint, so the cost of the pose
blocks does not grow with the views. The system is block-pentadiagonal over time, bordered by the shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.fit.energy import FitState, sideways, skin_rotations
from models.fit.problem import JOINTS, MIN_BEND_RAD, Problem, stiffness
from models.rotations import product, right_jacobian_inverse

ROOT = 6
"""Unknowns of a root, the first of a frame: translation and rotation."""


@dataclass(frozen=True)
class System:
    """Normal equations H δ = −g of half the energy of N problems.

    F free frames of M unknowns: translation, then joints.
    """

    diag: Tensor  # (N, F, M, M)
    next1: Tensor  # (N, F − 1, M, M) frames t and t + 1
    next2: Tensor  # (N, F − 2, M, M) frames t and t + 2
    grad: Tensor  # (N, F, M)
    border: Tensor  # (N, F, M, S) with betas and offsets, S = B + 3K; as many as are free
    shape: Tensor  # (N, S, S)
    shape_grad: Tensor  # (N, S)
    jacobian: Tensor  # (N, F, 3K, M) of the keypoints; rows: coordinate, keypoint


@dataclass(frozen=True)
class _Folded:
    """Normal equations of each keypoint over all cameras: A = Σ w PᵀP, b = Σ w Pᵀu, P = ∂u/∂p (2 × 3)."""

    camera: list[list[Tensor]]  # 3 × 3 of (N, F, K): A
    total: list[list[Tensor]]  # A with the acceleration term
    grad: Tensor  # (N, 3, F, K) b with the acceleration term


def linearise(pb: Problem, st: FitState, robust: float) -> System:
    """Gauss–Newton system of the free frames at a state."""
    fold = _fold_cameras(pb, st, robust)
    jac = _keypoint_jacobian(pb, st)
    n, free, _, keypoints, wide = jac.shape
    size = 3 + 3 * len(pb.body.active)
    jac2 = jac.reshape(n, free, 3 * keypoints, wide)
    folded = torch.empty_like(jac)
    for i in range(3):
        torch.mul(fold.total[i][0][..., None], jac[:, :, 0], out=folded[:, :, i])
        folded[:, :, i].addcmul_(fold.total[i][1][..., None], jac[:, :, 1])
        folded[:, :, i].addcmul_(fold.total[i][2][..., None], jac[:, :, 2])
    weighed = jac2 * pb.w_acc.repeat(3)[:, None]
    _, one, two = pb.bands
    diag, next1, next2 = (
        x[..., :size, :size]
        for x in (
            jac2.mT @ folded.reshape(jac2.shape),
            (jac2[:, :-1].mT @ weighed[:, 1:]).mul_(one[:, None, None]),
            (jac2[:, :-2].mT @ weighed[:, 2:]).mul_(two[:, None, None]),
        )
    )
    jac2 = jac2[..., :size]
    grad_rows = fold.grad.transpose(1, 2).reshape(n, free, 3 * keypoints, 1)
    if pb.free_shape:
        grad, border, shape, shape_grad = _shape_blocks(pb, st, fold, jac, grad_rows)
    else:
        grad = (jac2.mT @ grad_rows)[..., 0]
        border = grad.new_zeros(*grad.shape, 0)
        shape, shape_grad = grad.new_zeros(n, 0, 0), grad.new_zeros(n, 0)
    _add_pose_terms(pb, st, diag, grad)
    _add_rotation_ties(pb, st, diag, next1, next2, grad)
    # An unknown without any term (the root of a frame that no view saw) stays.
    main_diagonal = diag.diagonal(dim1=-2, dim2=-1)
    main_diagonal.add_((main_diagonal == 0).to(diag.dtype))
    return System(diag, next1, next2, grad, border, shape, shape_grad, jac2)


def _fold_cameras(pb: Problem, st: FitState, robust: float) -> _Folded:
    h = pb.held
    x, y, iz = (st.cam[:, :, i, h:] for i in range(3))
    ux, uy = st.residual[:, :, 0, h:], st.residual[:, :, 1, h:]
    fx, skew, fy = (pb.focal[:, :, h:, i, None] for i in range(3))
    g2 = robust * robust
    w = pb.confidence_sq[:, :, h:] * (g2 / (g2 + ux * ux + uy * uy)) ** 2
    rows = [[pb.R[:, :, i, j, None, None] for j in range(3)] for i in range(3)]
    py = [fy * iz * (rows[1][j] - y * rows[2][j]) for j in range(3)]
    px = [fx * iz * (rows[0][j] - x * rows[2][j]) + skew / fy * py[j] for j in range(3)]
    wpx, wpy = [w * p for p in px], [w * p for p in py]
    upper = {(i, j): (wpx[i] * px[j] + wpy[i] * py[j]).sum(1) for i in range(3) for j in range(i, 3)}
    grad = torch.stack([(wpx[i] * ux + wpy[i] * uy).sum(1) for i in range(3)], 1)  # (N, 3, F, K)
    # Accelerations add multiples of the identity within a frame.
    tie = pb.bands[0][:, None] * pb.w_acc
    grad = grad + pb.w_acc * stiffness(st.points, 2, pb.tied)[:, :, h:]
    camera = [[upper[min(i, j), max(i, j)] for j in range(3)] for i in range(3)]
    total = [[c + tie if i == j else c for j, c in enumerate(r)] for i, r in enumerate(camera)]
    return _Folded(camera, total, grad)


def _keypoint_jacobian(pb: Problem, st: FitState) -> Tensor:
    """Jacobian (N, F, 3, K, M) of the keypoints by translation and joints, padded with columns of zeros.

    ∂p/∂δ_a = −[M_ka]× G_a with M_ka = Σ G_b c_kb over joint a and its descendants b. Columns: g × M. Pose
    blend shapes d_k add w_kb G_b d_k to M, and their own derivative.
    """
    model, h = pb.body, pb.held
    n, _, frames, keypoints = st.points.shape
    active, free = len(model.active), frames - h
    size = 3 + 3 * active
    turned = st.G[:, h:].permute(0, 3, 1, 4, 2)[:, :, :, :, None]  # (N, 3, F, 3, 1, 24)
    lever = st.levers.permute(0, 3, 1, 2)[:, None, None]  # (N, 1, 1, 3, K, 24)
    parts = turned[:, :, :, 0] * lever[:, :, :, 0]
    parts.addcmul_(turned[:, :, :, 1], lever[:, :, :, 1]).addcmul_(turned[:, :, :, 2], lever[:, :, :, 2])
    if len(model.blended):
        offset = torch.einsum("nfbij,nfsj->nifsb", st.G[:, h:], st.pose_offsets[:, h:])
        parts.index_add_(3, model.blended, offset * model.weights[model.blended])
    arm = parts @ model.below
    wide = -(-size // 16) * 16  # products of 64 columns take a third less than of 63
    jac = arm.new_empty(n, free, 3, keypoints, wide)
    jac[..., :3] = torch.eye(3, dtype=arm.dtype, device=arm.device)[:, None]
    jac[..., size:] = 0
    G = st.G[:, h:, model.active][:, :, None]  # (N, F, 1, A, 3, 3)
    m = [arm[:, i, ..., None] for i in range(3)]
    g = [G[..., i, :] for i in range(3)]
    for i, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        out = jac[:, :, i, :, 3:size].view(n, free, keypoints, active, 3)
        torch.mul(g[j], m[k], out=out)
        out.sub_(g[k] * m[j])
    if len(model.blended):
        jac[..., ROOT:size].index_add_(3, model.blended, _pose_blend_jacobian(pb, st))
    return jac


def _pose_blend_jacobian(pb: Problem, st: FitState) -> Tensor:
    """Jacobian (N, F, 3, S, 3 (A − 1)) of the pose blend shapes' displacements by the joints but the root.

    d = Σ_j D_j : R_j, so ∂d/∂δ_j is the vector of the skew part of R_jᵀ D_j.
    """
    model, h = pb.body, pb.held
    joints = model.active[1:]
    dirs = model.posedirs[:, :, joints - 1]
    across = torch.einsum("nfjrm,scjrd->nfscjmd", st.motion.rotations[:, h:, joints], dirs)
    vee = torch.stack([across[..., b, a] - across[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1)
    turned = skin_rotations(st.G[:, h:], model.weights[model.blended])
    return torch.einsum("nicfs,nfscm->nfism", turned, vee.flatten(4))


def _shape_blocks(
    pb: Problem, st: FitState, fold: _Folded, jac: Tensor, grad_rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of the poses (N, F, M), their border with the shape (N, F, M, S), and the shape's block
    (N, S, S) and gradient (N, S). S: betas, then offsets coordinate by coordinate."""
    model = pb.body
    n, frames, _, keypoints, wide = jac.shape
    size = 3 + 3 * len(model.active)
    dirs = model.lever_dirs.permute(1, 2, 0, 3).reshape(3 * JOINTS, -1)
    sj = (st.flat.reshape(n, 3 * frames, -1) @ dirs).reshape(n, 3, frames, keypoints, -1)
    sj = sj + model.joint0_dirs[:, None, None]
    stiff = pb.w_acc[:, None] * stiffness(sj, 2, pb.tied)
    weighed = torch.stack(
        [sum(fold.camera[i][j][..., None] * sj[:, j] for j in range(3)) + stiff[:, i] for i in range(3)], 1
    )
    shape_jac = sj.transpose(1, 2).reshape(n, frames, 3 * keypoints, -1)
    rhs = torch.cat([grad_rows, weighed.transpose(1, 2).reshape(shape_jac.shape)], -1)
    right = jac.reshape(n, frames, 3 * keypoints, wide)[..., :size].mT @ rhs
    grad, border = right[..., 0].contiguous(), right[..., 1:]
    shape = (shape_jac.mT @ rhs).sum(1)  # (N, B, 1 + B)
    hessian, shape_grad = shape[..., 1:], shape[..., 0]
    weight, value = pb.w_shape * torch.ones_like(st.motion.betas), st.motion.betas
    if pb.free_offsets:
        offset_border, across, square, offset_grad = _offset_blocks(pb, st, sj, jac, fold)
        border = torch.cat([border, offset_border[..., :size, :]], -1)
        top, bottom = torch.cat([hessian, across], 2), torch.cat([across.mT, square], 2)
        hessian, shape_grad = torch.cat([top, bottom], 1), torch.cat([shape_grad, offset_grad], 1)
        weight = torch.cat([weight, pb.w_offset[:, None].expand(-1, 3 * keypoints)], 1)
        value = torch.cat([value, st.motion.offsets.mT.flatten(1)], 1)
    return grad, border, hessian + torch.diag_embed(weight), shape_grad + weight * value


def _offset_blocks(
    pb: Problem, st: FitState, sj: Tensor, jac: Tensor, fold: _Folded
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks of the offsets, coordinate by coordinate, without prior.

    sj (N, 3, F, K, B), jac (N, F, 3, K, M): the keypoints' Jacobians. Returns the blocks with the poses (N,
    F, M, 3K), with the betas (N, B, 3K), with the offsets (N, 3K, 3K), and the gradient (N, 3K). An offset
    moves its own keypoint alone, by R_k = Σ_j w_kj G_j, so most blocks are 3 × 3.
    """
    turn = skin_rotations(st.G, pb.body.weights)  # (N, 3, 3, F, K)
    stiff = pb.w_acc * stiffness(turn, 3, pb.tied)
    weighed = torch.stack(
        [sum(fold.camera[i][j][:, None] * turn[:, j] for j in range(3)) + stiff[:, i] for i in range(3)], 1
    )
    part = weighed.permute(0, 3, 1, 2, 4)[..., None]
    border = jac[:, :, 0, None] * part[:, :, 0]  # (N, F, 3, K, M)
    for i in (1, 2):
        border.addcmul_(jac[:, :, i, None], part[:, :, i])
    n, keypoints = turn.shape[0], turn.shape[-1]
    square = turn.new_zeros(n, 3, keypoints, 3, keypoints)
    square.diagonal(dim1=2, dim2=4).copy_(torch.einsum("nibfk,nicfk->nbck", turn, weighed))
    return (
        border.flatten(2, 3).mT,
        torch.einsum("nifkc,nibfk->ncbk", sj, weighed).flatten(2),
        square.view(n, 3 * keypoints, -1),
        torch.einsum("nibfk,nifk->nbk", turn, fold.grad).flatten(1),
    )


def _block_diagonal(h: Tensor, first: int, blocks: int) -> Tensor:
    """View (..., 3, 3, blocks) of the 3 × 3 diagonal blocks of h (..., M, M) from row ``first`` on."""
    inner = h[..., first : first + 3 * blocks, first : first + 3 * blocks]
    # reshape might copy, and callers write into the view.
    return inner.view(*h.shape[:-2], blocks, 3, blocks, 3).diagonal(dim1=-4, dim2=-2)


def _add_pose_terms(pb: Problem, st: FitState, diag: Tensor, grad: Tensor) -> None:
    """Add pose prior and hinges, in θ = Log R with dθ = Jr⁻¹ δ."""
    h, hinges = pb.held, pb.body.hinges
    lift = right_jacobian_inverse(st.theta[:, h:])  # (N, F, A − 1, 3, 3)
    n, free, joints = lift.shape[:3]
    theta_grad = st.theta_grad[:, h:].reshape(n, free, joints, 3)
    grad[..., ROOT:] += (lift * theta_grad[..., None]).sum(-2).flatten(2)
    if pb.prior is not None:
        # Dense products are a few times faster than 3 × 3 ones.
        lifts = lift.new_zeros(n, free, 3 * joints, 3 * joints)
        _block_diagonal(lifts, 0, joints).copy_(lift.movedim(2, -1))
        diag[..., ROOT:, ROOT:] += lifts.mT @ (pb.prior.precisions[st.component[:, h:]] @ lifts)
    blocks = _block_diagonal(diag, ROOT, joints)
    at = hinges.index // 3
    overextended = hinges.sign * st.theta[:, h:].flatten(2)[..., hinges.index] < MIN_BEND_RAD
    axis = lift[:, :, at, hinges.axis]  # (N, F, L, 3)
    side, side_jac = (x[:, h:] for x in sideways(pb, st.motion))
    grad[..., ROOT:].view(n, free, joints, 3)[:, :, at] += pb.w_sideways * side[..., None] * side_jac
    stiff = (pb.w_hinge * overextended)[..., None, None] * axis[..., :, None] * axis[..., None, :]
    stiff = stiff + pb.w_sideways * (side_jac[..., :, None] * side_jac[..., None, :])
    blocks[..., at] += stiff.movedim(2, -1)


def _add_rotation_ties(
    pb: Problem, st: FitState, diag: Tensor, next1: Tensor, next2: Tensor, grad: Tensor
) -> None:
    """Add the rotations' accelerations and their distance to the pose target.

    ⟨R_s [δ_s]×, R_t [δ_t]×⟩ = δ_sᵀ (tr(Q) I − Qᵀ) δ_t with Q = R_sᵀ R_t.
    """
    h = pb.held
    main, one, two = pb.bands
    turn = st.motion.rotations[:, :, pb.body.active]
    force = pb.w_spin[:, None, None] * stiffness(turn, 1, pb.tied)[:, h:]
    turn, free, active = turn[:, h:], diag.shape[1], turn.shape[2]
    if pb.pose_target is not None:
        weight = pb.pose_target[1][:, h:]
        force[:, :, 1:] += weight[..., None, None] * (turn[:, :, 1:] - pb.pose_target[0][:, h:])
        diag.diagonal(dim1=-2, dim2=-1)[..., ROOT:] += 2 * weight.repeat_interleave(3, -1)
    force = product(turn.mT, force)
    vee = torch.stack([force[..., b, a] - force[..., a, b] for a, b in ((1, 2), (2, 0), (0, 1))], -1)
    grad[..., 3:] += vee.flatten(2)
    diag.diagonal(dim1=-2, dim2=-1)[..., 3:] += 2 * main[:, None] * pb.w_spin.repeat_interleave(3)
    eye = torch.eye(3, dtype=turn.dtype, device=turn.device)
    for gap, target, band in ((1, next1, one), (2, next2, two)):
        if free > gap:
            q = product(turn[:, :-gap].mT, turn[:, gap:])
            trace = q.diagonal(dim1=-2, dim2=-1).sum(-1)
            block = trace[..., None, None] * eye - q.mT
            block = band[:, None, None, None] * pb.w_spin[:, None, None] * block
            _block_diagonal(target, 3, active).add_(block.movedim(2, -1))


def merge_roots(sys: System, roots: int) -> System:
    """Systems of ``roots`` successive problems as one: every root, then the shared unknowns."""
    if roots == 1:
        return sys
    own = ROOT * roots

    def grouped(x: Tensor) -> Tensor:
        return x.reshape(len(x) // roots, roots, *x.shape[1:])

    def rows(x: Tensor) -> Tensor:
        x = grouped(x)
        return torch.cat([x[:, :, :, :ROOT].transpose(1, 2).flatten(2, 3), x[:, :, :, ROOT:].sum(1)], 2)

    def blocks(x: Tensor) -> Tensor:
        x = grouped(x)
        size = own + x.shape[-1] - ROOT
        out = x.new_zeros(len(x), x.shape[2], size, size)
        out[..., own:, own:] = x[..., ROOT:, ROOT:].sum(1)
        for i in range(roots):
            root = slice(ROOT * i, ROOT * (i + 1))
            out[..., root, root] = x[:, i, :, :ROOT, :ROOT]
            out[..., root, own:] = x[:, i, :, :ROOT, ROOT:]
            out[..., own:, root] = x[:, i, :, ROOT:, :ROOT]
        return out

    return replace(
        sys,
        diag=blocks(sys.diag),
        next1=blocks(sys.next1),
        next2=blocks(sys.next2),
        grad=rows(sys.grad),
        border=rows(sys.border),
        shape=grouped(sys.shape).sum(1),
        shape_grad=grouped(sys.shape_grad).sum(1),
    )


def split_roots(pose: Tensor, roots: int) -> Tensor:
    """Steps (N, F, M) of merged systems → steps of the problems (N · roots, F, 6 + shared)."""
    if roots == 1:
        return pose
    root, rest = pose.tensor_split([ROOT * roots], -1)
    root = root.reshape(*root.shape[:2], roots, ROOT).transpose(1, 2)
    return torch.cat([root, rest[:, None].expand(-1, roots, -1, -1)], -1).flatten(0, 1)
