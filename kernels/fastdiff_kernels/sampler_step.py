"""One step of any sampler: a linear combination whose coefficients are a row of a table on the device.

    eps_hat <- u + w (eps_hat - u)                     where guided (Ho and Salimans 2022; w = 1: the conditional model)
    x_hat   =  clip((z_t - o) / alpha_t - (sigma_t / alpha_t) eps_hat)
    z_s     =  A (z_t - o) + B x_hat + C x_hat_prev + S eps + O o

row = (1 / alpha_t, sigma_t / alpha_t, A, B, C, S, O), float32 [7], or the row of a table that a counter on the device
selects, so that a captured graph takes the next step each time it is replayed. Ancestral, DDIM and DPM-Solver++(2M) are
three sets of A, B, C, S (`fastdiff.samplers`); o is the offset of DiffuseVAE's formulation 2 (O = 1, and 0 in its last
step). Data [B, ...] float32, bfloat16 or float16; arithmetic in float32. Bytes per element in fp32: 12 (read z_t and
eps_hat, write z_s), and 4 more for each of x_hat written, x_hat_prev, offset, the unconditional eps_hat, and noise that
is given.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector
from .launch import WARPS, constexpr, fast_math, grid_of, in_layout_of, jit, locate, register, tl
from .noise import Noise, noise_argument, noise_block, normal_like


def sampler_step(
    z_t: Tensor,
    eps_hat: Tensor,
    row: Tensor,
    noise: Tensor | Noise | None = None,
    clip: float | None = None,
    x_prev: Tensor | None = None,
    offset: Tensor | None = None,
    eps_hat_uncond: Tensor | None = None,
    guidance: float | None = None,
    *,
    step: Tensor | None = None,
    keep_x_hat: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Go from z_t to z_s in one pass; return ``(z_s, x_hat)`` in the dtype and layout of z_t.

    Args:
        z_t, eps_hat: the latent and the predicted noise, [B, ...].
        row: float32 [7] on the device of z_t: (1/alpha_t, sigma_t/alpha_t, A, B, C, S, O); with ``step`` a table
            [steps, 7] of such rows.
        noise: eps of the step, a float tensor like z_t or a `Noise`; None for a row with S = 0.
        clip: bound |x_hat| <= clip; None for no bound.
        x_prev: x_hat of the previous step, for rows with C != 0.
        offset: o, like z_t.
        eps_hat_uncond, guidance: u and w of classifier-free guidance; both or neither.
        step: int64 [1] on the device of z_t, which row of the table this is: `Noise.counter`, for one. A step outside
            the table gives NaN (looking at it would wait for the device).
        keep_x_hat: False saves writing x_hat, and None is returned in its place.

    Differentiable in z_t, eps_hat, x_prev, offset and eps_hat_uncond.

    Raises:
        TypeError, ValueError: a dtype, shape, device or combination that does not fit, named with what is allowed.
    """
    check_data("sampler_step", "z_t", z_t)
    _check_row(row, step, z_t)
    others = {"eps_hat": eps_hat, "x_prev": x_prev, "offset": offset, "eps_hat_uncond": eps_hat_uncond}
    for name, value in others.items():
        if value is not None or name == "eps_hat":
            check_like("sampler_step", name, value, z_t, "z_t")
    if (eps_hat_uncond is None) != (guidance is None):
        raise ValueError("sampler_step: allowed: both eps_hat_uncond and guidance, or neither; one of them was given")
    clip = None if clip is None else float(clip)
    if clip is not None and not clip > 0:
        raise ValueError(f"sampler_step: clip is {clip}; allowed: a number > 0, or None")
    eps = None if noise is None else noise_argument("sampler_step", noise, z_t, "z_t")
    u, w = eps_hat_uncond, 1.0 if guidance is None else float(guidance)
    z_s, x_hat = _step_op(z_t, eps_hat, row, step, eps, clip, x_prev, offset, u, w, keep_x_hat)
    return z_s, x_hat if keep_x_hat else None


def _check_row(row: Tensor, step: Tensor | None, z_t: Tensor) -> None:
    table = step is not None and isinstance(row, Tensor) and row.dim() == 2 and row.shape[0] > 0
    if step is not None and not table:
        given = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else f"a {type(row).__name__}"
        raise ValueError(f"sampler_step: row is {given}; allowed with step: a table [steps, 7] of at least one row")
    check_vector("sampler_step", "row", row[0] if table else row, 7, z_t, "z_t")
    if row.requires_grad:
        raise ValueError("sampler_step: row requires a gradient; allowed: a row without one (detach it)")
    if step is None:
        return
    if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.shape != (1,) or step.device != z_t.device:
        given = f"{step.dtype} {tuple(step.shape)} on {step.device}" if isinstance(step, Tensor) else repr(step)
        raise ValueError(f"sampler_step: step is {given}; allowed: a torch.int64 tensor (1,) on {z_t.device}, or None")


def _row(row: Tensor, step: Tensor | None) -> Tensor:
    """The row that a step selects, without looking at the step; NaN outside the table."""
    if step is None:
        return row
    chosen = row.index_select(0, step.clamp(0, len(row) - 1))[0]
    return torch.where((step >= 0) & (step < len(row)), chosen, torch.nan)


def _shifted(z_t: Tensor, offset: Tensor | None) -> Tensor:
    return z_t.float() if offset is None else z_t.float() - offset


def _guided(eps_hat: Tensor, u: Tensor | None, w: float) -> Tensor:
    return eps_hat.float() if u is None else torch.lerp(u.float(), eps_hat.float(), w)


def step_reference(
    z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None, noise: Tensor | None, clip: float | None,
    x_prev: Tensor | None, offset: Tensor | None, u: Tensor | None, w: float, keep_x_hat: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain PyTorch, arithmetic in float32. Without ``keep_x_hat`` the second result is empty.

    Where nothing clips x_hat, z_s = (A + B / alpha_t) y - B (sigma_t / alpha_t) eps_hat + ... takes fewer passes.
    """
    row = _row(row, step)
    y, eps_hat, x_hat = _shifted(z_t, offset), _guided(eps_hat, u, w), None
    if keep_x_hat or clip is not None:
        x_hat = (y * row[0]).addcmul_(eps_hat, -row[1])
    if clip is None:
        z_s = (y * (row[2] + row[3] * row[0])).addcmul_(eps_hat, -row[3] * row[1])
    else:
        assert x_hat is not None
        z_s = (y * row[2]).addcmul_(x_hat.clamp_(-clip, clip), row[3])
    for value, scale in ((x_prev, row[4]), (offset, row[6])):
        if value is not None:
            z_s = z_s.addcmul_(value.float(), scale)
    if noise is not None:
        z_s = z_s.addcmul_(normal_like(noise, z_t), row[5])
    kept = in_layout_of(x_hat.to(z_t.dtype), z_t) if keep_x_hat and x_hat is not None else z_t.new_empty(0)
    return in_layout_of(z_s.to(z_t.dtype), z_t), kept


def step_gradient_reference(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None,
    clip: float | None, offset: Tensor | None, u: Tensor | None, w: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients to z_t, the guided eps_hat and the offset, empty without one; nothing flows through a clipped x_hat."""
    row = _row(row, step)
    by_x = grad_s.float() * row[3]
    if grad_x is not None:
        by_x = by_x + grad_x
    if clip is not None:
        x_hat = (_shifted(z_t, offset) * row[0]).addcmul_(_guided(eps_hat, u, w), -row[1])
        by_x = by_x * (x_hat.abs() <= clip)
    grad_z = torch.addcmul(by_x * row[0], grad_s.float(), row[2])
    by_offset = z_t.new_empty(0)
    if offset is not None:  # from what is not rounded yet: it may be a small difference
        by_offset = in_layout_of((grad_s.float() * row[6]).sub_(grad_z).to(offset.dtype), offset)
    grad_eps = in_layout_of((by_x * -row[1]).to(eps_hat.dtype), eps_hat)
    return in_layout_of(grad_z.to(z_t.dtype), z_t), grad_eps, by_offset


# ------------------------------------------------------------------------------------------------ Triton


@jit
def row_pointer(row_ptr, step_ptr, steps):
    """The row of this step, and a number to add to its coefficients: 0, or NaN for a step outside the table."""
    poison = 0.0
    if step_ptr is not None:
        step = tl.load(step_ptr)
        inside = (step >= 0) & (step < steps)
        row_ptr += tl.where(inside, step, 0) * 7
        poison = tl.where(inside, 0.0, float("nan"))
    return row_ptr, poison


@jit
def step_kernel(
    z_t_ptr, eps_hat_ptr, row_ptr, step_ptr, noise_ptr, x_prev_ptr, offset_ptr, u_ptr, z_s_ptr, x_hat_ptr, clip, w,
    steps, n, blocks, NOISY: constexpr, DRAWN: constexpr, CLIP: constexpr, FAST: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """z_s, and x_hat where there is room for it, of one block of one sample."""
    HALF: constexpr = z_t_ptr.dtype.element_ty.primitive_bitwidth == 16
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    row_ptr, poison = row_pointer(row_ptr, step_ptr, steps)
    y = tl.load(z_t_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    eps_hat = tl.load(eps_hat_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    if offset_ptr is not None:
        offset = tl.load(offset_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        y -= offset
    if u_ptr is not None:
        u = tl.load(u_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        eps_hat = u + w * (eps_hat - u)
    x_hat = y * (tl.load(row_ptr) + poison) - tl.load(row_ptr + 1) * eps_hat
    if CLIP:
        x_hat = tl.clamp(x_hat, -clip, clip, propagate_nan=tl.PropagateNan.ALL)  # a NaN must not become a bound
    z_s = (tl.load(row_ptr + 2) + poison) * y + tl.load(row_ptr + 3) * x_hat
    if x_prev_ptr is not None:
        x_prev = tl.load(x_prev_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        z_s += tl.load(row_ptr + 4) * x_prev
    if offset_ptr is not None:
        z_s += tl.load(row_ptr + 6) * offset  # pyright: ignore[reportPossiblyUnboundVariable]
    if NOISY:
        z_s += tl.load(row_ptr + 5) * noise_block(noise_ptr, sample, start, n, DRAWN, HALF, FAST, BLOCK)
    tl.store(z_s_ptr + at, z_s.to(z_s_ptr.dtype.element_ty), mask=i < n)
    if x_hat_ptr is not None:
        tl.store(x_hat_ptr + at, x_hat.to(x_hat_ptr.dtype.element_ty), mask=i < n)


@jit
def step_gradient_kernel(
    grad_s_ptr, grad_x_ptr, z_t_ptr, eps_hat_ptr, row_ptr, step_ptr, offset_ptr, u_ptr, grad_z_ptr, grad_eps_ptr,
    by_offset_ptr, clip, w, steps, n, blocks, CLIP: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """Gradients to z_t, the guided eps_hat and the offset of one block; x_hat is computed again to clip."""
    sample, start = locate(blocks, BLOCK)
    i = start + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * n + i
    row_ptr, poison = row_pointer(row_ptr, step_ptr, steps)
    grad_s = tl.load(grad_s_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    by_x = tl.load(row_ptr + 3) * grad_s
    if grad_x_ptr is not None:
        by_x += tl.load(grad_x_ptr + at, mask=i < n, other=0.0).to(tl.float32)
    if CLIP:
        y = tl.load(z_t_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        eps_hat = tl.load(eps_hat_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        if offset_ptr is not None:
            y -= tl.load(offset_ptr + at, mask=i < n, other=0.0).to(tl.float32)
        if u_ptr is not None:
            u = tl.load(u_ptr + at, mask=i < n, other=0.0).to(tl.float32)
            eps_hat = u + w * (eps_hat - u)
        x_hat = y * tl.load(row_ptr) - tl.load(row_ptr + 1) * eps_hat
        by_x = tl.where(tl.abs(x_hat) <= clip, by_x, 0.0)
    grad_z = tl.load(row_ptr) * by_x + (tl.load(row_ptr + 2) + poison) * grad_s
    grad_eps = -(tl.load(row_ptr + 1) + poison) * by_x
    if by_offset_ptr is not None:
        by_offset = tl.load(row_ptr + 6) * grad_s - grad_z
        tl.store(by_offset_ptr + at, by_offset.to(by_offset_ptr.dtype.element_ty), mask=i < n)
    tl.store(grad_z_ptr + at, grad_z.to(grad_z_ptr.dtype.element_ty), mask=i < n)
    tl.store(grad_eps_ptr + at, grad_eps.to(grad_eps_ptr.dtype.element_ty), mask=i < n)


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def step_triton(
    z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None, noise: Tensor | None, clip: float | None,
    x_prev: Tensor | None, offset: Tensor | None, u: Tensor | None, w: float, keep_x_hat: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the step; an argument that is absent is a constant of the kernel, not a read."""
    programs, n, blocks, block = grid_of(z_t)
    z_s = torch.empty_like(z_t, memory_format=torch.contiguous_format)
    x_hat = torch.empty_like(z_s) if keep_x_hat else None
    if programs:
        step_kernel[(programs,)](
            z_t.contiguous(), eps_hat.contiguous(), row.contiguous(), step, _contiguous(noise), _contiguous(x_prev),
            _contiguous(offset), _contiguous(u), z_s, x_hat, 0.0 if clip is None else clip, w, row.shape[0], n, blocks,
            NOISY=noise is not None, DRAWN=noise is not None and noise.dtype == torch.int64, CLIP=clip is not None,
            FAST=fast_math(z_t), BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return in_layout_of(z_s, z_t), z_t.new_empty(0) if x_hat is None else in_layout_of(x_hat, z_t)


def step_gradient_triton(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None,
    clip: float | None, offset: Tensor | None, u: Tensor | None, w: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the gradients to z_t, the guided eps_hat and the offset."""
    programs, n, blocks, block = grid_of(z_t)
    grad_z = torch.empty_like(z_t, memory_format=torch.contiguous_format)
    grad_eps = torch.empty_like(eps_hat, memory_format=torch.contiguous_format)
    by_offset = None if offset is None else torch.empty_like(offset, memory_format=torch.contiguous_format)
    if programs:
        step_gradient_kernel[(programs,)](
            grad_s.contiguous(), _contiguous(grad_x), z_t.contiguous(), eps_hat.contiguous(), row.contiguous(), step,
            _contiguous(offset), _contiguous(u), grad_z, grad_eps, by_offset, 0.0 if clip is None else clip, w,
            row.shape[0], n, blocks, CLIP=clip is not None, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    shifted = z_t.new_empty(0) if by_offset is None or offset is None else in_layout_of(by_offset, offset)
    return in_layout_of(grad_z, z_t), in_layout_of(grad_eps, eps_hat), shifted


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    z_t, eps_hat, row, step, _, ctx.clip, x_prev, offset, u, ctx.w, ctx.keep_x_hat = inputs
    ctx.x_prev_dtype = None if x_prev is None else x_prev.dtype
    ctx.save_for_backward(z_t, eps_hat, row, step, offset, u)


def _backward(ctx: Any, grad_s: Tensor, grad_x: Tensor | None) -> tuple:
    z_t, eps_hat, row, step, offset, u = ctx.saved_tensors
    grad_x = grad_x if ctx.keep_x_hat else None
    grad_z, grad_eps, by_offset = _step_gradient_op(grad_s, grad_x, z_t, eps_hat, row, step, ctx.clip, offset, u, ctx.w)
    row = _row(row, step)
    by_prev = None if ctx.x_prev_dtype is None else (grad_s * row[4]).to(ctx.x_prev_dtype)
    by_offset = None if offset is None else by_offset
    by_u = None if u is None else (grad_eps * (1.0 - ctx.w)).to(u.dtype)
    by_eps_hat = grad_eps if u is None else grad_eps * ctx.w
    return grad_z, by_eps_hat, None, None, None, None, by_prev, by_offset, by_u, None, None


def _step_fake(
    z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None, noise: Tensor | None, clip: float | None,
    x_prev: Tensor | None, offset: Tensor | None, u: Tensor | None, w: float, keep_x_hat: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(z_t), torch.empty_like(z_t) if keep_x_hat else z_t.new_empty(0)


def _step_gradient_fake(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None,
    clip: float | None, offset: Tensor | None, u: Tensor | None, w: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    by_offset = z_t.new_empty(0) if offset is None else torch.empty_like(offset)
    return torch.empty_like(z_t), torch.empty_like(eps_hat), by_offset


_step_gradient_op = register(
    "sampler_step_gradient(Tensor grad_s, Tensor? grad_x, Tensor z_t, Tensor eps_hat, Tensor row, "
    "Tensor? step, float? clip, Tensor? offset, Tensor? u, float w) -> (Tensor, Tensor, Tensor)",
    step_gradient_reference,
    step_gradient_triton,
    _step_gradient_fake,
)
_step_op = register(
    "sampler_step(Tensor z_t, Tensor eps_hat, Tensor row, Tensor? step, Tensor? noise, float? clip, "
    "Tensor? x_prev, Tensor? offset, Tensor? u, float w, bool keep_x_hat) -> (Tensor, Tensor)",
    step_reference,
    step_triton,
    _step_fake,
    _backward,
    _save,
)
