"""Train the classifier of digits whose features FD-digits uses (`fastdiff.evaluation.fd_digits`), and write its file.

    python benchmarks/studies/digit_classifier.py --out FILE

It is trained on the 1500 training images of the digits on one thread, so the same machine and the same version of
PyTorch write the same file. The package contains the result as ``fastdiff/assets/digits-classifier.safetensors``.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from fastdiff.data import Dataset, digits
from fastdiff.evaluation.digit_features import ABOUT, DROPOUT, DigitClassifier, checksum
from fastdiff.kernels import InvalidValueError

BATCH_SIZE = 128
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1  # otherwise the features of well-separated classes keep growing during training


def train_digit_classifier(data: Dataset, steps: int, seed: int = 0) -> DigitClassifier:
    """Train a classifier on the training images, each shifted by up to one pixel each way; return it in eval mode.

    The loss is the cross-entropy with smoothed labels (Szegedy et al. 2016). The optimiser is AdamW (Loshchilov and
    Hutter 2019), with a cosine decay of the learning rate from `LEARNING_RATE` to zero. PyTorch's global generator is
    restored at the end.

    Raises:
        InvalidValueError: a data set without labels, or steps < 1.
    """
    if data.train_labels is None:
        raise InvalidValueError(f"train_digit_classifier: data must have labels, got {data.name} without labels")
    if steps < 1:
        raise InvalidValueError(f"train_digit_classifier: steps must be >= 1, got {steps}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitClassifier().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            index = torch.randint(len(data.train_images), (BATCH_SIZE,))
            logits = model.logits(shift_randomly(data.train_images[index]))
            loss = F.cross_entropy(logits, data.train_labels[index], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
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
def accuracy(model: DigitClassifier, images: Tensor, labels: Tensor | None) -> float:
    """Return the share of images [N, 1, 8, 8] that are classified as their label, int64 [N]; NaN without labels."""
    return math.nan if labels is None else float((model.logits(images).argmax(1) == labels).double().mean())


def save_digit_classifier(path: str | Path, model: DigitClassifier, about: Mapping[str, object]) -> None:
    """Write the weights, with ``about`` (plain JSON types) and the checksum of the weights in the metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    record = json.dumps({**about, "crc32": checksum(state)})
    Path(path).write_bytes(tensors_to_bytes(state, metadata={ABOUT: record}))


def main(arguments: list[str] | None = None) -> None:
    """Train the classifier, write its file and print its accuracy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=3000, help=f"optimiser steps of {BATCH_SIZE} images each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches, the shifts and the dropout")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be an integer >= 1, got {options.steps}")
    if not options.out.parent.is_dir():
        parser.error(f"--out must be a file in an existing folder, got {options.out}")
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    data = digits()
    model = train_digit_classifier(data, options.steps, options.seed)
    scores = {
        "train_accuracy": round(accuracy(model, data.train_images, data.train_labels), 4),
        "test_accuracy": round(accuracy(model, data.test_images, data.test_labels), 4),
    }
    about = {
        "model": "fastdiff DigitClassifier", "data": "the 1500 training images of digits, shifted by up to one pixel",
        "steps": options.steps, "seed": options.seed, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY, "dropout": DROPOUT, "label_smoothing": LABEL_SMOOTHING,
        "torch": torch.__version__.split("+")[0], **scores,
    }  # fmt: skip
    save_digit_classifier(options.out, model, about)
    print(f"{options.out}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
