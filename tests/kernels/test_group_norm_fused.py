"""What `group_norm_silu` takes in beside the norm: pre_shift, residual, skip, and no activation, against float64."""

from itertools import product

import numpy as np
import oracle
import pytest
import torch
from fastdiff_kernels import group_norm_blocks, group_norm_silu, use_backend
from lengths import usually
from norms import DTYPES, LAYOUTS, PATHS, TOLERANCES, draw, error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PATTERNS = (
    "pre_shift",
    "residual",
    "skip",
    "pre_shift residual",
    "residual skip",
    "scale shift pre_shift residual skip",
)


def patterned(used: str, shape, behind: int, dtype=torch.float32, layout="channels last", mean=0.0) -> tuple:
    """x, weight, bias, and the optional arguments that ``used`` names, by name; skip has ``behind`` channels."""
    names, total = used.split(), shape[1] + (behind if "skip" in used else 0)
    skip = (shape[0], behind, *shape[2:])
    tensors = {
        "x": LAYOUTS[layout]((draw(*shape, seed=0) + mean).to(dtype)),
        "weight": draw(total, seed=1),
        "bias": draw(total, seed=2),
        **dict(zip(("scale", "shift"), draw(shape[0], 2 * total, seed=3).to(dtype).chunk(2, 1), strict=True)),
        "pre_shift": draw(shape[1], seed=4).expand(shape[:2]),  # a bias: rows of stride 0
        "residual": LAYOUTS[layout]((draw(*shape, seed=5) - mean).to(dtype)),
        "skip": LAYOUTS[layout](draw(*skip, seed=6).to(dtype)),
    }
    return {name: value for name, value in tensors.items() if name in ("x", "weight", "bias", *names)}, total


def evaluated(function, tensors: dict[str, Tensor], groups: int, upstream: list[Tensor], **others) -> list[Tensor]:
    """The values and the gradients to all tensors."""
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    out = function(groups=groups, **leaves, **others)
    out = out if isinstance(out, tuple) else (out,)
    gradients = torch.autograd.grad(
        out, list(leaves.values()), [u.to(v.dtype) for u, v in zip(upstream, out, strict=False)]
    )
    return [*(value.detach() for value in out), *gradients]


EVERY = list(product([*PATHS, "tiles"], PATTERNS, DTYPES))
USUAL = [
    each for each in EVERY if each[0] == "torch" or each[1] == PATTERNS[-1] or each[::2] == ("tiles", torch.float32)
]


@pytest.mark.parametrize(("path", "used", "dtype"), usually(USUAL, EVERY, True), ids=str)
def test_fused_patterns(path, used, dtype, monkeypatch):
    """Values and gradients of sums, of two sources with a group that holds channels of both, and of the plain norm.

    Measured in float32: 1.1e-6 (the reference 4.7e-7). In 16 bits the exact total is rounded too, and the gradients to
    float32 arguments are sums of what is not rounded.
    """
    if path == "tiles":
        monkeypatch.setattr(group_norm_blocks, "ON_CHIP", 16)
    backend = "interpreter" if path == "tiles" else path
    for layout, activation in (("channels last", True), ("contiguous", False)):
        tensors, channels = patterned(used, (2, 10, 5, 6), 6, dtype, layout)
        groups = 4 if "skip" in used else 5
        upstream = [draw(2, channels, 5, 6, seed=k).to(dtype) for k in (8, 9)]
        with use_backend(backend):
            found = evaluated(group_norm_silu, tensors, groups, upstream, activation=activation)
            again = evaluated(group_norm_silu, tensors, groups, upstream, activation=activation)
        wide = {name: value.double() for name, value in tensors.items()}
        truncated = backend == "interpreter" and dtype == torch.bfloat16
        exact = evaluated(
            oracle.group_norm_silu, wide, groups, upstream, activation=activation,
            rounded_to=torch.float64 if truncated else dtype,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        for value, expected in zip(found, exact, strict=True):
            coarse = 4.0 if truncated else 1.0  # the total is truncated before it is normalised
            unit = TOLERANCES[dtype if truncated else value.dtype]
            assert error(value, expected) <= coarse * unit


@pytest.mark.parametrize("path", PATHS)
def test_the_total_without_the_norm(path):
    """Where only the total is used, its gradient passes through; where only y is, none is added."""
    tensors, _ = patterned("pre_shift residual skip", (2, 4, 3, 3), 2)
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    upstream = draw(2, 6, 3, 3, seed=9)
    with use_backend(path):
        y, total = group_norm_silu(groups=3, **leaves)
        gradients = torch.autograd.grad(total, list(leaves.values()), upstream, retain_graph=True)
        (alone,) = torch.autograd.grad(y.sum(), leaves["x"])
    found = dict(zip(leaves, gradients, strict=True))
    assert torch.equal(found["x"], upstream[:, :4])
    assert torch.equal(found["residual"], upstream[:, :4])
    assert torch.equal(found["skip"], upstream[:, 4:])
    torch.testing.assert_close(found["pre_shift"], upstream[:, :4].sum((2, 3)))
    assert not any(found[name].any() for name in ("weight", "bias"))
    wide = {name: value.detach().double().requires_grad_(name == "x") for name, value in leaves.items()}
    (expected,) = torch.autograd.grad(oracle.group_norm_silu(groups=3, **wide)[0].sum(), wide["x"])
    assert error(alone, expected) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("path", PATHS)
def test_x_as_its_own_residual(path):
    """x and residual get the same tensor as their gradient, which must be added up and not overwritten."""
    x, weight, bias = draw(2, 4, 3, 3, seed=0).requires_grad_(), draw(4, seed=1), draw(4, seed=2)
    upstream = [draw(2, 4, 3, 3, seed=k) for k in (3, 4)]
    with use_backend(path):
        torch.autograd.backward(group_norm_silu(x, 2, weight, bias, residual=x), upstream)
    wide = x.detach().double().requires_grad_()
    exact = oracle.group_norm_silu(wide, 2, weight.double(), bias.double(), residual=wide)
    torch.autograd.backward(exact, [u.double() for u in upstream])
    assert error(x.grad, wide.grad) <= TOLERANCES[torch.float32]
    leaves = [draw(2, 4, 3, 3, seed=k).requires_grad_() for k in (0, 5)]
    with use_backend(path):
        torch.autograd.backward(group_norm_silu(leaves[0], 2, weight, bias, residual=leaves[1]), upstream)
    gradient = leaves[1].grad.clone()
    leaves[0].grad.zero_()  # the leaves do not share memory
    assert torch.equal(leaves[1].grad, gradient)


@pytest.mark.parametrize("path", [*PATHS, "tiles"])
def test_fused_patterns_at_a_large_mean(path, monkeypatch):
    """A pre_shift of 1000 costs as many digits as a mean of 1000. Measured: values 5.8e-5, gradients 1.4e-4."""
    if path == "tiles":
        monkeypatch.setattr(group_norm_blocks, "ON_CHIP", 16)
    tensors, channels = patterned("pre_shift residual skip", (2, 10, 8, 8), 6)
    tensors["pre_shift"] = tensors["pre_shift"] + 1000.0
    tensors["skip"] = tensors["skip"] + 1000.0
    upstream = [draw(2, channels, 8, 8, seed=k) for k in (8, 9)]
    with use_backend("interpreter" if path == "tiles" else path):
        found = evaluated(group_norm_silu, tensors, 4, upstream)
    wide = {name: value.double() for name, value in tensors.items()}
    exact = evaluated(oracle.group_norm_silu, wide, 4, upstream, rounded_to=torch.float32)
    assert error(found[0], exact[0]) < 7e-5
    for value, expected in zip(found[1:], exact[1:], strict=True):
        assert error(value, expected) < 2e-4


@pytest.mark.parametrize("path", PATHS)
def test_fused_patterns_without_elements(path):
    for shape in ((0, 4, 3, 3), (2, 4, 0, 3)):
        tensors, channels = patterned("pre_shift residual skip", shape, 2)
        upstream = [torch.empty(shape[0], channels, *shape[2:])] * 2
        with use_backend(path):
            y, total, *gradients = evaluated(group_norm_silu, tensors, 3, upstream)
        assert y.shape == total.shape == (shape[0], channels, *shape[2:])
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("path", PATHS)
def test_nan_in_the_skip_spreads_over_its_group_only(path):
    """The first group holds channels of x only, the second of both, the third of skip only."""
    tensors, _ = patterned("residual skip", (2, 5, 3, 3), 4)
    tensors["skip"][1, 0, 1, 1] = float("nan")
    with use_backend(path), np.errstate(all="ignore"):
        y, total, dx, *_, dskip = evaluated(group_norm_silu, tensors, 3, [torch.ones(2, 9, 3, 3)] * 2)
    hit = torch.zeros(2, 9, 3, 3, dtype=torch.bool)
    hit[1, 3:6] = True
    assert torch.equal(y.isnan(), hit)
    assert torch.equal(torch.cat([dx, dskip], 1).isnan(), hit)
    assert total.isnan().nonzero().tolist() == [[1, 5, 1, 1]]


class Operations(TorchDispatchMode):
    """Records the operations of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", PATHS)
def test_one_operation_forward_and_one_backward(path):
    tensors, channels = patterned(PATTERNS[-1], (2, 10, 5, 6), 6)
    upstream = [draw(2, channels, 5, 6, seed=k) for k in (8, 9)]
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    with use_backend(path), Operations() as operations:
        out = group_norm_silu(groups=4, **leaves)
        torch.autograd.grad(out, list(leaves.values()), upstream)
    assert [name for name in operations.seen if "detach" not in name] == [
        "fastdiff::group_norm_silu", "fastdiff::group_norm_silu_gradient",
    ]  # fmt: skip
