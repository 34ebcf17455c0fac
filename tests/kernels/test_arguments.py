"""Wrong arguments of the operations: the type of the error, and that it names the argument."""

import pytest
import torch
from fastdiff_kernels import (
    FastdiffError,
    InvalidTypeError,
    InvalidValueError,
    Noise,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    noise_sum,
    reparameterize,
    sampler_step,
    to_unit_range,
    use_backend,
)

X, GAMMA, NOISE, ONES = torch.zeros(2, 6, 4, 5), torch.zeros(2), Noise(1), torch.ones(6)
ROW = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
STEP = torch.tensor([0])
NODES = torch.zeros(1, 2, dtype=torch.int64)
WRONG_TYPES = {
    "diffuse: x .*float64": lambda: diffuse(X.double(), GAMMA, NOISE),
    "diffuse: x .*list": lambda: diffuse([1.0], GAMMA, NOISE),
    "diffuse: gamma .*float64": lambda: diffuse(X, GAMMA.double(), NOISE),
    "diffuse: noise .*int": lambda: diffuse(X, GAMMA, 3),
    "dropout: x .*float64": lambda: dropout(X.double(), 0.5, NOISE),
    "dropout: p .*str": lambda: dropout(X, "0.5", NOISE),
    "dropout: noise must be a Noise, .*tensor": lambda: dropout(X, 0.5, X),
    "dropout: layer .*float": lambda: dropout(X, 0.5, NOISE, 1.0),
    "reparameterize: logvar": lambda: reparameterize(X, 0.0, NOISE),
    "fourier_features: dtype": lambda: fourier_features(X, dtype=torch.float64),
    "fourier_features: n_min": lambda: fourier_features(X, 3.5),
    "decoder_nll: x .*float32": lambda: decoder_nll(X, X, GAMMA),
    "decoder_nll: levels": lambda: decoder_nll(X.byte(), X, GAMMA, 17.5),
    "sampler_step: clip .*str": lambda: sampler_step(X, X, ROW, clip="1"),
    "sampler_step: history .*Tensor|tensor": lambda: sampler_step(X, X, ROW, history=X),
    "group_norm_silu: groups": lambda: group_norm_silu(X, 2.0, ONES, ONES),
    "group_norm_silu: scale .*float16": lambda: group_norm_silu(X, 3, ONES, ONES, X[:, :, 0, 0].half(), X[:, :, 0, 0]),
    "group_norm_silu: pre_shift .*float16": lambda: group_norm_silu(X, 3, ONES, ONES, pre_shift=X[:, :, 0, 0].half()),
    "group_norm_silu: residual .*float64": lambda: group_norm_silu(X, 3, ONES, ONES, residual=X.double()),
    "group_norm_silu: skip .*int": lambda: group_norm_silu(X, 3, ONES, ONES, skip=1),
    "group_norm_silu: activation .*got 1": lambda: group_norm_silu(X, 3, ONES, ONES, activation=1),
    "noise_sum: noise .*int": lambda: noise_sum(3, NODES, torch.zeros(1, 2), (2,)),
}
WRONG_VALUES = {
    r"diffuse: x .*1 dimensions, got shape \(\)": lambda: diffuse(torch.tensor(1.0), GAMMA, NOISE),
    r"diffuse: gamma must have shape \(2,\), got \(3,\)": lambda: diffuse(X, torch.zeros(3), NOISE),
    r"diffuse: noise .*\(2, 6, 4, 4\)": lambda: diffuse(X, GAMMA, X[..., :4]),
    "diffuse: noise .*gradient": lambda: diffuse(X, GAMMA, X.clone().requires_grad_()),
    "diffuse: gamma .*device of x, cpu, got meta": lambda: diffuse(X, GAMMA.to("meta"), NOISE),
    r"dropout: p must be in .*got 0.999": lambda: dropout(X, 0.999, NOISE),
    "dropout: p .*got nan": lambda: dropout(X, float("nan"), NOISE),
    "dropout: p .*got -0.1": lambda: dropout(X, -0.1, NOISE),
    r"dropout: layer must be in \[0, 8388608\), got -1": lambda: dropout(X, 0.5, NOISE, -1),
    "dropout: layer .*got 8388608": lambda: dropout(X, 0.5, NOISE, 2**23),
    "eps_loss: weight": lambda: eps_loss(X, NOISE, GAMMA[:, None]),
    "fourier_features: n_min and n_max": lambda: fourier_features(X, 5, 4),
    "gaussian_log_ratio: mean_p": lambda: gaussian_log_ratio(X, X, X, X[..., :4], X),
    "decoder_nll: x .*shape and device of mean": lambda: decoder_nll(X[..., :4].byte(), X, GAMMA),
    r"decoder_nll: x .*\[0, 17\), got 0 to 17": lambda: decoder_nll(X.index_fill(0, STEP, 17).byte(), X, GAMMA, 17),
    "decoder_nll: levels .*got 1": lambda: decoder_nll(X.byte(), X, GAMMA, 1),
    r"to_unit_range: x .*\[0, 17\), got -1 to 0": lambda: to_unit_range(X.index_fill(0, STEP, -1).long(), 17),
    "sampler_step: row": lambda: sampler_step(X, X, ROW[:7]),
    "sampler_step: row .*table": lambda: sampler_step(X, X, ROW, step=STEP),
    "sampler_step: row .*gradient": lambda: sampler_step(X, X, ROW.clone().requires_grad_()),
    "sampler_step: step": lambda: sampler_step(X, X, ROW[None], step=STEP.int()),
    "sampler_step: clip": lambda: sampler_step(X, X, ROW, clip=0.0),
    "sampler_step: history .*at most 3": lambda: sampler_step(X, X, ROW, history=[X] * 4),
    r"sampler_step: history\[1\]": lambda: sampler_step(X, X, ROW, history=[X, X[..., :4]]),
    "group_norm_silu: groups .*6 channels": lambda: group_norm_silu(X, 4, ONES, ONES),
    "group_norm_silu: scale and shift": lambda: group_norm_silu(X, 3, ONES, ONES, X[:, :, 0, 0]),
    "group_norm_silu: shift": lambda: group_norm_silu(X, 3, ONES, ONES, X[:, :, 0, 0], X[:, :5, 0, 0]),
    r"group_norm_silu: pre_shift .*\(2, 6\)": lambda: group_norm_silu(X, 3, ONES, ONES, pre_shift=X[:, :5, 0, 0]),
    "group_norm_silu: residual .*shape of x": lambda: group_norm_silu(X, 3, ONES, ONES, residual=X[:, :3]),
    "group_norm_silu: residual .*got meta": lambda: group_norm_silu(X, 3, ONES, ONES, residual=X.to("meta")),
    r"group_norm_silu: skip .*\[2, Cs, 4, 5\] on cpu": lambda: group_norm_silu(X, 3, ONES, ONES, skip=X[..., :4]),
    "group_norm_silu: skip .*meta": lambda: group_norm_silu(X, 3, ONES, ONES, skip=X.to("meta")),
    "group_norm_silu: skip .*Cs": lambda: group_norm_silu(X, 3, ONES, ONES, skip=X[:, :0]),
    "group_norm_silu: groups .*9 channels of x and skip": lambda: group_norm_silu(X, 2, ONES, ONES, skip=X[:, :3]),
    r"group_norm_silu: weight .*\(9,\)": lambda: group_norm_silu(X, 3, ONES, ONES, skip=X[:, :3]),
    "group_norm_silu: eps": lambda: group_norm_silu(X, 3, ONES, ONES, eps=-1.0),
    "noise_sum: nodes .*float32": lambda: noise_sum(NOISE, torch.zeros(1, 2), torch.zeros(1, 2), (2,)),
    "noise_sum: nodes .*shape .2,.": lambda: noise_sum(NOISE, NODES[0], torch.zeros(1, 2), (2,)),
    "noise_sum: nodes .*shape .1, 0.": lambda: noise_sum(NOISE, NODES[:, :0], torch.zeros(1, 0), (2,)),
    "noise_sum: weights .*float64": lambda: noise_sum(NOISE, NODES, torch.zeros(1, 2).double(), (2,)),
    "noise_sum: weights .*shape .2, 2.": lambda: noise_sum(NOISE, NODES, torch.zeros(2, 2), (2,)),
    "noise_sum: noise .*on meta": lambda: noise_sum(NOISE, NODES.to("meta"), torch.zeros(1, 2, device="meta"), (2,)),
    "noise_sum: shape .*-1": lambda: noise_sum(NOISE, NODES, torch.zeros(1, 2), (2, -1)),
}


@pytest.mark.parametrize("message", [*WRONG_TYPES, *WRONG_VALUES])
def test_wrong_arguments(message):
    """Errors are of this package, and of Python's TypeError or ValueError as well."""
    ours, python = (InvalidTypeError, TypeError) if message in WRONG_TYPES else (InvalidValueError, ValueError)
    with pytest.raises(ours, match=message) as caught:
        {**WRONG_TYPES, **WRONG_VALUES}[message]()
    assert isinstance(caught.value, python)
    assert isinstance(caught.value, FastdiffError)


def test_values_are_not_looked_at_under_a_compiler():
    x = torch.full((2, 3), 17, dtype=torch.uint8)
    compiled = torch.compile(lambda x: (to_unit_range(x, 17), decoder_nll(x, x.float(), GAMMA, 17)), backend="eager")
    assert compiled(x)[0].shape == x.shape


def test_a_sample_that_is_too_large():
    x = torch.zeros(1, 1, 1).expand(1, 2, 2**30)
    with use_backend("interpreter"), pytest.raises(InvalidValueError, match="2147483648"):
        group_norm_silu(x, 1, torch.ones(2), torch.ones(2))
