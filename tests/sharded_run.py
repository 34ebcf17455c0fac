"""Sampling and evaluation, divided among processes: what several processes run, and one process for comparison.

As a script it runs every case in the processes that `processes.launch` starts, and writes FOLDER/RANK.pt.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import torch
from tiny import images, small, small_ddpm, small_diffusevae, small_vae
from torch import Tensor

from fastdiff.cli.main import main
from fastdiff.evaluation import evaluate, evaluate_latents, evaluate_ode
from fastdiff.io import processes
from fastdiff.models import Model, Request
from fastdiff.sampling import draw_images

LABELS = torch.tensor([0, 2, 3, 1, 0, 2, 3])
X = images(7)


class Lazy:
    """A source that decodes images when they are indexed; it remembers how many at most."""

    shape = (1, 8, 8)

    def __init__(self, decoded: Tensor) -> None:
        self.decoded, self.most = decoded, 0

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, index: Tensor) -> Tensor:
        found = self.decoded[index]
        self.most = max(self.most, len(found))
        return found


def draw(model: Model, n: int, batch_size: int, sharded: bool, **options) -> Tensor:
    return draw_images(model, Request(n, 5, **options), batch_size, sharded=sharded)


SAMPLING = {
    "7 images in 4 batches": lambda sharded: draw(small(), 7, 2, sharded, steps=3),
    "fewer batches than processes": lambda sharded: draw(small("v", num_classes=3), 3, 2, sharded, steps=3, labels=1),
    "one image": lambda sharded: draw(small_ddpm(), 1, 64, sharded, steps=3),
    "no image": lambda sharded: draw(small(), 0, 2, sharded, steps=3),
    "images of a VAE": lambda sharded: draw(small_vae(2), 5, 1, sharded),
    "images of a DiffuseVAE": lambda sharded: draw(small_diffusevae(2), 5, 2, sharded, steps=3),
}


def bound(model: Model, sharded: bool, x=X, **options) -> Tensor:
    result = evaluate(model, x, seed=5, sharded=sharded, **options).bpd
    return torch.stack([result.recon, result.prior, result.diffusion])


def latents(model: Model, sharded: bool, x=X) -> Tensor:
    found = evaluate_latents(model, x, 5, 2, sharded=sharded)
    return torch.tensor([found["active_units"], found["layer_nats"]], dtype=torch.float64)


EVALUATION = {
    "VDM, 3 draws": lambda sharded: bound(small(), sharded, draws=3, batch_size=4),
    "VDM, one batch": lambda sharded: bound(small(), sharded, draws=2, batch_size=64),
    "VDM, importance": lambda sharded: bound(small(), sharded, draws=1, batch_size=512, importance=True),
    "VDM, one image": lambda sharded: bound(small(), sharded, X[:1], draws=1, batch_size=1),
    "VDM with labels, exact": lambda sharded: bound(
        small("v", num_classes=3), sharded, labels=LABELS, T=5, draws=2, batch_size=5, exact=True
    ),
    "DDPM, learned variance": lambda sharded: bound(small_ddpm(5, variance="learned"), sharded, draws=2, batch_size=3),
    "DDPM, exact": lambda sharded: bound(small_ddpm(5), sharded, draws=3, batch_size=4, exact=True),
    "VAE": lambda sharded: bound(small_vae(3), sharded, draws=3, batch_size=2),
    "DiffuseVAE": lambda sharded: bound(small_diffusevae(2), sharded, draws=3, batch_size=2),
    "lazy source": lambda sharded: bound(small(), sharded, Lazy(X), draws=3, batch_size=4),
    "latents": lambda sharded: latents(small_vae(3), sharded),
    "latents of a lazy source": lambda sharded: latents(small_diffusevae(depth=2), sharded, Lazy(X)),
    "ODE": lambda sharded: evaluate_ode(small(), X[:3], None, 1, 2, 5, 2, sharded=sharded),
}


def drawn_here() -> tuple[Tensor, list[int]]:
    """Return images, and the sizes of the batches of which this process's callback heard."""
    sizes: list[int] = []
    request = Request(9, 5, 2)
    result = draw_images(small(), request, 2, callback=lambda step, nfe, z, x: sizes.append(len(z)), sharded=True)
    return result, sizes


def error_in_one() -> list[str]:
    """Return the class and the message of the error where one process's callback raises it in its second batch."""

    def callback(step: int, nfe: int, z: Tensor, x: Tensor) -> None:
        calls.append(step)
        if processes.rank() == 1 and len(calls) == 4:
            raise ValueError("the callback's own")

    calls: list[int] = []
    model = small().train()
    try:
        draw_images(model, Request(60, 5, 3), 1, callback=callback, sharded=True)
    except Exception as error:
        return [type(error).__name__, str(error), str(len(calls)), str(model.training)]
    return []


def stderr_of(function, **options) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as err:
        function(progress=True, sharded=True, **options)
    return err.getvalue()


def command(*arguments: str) -> tuple[int, str, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def all_cases(folder: Path) -> dict:
    found = {name: case(True) for name, case in (SAMPLING | EVALUATION).items()}
    found["drawn"], found["sizes"] = drawn_here()
    found["error"] = error_in_one()
    found["bar"] = stderr_of(lambda **options: draw_images(small(), Request(9, 5, 2), 2, **options))
    os.chdir(folder)
    found["evaluate"] = command("evaluate", "model", "--data", "few.npz", "--draws", "2", "--batch-size", "3", "--json")
    found["no model"] = command("sample", "nothing", "--out", "nothing.png")
    found["no device"] = command("evaluate", "model", "--data", "few.npz", "--device", "cuda:99")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined("cpu"):
        torch.save(all_cases(Path(sys.argv[1])), Path(sys.argv[1]) / f"{processes.rank()}.pt")
