"""Right and wrong arguments of the fused operations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastdiff import kernels
from fastdiff.kernels import Noise

from . import wrong_values as wrong

X, PER_SAMPLE, NOISE, ONES = wrong.X, torch.zeros(2), Noise(1), torch.ones(4)
LEVELS = torch.zeros(2, 4, 3, 3, dtype=torch.uint8)
ROW = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
INTEGER_RANGE = [-1, 31, 1.5, "x", None, wrong.NAN]


class Call(NamedTuple):
    """A function, arguments with which it works, and wrong values for some of them."""

    function: Callable
    right: dict[str, Any]
    wrong: dict[str, list[Any]]


def row(**changes: float) -> torch.Tensor:
    changed = ROW.clone()
    for name, value in changes.items():
        changed[["scale", "sigma", "A", "B", "S", "w", "C1", "C2", "C3", "D"].index(name)] = value
    return changed


def operations() -> dict[str, Call]:
    """Operations on data, noise and one number per sample."""
    like = wrong.LIKE
    gaussian = dict.fromkeys(("mean_q", "logvar_q", "mean_p", "logvar_p"), X)
    return {
        "diffuse": Call(
            kernels.diffuse,
            {"x": X, "gamma": PER_SAMPLE, "noise": NOISE},
            {"x": wrong.DATA, "gamma": wrong.PER_SAMPLE, "noise": [None, *wrong.NOISE]},
        ),
        "eps_loss": Call(
            kernels.eps_loss,
            {"eps_hat": X, "noise": NOISE, "weight": PER_SAMPLE},
            {"eps_hat": wrong.DATA, "noise": [None, *wrong.NOISE], "weight": wrong.PER_SAMPLE},
        ),
        "reparameterize": Call(
            kernels.reparameterize,
            {"mean": X, "logvar": X, "noise": NOISE},
            {"mean": wrong.DATA, "logvar": [None, *like], "noise": [None, *wrong.NOISE]},
        ),
        "gaussian_log_ratio": Call(
            kernels.gaussian_log_ratio,
            {"z": X, **gaussian},
            {"z": wrong.DATA, "mean_q": [None, *like], "logvar_p": [None, *like]},
        ),
        "decoder_nll": Call(
            kernels.decoder_nll,
            {"x": LEVELS, "mean": X, "logvar": PER_SAMPLE, "levels": 17},
            {
                "x": [None, X, LEVELS[:1], LEVELS + 17, LEVELS.long(), LEVELS.bool()],
                "mean": [None, *like],
                "levels": [*wrong.POSITIVE, 1, 257],
            },
        ),
        "to_unit_range": Call(
            kernels.to_unit_range,
            {"x": LEVELS, "levels": 17},
            {
                "x": [LEVELS + 17, LEVELS.long() - 1, None, "x", X.to(torch.complex64)],
                "levels": [*wrong.POSITIVE, 1, 257],
            },
        ),
    }


def other_operations() -> dict[str, Call]:
    """Those with other arguments than data, noise and one number per sample."""
    like, rows = wrong.LIKE, [row(S=1), row(C1=1), row(C3=1), row(D=1), row(w=2), row(A=wrong.NAN), row(B=wrong.INF)]
    return {
        "sampler_step": Call(
            kernels.sampler_step,
            {"z_t": X, "eps_hat": X, "row": ROW},
            {
                "z_t": wrong.DATA,
                "eps_hat": [None, *like],
                "row": [None, X, ROW[:7], ROW.double(), *rows],
                "noise": wrong.NOISE,
                "clip": ["1", [], 1j, X, wrong.NAN, 0.0, -1.0],
                "history": [X, [X] * 4, [X[:1]], [None], 3, "x"],
                "z_prev": like,
                "eps_hat_uncond": like,
                "step": [0, X, torch.zeros(1).int(), torch.zeros(1).long()],
            },
        ),
        "dropout": Call(
            kernels.dropout,
            {"x": X, "p": 0.5, "noise": NOISE, "layer": 0},
            {"x": wrong.DATA, "p": wrong.PROBABILITY, "noise": [None, 3, X], "layer": [*wrong.COUNT, 2**23]},
        ),
        "fourier_features": Call(
            kernels.fourier_features,
            {"z": X, "n_min": 3, "n_max": 4},
            {
                "z": wrong.DATA,
                "n_min": [5, *INTEGER_RANGE],
                "n_max": INTEGER_RANGE,
                "dtype": [torch.float64, torch.int32, "float32", 3],
            },
        ),
        "group_norm_silu": Call(
            kernels.group_norm_silu,
            {"x": X, "groups": 2, "weight": ONES, "bias": ONES},
            {
                "x": [*wrong.DATA, torch.zeros(2)],
                "groups": [3, *wrong.POSITIVE],
                "weight": wrong.PER_SAMPLE[1:],
                "bias": wrong.PER_SAMPLE,
                "residual": like,
                "scale": [X, ONES],
                "eps": [*wrong.NO_NUMBER, wrong.NAN, -1.0],
                "activation": wrong.FLAG,
            },
        ),
        "Noise": Call(Noise, {"seed": 0}, {"seed": wrong.SEED, "step": wrong.NO_INTEGER, "stream": wrong.NO_INTEGER}),
    }
