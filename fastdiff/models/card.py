"""The model card: README.md of a saved model, as the hubs of models show it.

A YAML header that machines read, then what the model is, its figures where they are known, and how to use it. The card
says what the model and its record say, and nothing that was not measured.
"""

import math
import re
from pathlib import PurePath

from ..io.folders import Json
from ..kernels import InvalidTypeError, InvalidValueError
from .image_data import ImageModel, listed

LICENSE = re.compile(r"[a-z][a-z0-9.+-]{1,63}")
YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null"})  # that are no text in YAML 1.1
KINDS = {  # what a model is, by the name in config.json
    "vdm": "variational diffusion model ([Kingma et al. 2021](https://arxiv.org/abs/2107.00630))",
    "ddpm": "denoising diffusion probabilistic model ([Ho et al. 2020](https://arxiv.org/abs/2006.11239))",
    "hvae": "(hierarchical) variational autoencoder",
    "diffusevae": "DiffuseVAE: a DDPM on the images of a VAE ([Pandey et al. 2022](https://arxiv.org/abs/2201.00308))",
    "restoration": "conditional DDPM that restores degraded images",
}
FIELDS = ("T", "prediction", "variance", "schedule", "beta_schedule", "degradation", "depth", "latent")
BOUND = (
    "It is an upper bound on -log2 p({}) for discrete images, divided by the number of values of an image: lower is "
    "better, and bounds and likelihoods of other models of the same images may be compared with it."
)


def check_license(license: object) -> str | None:
    """Return an identifier of a license, checked; None for none.

    Raises:
        InvalidTypeError, InvalidValueError: it is no identifier as ``mit``, ``apache-2.0`` or ``cc-by-4.0``.
    """
    wanted = "license must be an identifier such as 'mit', 'apache-2.0' or 'cc-by-4.0' (a-z, 0-9, -, . and +) or None"
    if license is None:
        return None
    if not isinstance(license, str):
        raise InvalidTypeError(f"{wanted}, got {license!r}")
    if not LICENSE.fullmatch(license):
        raise InvalidValueError(f"{wanted}, got {license!r}")
    return license


def model_card(model: ImageModel, record: Json | None = None, license: str | None = None) -> str:
    """Return the text of a model's card.

    Args:
        model: a model of the family.
        record: what is known of the weights, as in `Model.save`; figures under ``"evaluation"`` or ``"bpd"``, and the
            settings of the training under ``"train"``, are shown.
        license: identifier of the license of the weights, in lower case.

    Raises:
        InvalidTypeError, InvalidValueError: a license that is no such identifier.
    """
    license, record = check_license(license), record or {}
    parts = [_header(model, license), _about(model), *_figures(model, record), *_training(record), _usage(model), FILES]
    return "\n\n".join(parts) + "\n"


def _header(model: ImageModel, license: str | None) -> str:
    """Return the YAML header: the library, a task, tags, and the license where there is one."""
    task = "image-to-image" if model.kind == "restoration" else "unconditional-image-generation"
    tags = ["fastdiff", model.kind, "image-generation"]
    tags += ["diffusion"] if _is_diffusion(model) else ["vae"]
    tags += ["class-conditional"] if model.num_classes else []
    lines = [
        "---",
        *([f"license: {_yaml(license)}"] if license else []),
        "library_name: fastdiff",
        f"pipeline_tag: {task}",
    ]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _yaml(word: str) -> str:
    """Return an identifier as YAML reads it as text, in quotes where it would be a boolean or null."""
    return f'"{word}"' if word in YAML_WORDS else word


def _about(model: ImageModel) -> str:
    """Return the title and a table of what the model is."""
    channels, height, width = model.shape
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    names = f" ({_cell(listed(model.config.class_names))})" if model.config.class_names else ""
    rows = {
        "model": KINDS.get(model.kind, model.kind),
        "images": f"{channels} × {height} × {width}, {model.levels} levels a pixel",
        "classes": f"{model.num_classes}{names}; images may be drawn without one" if model.num_classes else "none",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    for name in FIELDS:
        value = getattr(model.config, name, None)
        if name == "T" and _is_diffusion(model):
            rows[name] = _steps(value)
        elif value is not None:
            rows[name.replace("_", " ")] = str(value)
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"# {model.kind}, {height} × {width} images{classes}", "", "| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    """Return a text as it stands in a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _figures(model: ImageModel, record: Json) -> list[str]:
    """Return the section of the bound, if the record holds one."""
    found = record.get("evaluation")
    row = found if isinstance(found, dict) else record
    if not _is_number(row.get("bpd")):
        return []
    columns = {"T": _steps(row["T"])} if "T" in row and _is_diffusion(model) else {}
    columns["bits/dim"] = f"{row['bpd']:.4f}"
    for name, title in (
        ("se", "± s.e."),
        ("se_groups", "± s.e. (groups)"),
        ("recon", "recon"),
        ("prior", "prior"),
        ("diffusion", "diffusion"),
    ):
        if _is_number(row.get(name)):
            columns[title] = f"{row[name]:.4f}"
    table = [f"| {' | '.join(each)} |" for each in (columns, ["---"] * len(columns), columns.values())]
    step = f" at step {row['step']} of the training" if isinstance(row.get("step"), int) else ""
    text = [
        f"The bound as recorded with the weights{step}; `fastdiff train` measures it on the held-out images"
        f"{_data_of(record, 'of')}.",
        BOUND.format("x | y" if model.kind == "restoration" else "x"),
        *(["The standard error is that over the images."] if "± s.e." in columns else []),
        *(["The second one is over the groups of images that belong together."] if "se_groups" in row else []),
    ]
    return ["\n".join(["## Variational bound", "", *table, "", " ".join(text)])]


def _training(record: Json) -> list[str]:
    """Return the section of the training, and of the entries of a record that are plain values."""
    train = record.get("train")
    settings = train if isinstance(train, dict) else {}
    shown = {name: value for name, value in settings.items() if name != "data" and _is_plain(value)}
    lines = [f"- `{name}`: {value}" for name, value in shown.items()]
    if lines:
        lines = [f"Trained by `fastdiff train`{_data_of(record, 'on')} with", "", *lines]
    shown_above = ("bpd", "step") if "bpd" in record else ()
    own = {name: value for name, value in record.items() if name not in shown_above and _is_plain(value)}
    others = [f"- {name}: {value}" for name, value in own.items()]
    text = [*lines, *([""] if lines and others else []), *others]
    return ["\n".join(["## Training" if lines else "## Record", "", *text])] if text else []


def _usage(model: ImageModel) -> str:
    """Return the section on how to load the model and sample: code that runs, but for parts of the user's own."""
    parts = "".join(f", {name}=..." for name in model.custom)
    code = [
        "import fastdiff",
        *(["import torch"] if model.kind == "restoration" else []),
        "",
        'folder = "."  # this folder, or huggingface_hub.snapshot_download("user/name")',
        f"model = fastdiff.load(folder{parts})",
    ]
    options = ", steps=50" if _is_diffusion(model) else ""
    if model.kind == "restoration":
        shape = ", ".join(map(str, getattr(model, "cond_shape", model.shape)))
        code.append(f"degraded = torch.zeros(4, {shape})  # your images, in [-1, 1]")
        options += ", cond=degraded"
    shape = ", ".join(map(str, model.shape))
    code.append(f"images = fastdiff.sample(model, 4{options})  # uint8 [4, {shape}], 0..255")
    if model.num_classes:
        code.append(f"images = fastdiff.sample(model, 4{options}, labels={_label(model)!r}, guidance=1.5)")
    lines = ["## Use", "", "```python", *code, "```"]
    if model.custom:
        names = " and ".join(model.custom)
        lines[2:2] = [f"The {names} of this model is the author's own, and must be passed to `fastdiff.load`.", ""]
    elif model.kind != "restoration":
        lines += ["", "On the command line: `fastdiff sample .`."]
    return "\n".join(lines)


def _label(model: ImageModel) -> int | str:
    """Return the name of the last class, or its number where it has none."""
    return model.config.class_names[-1] if model.config.class_names else model.num_classes - 1


FILES = """## Files

`config.json` holds the configuration, `model.safetensors` the weights, and `manifest.json` the sizes and checksums of
both. This card has no checksum and may be edited; a later save to the same folder keeps what was edited."""


def _steps(T: object) -> str:
    return "infinite (continuous time)" if T is None else str(T)


def _is_diffusion(model: ImageModel) -> bool:
    return hasattr(model, "gamma")


def _data_of(record: Json, preposition: str) -> str:
    """Return " of `NAME`" for the data set of the training; of a path its last part alone. Empty if it is not known."""
    train = record.get("train")
    data = train.get("data") if isinstance(train, dict) else None
    return f" {preposition} `{PurePath(data).name or data}`" if isinstance(data, str) and data else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float)) and "\n" not in str(value)
