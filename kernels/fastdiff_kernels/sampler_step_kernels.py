"""The Triton half of `sampler_step`: the step, its gradient, and their launchers."""

import torch
from torch import Tensor

from ._triton import constexpr, jit, tl
from .launch import WARPS, fast_math, grid_of, in_layout_of, in_order, locate, order_of
from .noise_tiles import noise_of, tile_noise, tile_offsets


@jit
def row_pointer(row_ptr, step_ptr, steps):
    """The row of this step, and a number to add to its coefficients: 0, or NaN for a step outside the table."""
    poison = 0.0
    if step_ptr is not None:
        step = tl.load(step_ptr)
        inside = (step >= 0) & (step < steps)
        row_ptr += tl.where(inside, step, 0) * 10
        poison = tl.where(inside, 0.0, float("nan"))
    return row_ptr, poison


@jit
def scaled(value_ptr, scale_ptr, at, mask):
    """A coefficient times a block of data."""
    return tl.load(scale_ptr) * tl.load(value_ptr + at, mask=mask, other=0.0).to(tl.float32)


@jit
def guided_block(eps_hat_ptr, u_ptr, w_ptr, at, mask):
    """eps_hat of one block, guided where there is an unconditional estimate u."""
    eps_hat = tl.load(eps_hat_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if u_ptr is not None:
        u = tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32)
        eps_hat = u + tl.load(w_ptr) * (eps_hat - u)
    return eps_hat


@jit
def step_kernel(
    z_t_ptr, eps_hat_ptr, row_ptr, step_ptr, noise_ptr, x_1_ptr, x_2_ptr, x_3_ptr, z_prev_ptr, u_ptr, z_s_ptr,
    x_hat_ptr, clip, steps, n, blocks,
    NOISY: constexpr, DRAWN: constexpr, CLIP: constexpr, FAST: constexpr, C: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """z_s, and x_hat if it is kept, of one block of one sample."""
    HALF: constexpr = z_t_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    base = sample.to(tl.int64) * n
    row_ptr, poison = row_pointer(row_ptr, step_ptr, steps)
    noise = noise_of(noise_ptr, sample, start, n, NOISY and DRAWN, HALF, FAST, C, BLOCK)
    for tile in tl.static_range(C):
        inside = tile_offsets(start, tile, HALF, C, BLOCK)
        mask, at = inside < n, base + inside
        z = tl.load(z_t_ptr + at, mask=mask, other=0.0).to(tl.float32)
        eps_hat = guided_block(eps_hat_ptr, u_ptr, row_ptr + 5, at, mask)
        x_hat = z * (tl.load(row_ptr) + poison) - tl.load(row_ptr + 1) * eps_hat
        if CLIP:
            x_hat = tl.clamp(x_hat, -clip, clip, propagate_nan=tl.PropagateNan.ALL)  # a NaN must not become a bound
        z_s = (tl.load(row_ptr + 2) + poison) * z + tl.load(row_ptr + 3) * x_hat
        if x_1_ptr is not None:
            z_s += scaled(x_1_ptr, row_ptr + 6, at, mask)
        if x_2_ptr is not None:
            z_s += scaled(x_2_ptr, row_ptr + 7, at, mask)
        if x_3_ptr is not None:
            z_s += scaled(x_3_ptr, row_ptr + 8, at, mask)
        if z_prev_ptr is not None:
            z_s += scaled(z_prev_ptr, row_ptr + 9, at, mask)
        if NOISY:
            z_s += tl.load(row_ptr + 4) * tile_noise(noise, noise_ptr, base, inside, n, tile, DRAWN, HALF, C)
        tl.store(z_s_ptr + at, z_s.to(z_s_ptr.dtype.element_ty), mask=mask)
        if x_hat_ptr is not None:
            tl.store(x_hat_ptr + at, x_hat.to(x_hat_ptr.dtype.element_ty), mask=mask)


@jit
def step_gradient_kernel(
    grad_s_ptr, grad_x_ptr, z_t_ptr, eps_hat_ptr, row_ptr, step_ptr, u_ptr, grad_z_ptr, grad_eps_ptr, grad_u_ptr, clip,
    steps, n, blocks, CLIP: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to z_t, eps_hat and u of one block; x_hat is computed again to see where it was clipped."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    row_ptr, poison = row_pointer(row_ptr, step_ptr, steps)
    grad_s = tl.load(grad_s_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    grad_x_hat = tl.load(row_ptr + 3) * grad_s
    if grad_x_ptr is not None:
        grad_x_hat += tl.load(grad_x_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    if CLIP:
        z = tl.load(z_t_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        eps_hat = guided_block(eps_hat_ptr, u_ptr, row_ptr + 5, at, i < n)
        x_hat = z * tl.load(row_ptr) - tl.load(row_ptr + 1) * eps_hat
        grad_x_hat = tl.where(tl.abs(x_hat) <= clip, grad_x_hat, 0.0)
    grad_z = tl.load(row_ptr) * grad_x_hat + (tl.load(row_ptr + 2) + poison) * grad_s
    grad_eps = -(tl.load(row_ptr + 1) + poison) * grad_x_hat
    if grad_u_ptr is not None:
        w = tl.load(row_ptr + 5)
        tl.store(grad_u_ptr + at, ((1.0 - w) * grad_eps).to(grad_u_ptr.dtype.element_ty), mask=i < n)
        grad_eps = w * grad_eps
    tl.store(grad_z_ptr + at, grad_z.to(grad_z_ptr.dtype.element_ty), mask=i < n)
    tl.store(grad_eps_ptr + at, grad_eps.to(grad_eps_ptr.dtype.element_ty), mask=i < n)


def step_triton(
    z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None, noise: Tensor | None, clip: float | None,
    x_1: Tensor | None, x_2: Tensor | None, x_3: Tensor | None, z_prev: Tensor | None, u: Tensor | None,
    keep_x_hat: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the step. An absent argument is a constant None of the kernel, so nothing is read for it."""
    drawn = noise is not None and noise.dtype == torch.int64
    order, channels = order_of(z_t, drawn)
    programs, n, blocks, block = grid_of(z_t, channels, drawn)
    z_s = torch.empty_like(z_t, memory_format=order)
    x_hat = torch.empty_like(z_s) if keep_x_hat else None
    if programs:
        step_kernel[(programs,)](
            *in_order(order, z_t, eps_hat, row, step, noise, x_1, x_2, x_3, z_prev, u), z_s, x_hat,
            0.0 if clip is None else clip, row.shape[0], n, blocks,
            NOISY=noise is not None, DRAWN=drawn, CLIP=clip is not None, FAST=fast_math(z_t), C=channels, BLOCK=block,
            num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(z_s, z_t), z_t.new_empty(0) if x_hat is None else in_layout_of(x_hat, z_t)


def step_gradient_triton(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None,
    clip: float | None, u: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the gradients to z_t, eps_hat and u."""
    order, _ = order_of(z_t)
    programs, n, blocks, block = grid_of(z_t)
    grad_z, grad_eps, grad_u = (
        None if value is None else torch.empty_like(value, memory_format=order) for value in (z_t, eps_hat, u)
    )
    if programs:
        step_gradient_kernel[(programs,)](
            *in_order(order, grad_s, grad_x, z_t, eps_hat, row, step, u), grad_z, grad_eps, grad_u,
            0.0 if clip is None else clip, row.shape[0], n, blocks, CLIP=clip is not None, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    assert grad_z is not None
    assert grad_eps is not None
    grad_u = z_t.new_empty(0) if u is None or grad_u is None else in_layout_of(grad_u, u)
    return in_layout_of(grad_z, z_t), in_layout_of(grad_eps, eps_hat), grad_u
