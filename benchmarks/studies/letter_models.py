"""The models of the letters, measured: bits/dim by font family, FD-letters, and which letters can be read.

    python benchmarks/studies/letter_models.py runs/vdm-letters runs/diffusevae-letters

Each argument is the folder of a training run or a checkpoint. What is measured is added to docs/letters.json, and
docs/letters.md and its pictures are written from it: a model that is measured again replaces its row. A model takes
some five minutes on two cores.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

DRAWS = 16  # of the bound, per held-out image
SAMPLES, STEPS, BATCH = 1508, 100, 260  # 58 of each letter, 100 steps of ancestral sampling
COMPONENTS = 50  # of the mixture of latents
SHOWN_ROWS = 8  # of A to Z, in the picture of the samples


def main(arguments: list[str] | None = None) -> None:
    """Measure the models of the command line and write the document."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("models", nargs="*", help="folders of runs or checkpoints; none to write the document alone")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the document (docs)")
    options = parser.parse_args(arguments)
    from benchmarks.studies.letter_models_report import write_report

    path = options.out / "letters.json"
    results = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    for folder in options.models:
        name = Path(folder).name
        print(f"{name}:", flush=True)
        results["models"] = in_order({**results["models"], name: measure(folder)})
        path.write_text(json.dumps(results) + "\n")
        print(f"  {summary(results['models'][name])}", flush=True)
    write_report(results, options.out)


def in_order(models: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of models in the order of the presets, and after them those of other names."""
    from fastdiff.presets import PRESETS

    return {name: models[name] for name in (*PRESETS, *models) if name in models}


def measure(folder: str) -> dict[str, Any]:
    """Return what a model's row of the document holds, in plain JSON types."""
    from fastdiff import load
    from fastdiff.checkpoints import training_of
    from fastdiff.data import letters
    from fastdiff.evaluation import evaluate

    model, data = load(folder), letters()
    found = evaluate(model, data.test_images, draws=DRAWS, groups=data.test_groups, progress=True)
    families = {data.group_name(each.group): [each.n, round(each.mean, 5)] for each in found.by_group()}
    record = training_of(folder) or {}
    return {
        "kind": model.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": record.get("max_steps"),
        **found.row(),
        "families": families,
        **_samples(model),
    }


def _samples(model: Any) -> dict[str, Any]:
    """Return FD-letters of samples and, of a model with labels, the share of each letter that is read rightly."""
    from benchmarks.studies.documents import image_text
    from fastdiff import Latents, sample
    from fastdiff.data import LETTERS, letters
    from fastdiff.evaluation import fd_letters, load_classifier
    from fastdiff.sampling import fit_mixture

    labels = torch.arange(SAMPLES) % len(LETTERS) if model.config.num_classes else None
    steps = {"steps": STEPS} if "x_T" in model.latent_variables else {}
    common = {"seed": 0, "batch_size": BATCH, "output": "levels", "progress": True, **steps}
    images = sample(model, SAMPLES, labels=labels, **common)
    found = fd_letters(images)
    row: dict[str, Any] = {
        "fd": [round(found.value, 3), round(found.standard_error, 3)],
        "shown": image_text(images[: SHOWN_ROWS * len(LETTERS)]),
    }
    if labels is not None:
        right = load_classifier("letters").logits(images).argmax(1) == labels
        row["read"] = [round(float(right[labels == letter].double().mean()), 4) for letter in range(len(LETTERS))]
    if "z" in model.latent_variables:
        mixture = fit_mixture(model, letters().train_images[:], COMPONENTS, 0)
        images = sample(model, SAMPLES, latents=Latents(mixture=mixture), **common)
        found = fd_letters(images)
        row["fd_mixture"] = [round(found.value, 3), round(found.standard_error, 3)]
        row["shown_mixture"] = image_text(images[: SHOWN_ROWS * len(LETTERS)])
    return row


def summary(row: dict[str, Any]) -> str:
    """Return a line about a model."""
    text = f"{row['bpd']:.4f} ± {row['se_groups']:.4f} bits/dim, FD-letters {row['fd'][0]:.2f}"
    return f"{text}, {sum(row['read']) / len(row['read']):.1%} of the letters read rightly" if "read" in row else text


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
