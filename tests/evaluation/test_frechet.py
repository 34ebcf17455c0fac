"""Fréchet distance: closed forms, brute force in NumPy, torchmetrics, and FD-digits of images that are not digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.checkpoints import CheckpointError, embedded_names
from fastdiff.data import digits
from fastdiff.evaluation import DigitClassifier, Frechet, fd, fd_digits, frechet_distance, load_digit_classifier
from fastdiff.evaluation.digit_features import ASSET
from fastdiff.kernels import InvalidTypeError, InvalidValueError

SHIPPED = Path(fastdiff.__file__).parent / "assets" / ASSET


def gaussian_data(mean, deviations):
    """2 F rows with exactly this mean, and the covariance diag(deviations²) when divided by N - 1."""
    deviations = torch.tensor(deviations, dtype=torch.float64)
    count = 2 * len(deviations)
    axes = torch.diag(deviations * ((count - 1) / 2) ** 0.5)
    return torch.cat([axes, -axes]) + torch.tensor(mean, dtype=torch.float64)


def random_features(seed, rows, columns, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing * scale + shift


def noisy(images, sigma, seed=0):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * noise).round().clamp(0, 16).to(torch.uint8)


def test_two_gaussians_in_closed_form():
    """Diagonal covariances: d² = |mu_a - mu_b|² + sum (sigma_a - sigma_b)²."""
    a, b = gaussian_data([0.0, 1.0, -2.0], [1.0, 2.0, 0.5]), gaussian_data([3.0, 1.0, 2.0], [4.0, 2.0, 0.25])
    assert frechet_distance(a, b) == pytest.approx(25.0 + 9.0 + 0.0625, rel=1e-14)
    assert frechet_distance(a[:, :1], b[:, :1]) == pytest.approx(9.0 + 9.0, rel=1e-14)


def test_a_flat_direction():
    """A covariance of rank 1 against one of rank 2, and against rank 0."""
    a, b, point = gaussian_data([0, 0], [2.0, 0]), gaussian_data([0, 1], [5.0, 3.0]), gaussian_data([0, 0], [0.0, 0])
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + 9, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(1 + 9 + 9, rel=1e-12)
    assert frechet_distance(point, b) == pytest.approx(1 + 25 + 9, rel=1e-12)


@pytest.mark.parametrize(("rows", "columns", "tolerance"), [(400, 1, 1e-13), (400, 24, 1e-13), (10, 24, 1e-8)])
def test_against_the_eigenvalues_of_the_product(rows, columns, tolerance):
    """tr (A B)^{1/2} by a general eigenvalue solver on A B itself, which is not symmetric.

    Where A has not full rank, both sides take the roots of eigenvalues that are rounding.
    """
    a, b = random_features(0, rows, columns), random_features(1, rows + 50, columns, scale=1.5, shift=0.3)
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False).reshape(columns, columns) for x in (a, b))
    root = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    offset = a.numpy().mean(0) - b.numpy().mean(0)
    expected = offset @ offset + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=tolerance)


def test_distance_to_itself_symmetry_scale_and_rotation():
    a, b = random_features(0, 300, 12), random_features(1, 200, 12, shift=1.0)
    expected = frechet_distance(a, b)
    rotation = torch.linalg.qr(random_features(2, 12, 12)).Q
    assert frechet_distance(a, a) < 1e-13 * float(a.var(0).sum())
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-13)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * expected, rel=1e-13)
    assert frechet_distance(a @ rotation + 5, b @ rotation + 5) == pytest.approx(expected, rel=1e-13)
    assert frechet_distance(a.flip(0), b[torch.randperm(200)]) == pytest.approx(expected, rel=1e-13)


def polynomial(images):
    """Two dependent features of images of one pixel, far from Gaussian."""
    x = images.flatten(1).double() / 255
    return torch.cat([x, x**2], 1)


@pytest.mark.parametrize("shrink", [0.5, 0.8])
def test_the_standard_error_is_the_spread_over_sets(shrink):
    """Against the standard deviation over 200 independent sets of images, itself known to 5 %."""
    generator = torch.Generator().manual_seed(3)
    reference = torch.randint(256, (4000, 1, 1, 1), generator=generator, dtype=torch.uint8)
    sets = (torch.randint(256, (200, 400, 1, 1, 1), generator=generator) * shrink).to(torch.uint8)
    results = [fd(images, reference, polynomial) for images in sets]
    spread = torch.tensor([result.value for result in results]).std().item()
    mean = torch.tensor([result.standard_error for result in results]).mean().item()
    assert mean == pytest.approx(spread, rel=0.15)


def test_the_standard_error_of_fd_digits_is_that_of_the_bootstrap():
    """100 resamples of the images: their spread is known to 7 %, and the delta method neglects the second order."""
    images, generator, classifier = digits().test_images, torch.Generator().manual_seed(4), load_digit_classifier()
    features, reference = classifier(images), classifier(digits().train_images)
    samples = [features[torch.randint(297, (297,), generator=generator)] for _ in range(100)]
    values = torch.tensor([frechet_distance(sample, reference) for sample in samples])
    assert fd_digits(images).standard_error == pytest.approx(values.std().item(), rel=0.3)


def test_the_shipped_classifier():
    data, model = digits(), load_digit_classifier()
    assert sum(p.numel() for p in model.parameters()) == 33178
    assert SHIPPED.stat().st_size < 300_000
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(data.test_images).shape == (297, DigitClassifier.num_features)
    with torch.no_grad():
        assert (model.logits(data.test_images).argmax(1) == data.test_labels).sum() >= 295  # measured: 296 of 297
        assert (model.logits(data.train_images).argmax(1) == data.train_labels).sum() >= 1499
    assert not any("classifier" in name for name in embedded_names())


def test_fd_digits_of_the_held_out_digits_and_of_images_gone_wrong():
    images = digits().test_images
    generator = torch.Generator().manual_seed(1)
    good = fd_digits(images)
    assert (good.images, good.reference) == (297, 1500)
    wrong = {
        "uniform": torch.randint(17, images.shape, generator=generator, dtype=torch.uint8),
        "blurred": nn.functional.avg_pool2d(images.float(), 3, stride=1, padding=1).round().to(torch.uint8),
        "shuffled pixels": images.flatten(1)[:, torch.randperm(64, generator=generator)].reshape(images.shape),
        "upside down": images.flip(2),
        "one digit": images[digits().test_labels == 3].repeat(13, 1, 1, 1),
    }
    values = {name: fd_digits(bad).value for name, bad in wrong.items()}
    assert min(values.values()) > 10 * good.value, (good, values)  # upside down, 12 times; the others 30 times


def test_fd_digits_grows_with_noise():
    images = digits().test_images
    results = [fd_digits(noisy(images, sigma)) for sigma in (0, 1, 2, 3, 4, 6, 8)]
    values = [result.value for result in results]
    assert values == sorted(values)
    assert values[2] > values[0] + results[0].standard_error


def test_few_images_are_biased_upwards():
    """The same images, whole and in thirds: the mean of the thirds lies above."""
    images = digits().test_images
    thirds = [fd_digits(part).value for part in images.split(99)]
    assert sum(thirds) / 3 > 1.5 * fd_digits(images).value


def test_the_batch_size_changes_rounding_only():
    images, model = digits().test_images, load_digit_classifier()
    whole = fd(images, digits().train_images, model, batch_size=1500)
    for batch_size in (1, 100, 512):
        part = fd(images, digits().train_images, model, batch_size=batch_size)
        assert part.value == pytest.approx(whole.value, rel=1e-6)
        assert part.standard_error == pytest.approx(whole.standard_error, rel=1e-6)
    assert fd_digits(images, digits().train_images) == fd_digits(images) == fd(images, digits().train_images, model)


class Colours(nn.Module):
    """A feature network for uint8 images [N, 3, H, W] of any size, in float64, with dropout and batch norm."""

    num_features = 6

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Dropout(0.5)).double()

    def forward(self, images):
        return self.net(images / torch.tensor(255.0, dtype=torch.float64)).mean((2, 3))


def colour_images(count, size, top):
    return torch.randint(top, (count, 3, size, size), generator=torch.Generator().manual_seed(top), dtype=torch.uint8)


def test_any_network_in_eval_mode():
    network, a, b = Colours().train(), colour_images(30, 9, 200), colour_images(40, 12, 256)
    network.net[1].eval()
    result = fd(a, b, network)
    assert [module.training for module in network.net] == [True, False, True, True]
    assert all(torch.equal(value, Colours().state_dict()[name]) for name, value in network.state_dict().items())
    assert result == fd(a, b, Colours().eval())
    with torch.no_grad():
        network.eval()
        assert result.value == pytest.approx(frechet_distance(network(a), network(b)), rel=1e-12)


def torchmetrics_value(fid, module, images, reference):
    metric = fid(feature=module)
    for batch in reference.split(200):
        metric.update(batch, real=True)
    for batch in images.split(200):
        metric.update(batch, real=False)
    return float(metric.compute())


def test_torchmetrics_takes_the_same_networks():
    # it rounds its result to the dtype of the features, and sums squares before it takes off the mean
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    images, reference = digits().test_images, digits().train_images
    for module, tolerance in ((load_digit_classifier(), 2e-7), (load_digit_classifier().double(), 1e-10)):
        theirs = torchmetrics_value(fid, module, images, reference)
        assert fd(images, reference, module).value == pytest.approx(theirs, rel=tolerance)
    a, b = colour_images(30, 9, 200), colour_images(40, 12, 256)
    assert fd(a, b, Colours()).value == pytest.approx(torchmetrics_value(fid, Colours().eval(), a, b), rel=1e-10)


def damaged(tmp_path, change):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(change(SHIPPED.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "cannot be read"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b"\xff" * 8 + data[8:], "cannot be read"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        (lambda data: data.replace(b"crc32", b"crc33"), "checksum"),
        (lambda data: data.replace(b"__metadata__", b"__metadatb__"), "cannot be read"),
    ],
)
def test_damaged_weights(tmp_path, change, message):
    path = damaged(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_digit_classifier(path)
    assert str(path) in str(caught.value)


def test_other_weights(tmp_path):
    from safetensors.torch import save_file

    state = DigitClassifier().state_dict() | {"head.weight": torch.zeros(9, 32)}
    del state["head.bias"]
    save_file(state, tmp_path / "nine.safetensors", metadata={"about": "{}"})
    with pytest.raises(CheckpointError, match=r"head\.bias.*head\.weight must have shape \(10, 32\)"):
        load_digit_classifier(tmp_path / "nine.safetensors")
    save_file({"w": torch.zeros(3)}, tmp_path / "bare.safetensors")
    for name in ("bare.safetensors", "absent.safetensors", "."):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_digit_classifier(tmp_path / name)


LEVELS = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: frechet_distance(torch.ones(1, 3), torch.ones(5, 3)), InvalidValueError, "a and b"),
        (lambda: frechet_distance(torch.ones(5, 3), torch.ones(1, 3)), InvalidValueError, "a and b"),
        (lambda: frechet_distance(torch.ones(5, 3), torch.ones(5, 4)), InvalidValueError, "a and b"),
        (lambda: frechet_distance(torch.ones(5, 0), torch.ones(5, 0)), InvalidValueError, "a and b"),
        (lambda: frechet_distance(torch.ones(5, 1), torch.full((5, 1), torch.nan)), InvalidValueError, "b must be fin"),
        (lambda: frechet_distance(torch.full((5, 1), torch.inf), torch.ones(5, 1)), InvalidValueError, "a must be fin"),
        (lambda: frechet_distance(LEVELS[:, 0, 0], torch.ones(5, 8)), InvalidTypeError, "features a"),
        (lambda: fd(LEVELS, LEVELS, torch.Tensor.float), InvalidValueError, "features"),
        (lambda: fd(LEVELS, LEVELS, lambda x: torch.ones(1, 3)), InvalidValueError, "features"),
        (lambda: fd(LEVELS, LEVELS, lambda x: x.flatten(1)), InvalidTypeError, "features"),
        (lambda: fd(LEVELS, LEVELS[:1], torch.Tensor.float), InvalidValueError, "reference"),
        (lambda: fd(LEVELS.float(), LEVELS, torch.Tensor.float), InvalidTypeError, "images"),
        (lambda: fd(LEVELS, LEVELS, torch.Tensor.float, batch_size=0), InvalidValueError, "batch_size"),
        (lambda: fd_digits(LEVELS + 17), InvalidValueError, "images must lie in 0 .. 16"),
        (lambda: fd_digits(LEVELS, LEVELS + 255), InvalidValueError, "reference"),
        (lambda: fd_digits(LEVELS.long()), InvalidTypeError, "images"),
        (lambda: fd_digits(LEVELS[:, 0]), InvalidValueError, "images"),
        (lambda: fd_digits(LEVELS[:1]), InvalidValueError, "images"),
        (lambda: fd_digits(LEVELS[:0]), InvalidValueError, "images"),
    ],
)
def test_wrong_input(call, error, argument):
    with pytest.raises(error, match=argument):
        call()


def test_constant_images_have_a_distance():
    result = fd_digits(LEVELS)
    assert result == Frechet(pytest.approx(result.value), 0.0, 4, 1500)
    assert result.value > 100
