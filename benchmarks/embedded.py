"""The table of the models that come with the package: what they are, how large, and the bound in their records."""

import json
import struct
from math import prod
from pathlib import Path

ASSETS = Path("fastdiff/assets")
ORDER = ("digits", "letters", "ddpm", "vae", "hvae", "diffusevae", "diffusevae-letters", "restoration")
KINDS = {
    "vdm": "VDM", "ddpm": "DDPM", "diffusevae": "DiffuseVAE", "restoration": "restoration: doubles the resolution",
}  # fmt: skip
HEADER = ("| name | model | images | parameters | file | bits/dim |", "|---|---|---|---:|---:|---:|")


def embedded_table(root: Path) -> str:
    """A row for every folder of a model in the assets: those of `ORDER` first, others after them by name."""
    names = sorted(path.parent.name for path in (root / ASSETS).glob("*/manifest.json"))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return "\n".join([*HEADER, *(_row(root / ASSETS / name) for name in names)])


def _row(folder: Path) -> str:
    saved = json.loads((folder / "config.json").read_text())
    config, weights = saved["config"], folder / "model.safetensors"
    _, height, width = config["shape"]
    labels = f", {config['num_classes']} classes" if config.get("num_classes") else ""
    evaluation = saved["record"]["evaluation"]
    bound = f"{evaluation['bpd']:.3f} ± {evaluation['se']:.3f}"
    size = weights.stat().st_size / 1e6
    images = f"{saved['record']['train']['data']}, {height}×{width}{labels}"
    return f"| `{folder.name}` | {_kind(saved)} | {images} | {_parameters(weights):,} | {size:.1f} MB | {bound} |"


def _kind(saved: dict) -> str:
    """A VAE is an HVAE of depth 1."""
    if saved["model"] == "hvae":
        depth = saved["config"].get("depth", 1)
        return "VAE" if depth == 1 else f"hierarchical VAE, depth {depth}"
    return KINDS[saved["model"]]


def _parameters(weights: Path) -> int:
    """Count the floats of a safetensors file by its header: eight bytes of length, then JSON.

    A model's buffers are not saved, so these are its parameters.
    """
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
