"""GroupNorm + SiLU under a compiler on a CPU: plain operations in place of the registered one, against float64."""

import pytest
import torch
from cases import EVERY_CASE, run
from fastdiff_kernels import group_norm_silu, use_backend
from lengths import usually

NAMES = [name for name in EVERY_CASE if name.startswith("group_norm_silu, ")]
SHAPE = (2, 6, 5, 3)
ERROR = 4e-7  # relative to the largest entry; of the gradients 8e-7. Measured: 2.6e-7 and 5.1e-7


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


EVERY = [*((name, torch.channels_last) for name in NAMES), ("group_norm_silu, everything", torch.contiguous_format)]
USUAL = [(NAMES[0], torch.channels_last), ("group_norm_silu, everything", torch.channels_last)]


@pytest.mark.parametrize(("name", "layout"), usually(USUAL, EVERY, True), ids=str)
def test_values_and_gradients(name, layout):
    case = EVERY_CASE[name]
    tensors = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in case.make(SHAPE, torch.float32)]
    with use_backend("torch"):
        found, gradients = run(compiled(case.ours), tensors, case.differentiable)
        expected, exact = run(case.exact, [t.double() for t in tensors], case.differentiable)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.stride() == torch.empty(ours.shape).contiguous(memory_format=layout).stride()
        assert error(ours, theirs) < ERROR
    for ours, theirs in zip(gradients, exact, strict=True):
        assert error(ours, theirs) < 2 * ERROR


def error(found, exact):
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiler_sees_plain_operations_of_the_dtype_of_x(dtype):
    """And in the interpreter, and for data without elements, the registered one."""
    seen = []

    def backend(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    x, weight = torch.randn(2, 8, 4, 4).to(dtype), torch.ones(8)
    call = lambda x: group_norm_silu(x, 4, weight, weight, residual=x)  # noqa: E731
    with use_backend("torch"):
        y, total = compiled(call, backend)(x)
        expected, expected_total = call(x)
        assert compiled(call, backend)(x[:0])[0].shape == (0, 8, 4, 4)
    with use_backend("interpreter"):
        compiled(call, backend)(x)
    assert (y.dtype, total.dtype) == (dtype, dtype)
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(y, expected)
    assert ["fastdiff" in " ".join(names) for names in seen] == [False, True, True]


def test_statistics_are_accurate_far_from_zero():
    """At mean 1000 and deviation 1, where E[u²] - E[u]² in float32 would keep no digit of the variance."""
    x, weight = 1000.0 + torch.randn(2, 8, 16, 16), torch.ones(8)
    exact = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 4))
    with use_backend("torch"):
        found = compiled(lambda x: group_norm_silu(x, 4, weight, 0.0 * weight))(x)
    assert error(found, exact) < 1e-4
