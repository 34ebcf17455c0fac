"""Random shapes, layouts and dtypes: values and gradients of every operation in the interpreter, against float64.

Every example runs under the guard, with NaN around every input: nothing is accessed outside, and all outputs are
written once. The results have the dtypes and strides that the fake implementation promises to a compiler.
"""

import math

import pytest
import torch
from cases import DTYPES, EVERY_CASE, UNIT, cancellation, evaluate
from fastdiff_kernels import use_backend
from fastdiff_kernels.launch import BLOCK
from guards import LAYOUTS, guarded, surrounded
from hypothesis import given, settings
from hypothesis import strategies as st
from lengths import usually
from torch._subclasses import FakeTensorMode

DRAWING = [name for name in EVERY_CASE if "draw" in name]  # their programs take ten times as long to interpret
EXAMPLES = max(12, 800 // (len(EVERY_CASE) + 2 * len(DRAWING)))  # per case: more cases take no more time
FEW = 6  # examples of a case by default
CHANNELLED = ("fourier", "group_norm")  # they need a channel, and each channel costs programs
NORMAL_ERROR = 4e-6  # of a drawn normal, by its contract
SMALL = (0, 1, 2, 3, 5, 7, 11, 13)
AROUND_BLOCKS = (  # sizes near a block of 16 to 64 elements, near BLOCK, and of several blocks
    (15,), (16,), (17,), (2, 8), (31,), (1, 3, 11), (64,), (5, 13), (3, 11, 31), (4, 16, 16), (5, 5, 41),
    (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (2, BLOCK), (1, 2 * BLOCK + 1), (1, 37, 83), (2, 2, 769),
)  # fmt: skip
BORDERS = ((0, 3), (2, 1), (2, 3, 0), (2, 1, BLOCK - 1), (2, 1, BLOCK), (2, 1, BLOCK + 1), (2, 1, 2 * BLOCK + 1))


@st.composite
def shapes(draw) -> tuple[int, ...]:
    """Samples of one to three dimensions, with and without elements; sometimes a few samples of several blocks."""
    if draw(st.integers(0, 3)):
        inner = tuple(draw(st.lists(st.sampled_from(SMALL), min_size=1, max_size=3)))
        return (draw(st.integers(0, 3)), *(inner if math.prod(inner) < 300 else inner[:2]))
    inner = draw(st.sampled_from(AROUND_BLOCKS))
    return (draw(st.integers(1, 3 if math.prod(inner) < BLOCK else 2)), *inner)


@st.composite
def arguments(draw, name):
    """The tensors of a case, each in its own layout and dtype, and the layout of the upstream gradients."""
    shape = draw(shapes())
    if name.startswith(CHANNELLED) and not 1 <= shape[1] <= 4:
        shape = (shape[0], draw(st.integers(1, 4)), *shape[2:])
    dtypes = [draw(st.sampled_from(DTYPES))]
    if draw(st.booleans()):
        dtypes.append(draw(st.sampled_from(DTYPES)))
    tensors = []
    for plain, other in zip(*(EVERY_CASE[name].make(shape, d) for d in (torch.float32, torch.float16)), strict=True):
        dtype = draw(st.sampled_from(dtypes)) if plain.dtype != other.dtype else plain.dtype
        layouts = LAYOUTS if plain.dim() > 1 else ("contiguous", "misaligned", "strided", "constant")
        if name.startswith("group_norm"):  # the interpreter's mean of 1000 equal numbers is wrong by 1e-5
            layouts = layouts[:-1]
        tensors.append(surrounded(plain.to(dtype), draw(st.sampled_from(layouts))))
    return tensors, draw(st.sampled_from(LAYOUTS))


def exactly(case, tensors, upstream, change=0.0):
    """Values and gradients in float64, with every number changed by the relative ``change``, up or down."""

    def wide(t):
        t = t.double()
        return t * (1.0 + change * torch.randn(t.shape).sign()) if change else t

    changed = [wide(t) if t.is_floating_point() else t for t in tensors]
    gradients = iter([wide(t) for t in upstream])
    return evaluate(case.exact, changed, case.differentiable, lambda _: next(gradients))


def rounding(dtype):
    """The tolerance of test_operations for the interpreter, relative to the largest entry."""
    return UNIT[dtype] * (2.0 if dtype == torch.bfloat16 else 1.0)


def check_close(name, found, tensors, upstream):
    """Rounding as in test_operations; for sums over a sample also the loss where their terms cancel.

    That loss is the effect of a change of half a unit in the last place of every number, times 16, or times the root of
    the number of pixels if that is more, since the interpreter adds up the rows of a block one after the other.
    """
    case, error = EVERY_CASE[name], NORMAL_ERROR if name in DRAWING else 0.0
    rows = max(16.0, math.sqrt(tensors[0].shape[2:].numel()))
    coarsest = max(rounding(t.dtype) for t in tensors if t.is_floating_point())
    exact = exactly(case, tensors, upstream)
    disturbed = [exactly(case, tensors, upstream, 2.0**-24) for _ in range(3)]
    for part, (results, wanted) in enumerate(zip(found, exact, strict=True)):
        for k, (result, right) in enumerate(zip(results, wanted, strict=True)):
            assert result.shape == right.shape
            if not result.numel():
                continue
            allowed = ((coarsest if part else rounding(result.dtype)) + error) * max(1.0, float(right.abs().max()))
            if result.dim() == 1 or name.startswith("group_norm"):
                allowed += rows * max(float((other[part][k] - right).abs().max()) for other in disturbed)
            if part:
                allowed += cancellation(case, case.differentiable[k], wanted[0])
            difference = float((result.double() - right).abs().max())
            what = f"gradient {case.differentiable[k]}" if part else f"value {k}"
            assert difference <= allowed, f"{what}: error {difference:.3g}, allowed {allowed:.3g}"


def check_promises(case, tensors, values, gradients):
    """Shapes, dtypes and strides are those of the fake implementation. A gradient has the dtype of its argument."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = case.ours(*(mode.from_tensor(t) for t in tensors))
    fake = [t for t in (fake if isinstance(fake, tuple) else (fake,)) if t is not None]
    for value, promised in zip(values, fake, strict=True):
        assert value.dtype == promised.dtype
        assert value.shape == promised.shape
        if value.numel():  # the stride of a dimension of size 1 is meaningless
            wide = [k for k, size in enumerate(value.shape) if size > 1]
            assert [value.stride(k) for k in wide] == [promised.stride(k) for k in wide]
    for k, gradient in zip(case.differentiable, gradients, strict=True):
        assert gradient.dtype == tensors[k].dtype
        assert gradient.shape == tensors[k].shape


def check_case(name, tensors, layout):
    """Run a case on the tensors, with upstream gradients in the layout, and check accesses, promises and values."""
    case, upstream = EVERY_CASE[name], []

    def place(gradient):
        upstream.append(surrounded(gradient, layout))
        return upstream[-1]

    with use_backend("interpreter"), guarded() as guard:
        values, gradients = evaluate(case.ours, tensors, case.differentiable, place)
    for launch in guard.launches:
        launch.assert_written_once()
    check_promises(case, tensors, values, gradients)
    check_close(name, (values, gradients), tensors, upstream)


@pytest.mark.parametrize("examples", usually([FEW], [FEW, EXAMPLES]))
@pytest.mark.parametrize("name", EVERY_CASE)
def test_any_shape_layout_and_dtype(name, examples):
    @settings(max_examples=examples // 3 if name in DRAWING else examples)
    @given(arguments(name))
    def check(drawn):
        check_case(name, *drawn)

    check()


@pytest.mark.parametrize("shape", usually([(0, 3), (2, 1, BLOCK + 1)], BORDERS), ids=str)
@pytest.mark.parametrize("name", EVERY_CASE)
def test_borders(name, shape):
    """Sizes that must not be left to chance."""
    tensors = [surrounded(t) for t in EVERY_CASE[name].make(shape, torch.float32)]
    check_case(name, tensors, "contiguous")
