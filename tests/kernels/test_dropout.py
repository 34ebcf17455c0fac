"""Dropout's mask against an independent Philox, bit for bit in both backends, and what it does not depend on."""

import math

import numpy as np
import oracle
import pytest
import torch
from fastdiff_kernels import Noise, dropout, use_backend
from fastdiff_kernels.dropout import dropped_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

BACKENDS = ("torch", "interpreter")


def kept(shape, p, noise, layer=0, dtype=torch.float32):
    """Which elements of ones are kept."""
    return dropout(torch.ones(shape, dtype=dtype), p, noise, layer) != 0


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def test_the_oracle_is_philox():
    """Known answers of Random123's kat_vectors for philox4x32, 10 rounds."""
    ones = np.full(1, 2**32 - 1)
    words = [int(word[0]) for word in oracle.philox(2**64 - 1, ones, ones, 2**32 - 1, 2**32 - 1)]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    zeros = np.zeros(1, dtype=np.int64)
    words = [int(word[0]) for word in oracle.philox(0, zeros, zeros, 0, 0)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_bytes(backend):
    """From the algorithm in Python's integers. An element is kept if k is at most its byte."""
    expected = [254, 81, 233, 20, 76, 225, 173, 24, 168, 80, 77, 199, 149, 110, 81, 134, 208, 127, 155, 114]
    assert oracle.dropout_bytes((1, 20), 7, layer=3)[0].tolist() == expected
    for k in (81, 82, 173, 254, 255):
        with use_backend(backend):
            assert kept((1, 20), k / 256, Noise(7), 3)[0].tolist() == [byte >= k for byte in expected]


@pytest.mark.parametrize(("backend", "examples"), [("torch", 100), ("interpreter", 20)])
def test_every_element_follows_the_contract(backend, examples):
    """For any key, size, layer and probability, contiguous and channels-last: values are exactly those of float64."""

    @settings(max_examples=examples)
    @given(
        seed=st.integers(0, 2**64 - 1),
        step=st.integers(0, 2**32 - 1),
        first=st.integers(0, 2**32 - 1),
        layer=st.integers(0, 2**23 - 1),
        shape=st.sampled_from([(2, 17), (1, 1), (3, 5, 7), (2, 3, 4, 4), (2, 20, 2, 2), (1, 5, 3, 7), (1, 18, 4, 12)]),
        k=st.integers(1, 255),
    )
    def check(seed, step, first, layer, shape, k):
        x = torch.randn(shape)
        noise = Noise(seed, step, first, stream=77)
        drawn = torch.from_numpy(oracle.dropout_bytes(shape, seed, step, first, layer).astype(np.int64))
        expected = torch.where(drawn >= k, x * torch.tensor(256.0 / (256 - k)), 0.0)
        for laid in (x, last(x)) if len(shape) == 4 else (x,):
            with use_backend(backend):
                found = dropout(laid, k / 256, noise, layer)
            assert torch.equal(found, expected)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 2, 30, 40), (2, 96, 8, 8), (1, 130, 4, 4), (2, 3, 37, 41)], ids=str)
def test_several_programs(shape, backend):
    x = torch.ones(shape)
    expected = torch.from_numpy(oracle.dropout_bytes(shape, 5, 6, 7, 8) >= 128)
    with use_backend(backend):
        for laid in (x, last(x)):
            assert torch.equal(dropout(laid, 0.5, Noise(5, 6, 7), 8) != 0, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_rounded_once(dtype, backend):
    """Triton's interpreter truncates bfloat16, so that there it may differ by one unit in the last place."""
    x = torch.randn(2, 4, 4, 5).to(dtype)
    exact = oracle.dropout(x.double(), 0.3, 3)
    with use_backend(backend):
        found = dropout(x, 0.3, Noise(3))
    assert torch.equal(found == 0, exact == 0)
    truncated = backend == "interpreter" and dtype == torch.bfloat16
    # 256 / (256 - k) is itself rounded to float32, which matters next to a tie only: there is none here
    torch.testing.assert_close(found, exact.to(dtype), rtol=2.0**-7 if truncated else 0.0, atol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dropped_element_is_zero_whatever_it_was(backend):
    """A choice, not a product: NaN and infinity are dropped too, and never with the sign of a negative number."""
    mask = kept((1, 64), 0.5, Noise(1))
    for value in (math.nan, math.inf, -math.inf, -1.0):
        with use_backend(backend):
            y = dropout(torch.full((1, 64), value), 0.5, Noise(1))
        assert torch.equal(y[~mask], torch.zeros(int((~mask).sum())))
        assert not y[~mask].signbit().any()
        torch.testing.assert_close(y[mask], torch.full((int(mask.sum()),), 2.0 * value), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_the_same_operation(backend):
    """Of each layout, with an upstream gradient of the other one too."""
    x, grad = torch.randn(2, 4, 4, 8, requires_grad=True), torch.randn(2, 4, 4, 8)
    expected = oracle.dropout(grad.double(), 0.25, 9, 1, 2, 3)
    for laid in (x, last(x)):
        for upstream in (grad, last(grad)):
            with use_backend(backend):
                (found,) = torch.autograd.grad(dropout(laid, 0.25, Noise(9, 1, 2), 3), x, upstream)
            torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=0.0)


@given(first=st.integers(0, 30), batch=st.integers(1, 4), shape=st.sampled_from([(), (3,), (2, 3, 5), (4, 4, 4)]))
def test_a_sample_does_not_depend_on_its_batch(first, batch, shape):
    whole = kept((35, *shape), 0.5, Noise(3, 1))
    assert torch.equal(kept((batch, *shape), 0.5, Noise(3, 1, first)), whole[first : first + batch])


def test_chunks_of_the_reference_change_nothing():
    """More counters than one chunk, along the samples and along the elements, against single rows."""
    wide, tall = kept((2, 1_200_007), 0.5, Noise(5)), kept((40_000, 9), 0.5, Noise(5))
    assert torch.equal(wide[1], kept((1, 1_200_007), 0.5, Noise(5, first_sample=1))[0])
    assert torch.equal(tall[39_999], kept((1, 9), 0.5, Noise(5, first_sample=39_999))[0])


def test_layers_steps_and_seeds_differ_and_the_stream_does_not_matter():
    base = kept((1, 256), 0.5, Noise(1, 2, 3, 4), 5)
    for other in (kept((1, 256), 0.5, Noise(*key), layer) for key, layer in (
        ((2, 2, 3), 5), ((1, 3, 3), 5), ((1, 2, 4), 5), ((1, 2, 3), 6), ((1, 2, 3), 5 + 2**16)
    )):  # fmt: skip
        assert 64 < int((base != other).sum()) < 192
    assert torch.equal(base, kept((1, 256), 0.5, Noise(1, 2, 3), 5))


def test_the_share_of_dropped_elements():
    """Within 4 standard errors of k / 256, the multiple that is nearest to p."""
    n = 1 << 18
    for p, k in ((0.1, 26), (0.3, 77), (0.5, 128), (0.9, 230), (0.998, 255)):
        assert dropped_bytes("test", p) == k
        dropped = 1.0 - float(kept((4, n // 4), p, Noise(11)).double().mean())
        assert abs(dropped - k / 256) <= 4.0 * math.sqrt(k / 256 * (1 - k / 256) / n)


def test_small_probabilities_are_the_identity():
    x = torch.randn(2, 3)
    assert dropout(x, 0.0, Noise(1)) is x
    assert dropout(x, 0.00195, Noise(1)) is x  # below 1/512
    assert dropped_bytes("test", 1 / 512) == 1


def test_a_new_step_or_layer_is_compiled_once():
    """The key is a tensor; a layer is a constant of the graph, as the layers of a network are."""
    compiled = torch.compile(lambda x, noise: dropout(dropout(x, 0.3, noise, 0), 0.3, noise, 1), fullgraph=True)
    x = torch.randn(2, 3, 4, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            noise = Noise(1, step)
            expected = dropout(dropout(x, 0.3, noise, 0), 0.3, noise, 1)
            torch.testing.assert_close(compiled(x, noise), expected)
