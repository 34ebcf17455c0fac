"""One step of any sampler: a linear combination whose coefficients are one row of a table on the device.

    eps_hat <- u + w (eps_hat - u)        if there is an unconditional estimate u (Ho and Salimans 2022, eq. 6)
    x_hat   =  clip(z_t / alpha_t - (sigma_t / alpha_t) eps_hat)
    z_s     =  A z_t + B x_hat + C1 x_hat_-1 + C2 x_hat_-2 + C3 x_hat_-3 + D z_prev + S eps

row = (1 / alpha_t, sigma_t / alpha_t, A, B, S, w, C1, C2, C3, D) is float32 [10]. With a counter on the device it is a
row of a table [steps, 10], so that a captured CUDA graph takes the next step at each replay. x_hat_-k is the estimate
of k steps before and z_prev an earlier latent. Ancestral sampling, DDIM, DPM-Solver++(2M) and Heun are different rows
(`fastdiff.diffusion.rows`); three estimates and one latent are enough for DPM-Solver++(3M), UniPC and DEIS. w is a
column, so that guidance can be limited to an interval of steps; w = 1 is the conditional model (w = 0 in the paper).

Data [B, ...] are float32, bfloat16 or float16, and arithmetic is float32. Contiguous and channels-last data are read
and written as they are; the results are in the layout of z_t, and only arguments of another layout are copied. Bytes
per element in fp32: 12 (read z_t and eps_hat, write z_s), and 4 more for x_hat if it is kept, each remembered estimate,
z_prev, u, and noise that is given as a tensor. What is absent is not read.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_data, check_like, check_vector, described, real_number
from .errors import InvalidTypeError, InvalidValueError
from .launch import in_layout_of
from .noise import Noise, noise_argument, normal_like
from .registration import register, values_visible
from .sampler_step_kernels import step_gradient_triton, step_triton

COLUMNS = 10  # of a row
REMEMBERED = 3  # estimates at most
OPTIONAL = (  # arguments of columns 4 to 9, and the coefficients with which they may be absent
    ("noise", "S", 0.0),
    ("eps_hat_uncond", "w", 1.0),
    ("history[0]", "C1", 0.0),
    ("history[1]", "C2", 0.0),
    ("history[2]", "C3", 0.0),
    ("z_prev", "D", 0.0),
)


def sampler_step(
    z_t: Tensor,
    eps_hat: Tensor,
    row: Tensor,
    noise: Tensor | Noise | None = None,
    clip: float | None = None,
    history: Sequence[Tensor] = (),
    z_prev: Tensor | None = None,
    eps_hat_uncond: Tensor | None = None,
    step: Tensor | None = None,
    keep_x_hat: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Go from z_t to z_s in one pass. Return ``(z_s, x_hat)`` in the dtype and layout of z_t.

    Args:
        z_t, eps_hat: latent and predicted noise, [B, ...].
        row: float32 [10] on the device of z_t: (1/alpha_t, sigma_t/alpha_t, A, B, S, w, C1, C2, C3, D). With ``step``,
            a table [steps, 10] of such rows.
        noise: eps of this step, a float tensor like z_t or a `Noise`. None if S = 0.
        clip: bound |x_hat| <= clip. None for no bound.
        history: up to three estimates x_hat of earlier steps, like z_t, the most recent first, for C1, C2 and C3.
        z_prev: an earlier latent, like z_t, for D.
        eps_hat_uncond: unconditional prediction u of classifier-free guidance, like z_t. None if w = 1.
        step: int64 [1] on the device of z_t, the index of the row in the table, for example `Noise.counter`. An index
            outside the table gives NaN, since checking it would wait for the device.
        keep_x_hat: whether to write x_hat. If False, None is returned in its place.

    Differentiable in z_t, eps_hat, history, z_prev and eps_hat_uncond.

    Raises:
        InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape or device. On CPU tensors in
            eager mode and without ``step``, also if the row is not finite, or has a coefficient other than 0 (or w
            other than 1) for an argument that is absent.
    """
    where = "sampler_step"
    check_data(where, "z_t", z_t)
    _check_row(row, step, z_t)
    check_like(where, "eps_hat", eps_hat, z_t, "z_t")
    x_1, x_2, x_3 = _remembered(history, z_t)
    for name, value in (("z_prev", z_prev), ("eps_hat_uncond", eps_hat_uncond)):
        if value is not None:
            check_like(where, name, value, z_t, "z_t")
    clip = None if clip is None else real_number(where, "clip", clip)
    if clip is not None and not clip > 0:
        raise InvalidValueError(f"{where}: clip must be > 0 or None, got {clip}")
    eps = None if noise is None else noise_argument(where, noise, z_t, "z_t")
    if step is None and values_visible(row):
        present = noise, eps_hat_uncond, x_1, x_2, x_3, z_prev
        _check_coefficients(row.tolist(), [value is not None for value in present])
    z_s, x_hat = _step_op(z_t, eps_hat, row, step, eps, clip, x_1, x_2, x_3, z_prev, eps_hat_uncond, keep_x_hat)
    return z_s, x_hat if keep_x_hat else None


def _check_row(row: Tensor, step: Tensor | None, z_t: Tensor) -> None:
    table = step is not None and isinstance(row, Tensor) and row.dim() == 2 and row.shape[0] > 0
    if step is not None and not table:
        raise InvalidValueError(
            f"sampler_step: row must be a table [steps, {COLUMNS}] of at least one row if step is given, "
            f"got {described(row)}"
        )
    check_vector("sampler_step", "row", row[0] if table else row, COLUMNS, z_t, "z_t")
    if row.requires_grad:
        raise InvalidValueError("sampler_step: row must not require a gradient; detach it")
    if step is None:
        return
    if not isinstance(step, Tensor) or step.dtype != torch.int64 or step.shape != (1,) or step.device != z_t.device:
        wanted = f"a torch.int64 tensor of shape (1,) on {z_t.device}, or None"
        raise InvalidValueError(f"sampler_step: step must be {wanted}, got {described(step)}")


def _remembered(history: Sequence[Tensor], z_t: Tensor) -> list[Tensor | None]:
    """x_hat_-1, x_hat_-2 and x_hat_-3, None where the history is shorter."""
    if not isinstance(history, (list, tuple)):
        raise InvalidTypeError(f"sampler_step: history must be a list or tuple of tensors, got {described(history)}")
    if len(history) > REMEMBERED:
        raise InvalidValueError(f"sampler_step: history must have at most {REMEMBERED} entries, got {len(history)}")
    for k, value in enumerate(history):
        check_like("sampler_step", f"history[{k}]", value, z_t, "z_t")
    return [*history, *[None] * (REMEMBERED - len(history))]


def _check_coefficients(row: list[float], present: list[bool]) -> None:
    """Reject a row that is not finite, or with a coefficient for an argument that is absent."""
    if not all(map(math.isfinite, row)):
        raise InvalidValueError(f"sampler_step: row must be finite, got {row}")
    for (name, letter, neutral), value, exists in zip(OPTIONAL, row[4:], present, strict=True):
        if value != neutral and not exists:
            raise InvalidValueError(
                f"sampler_step: {name} must be given for a row with {letter} = {value:.6g}, got None"
            )


def _row(row: Tensor, step: Tensor | None) -> Tensor:
    """The row that a step selects, without reading the step on the host; NaN outside the table."""
    if step is None:
        return row
    chosen = row.index_select(0, step.clamp(0, len(row) - 1))[0]
    return torch.where((step >= 0) & (step < len(row)), chosen, torch.nan)


def _guided(eps_hat: Tensor, u: Tensor | None, w: Tensor) -> Tensor:
    return eps_hat.float() if u is None else torch.lerp(u.float(), eps_hat.float(), w)


def step_reference(
    z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None, noise: Tensor | None, clip: float | None,
    x_1: Tensor | None, x_2: Tensor | None, x_3: Tensor | None, z_prev: Tensor | None, u: Tensor | None,
    keep_x_hat: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain PyTorch, arithmetic in float32. Without ``keep_x_hat`` the second result is empty.

    If x_hat is not clipped, z_s = (A + B / alpha_t) z_t - B (sigma_t / alpha_t) eps_hat + ... takes fewer passes.
    """
    inverse_alpha, ratio, a, b, s, w, c_1, c_2, c_3, d = _row(row, step).unbind()
    z, eps_hat, x_hat = z_t.float(), _guided(eps_hat, u, w), None
    if keep_x_hat or clip is not None:
        x_hat = (z * inverse_alpha).addcmul_(eps_hat, -ratio)
    if clip is None:
        z_s = (z * (a + b * inverse_alpha)).addcmul_(eps_hat, -b * ratio)
    else:
        assert x_hat is not None
        z_s = (z * a).addcmul_(x_hat.clamp_(-clip, clip), b)
    for value, coefficient in ((x_1, c_1), (x_2, c_2), (x_3, c_3), (z_prev, d)):
        if value is not None:
            z_s = z_s.addcmul_(value.float(), coefficient)
    if noise is not None:
        z_s = z_s.addcmul_(normal_like(noise, z_t), s)
    kept = in_layout_of(x_hat.to(z_t.dtype), z_t) if keep_x_hat and x_hat is not None else z_t.new_empty(0)
    return in_layout_of(z_s.to(z_t.dtype), z_t), kept


def step_gradient_reference(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, row: Tensor, step: Tensor | None,
    clip: float | None, u: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients to z_t, eps_hat and u, each rounded once; empty where there is no u.

    They are zero where x_hat is clipped, but for A of z_t.
    """
    inverse_alpha, ratio, a, b, _, w, *_ = _row(row, step).unbind()
    grad_x_hat = grad_s.float() * b
    if grad_x is not None:
        grad_x_hat = grad_x_hat + grad_x
    if clip is not None:
        x_hat = (z_t.float() * inverse_alpha).addcmul_(_guided(eps_hat, u, w), -ratio)
        grad_x_hat = grad_x_hat * (x_hat.abs() <= clip)
    grad_z = torch.addcmul(grad_x_hat * inverse_alpha, grad_s.float(), a)
    grad_guided, grad_u = grad_x_hat.mul_(-ratio), z_t.new_empty(0)
    if u is not None:
        grad_u = in_layout_of((grad_guided * (1.0 - w)).to(u.dtype), u)
        grad_guided = grad_guided.mul_(w)
    return in_layout_of(grad_z.to(z_t.dtype), z_t), in_layout_of(grad_guided.to(eps_hat.dtype), eps_hat), grad_u


# ------------------------------------------------------------------------------------------------ registration


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    z_t, eps_hat, row, step, _, ctx.clip, *remembered, u, ctx.keep_x_hat = inputs
    ctx.dtypes = [None if value is None else value.dtype for value in remembered]  # of x_1, x_2, x_3 and z_prev
    ctx.save_for_backward(z_t, eps_hat, row, step, u)
    ctx.set_materialize_grads(False)  # an unused x_hat costs no read


def _backward(ctx: Any, grad_s: Tensor | None, grad_x: Tensor | None) -> tuple:
    z_t, eps_hat, row, step, u = ctx.saved_tensors
    grad_s = torch.zeros_like(z_t) if grad_s is None else grad_s
    grad_x = grad_x if ctx.keep_x_hat else None
    grad_z, grad_eps, grad_u = _step_gradient_op(grad_s, grad_x, z_t, eps_hat, row, step, ctx.clip, u)
    *_, c_1, c_2, c_3, d = _row(row, step).unbind()
    remembered = [
        None if dtype is None else (grad_s.float() * coefficient).to(dtype)
        for dtype, coefficient in zip(ctx.dtypes, (c_1, c_2, c_3, d), strict=True)
    ]
    return grad_z, grad_eps, None, None, None, None, *remembered, None if u is None else grad_u, None


def _step_fake(z_t: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    keep_x_hat = others[-1]
    return torch.empty_like(z_t), torch.empty_like(z_t) if keep_x_hat else z_t.new_empty(0)


def _step_gradient_fake(
    grad_s: Tensor, grad_x: Tensor | None, z_t: Tensor, eps_hat: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    u = others[-1]
    return torch.empty_like(z_t), torch.empty_like(eps_hat), z_t.new_empty(0) if u is None else torch.empty_like(u)


_step_gradient_op = register(
    "sampler_step_gradient(Tensor grad_s, Tensor? grad_x, Tensor z_t, Tensor eps_hat, Tensor row, "
    "Tensor? step, float? clip, Tensor? u) -> (Tensor, Tensor, Tensor)",
    step_gradient_reference,
    step_gradient_triton,
    _step_gradient_fake,
)
_step_op = register(
    "sampler_step(Tensor z_t, Tensor eps_hat, Tensor row, Tensor? step, Tensor? noise, float? clip, "
    "Tensor? x_1, Tensor? x_2, Tensor? x_3, Tensor? z_prev, Tensor? u, bool keep_x_hat) -> (Tensor, Tensor)",
    step_reference,
    step_triton,
    _step_fake,
    _backward,
    _save,
)
