"""Fréchet distance: closed forms, brute force in NumPy, torchmetrics."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdiff.data import digits
from fastdiff.evaluation import fd, fd_digits, frechet_distance, load_classifier
from fastdiff.kernels import InvalidTypeError, InvalidValueError


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
    images, generator, classifier = digits().test_images, torch.Generator().manual_seed(4), load_classifier("digits")
    features, reference = classifier(images), classifier(digits().train_images)
    samples = [features[torch.randint(297, (297,), generator=generator)] for _ in range(100)]
    values = torch.tensor([frechet_distance(sample, reference) for sample in samples])
    assert fd_digits(images).standard_error == pytest.approx(values.std().item(), rel=0.3)


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
    for module, tolerance in ((load_classifier("digits"), 2e-7), (load_classifier("digits").double(), 1e-10)):
        theirs = torchmetrics_value(fid, module, images, reference)
        assert fd(images, reference, module).value == pytest.approx(theirs, rel=tolerance)
    a, b = colour_images(30, 9, 200), colour_images(40, 12, 256)
    assert fd(a, b, Colours()).value == pytest.approx(torchmetrics_value(fid, Colours().eval(), a, b), rel=1e-10)


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
    ],
)
def test_wrong_input(call, error, argument):
    with pytest.raises(error, match=argument):
        call()
