"""The noise contract: known answers, an independent implementation, and both backends."""

import numpy as np
import pytest
import torch
from fastdiff_kernels import InvalidTypeError, InvalidValueError, Noise, Stream, diffuse, use_backend
from fastdiff_kernels.noise import draw_reference, philox
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

# Error of a float32 normal against float64 Box-Muller of the same float32 u, allowed by the contract. Measured over
# 2**22 normals: 1.7e-6 (reference), 0.6e-6 (interpreter).
TOLERANCE = 4e-6

BACKENDS = ("torch", "interpreter")
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


def philox_python(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 as published (Salmon et al. 2011), in Python's integers."""
    mask = 2**32 - 1
    c0, c1, c2, c3 = counter
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        product_0, product_1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product_1 >> 32) ^ c1 ^ k0, product_1 & mask, (product_0 >> 32) ^ c3 ^ k1, product_0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def contract(seed: int, step: int, first: int, stream: int, batch: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Normals in float64, and the float32 uniforms they are made from, element by element as the contract says."""
    u = np.empty((batch, n), dtype=np.float32)
    normals = np.empty((batch, n))
    for b in range(batch):
        for i in range(n):
            row = (first + b) % 2**32
            words = philox_python(seed, (i // 4 % 2**32, row, step, stream))
            uniforms = [np.float32(np.float32(word) * np.float32(2.0**-32) + np.float32(2.0**-33)) for word in words]
            u[b, i] = uniforms[i % 4]
            radius, turn = (np.float64(value) for value in (uniforms[i % 4 // 2 * 2], uniforms[i % 4 // 2 * 2 + 1]))
            wave = np.cos if i % 2 == 0 else np.sin
            normals[b, i] = np.sqrt(-2.0 * np.log(radius)) * wave(2.0 * np.pi * turn)
    return normals, u


def test_the_published_vectors_of_philox():
    """Known answers of Random123's kat_vectors for philox4x32, 10 rounds."""
    ones = 2**32 - 1
    assert philox_python(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    counters = [torch.tensor(ones)] * 4
    words = tuple(int(word) for word in philox(2**64 - 1, *counters))
    assert words == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answers_of_the_contract(backend):
    with use_backend(backend):
        first = Noise(0).normal([1, 8])
        second = Noise(20261120, step=3, first_sample=5, stream=2).normal([2, 5])[1]
    expected = [0.9911378, -0.9246624, -0.617609, -0.4820686, -0.1536382, 0.1808258, 0.8317351, 0.1974397]
    torch.testing.assert_close(first[0], torch.tensor(expected), rtol=0, atol=TOLERANCE)
    expected = [-0.6451727, -0.8609319, -0.3457935, 0.9323844, -0.8671852]
    torch.testing.assert_close(second, torch.tensor(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("backend", "examples"), [("torch", 100), ("interpreter", 25)])
def test_every_element_follows_the_contract(backend, examples):
    @settings(max_examples=examples)
    @given(seed=U64, step=U32, first=U32, stream=U32, batch=st.integers(1, 3), n=st.integers(1, 21))
    def check(seed, step, first, stream, batch, n):
        noise = Noise(seed, step, first, stream)
        normals, u = contract(seed, step, first, stream, batch, n)
        with use_backend(backend):
            drawn, uniform = noise.normal([batch, n]), noise.uniform([batch, n])
        assert np.array_equal(uniform.numpy(), u)
        assert np.abs(drawn.numpy() - normals).max() <= TOLERANCE

    check()


@pytest.mark.parametrize(("backend", "n"), [("torch", 1 << 16), ("interpreter", 1 << 13)])
def test_error_over_many_normals(backend, n):
    """Against float64 Box-Muller of the float32 uniforms, over several blocks of the kernel and chunks of counters."""
    noise = Noise(7, 11, 13, 17)
    with use_backend(backend):
        drawn, u = noise.normal([2, n]).double(), noise.uniform([2, n]).double()
    pairs = u.view(2, -1, 2)
    radius, angle = (-2.0 * pairs[..., 0].log()).sqrt(), 2.0 * np.pi * pairs[..., 1]
    exact = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).view(2, -1)
    assert (drawn - exact).abs().max() <= TOLERANCE


@given(first=st.integers(0, 40), batch=st.integers(1, 5), shape=st.sampled_from([(), (3,), (2, 3, 5), (1, 7)]))
def test_a_sample_does_not_depend_on_its_batch(first, batch, shape):
    whole = Noise(3, 1, 0, Stream.INITIAL).normal([45, *shape])
    part = Noise(3, 1, first, Stream.INITIAL).normal([batch, *shape])
    assert torch.equal(part, whole[first : first + batch])


def test_chunks_of_the_reference_change_nothing():
    """More counters than one chunk, along the samples and along the elements, against single rows."""
    wide, tall = Noise(5).normal([2, 300_001]), Noise(5).normal([40_000, 9])
    assert torch.equal(wide[1], Noise(5, first_sample=1).normal([1, 300_001])[0])
    assert torch.equal(tall[39_999], Noise(5, first_sample=39_999).normal([1, 9])[0])


def test_the_four_numbers_and_their_wrapping():
    base = Noise(1, 2, 3, 4).normal([1, 64])
    for other in (Noise(2, 2, 3, 4), Noise(1, 3, 3, 4), Noise(1, 2, 4, 4), Noise(1, 2, 3, 5)):
        assert not torch.equal(other.normal([1, 64]), base)
    assert torch.equal(Noise(1, 2 + 2**32, 3 - 2**32, 4 + 2**33).normal([1, 64]), base)
    assert torch.equal(Noise(1).at(step=2, first_sample=3, stream=4).normal([1, 64]), base)
    wrapped = Noise(1, first_sample=2**32 - 1).normal([2, 8])
    assert torch.equal(wrapped[1], Noise(1).normal([1, 8])[0])


def test_normals_are_normal_and_streams_independent():
    """Moments within five standard errors of their exact values, and no correlation between streams."""
    x = Noise(123).normal([1, 1 << 20]).double().flatten()
    y = Noise(123, stream=1).normal([1, 1 << 20]).double().flatten()
    error = 1.0 / len(x) ** 0.5
    assert abs(x.mean()) < 5 * error
    assert abs(x.square().mean() - 1.0) < 5 * 2**0.5 * error
    assert abs(x.pow(4).mean() - 3.0) < 5 * 96**0.5 * error
    assert abs((x * y).mean()) < 5 * error
    assert abs((x[1:] * x[:-1]).mean()) < 5 * error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_float32(dtype):
    assert torch.equal(Noise(9).normal([2, 33], dtype), Noise(9).normal([2, 33]).to(dtype))


def test_empty_shapes():
    for shape in ([0], [0, 3], [2, 0], [1]):
        assert Noise(0).normal(shape).shape == tuple(shape)
        with use_backend("interpreter"):
            assert Noise(0).normal(shape).shape == tuple(shape)


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: Noise(-1), InvalidValueError, "seed"),
        (lambda: Noise(2**64), InvalidValueError, "seed"),
        (lambda: Noise(1.5), InvalidTypeError, "seed"),
        (lambda: Noise(0, True), InvalidTypeError, "step"),
        (lambda: Noise(0).at(first_sample="a"), InvalidTypeError, "first_sample"),
        (lambda: Noise(0).normal([2, -1]), InvalidValueError, "shape"),
        (lambda: Noise(0).normal([]), InvalidValueError, "shape"),
        (lambda: Noise(0).normal([2], torch.int32), InvalidTypeError, "dtype"),
        (lambda: Noise.from_key(torch.zeros(4)), InvalidValueError, "key"),
        (lambda: Noise.from_key([1, 2, 3, 4]), InvalidValueError, "key"),
    ],
)
def test_wrong_arguments(make, error, name):
    with pytest.raises(error, match=name):
        make()


def test_noise_on_a_device_is_a_copy():
    noise = Noise(4, step=7)
    moved = noise.to("cpu")
    noise.advance()
    assert moved.counter.tolist() == [7]


def test_a_key_counts_modulo_32_bits_in_any_layout():
    strided = torch.tensor([5, 99, 2**40 + 1, 98, 2, 97, 3, 96])[::2]
    for backend in BACKENDS:
        with use_backend(backend):
            assert torch.equal(Noise.from_key(strided).normal((2, 5)), Noise(5, 1, 2, 3).normal((2, 5)))
    assert Noise.from_key(strided).integer() == Noise(5, 1, 2, 3).integer()


def test_advancing_noise_is_the_noise_of_the_next_step():
    noise = Noise(4, step=2**32 - 2, stream=Stream.SAMPLER)
    counter = noise.counter
    for expected in (2**32 - 2, 2**32 - 1, 0, 1):
        assert counter.tolist() == [expected]
        assert torch.equal(noise.normal((2, 9)), Noise(4, step=expected, stream=Stream.SAMPLER).normal((2, 9)))
        noise.advance()


def test_streams_are_distinct():
    values = [value for name, value in vars(Stream).items() if not name.startswith("_")]
    assert len(set(values)) == len(values) > 0
    assert all(0 < value < 256 for value in values)


def test_integer_is_a_function_of_the_four_numbers():
    words = philox_python(5, (0, 3, 2, 4))
    assert Noise(5, 2, 3, 4).integer() == (words[1] << 32 | words[0]) % 2**63


def test_a_new_step_does_not_recompile():
    """Under torch.compile the four numbers are an input: four steps, one compilation."""
    counter = CompileCounter()
    compiled = torch.compile(lambda x, gamma, noise: diffuse(x, gamma, noise), backend=counter, fullgraph=True)
    x, gamma = torch.randn(2, 8), torch.zeros(2)
    for step in range(4):
        assert torch.equal(compiled(x, gamma, Noise(3, step)), diffuse(x, gamma, Noise(3, step)))
    assert counter.frame_count == 1


def test_draw_reference_takes_a_key():
    key = Noise(4, 3, 2, 1).key
    assert torch.equal(draw_reference(key, [2, 6], torch.float32, True), Noise(4, 3, 2, 1).normal([2, 6]))
