"""The command ``invert``: images to latents of the ODE, and back."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_parent
from .choices import SAMPLERS, choice
from .common_flags import is_watched
from .editing_flags import EditingFlags
from .labels import parse_label
from .outputs import Output

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".safetensors", ".npz")
KEY = "latents"


@dataclass(kw_only=True)
class Invert(EditingFlags):
    """Write the latents that the probability-flow ODE leads images to; with --back, the images of such latents.

    The model, the steps, the sampler and the label must be the same on the way back.
    """

    out: str | None = None
    """What to write: latents.safetensors or latents.npz (array latents [N, C, H, W]); with --back a picture, an .npz
    file with the array arr_0, or a folder. By default latents.safetensors, and images.png."""
    back: bool = False
    """Read latents, and write their images."""
    check: bool = False
    """Go back at once, and print how many pixels keep their level."""
    steps: int | None = 100
    """Sampler steps; heun calls the network twice a step."""
    sampler: Annotated[str, choice(*SAMPLERS)] = "heun"
    """heun, ddim or euler; with --back also any other."""
    label: str | None = None
    """Class of all images, for a class-conditional model: its name or its number."""

    def run(self) -> int:
        """Invert, and write the latents or the images."""
        return self._back() if self.back else self._forward()

    def _forward(self) -> int:
        out = Path("latents.safetensors" if self.out is None else self.out)
        if out.suffix not in ENDINGS:
            raise InvalidValueError(f"--out must end in .safetensors or .npz, got {out}")
        check_parent(out)
        self.check_free(out)
        self.check_n()

        from ..io.files import write_atomically
        from ..sampling import from_latents, invert
        from ..sampling.editing import diffusion_engine

        engine = diffusion_engine("invert", self.engine())
        x = self.read(engine.model.shape, Output("npz", out)).at_levels(engine.model.levels)
        steps, sampler = 100 if self.steps is None else self.steps, self.sampler_object()
        labels = parse_label(self.label, engine.model.config)
        z = invert(engine, x, steps, sampler, labels, batch_size=self.batch_size, progress=is_watched())
        out = write_atomically(self.free_path(out), _latents_bytes(z, out.suffix))
        print(f"wrote {out} (latents of {len(z)} images, of deviation {float(z.std()):.3f})")
        if self.check:
            again = from_latents(
                engine,
                z,
                steps,
                sampler,
                labels=labels,
                batch_size=self.batch_size,
                output="levels",
                progress=is_watched(),
            )
            assert not isinstance(again, list)
            kept = again == x
            whole = int(kept.flatten(1).all(1).sum())
            print(f"back: {int(kept.sum())} of {kept.numel()} pixels keep their level, all of them in {whole} images")
        return 0

    def _back(self) -> int:
        if self.check or self.fit:
            raise InvalidValueError(f"--{'check' if self.check else 'fit'} must be absent with --back")
        self.check_n()
        output = self.output_for("images.png" if self.out is None else self.out)

        from ..sampling import from_latents
        from ..sampling.editing import diffusion_engine

        engine = diffusion_engine("invert", self.engine())
        z = _read_latents(self.images)[: self.n]
        steps, labels = 100 if self.steps is None else self.steps, parse_label(self.label, engine.model.config)
        results = from_latents(
            engine,
            z,
            steps,
            self.sampler_object(),
            self.seed,
            labels,
            batch_size=self.batch_size,
            progress=is_watched(),
        )
        assert not isinstance(results, list)
        names, about = [f"{k:05}" for k in range(len(z))], f"from {os.path.basename(self.images)}"
        self.write_results(output, engine.model, names, {}, results, about)
        return 0


def _latents_bytes(latents: "Tensor", ending: str) -> bytes:
    """Return a file of latents."""
    if ending == ".safetensors":
        from safetensors.torch import save

        return save({KEY: latents})
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **{KEY: latents.numpy()})  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _read_latents(path: str) -> "Tensor":
    """Read latents, floats of any width and byte order, as float32 [N, C, H, W].

    Raises:
        DataError: a file that cannot be read, or that holds no latents [N, C, H, W].
    """
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    from ..data import DataError
    from ..data.npz import read_arrays

    if not path.endswith(ENDINGS):
        raise DataError(f"latents must be a file that ends in .safetensors or .npz, got {path}")
    if path.endswith(".npz"):
        found = read_arrays(path, (KEY,), lambda *rest: None)
        with np.errstate(over="ignore"):  # to inf, which `from_latents` rejects
            arrays = {name: array.astype(np.float32) for name, array in found.items() if array.dtype.kind == "f"}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    else:
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys() if name == KEY}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a safetensors file: {error}") from error
    if KEY not in tensors or not tensors[KEY].is_floating_point():
        raise DataError(f"{path} must hold the array {KEY!r} of floats, as fastdiff invert writes it")
    if tensors[KEY].dim() != 4:
        raise DataError(f"{path} must hold {KEY} of shape [N, C, H, W], got {tuple(tensors[KEY].shape)}")
    return tensors[KEY].float()
