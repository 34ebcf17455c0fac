"""Every Triton kernel with the types and constants that it is compiled with, for `static_cost`."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastdiff_kernels import _triton
from fastdiff_kernels.launch import BLOCK, TILE_THREADS, WARPS

_triton.load()  # so that the modules hold kernels that can be compiled

# the package's attribute of some of these names is the operation, not the module
diffuse, dropout, eps_loss, fourier, fourier_last, log_ratio, reparameterize = (
    import_module(f"fastdiff_kernels.{name}")
    for name in ("diffuse", "dropout", "eps_loss", "fourier", "fourier_last", "gaussian_log_ratio", "reparameterize")
)
decoder_nll, noise, noise_sum, sampler_step = (
    import_module(f"fastdiff_kernels.{name}")
    for name in ("decoder_nll_kernels", "noise_kernels", "noise_sum", "sampler_step_kernels")
)
norm, norm_blocks, norm_gradient, norm_sums = (
    import_module(f"fastdiff_kernels.group_norm_{name}") for name in ("kernels", "blocks", "gradient", "sums")
)

DATA, FLOAT, KEY, INT = "DATA", "*fp32", "*i64", "i32"  # DATA: a pointer to the dtype in question
SIZES = {"n": INT, "blocks": INT}
DRAWN = {"DRAWN": True, "FAST": False, "C": 1, "BLOCK": BLOCK}
GIVEN = DRAWN | {"DRAWN": False}


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is compiled.

    Args:
        types: types of the arguments that are not constants.
        elements: elements of one program; instructions are counted per element.
        multiples: integer arguments that are multiples of 16, as the launcher finds them for aligned data.
        aside: a secondary variant without a budget.
        reduces: whether it stores one number per program instead of data.
        accesses, more_bytes: reads and writes of data per element, and further bytes; 0 if the number of instructions
            of a loop depends on the data.
        scalar: whether rows of an odd length make it read or write single elements.
        bits: width of the data that it is for, 0 for any.

    FAST is set where a launcher would set it: for 16-bit data on NVIDIA.
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
    bits: int = 0
    scalar: bool = False


def _step_types(names: str) -> dict[str, str]:
    types = {f"{name}_ptr": DATA for name in names.split()}
    return types | {"row_ptr": FLOAT, "clip": "fp32", "steps": INT, **SIZES}


def _absent(names: str) -> dict[str, None]:
    return {f"{name}_ptr": None for name in names.split()}


def _small(types: dict[str, str], *ones: str) -> dict[str, str]:
    """Types without the sizes that are 1, which Triton makes constants."""
    return {name: kind for name, kind in types.items() if name not in ones}


DIFFUSE = {"x_ptr": DATA, "gamma_ptr": FLOAT, "noise_ptr": KEY, "z_ptr": DATA, **SIZES}
GAMMA = {"grad_ptr": DATA, "x_ptr": DATA, "noise_ptr": KEY, "partial_ptr": FLOAT, **SIZES}
NOISE_SUM = {
    "key_ptr": KEY, "nodes_ptr": KEY, "weights_ptr": FLOAT, "out_ptr": FLOAT, "rows": INT, "columns": INT, **SIZES,
}  # fmt: skip
DROPOUT = {"x_ptr": DATA, "key_ptr": KEY, "out_ptr": DATA, "stream": INT, "drop": INT, "scale": "fp32", **SIZES}
DROPOUT_LAST = {
    **{name: kind for name, kind in DROPOUT.items() if name not in SIZES},
    **dict.fromkeys(("pixels", "channels", "chunks"), INT),
}
ERROR = {"eps_hat_ptr": DATA, "noise_ptr": KEY, "partial_ptr": FLOAT, **SIZES}
ERROR_GRADIENT = {"grad_ptr": FLOAT, "eps_hat_ptr": DATA, "noise_ptr": KEY, "out_ptr": DATA, **SIZES}
FOURIER = {"z_ptr": "*fp32", "out_ptr": DATA, "channels": INT, "n": INT, "scale_min": "fp32"}
FOURIER_GRADIENT = {"grad_ptr": DATA, "z_ptr": DATA, "out_ptr": DATA, "channels": INT, "n": INT, "scale_min": "fp32"}
FOURIER_LAST = _small(FOURIER, "channels") | {"blocks": INT}
FOURIER_LAST_GRADIENT = _small(FOURIER_GRADIENT, "channels") | {"blocks": INT}
LAST_TILE = fourier_last.tile_of(3, 2)
TWO = {"FEATURES": 2, "BLOCK": BLOCK}
STEP = _step_types("z_t eps_hat z_s") | {"noise_ptr": KEY}
STEP_MULTI = _step_types("z_t eps_hat x_1 z_s x_hat")
STEP_ALL = _step_types("z_t eps_hat noise x_1 x_2 x_3 z_prev u z_s x_hat") | {"step_ptr": KEY}
STEP_GRADIENT = _step_types("grad_s grad_x z_t eps_hat grad_z grad_eps")
STEP_GRADIENT_ALL = _step_types("grad_s grad_x z_t eps_hat u grad_z grad_eps grad_u") | {"step_ptr": KEY}
NOISY = {"NOISY": True, "CLIP": False} | DRAWN
CLIPPED = {"CLIP": True, "BLOCK": BLOCK}
REPARAMETERIZE = {"mean_ptr": DATA, "logvar_ptr": DATA, "noise_ptr": KEY, "z_ptr": DATA, "partial_ptr": FLOAT, **SIZES}
REPARAMETERIZE_GRADIENT = {
    **{f"{name}_ptr": DATA for name in ("grad_z", "mean", "logvar", "grad_mean", "grad_logvar")},
    "grad_kl_ptr": FLOAT, "noise_ptr": KEY, **SIZES,
}  # fmt: skip
FIVE = ("z", "mean_q", "logvar_q", "mean_p", "logvar_p")
RATIO = {f"{name}_ptr": DATA for name in FIVE} | {"partial_ptr": FLOAT, **SIZES}
RATIO_GRADIENT = RATIO | {f"grad_{name}_ptr": DATA for name in FIVE} | {"grad_ptr": FLOAT}
NLL = {"x_ptr": "*u8", "mean_ptr": DATA, "logvar_ptr": FLOAT, "partial_ptr": FLOAT, "levels": INT, **SIZES}
NLL_GRADIENT = NLL | {"grad_ptr": FLOAT, "grad_mean_ptr": DATA, "grad_logvar_ptr": FLOAT}
PER_SAMPLE, PER_ELEMENT = ({"PER_ELEMENT": value, "BLOCK": BLOCK} for value in (False, True))

SOURCES = ("x", "u", "residual", "skip", "y", "total", "grad", "grad_total", "dx", "dskip")
NORM = {f"{name}_ptr": DATA for name in (*SOURCES, "scale", "shift", "dscale", "dshift", "pre_shift", "dpre_shift")} | {
    **{f"{name}_ptr": FLOAT for name in ("weight", "bias", "mean", "rstd", "mean_d", "mean_d_uhat", "s1", "s2")},
    **{f"{name}_ptr": FLOAT for name in ("square", "partial_mean", "partial", "sum_dx", "table", "out", "other")},
    **dict.fromkeys(("batch", "pixels", "chunks", "pre_shift_row", "scale_row", "shift_row", "sets", "rows"), INT),
    "eps": "fp32",
}  # fmt: skip
MODULATED = "scale shift dscale dshift"
SUMMED = "residual total grad_total"  # the forward writes the total, the backward adds its gradient; so with a skip
SHIFTED = "pre_shift dpre_shift sum_dx"
OPTIONAL = f"{MODULATED} {SUMMED} {SHIFTED} skip dskip"


def _norm(
    name: str, function: Any, size: tuple[int, int, int], width: int = 4, last: bool = True, ones: str = "",
    used: str = MODULATED, skip: int = 0, **more: Any,
) -> Variant:  # fmt: skip
    """A kernel of group_norm for (channels, groups, pixels) of elements of ``width`` bytes.

    ``ones`` names sizes of 1, ``used`` the optional arguments that are there, and the last ``skip`` channels are those
    of the second source.
    """
    channels, groups, pixels = size
    kept = {norm.norm_silu_kernel: 1, norm_gradient.whole_gradient_kernel: 2}.get(function)
    launch = norm_blocks.pixel_tiles(channels, pixels, width)
    if kept:
        launch = norm_blocks.whole_groups(*size, width, kept)
    used += " skip dskip" if skip else ""
    constants = {"C": channels, "CX": channels - skip, "CG": channels // groups, "LAST": last, "ACTIVATION": True}
    constants |= {"WIDTH": channels, "BLOCK": 1024, "BLOCK_K": 8} | launch
    constants |= {f"{name}_ptr": None for name in OPTIONAL.split() if name not in used.split()}
    constants |= dict.fromkeys(ones.split(), 1)
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    multiples = () if pixels % 16 else ("pixels", "pre_shift_row", "scale_row", "shift_row")
    elements = launch["BLOCK_P"] * launch["BLOCK_C"]
    types = _small(NORM, *constants)
    return Variant(
        "group_norm_silu", name, function, types, constants, elements, launch["num_warps"], multiples, **more
    )


def _last(kernel: str, name: str, function: Any, types: dict[str, str], constants: dict[str, Any], channels: int = 3,
          **more: Any) -> list[Variant]:  # fmt: skip
    """Drawn noise for channels-last data, one variant for each width of data."""
    found = []
    for bits, width in ((32, 4), (16, 8 if channels <= 4 else 4)):
        pixels = TILE_THREADS * width
        sizes = constants | {"C": channels, "BLOCK": pixels}
        found.append(
            Variant(kernel, f"{name}, {channels} channels last", function, types, sizes, pixels * channels, bits=bits,
                    **more)
        )  # fmt: skip
    return found


def _dropout_last(name: str, channels: int, pixels: int, **more: Any) -> list[Variant]:
    """Dropout of channels-last data, one variant for each width of data."""
    found = []
    for bits in (32, 16):
        tile = dropout.last_tile(pixels, channels, bits // 8)
        elements, warps = tile["GROUP"] * tile["BLOCK_P"] * tile["BLOCK_C"], tile.pop("num_warps")
        multiples = tuple(key for key, size in (("pixels", pixels), ("channels", channels)) if size % 16 == 0)
        found.append(
            Variant("dropout", name, dropout.dropout_last_kernel, DROPOUT_LAST, tile, elements, warps, multiples,
                    bits=bits, **more)
        )  # fmt: skip
    return found


def _double(
    kernel: str, name: str, function: Any, types: dict[str, str], constants: dict[str, Any], **more: Any
) -> Variant:
    """Drawn noise for 16-bit data in blocks of twice the size, as many programs get them."""
    sizes = constants | {"BLOCK": 2 * BLOCK}
    return Variant(kernel, f"{name} in 16 bits, many programs", function, types, sizes, 2 * BLOCK, bits=16, **more)


WIDE, ODD, PIXEL = (128, 32, 1024), (30, 5, 49), (10, 5, 1)
VARIANTS = (
    Variant("draw", "normals", noise.draw_kernel, {"key_ptr": KEY, "out_ptr": DATA, **SIZES},
            {"NORMAL": True, "FAST": False, "BLOCK": BLOCK}, accesses=1),
    Variant("noise_sum", "", noise_sum.noise_sum_kernel, NOISE_SUM, {"STREAM": 15, "BLOCK": BLOCK}),
    Variant("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN, accesses=2),
    Variant("diffuse", "noise given", diffuse.diffuse_kernel, DIFFUSE | {"noise_ptr": DATA}, GIVEN, accesses=3),
    Variant("diffuse", "gradient to gamma", diffuse.gamma_gradient_kernel, GAMMA, DRAWN, reduces=True, accesses=2),
    Variant("eps_loss", "noise drawn", eps_loss.squared_error_kernel, ERROR, DRAWN, reduces=True, accesses=1),
    Variant("eps_loss", "gradient, drawn", eps_loss.error_gradient_kernel, ERROR_GRADIENT, DRAWN, accesses=2),
    Variant("eps_loss", "noise given", eps_loss.squared_error_kernel, ERROR | {"noise_ptr": DATA}, GIVEN,
            reduces=True, accesses=2),
    Variant("fourier_features", "2 frequencies", fourier.fourier_kernel, FOURIER, TWO, accesses=5, more_bytes=4),
    Variant("fourier_features", "gradient", fourier.fourier_gradient_kernel, FOURIER_GRADIENT, TWO, accesses=7),
    Variant("fourier_features", "2 frequencies, 3 channels last", fourier_last.fourier_last_kernel, FOURIER_LAST,
            LAST_TILE, 3 * LAST_TILE["BLOCK"], accesses=5, more_bytes=4, scalar=True),
    Variant("fourier_features", "gradient, 3 channels last", fourier_last.fourier_last_gradient_kernel,
            FOURIER_LAST_GRADIENT, TWO | {"C": 3}, accesses=7, scalar=True),
    Variant("sampler_step", "ancestral", sampler_step.step_kernel, STEP,
            NOISY | _absent("step x_1 x_2 x_3 z_prev u x_hat"), accesses=3),
    Variant("sampler_step", "multistep", sampler_step.step_kernel, STEP_MULTI,
            GIVEN | {"NOISY": False, "CLIP": True} | _absent("step noise x_2 x_3 z_prev u"), accesses=5),
    Variant("sampler_step", "everything", sampler_step.step_kernel, STEP_ALL, NOISY | GIVEN | {"CLIP": True},
            accesses=10),
    Variant("sampler_step", "gradient", sampler_step.step_gradient_kernel, STEP_GRADIENT,
            CLIPPED | _absent("step u grad_u"), accesses=6),
    Variant("sampler_step", "gradient, everything", sampler_step.step_gradient_kernel, STEP_GRADIENT_ALL, CLIPPED,
            accesses=8),
    Variant("reparameterize", "noise drawn", reparameterize.reparameterize_kernel, REPARAMETERIZE, DRAWN, accesses=3),
    Variant("reparameterize", "noise given", reparameterize.reparameterize_kernel,
            REPARAMETERIZE | {"noise_ptr": DATA}, GIVEN, accesses=4),
    Variant("reparameterize", "gradient, drawn", reparameterize.reparameterize_gradient_kernel,
            REPARAMETERIZE_GRADIENT, DRAWN, accesses=5),
    Variant("reparameterize", "gradient of the KL", reparameterize.reparameterize_gradient_kernel,
            REPARAMETERIZE_GRADIENT, {"grad_z_ptr": None} | DRAWN, aside=True),
    Variant("gaussian_log_ratio", "", log_ratio.log_ratio_kernel, RATIO, {"BLOCK": BLOCK}, reduces=True, accesses=5),
    Variant("gaussian_log_ratio", "gradient", log_ratio.log_ratio_gradient_kernel, RATIO_GRADIENT, {"BLOCK": BLOCK},
            accesses=10),
    Variant("decoder_nll", "logvar [B]", decoder_nll.nll_kernel, NLL, PER_SAMPLE, reduces=True),
    Variant("decoder_nll", "logvar like mean", decoder_nll.nll_kernel, NLL | {"logvar_ptr": DATA}, PER_ELEMENT,
            reduces=True),
    Variant("decoder_nll", "gradient, logvar [B]", decoder_nll.nll_gradient_kernel, NLL_GRADIENT, PER_SAMPLE),
    Variant("decoder_nll", "gradient, logvar like mean", decoder_nll.nll_gradient_kernel,
            NLL_GRADIENT | {"logvar_ptr": DATA, "grad_logvar_ptr": DATA}, PER_ELEMENT),
    _norm("whole groups", norm.norm_silu_kernel, WIDE, accesses=2),
    _norm("whole groups of 16 bits", norm.norm_silu_kernel, WIDE, width=2, accesses=2),
    _norm("whole groups, contiguous", norm.norm_silu_kernel, WIDE, last=False, accesses=2),
    _norm("whole groups of 16384 elements", norm.norm_silu_kernel, (128, 32, 4096), aside=True),
    _norm("whole groups of 32768 elements", norm.norm_silu_kernel, (256, 32, 4096), accesses=2),
    _norm("whole groups of 6 channels", norm.norm_silu_kernel, (192, 32, 256), width=2, accesses=2),
    _norm("whole groups, pre_shift", norm.norm_silu_kernel, WIDE, used=f"{MODULATED} {SHIFTED}", accesses=2),
    _norm("whole groups, residual", norm.norm_silu_kernel, WIDE, used=SUMMED, accesses=4),
    _norm("whole groups, pre_shift and residual", norm.norm_silu_kernel, WIDE, used=f"{SUMMED} {SHIFTED}", accesses=4),
    _norm("whole groups, skip", norm.norm_silu_kernel, (256, 32, 256), used="total", skip=128, accesses=3),
    _norm("whole groups, 12 channels, skip", norm.norm_silu_kernel, (384, 32, 256), used="total", skip=128, aside=True),
    _norm("whole groups, everything", norm.norm_silu_kernel, (384, 32, 256), used=OPTIONAL, skip=128, aside=True),
    _norm("moments", norm.moments_kernel, WIDE, reduces=True, accesses=1),
    _norm("moments, residual", norm.moments_kernel, WIDE, used=SUMMED, accesses=3),
    _norm("moments, skip", norm.moments_kernel, (256, 32, 256), used="total", skip=128, aside=True),
    _norm("apply", norm.norm_apply_kernel, WIDE, accesses=2),
    _norm("gradient, whole groups", norm_gradient.whole_gradient_kernel, WIDE, accesses=3),
    _norm("gradient, whole groups of 16 bits", norm_gradient.whole_gradient_kernel, WIDE, width=2, accesses=3),
    _norm("gradient, whole groups, contiguous", norm_gradient.whole_gradient_kernel, WIDE, last=False, accesses=3),
    _norm("gradient, whole groups, pre_shift", norm_gradient.whole_gradient_kernel, WIDE, used=f"{MODULATED} {SHIFTED}",
          accesses=3),
    _norm("gradient, whole groups, residual", norm_gradient.whole_gradient_kernel, WIDE, used=SUMMED, accesses=4),
    _norm("gradient, whole groups, skip", norm_gradient.whole_gradient_kernel, (256, 32, 256), used="grad_total",
          skip=128, accesses=4),
    _norm("gradient, whole groups of 12288 elements", norm_gradient.whole_gradient_kernel, (384, 32, 1024),
          used=f"{SUMMED} {SHIFTED}", skip=128, aside=True),
    _norm("gradient, whole groups, everything", norm_gradient.whole_gradient_kernel, (384, 32, 256), used=OPTIONAL,
          skip=128, aside=True),
    _norm("sums of the gradient", norm_gradient.norm_sums_kernel, WIDE, reduces=True, accesses=2),
    _norm("sums of the gradient, 16 bits", norm_gradient.norm_sums_kernel, WIDE, width=2, reduces=True, accesses=2),
    _norm("gradient", norm_gradient.norm_gradient_kernel, WIDE, accesses=3),
    _norm("gradient, contiguous", norm_gradient.norm_gradient_kernel, WIDE, last=False, accesses=3),
    _norm("gradient, residual and pre_shift", norm_gradient.norm_gradient_kernel, WIDE, used=f"{SUMMED} {SHIFTED}",
          accesses=4),
    _norm("merging of moments", norm.merge_moments_kernel, WIDE, reduces=True, aside=True),
    _norm("collection of sums", norm_sums.collect_sums_kernel, WIDE, reduces=True, aside=True),
    _norm("sum of rows", norm_sums.add_rows_kernel, WIDE, reduces=True, aside=True),
    _norm("whole groups, odd size", norm.norm_silu_kernel, ODD, aside=True),
    _norm("whole groups, one pixel", norm.norm_silu_kernel, PIXEL, ones="pixels", aside=True),
    _norm("gradient, odd size", norm_gradient.norm_gradient_kernel, ODD, aside=True, ones="chunks"),
    _norm("gradient, whole groups, odd size", norm_gradient.whole_gradient_kernel, ODD, aside=True),
    _norm("gradient, whole groups, one pixel", norm_gradient.whole_gradient_kernel, PIXEL, ones="pixels batch",
          aside=True),
    _norm("sum of one row", norm_sums.add_rows_kernel, PIXEL, ones="sets rows", aside=True),
    _norm("sums of the gradient, one pixel", norm_gradient.norm_sums_kernel, PIXEL, aside=True, ones="pixels chunks"),
    _norm("collection of sums, one pixel", norm_sums.collect_sums_kernel, PIXEL, aside=True, ones="pixels chunks"),
    _norm("merging of moments, one pixel", norm.merge_moments_kernel, PIXEL, aside=True, ones="pixels chunks"),
    _double("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN, accesses=2),
    _double("eps_loss", "noise drawn", eps_loss.squared_error_kernel, ERROR, DRAWN, reduces=True, accesses=1),
    _double("eps_loss", "gradient, drawn", eps_loss.error_gradient_kernel, ERROR_GRADIENT, DRAWN, accesses=2),
    _double("sampler_step", "ancestral", sampler_step.step_kernel, STEP,
            NOISY | _absent("step x_1 x_2 x_3 z_prev u x_hat"), accesses=3),
    *_last("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN, accesses=2),
    *_last("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN, 16, aside=True),
    *_last("diffuse", "gradient to gamma", diffuse.gamma_gradient_kernel, GAMMA, DRAWN, reduces=True, accesses=2),
    *_last("eps_loss", "noise drawn", eps_loss.squared_error_kernel, ERROR, DRAWN, reduces=True, accesses=1),
    *_last("eps_loss", "gradient, drawn", eps_loss.error_gradient_kernel, ERROR_GRADIENT, DRAWN, accesses=2),
    *_last("sampler_step", "ancestral", sampler_step.step_kernel, STEP,
           NOISY | _absent("step x_1 x_2 x_3 z_prev u x_hat"), accesses=3),
    *_last("reparameterize", "noise drawn", reparameterize.reparameterize_kernel, REPARAMETERIZE, DRAWN, accesses=3),
    *_last("reparameterize", "gradient, drawn", reparameterize.reparameterize_gradient_kernel,
           REPARAMETERIZE_GRADIENT, DRAWN, accesses=5),
    Variant("dropout", "contiguous", dropout.dropout_kernel, DROPOUT, {"BLOCK": dropout.LARGEST}, dropout.LARGEST,
            accesses=2),
    *_dropout_last("channels last", 128, 1024, accesses=2),
    *_dropout_last("channels last, 48 channels", 48, 16, aside=True),
    *_dropout_last("channels last, odd size", 32, 49, aside=True),
    # 8 × 8 images of one channel, and single numbers: sizes of 1 become constants
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
