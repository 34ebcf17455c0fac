"""Train the classifier of an embedded data set, whose features FD-digits or FD-letters uses, and write its file.

    python benchmarks/studies/classifier.py digits --out FILE
    python benchmarks/studies/classifier.py letters --out FILE

It is trained on the training images on one thread, so the same machine and the same version of PyTorch write the same
weights. The package contains the results as ``fastdiff/assets/digits-classifier.safetensors`` and
``fastdiff/assets/letters-classifier.safetensors`` (`fastdiff.evaluation.load_classifier`).
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from tqdm import tqdm

from fastdiff.data import Dataset, load_dataset
from fastdiff.evaluation.classifiers import ABOUT, CLASSIFIERS, ImageClassifier, checksum, classifier_config
from fastdiff.kernels import InvalidValueError

STEPS = 3000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1  # otherwise the features of well-separated classes keep growing during training
BLOCK = 1000  # images per call where they are only classified
CONFUSIONS = 10  # the most frequent ones are recorded


def train_classifier(data: Dataset, steps: int, seed: int = 0, progress: bool = False) -> ImageClassifier:
    """Train a classifier on the training images, each shifted by up to one pixel each way; return it in eval mode.

    The loss is the cross-entropy with smoothed labels (Szegedy et al. 2016). The optimiser is AdamW (Loshchilov and
    Hutter 2019), with a cosine decay of the learning rate from `LEARNING_RATE` to zero. PyTorch's global generator is
    restored at the end. ``progress`` shows a progress bar on stderr.

    Raises:
        InvalidValueError: a data set that has no classifier, or no labels, or steps < 1.
    """
    config = classifier_config(data.name)
    if data.train_labels is None:
        raise InvalidValueError(f"train_classifier: data must have labels, got {data.name} without labels")
    if steps < 1:
        raise InvalidValueError(f"train_classifier: steps must be >= 1, got {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        bar = tqdm(range(steps), unit="step", desc=data.name, disable=not progress, delay=5.0, mininterval=5.0)
        for _ in bar:
            index = torch.randint(len(data.train_images), (BATCH_SIZE,))
            logits = model.logits(shift_randomly(data.train_images[index]))
            loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            bar.set_postfix(loss=float(loss.detach()), refresh=False)
    return model.eval()


def shift_randomly(images: Tensor) -> Tensor:
    """Shift each image [N, 1, H, W] by -1, 0 or 1 pixels each way, with the global generator; fill with level 0."""
    count, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    down, across = torch.randint(3, (2, count, 1, 1))
    rows = down + torch.arange(height)[:, None]
    columns = across + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


@torch.no_grad()
def classify(model: ImageClassifier, images: Tensor) -> Tensor:
    """Return the most probable class of images [N, C, H, W], int64 [N]."""
    return torch.cat([model.logits(block).argmax(1) for block in images.split(BLOCK)])


def scores(model: ImageClassifier, data: Dataset) -> dict[str, object]:
    """Return the accuracies on both parts, and of the held-out images the one of each class and what is confused."""
    assert data.train_labels is not None and data.test_labels is not None  # noqa: PT018
    found = classify(model, data.test_images[:])
    right = found == data.test_labels
    names = data.class_names or [str(label) for label in range(data.num_classes)]
    wrong = zip(data.test_labels[~right].tolist(), found[~right].tolist(), strict=True)
    counts = Counter(f"{names[label]} as {names[other]}" for label, other in wrong)
    return {
        "train_accuracy": round(share(classify(model, data.train_images[:]) == data.train_labels), 4),
        "test_accuracy": round(share(right), 4),
        "test_accuracy_by_class": {
            name: round(share(right[data.test_labels == label]), 3) for label, name in enumerate(names)
        },
        "test_confusions": dict(counts.most_common(CONFUSIONS)),
    }


def share(right: Tensor) -> float:
    """Return the share of values that are true."""
    return float(right.double().mean())


def save_classifier(path: str | Path, model: ImageClassifier, about: Mapping[str, object]) -> None:
    """Write the weights, with ``about`` (plain JSON types) and the checksum of the weights in the metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    record = json.dumps({**about, "crc32": checksum(state)})
    Path(path).write_bytes(tensors_to_bytes(state, metadata={ABOUT: record}))


def main(arguments: list[str] | None = None) -> None:
    """Train the classifier, write its file and print its accuracy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", choices=CLASSIFIERS, help="the embedded data set")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of {BATCH_SIZE} images each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches, the shifts and the dropout")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be an integer >= 1, got {options.steps}")
    if not options.out.parent.is_dir():
        parser.error(f"--out must be a file in an existing folder, got {options.out}")
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    data = load_dataset(options.data)
    model = train_classifier(data, options.steps, options.seed, progress=True)
    result = scores(model, data)
    about = {
        "model": "fastdiff ImageClassifier",
        "data": f"the {len(data.train_images)} training images of {data.name}, shifted by up to one pixel",
        "steps": options.steps, "seed": options.seed, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY, "dropout": model.config.dropout, "label_smoothing": LABEL_SMOOTHING,
        "torch": torch.__version__.split("+")[0], **result,
    }  # fmt: skip
    save_classifier(options.out, model, about)
    print(f"{options.out}: " + ", ".join(f"{name} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
