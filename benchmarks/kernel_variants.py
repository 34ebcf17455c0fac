"""Every Triton kernel with the types and constants that it is compiled with, for `static_cost`."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastdiff_kernels.launch import BLOCK, WARPS

# the package's attribute of some of these names is the operation, not the module
diffuse, eps_loss, fourier, noise, sampler_step = (
    import_module(f"fastdiff_kernels.{name}") for name in ("diffuse", "eps_loss", "fourier", "noise", "sampler_step")
)
decoder_nll, gaussian, norm = (
    import_module(f"fastdiff_kernels.{name}") for name in ("decoder_nll", "gaussian", "group_norm_kernels")
)

DATA, FLOAT, KEY, INT = "DATA", "*fp32", "*i64", "i32"  # DATA: a pointer to the dtype in question
SIZES = {"n": INT, "blocks": INT}
DRAWN, GIVEN = {"DRAWN": True, "FAST": False, "BLOCK": BLOCK}, {"DRAWN": False, "FAST": False, "BLOCK": BLOCK}


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is compiled.

    types: of the arguments that are no constants; elements: of one program, over which instructions are counted;
    multiples: integer arguments that are multiples of 16, as the launcher finds them for aligned data; aside: a side
    variant, for which no budget is kept; reduces: it stores one number per program and not data; accesses, more_bytes:
    reads and writes of data per element, and bytes beside them, 0 where the instructions of a loop depend on the data.
    FAST is set where a launcher would set it, for 16 bits on NVIDIA.
    """

    kernel: str
    name: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    elements: int = BLOCK
    warps: int = WARPS
    multiples: tuple[str, ...] = ("n",)
    aside: bool = False
    reduces: bool = False
    accesses: int = 0
    more_bytes: int = 0


def _step_types(names: str) -> dict[str, str]:
    types = {f"{name}_ptr": DATA for name in names.split()}
    return types | {"row_ptr": FLOAT, "clip": "fp32", "w": "fp32", "steps": INT, **SIZES}


def _absent(names: str) -> dict[str, None]:
    return {f"{name}_ptr": None for name in names.split()}


def _small(types: dict[str, str], *ones: str) -> dict[str, str]:
    """Types without the sizes that are 1, which Triton makes constants."""
    return {name: kind for name, kind in types.items() if name not in ones}


DIFFUSE = {"x_ptr": DATA, "gamma_ptr": FLOAT, "noise_ptr": KEY, "z_ptr": DATA, **SIZES}
GAMMA = {"grad_ptr": DATA, "x_ptr": DATA, "noise_ptr": KEY, "partial_ptr": FLOAT, **SIZES}
ERROR = {"eps_hat_ptr": DATA, "noise_ptr": KEY, "partial_ptr": FLOAT, **SIZES}
ERROR_GRADIENT = {"grad_ptr": FLOAT, "eps_hat_ptr": DATA, "noise_ptr": KEY, "out_ptr": DATA, **SIZES}
FOURIER = {"z_ptr": "*fp32", "out_ptr": DATA, "channels": INT, "n": INT, "scale_min": "fp32"}
FOURIER_GRADIENT = {"grad_ptr": DATA, "z_ptr": DATA, "out_ptr": DATA, "channels": INT, "n": INT, "scale_min": "fp32"}
TWO = {"FEATURES": 2, "BLOCK": BLOCK}
STEP = _step_types("z_t eps_hat z_s") | {"noise_ptr": KEY}
STEP_ALL = _step_types("z_t eps_hat noise x_prev offset u z_s x_hat") | {"step_ptr": KEY}
STEP_GRADIENT = _step_types("grad_s grad_x z_t eps_hat grad_z grad_eps")
STEP_GRADIENT_ALL = _step_types("grad_s grad_x z_t eps_hat offset u grad_z grad_eps by_offset") | {"step_ptr": KEY}
NOISY = {"NOISY": True, "CLIP": False} | DRAWN
CLIPPED = {"CLIP": True, "BLOCK": BLOCK}
REPARAMETERIZE = {"mean_ptr": DATA, "logvar_ptr": DATA, "noise_ptr": KEY, "z_ptr": DATA, "partial_ptr": FLOAT, **SIZES}
REPARAMETERIZE_GRADIENT = {
    **{f"{name}_ptr": DATA for name in ("grad_z", "mean", "logvar", "by_mean", "by_logvar")},
    "grad_kl_ptr": FLOAT, "noise_ptr": KEY, **SIZES,
}  # fmt: skip
FIVE = ("z", "mean_q", "logvar_q", "mean_p", "logvar_p")
RATIO = {f"{name}_ptr": DATA for name in FIVE} | {"partial_ptr": FLOAT, **SIZES}
RATIO_GRADIENT = RATIO | {f"by_{name}_ptr": DATA for name in FIVE} | {"grad_ptr": FLOAT}
NLL = {"x_ptr": "*u8", "mean_ptr": DATA, "logvar_ptr": FLOAT, "partial_ptr": FLOAT, "levels": INT, **SIZES}
NLL_GRADIENT = NLL | {"grad_ptr": FLOAT, "by_mean_ptr": DATA, "by_logvar_ptr": FLOAT}
PER_SAMPLE, PER_ELEMENT = ({"PER_ELEMENT": value, "BLOCK": BLOCK} for value in (False, True))

NORM = {f"{name}_ptr": DATA for name in ("grad", "x", "y", "out", "scale", "shift")} | {
    **{f"{name}_ptr": FLOAT for name in ("weight", "bias", "mean", "rstd", "by_one", "by_xhat", "s1", "s2", "square")},
    **{f"{name}_ptr": FLOAT for name in ("partial_mean", "partial", "sums", "means")}, "eps": "fp32",
    **dict.fromkeys(("n", "batch", "pixels", "chunks", "scale_row", "shift_row"), INT),
}  # fmt: skip


def _norm(
    name: str, function: Any, size: tuple[int, int, int], width: int = 4, last: bool = True, ones: str = "", **more: Any
) -> Variant:
    """A kernel of group_norm for (channels, groups, pixels) of elements of ``width`` bytes; ``ones``: what is 1."""
    channels, groups, pixels = size
    whole = function is norm.norm_silu_kernel
    launch = norm.whole_groups(*size, width) if whole else norm.pixel_tiles(channels, pixels, width)
    constants = {"C": channels, "CG": channels // groups, "LAST": last, "BLOCK": 1024, "BLOCK_K": 8} | launch
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    constants |= dict.fromkeys(ones.split(), 1)
    multiples = () if pixels % 16 else ("n", "pixels", "scale_row", "shift_row")
    elements = launch["BLOCK_P"] * launch["BLOCK_C"]
    types = _small(NORM, *constants)
    return Variant(
        "group_norm_silu", name, function, types, constants, elements, launch["num_warps"], multiples, **more
    )


WIDE, ODD, PIXEL = (128, 32, 1024), (30, 5, 49), (10, 5, 1)
VARIANTS = (
    Variant("draw", "normals", noise.draw_kernel, {"key_ptr": KEY, "out_ptr": DATA, **SIZES},
            {"NORMAL": True, "FAST": False, "BLOCK": BLOCK}, accesses=1),
    Variant("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN, accesses=2),
    Variant("diffuse", "noise given", diffuse.diffuse_kernel, DIFFUSE | {"noise_ptr": DATA}, GIVEN, accesses=3),
    Variant("diffuse", "gradient to gamma", diffuse.gamma_gradient_kernel, GAMMA, DRAWN, reduces=True, accesses=2),
    Variant("eps_loss", "noise drawn", eps_loss.squared_error_kernel, ERROR, DRAWN, reduces=True, accesses=1),
    Variant("eps_loss", "gradient, drawn", eps_loss.error_gradient_kernel, ERROR_GRADIENT, DRAWN, accesses=2),
    Variant("eps_loss", "noise given", eps_loss.squared_error_kernel, ERROR | {"noise_ptr": DATA}, GIVEN,
            reduces=True, accesses=2),
    Variant("fourier_features", "2 frequencies", fourier.fourier_kernel, FOURIER, TWO, accesses=5, more_bytes=4),
    Variant("fourier_features", "gradient", fourier.fourier_gradient_kernel, FOURIER_GRADIENT, TWO, accesses=7),
    Variant("sampler_step", "ancestral", sampler_step.step_kernel, STEP, NOISY | _absent("step x_prev offset u x_hat"),
            accesses=3),
    Variant("sampler_step", "everything", sampler_step.step_kernel, STEP_ALL, NOISY | GIVEN | {"CLIP": True},
            accesses=8),
    Variant("sampler_step", "gradient", sampler_step.step_gradient_kernel, STEP_GRADIENT,
            CLIPPED | _absent("step offset u by_offset"), accesses=6),
    Variant("sampler_step", "gradient, everything", sampler_step.step_gradient_kernel, STEP_GRADIENT_ALL, CLIPPED,
            accesses=9),
    Variant("reparameterize", "noise drawn", gaussian.reparameterize_kernel, REPARAMETERIZE, DRAWN, accesses=3),
    Variant("reparameterize", "noise given", gaussian.reparameterize_kernel, REPARAMETERIZE | {"noise_ptr": DATA},
            GIVEN, accesses=4),
    Variant("reparameterize", "gradient, drawn", gaussian.reparameterize_gradient_kernel, REPARAMETERIZE_GRADIENT,
            {"WITH_Z": True} | DRAWN, accesses=5),
    Variant("reparameterize", "gradient of the KL", gaussian.reparameterize_gradient_kernel, REPARAMETERIZE_GRADIENT,
            {"WITH_Z": False, "grad_z_ptr": None} | DRAWN, aside=True),
    Variant("gaussian_log_ratio", "", gaussian.log_ratio_kernel, RATIO, {"BLOCK": BLOCK}, reduces=True, accesses=5),
    Variant("gaussian_log_ratio", "gradient", gaussian.log_ratio_gradient_kernel, RATIO_GRADIENT, {"BLOCK": BLOCK},
            accesses=10),
    Variant("decoder_nll", "logvar [B]", decoder_nll.nll_kernel, NLL, PER_SAMPLE, reduces=True),
    Variant("decoder_nll", "logvar like mean", decoder_nll.nll_kernel, NLL | {"logvar_ptr": DATA}, PER_ELEMENT,
            reduces=True),
    Variant("decoder_nll", "gradient, logvar [B]", decoder_nll.nll_gradient_kernel, NLL_GRADIENT, PER_SAMPLE),
    Variant("decoder_nll", "gradient, logvar like mean", decoder_nll.nll_gradient_kernel,
            NLL_GRADIENT | {"logvar_ptr": DATA, "by_logvar_ptr": DATA}, PER_ELEMENT),
    _norm("whole groups", norm.norm_silu_kernel, WIDE, accesses=2),
    _norm("whole groups of 16 bits", norm.norm_silu_kernel, WIDE, width=2, accesses=2),
    _norm("whole groups, contiguous", norm.norm_silu_kernel, WIDE, last=False, accesses=2),
    _norm("whole groups of 16384 elements", norm.norm_silu_kernel, (128, 32, 4096), accesses=2),
    _norm("whole groups of 6 channels", norm.norm_silu_kernel, (192, 32, 256), width=2, accesses=2),
    _norm("moments", norm.moments_kernel, WIDE, reduces=True, accesses=1),
    _norm("apply", norm.norm_apply_kernel, WIDE, accesses=2),
    _norm("sums of the gradient", norm.norm_sums_kernel, WIDE, reduces=True, accesses=2),
    _norm("sums of the gradient, 16 bits", norm.norm_sums_kernel, WIDE, width=2, reduces=True, accesses=2),
    _norm("gradient", norm.norm_gradient_kernel, WIDE, accesses=3),
    _norm("gradient, contiguous", norm.norm_gradient_kernel, WIDE, last=False, accesses=3),
    _norm("merging of moments", norm.merge_moments_kernel, WIDE, reduces=True, aside=True),
    _norm("collection of sums", norm.collect_sums_kernel, WIDE, reduces=True, aside=True),
    _norm("whole groups, odd size", norm.norm_silu_kernel, ODD, aside=True),
    _norm("whole groups, one pixel", norm.norm_silu_kernel, PIXEL, ones="pixels", aside=True),
    _norm("gradient, odd size", norm.norm_gradient_kernel, ODD, aside=True, ones="chunks"),
    _norm("sums of the gradient, one pixel", norm.norm_sums_kernel, PIXEL, aside=True, ones="pixels chunks"),
    _norm("collection of sums, one pixel", norm.collect_sums_kernel, PIXEL, aside=True, ones="pixels chunks"),
    _norm("merging of moments, one pixel", norm.merge_moments_kernel, PIXEL, aside=True, ones="pixels chunks"),
    # what 8 × 8 images of one channel, and single numbers, compile to: sizes of 1 become constants
    Variant("diffuse", "64 elements", diffuse.diffuse_kernel, _small(DIFFUSE, "blocks"),
            DRAWN | {"blocks": 1, "BLOCK": 64}, 64, aside=True),
    Variant("eps_loss", "single numbers", eps_loss.squared_error_kernel, _small(ERROR, "n", "blocks"),
            DRAWN | {"n": 1, "blocks": 1, "BLOCK": 16}, 16, aside=True),
    Variant("fourier_features", "64 elements", fourier.fourier_kernel, _small(FOURIER, "channels"),
            {"channels": 1, "FEATURES": 2, "BLOCK": 64}, 64, aside=True),
    Variant("fourier_features", "gradient, 64", fourier.fourier_gradient_kernel,
            _small(FOURIER_GRADIENT, "channels"), {"channels": 1, "FEATURES": 2, "BLOCK": 64}, 64, aside=True),
    Variant("diffuse", "odd size", diffuse.diffuse_kernel, DIFFUSE, DRAWN, multiples=(), aside=True),
)  # fmt: skip
