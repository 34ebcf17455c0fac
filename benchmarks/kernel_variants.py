"""Every Triton kernel with the types and constants that it is compiled with, for `static_cost`."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fastdiff_kernels.launch import BLOCK, WARPS

# the package's attribute of some of these names is the operation, not the module
diffuse, eps_loss, fourier, noise, sampler_step = (
    import_module(f"fastdiff_kernels.{name}") for name in ("diffuse", "eps_loss", "fourier", "noise", "sampler_step")
)
decoder_nll, gaussian = (import_module(f"fastdiff_kernels.{name}") for name in ("decoder_nll", "gaussian"))

DATA, FLOAT, KEY, INT = "DATA", "*fp32", "*i64", "i32"  # DATA: a pointer to the dtype in question
SIZES = {"n": INT, "blocks": INT}
DRAWN, GIVEN = {"DRAWN": True, "FAST": False, "BLOCK": BLOCK}, {"DRAWN": False, "FAST": False, "BLOCK": BLOCK}


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is compiled.

    types: of the arguments that are no constants; elements: of one program, over which instructions are counted;
    multiples: integer arguments that are multiples of 16, as the launcher finds them for aligned data; aside: a side
    variant, for which no budget is kept; reduces: it stores one number per program and not data. FAST is set where a
    launcher would set it, for 16 bits on NVIDIA.
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
STEP_GRADIENT_ALL = _step_types("grad_s grad_x z_t eps_hat offset u grad_z grad_eps") | {"step_ptr": KEY}
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

VARIANTS = (
    Variant("draw", "normals", noise.draw_kernel, {"key_ptr": KEY, "out_ptr": DATA, **SIZES},
            {"NORMAL": True, "FAST": False, "BLOCK": BLOCK}),
    Variant("diffuse", "noise drawn", diffuse.diffuse_kernel, DIFFUSE, DRAWN),
    Variant("diffuse", "noise given", diffuse.diffuse_kernel, DIFFUSE | {"noise_ptr": DATA}, GIVEN),
    Variant("diffuse", "gradient to gamma", diffuse.gamma_gradient_kernel, GAMMA, DRAWN, reduces=True),
    Variant("eps_loss", "noise drawn", eps_loss.squared_error_kernel, ERROR, DRAWN, reduces=True),
    Variant("eps_loss", "gradient, drawn", eps_loss.error_gradient_kernel, ERROR_GRADIENT, DRAWN),
    Variant("eps_loss", "noise given", eps_loss.squared_error_kernel, ERROR | {"noise_ptr": DATA}, GIVEN,
            reduces=True),
    Variant("fourier_features", "2 frequencies", fourier.fourier_kernel, FOURIER, TWO),
    Variant("fourier_features", "gradient", fourier.fourier_gradient_kernel, FOURIER_GRADIENT, TWO),
    Variant("sampler_step", "ancestral", sampler_step.step_kernel, STEP, NOISY | _absent("step x_prev offset u x_hat")),
    Variant("sampler_step", "everything", sampler_step.step_kernel, STEP_ALL, NOISY | GIVEN | {"CLIP": True}),
    Variant("sampler_step", "gradient", sampler_step.step_gradient_kernel, STEP_GRADIENT,
            CLIPPED | _absent("step offset u")),
    Variant("sampler_step", "gradient, everything", sampler_step.step_gradient_kernel, STEP_GRADIENT_ALL, CLIPPED),
    Variant("reparameterize", "noise drawn", gaussian.reparameterize_kernel, REPARAMETERIZE, DRAWN),
    Variant("reparameterize", "noise given", gaussian.reparameterize_kernel, REPARAMETERIZE | {"noise_ptr": DATA},
            GIVEN),
    Variant("reparameterize", "gradient, drawn", gaussian.reparameterize_gradient_kernel, REPARAMETERIZE_GRADIENT,
            {"WITH_Z": True} | DRAWN),
    Variant("reparameterize", "gradient of the KL", gaussian.reparameterize_gradient_kernel, REPARAMETERIZE_GRADIENT,
            {"WITH_Z": False, "grad_z_ptr": None} | DRAWN, aside=True),
    Variant("gaussian_log_ratio", "", gaussian.log_ratio_kernel, RATIO, {"BLOCK": BLOCK}, reduces=True),
    Variant("gaussian_log_ratio", "gradient", gaussian.log_ratio_gradient_kernel, RATIO_GRADIENT, {"BLOCK": BLOCK}),
    Variant("decoder_nll", "logvar [B]", decoder_nll.nll_kernel, NLL, PER_SAMPLE, reduces=True),
    Variant("decoder_nll", "logvar like mean", decoder_nll.nll_kernel, NLL | {"logvar_ptr": DATA}, PER_ELEMENT,
            reduces=True),
    Variant("decoder_nll", "gradient, logvar [B]", decoder_nll.nll_gradient_kernel, NLL_GRADIENT, PER_SAMPLE),
    Variant("decoder_nll", "gradient, logvar like mean", decoder_nll.nll_gradient_kernel,
            NLL_GRADIENT | {"logvar_ptr": DATA, "by_logvar_ptr": DATA}, PER_ELEMENT),
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
