"""What FD-letters is between sets of real letters: the yardstick for the samples of a model.

    python benchmarks/studies/letters_yardstick.py

FD-letters (`fastdiff.evaluation.fd_letters`) of n images is biased upwards by about b / n (Chong and Forsyth 2020), and
letters of other families differ from the training letters even where n is large. So it prints, with n beside each,

1. the held-out letters against the training letters: what a model that draws as well as a type designer would reach;
2. as many letters of randomly chosen training families against the other training families, and as many letters
   chosen without regard to families against the others: how much of 1. is due to few families and to few images. The
   classifier was trained on these, so they lack the part that is due to images that it never saw;
3. two halves of the training letters, by family and by image;
4. subsets of the held-out letters, whose values give b and the limit of large n by least squares.
"""

import argparse
import math
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from fastdiff.data import letters
from fastdiff.evaluation import compare_features, frechet_distance, image_features, load_classifier

DRAWS = 10
SIZES = (300, 600, 1200, 1500, 2418)


def training_families() -> Tensor:
    """Return the number of the font family of each training image, int64 [N]."""
    with files("fastdiff.assets").joinpath("letters.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return torch.from_numpy(data["train_families"].astype(np.int64))


def split_by_family(groups: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a mask bool [N] of the images of ``count`` randomly chosen families."""
    numbers = groups.unique()
    chosen = numbers[torch.randperm(len(numbers), generator=generator)[:count]]
    return torch.isin(groups, chosen)


def split_by_image(groups: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a mask bool [N] of ``count`` randomly chosen images."""
    mask = torch.zeros(len(groups), dtype=torch.bool)
    mask[torch.randperm(len(groups), generator=generator)[:count]] = True
    return mask


def over_splits(
    features: Tensor, groups: Tensor, count: int, split: Callable[[Tensor, int, torch.Generator], Tensor]
) -> str:
    """Return the mean distance of the two sides of `DRAWS` random splits, and its standard deviation, as text."""
    generator = torch.Generator().manual_seed(0)
    values, sizes = [], []
    for _ in range(DRAWS):
        mask = split(groups, count, generator)
        values.append(frechet_distance(features[mask], features[~mask]))
        sizes.append(int(mask.sum()))
    mean, deviation = torch.tensor(values, dtype=torch.float64).mean(), torch.tensor(values, dtype=torch.float64).std()
    return f"{mean:.3f}, standard deviation {deviation:.3f} over {DRAWS} splits, n = {np.mean(sizes):.0f}"


def error_over_families(features: Tensor, groups: Tensor, reference: Tensor) -> float:
    """Return the standard error of the distance of drawing the families, by the jackknife over them (Tukey 1958)."""
    values = [frechet_distance(features[groups != number], reference) for number in groups.unique()]
    deviations = torch.tensor(values, dtype=torch.float64) - math.fsum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * float(deviations.square().sum()))


def bias(features: Tensor, reference: Tensor) -> tuple[dict[int, float], float, float]:
    """Return the mean distance of random subsets by their size, and the limit and b of limit + b / n."""
    generator, values = torch.Generator().manual_seed(0), {}
    for size in SIZES:
        draws = 1 if size >= len(features) else DRAWS
        parts = [features[torch.randperm(len(features), generator=generator)[:size]] for _ in range(draws)]
        values[min(size, len(features))] = math.fsum(frechet_distance(part, reference) for part in parts) / draws
    slope, limit = np.polyfit([1.0 / size for size in values], list(values.values()), 1)
    return values, float(limit), float(slope)


def main(arguments: list[str] | None = None) -> None:
    """Compute the features of all letters, and print the distances."""
    argparse.ArgumentParser(description=main.__doc__).parse_args(arguments)
    data, classifier = letters(), load_classifier("letters")
    train = image_features(data.train_images, classifier, 512)
    test = image_features(data.test_images, classifier, 512)
    train_groups, test_groups = training_families(), data.test_groups
    assert test_groups is not None
    count, held_out = len(train_groups.unique()), len(test_groups.unique())
    found, over_families = compare_features(test, train), error_over_families(test, test_groups, train)
    print(
        f"held-out letters, {held_out} families, against training letters: {found.value:.3f} ± "
        f"{found.standard_error:.3f} over images, ± {over_families:.3f} over families, n = {found.images}"
    )
    for title, split, size in (
        (f"{held_out} training families against the others", split_by_family, held_out),
        ("as many training images against the others", split_by_image, len(test)),
        ("halves of the training letters by family", split_by_family, count // 2),
        ("halves of the training letters by image", split_by_image, len(train) // 2),
    ):
        print(f"{title}: {over_splits(train, train_groups, size, split)}")
    values, limit, slope = bias(test, train)
    sizes = ", ".join(f"{value:.3f} for n = {size}" for size, value in values.items())
    print(f"subsets of the held-out letters: {sizes}; about {limit:.3f} + {slope:.0f} / n")


if __name__ == "__main__":
    main()
