"""Folders of diffusers as models: a UNet2DModel, or a pipeline of it and a scheduler."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..io import folders
from ..io.configuration import ConfigError
from ..io.folders import CheckpointError, Json
from ..io.random_state import seeded
from ..kernels import InvalidValueError
from ..models import DDPM
from ..models.formats.diffusers_config import Described, read_config
from ..models.formats.diffusers_names import entries_of
from ..models.formats.diffusers_pipeline import OWN, own_config, read_written
from ..models.formats.settings import shown
from ..models.formats.tensor_map import read_tensors
from ..networks import ConcatUNet
from .pickles import check_no_pickle
from .plausible import check_plausible

LOG = logging.getLogger("fastdiff")
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
STEM, ENDING, SHARDS = "diffusion_pytorch_model", ".safetensors", ".safetensors.index.json"
SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class DiffusersFolder:
    """Where the parts of a model lie: the folder of the network, and the scheduler's configuration, if there is one."""

    network: Path
    scheduler: Path | None


def is_diffusers(path: Path) -> bool:
    """Return whether a path is a folder that diffusers wrote."""
    if os.path.isfile(path / INDEX) or os.path.isfile(path / "unet" / CONFIG):
        return True
    try:
        return os.path.isfile(path / CONFIG) and "_class_name" in folders.read_file(path / CONFIG)
    except (CheckpointError, TypeError):
        return False


def load_diffusers(path: Path) -> DDPM:
    """Build the `DDPM` of a folder of diffusers, with its weights in float32, in eval mode.

    A folder of the network alone takes the scheduler of the pipeline that it lies in (``unet``, or the averaged weights
    in ``unet_ema``). Without one the model is that of ``DDPMScheduler()``: T = 1000, betas from 1e-4 to 0.02;
    the logger "fastdiff" warns of it.

    Raises:
        CheckpointError: a network or a scheduler that fastdiff does not have, all differences listed; weights that are
            missing, damaged, no safetensors files, of other shapes or not finite.
    """
    found = _located(path)
    settings = _object(found.network / CONFIG)
    scheduler = None if found.scheduler is None else _object(found.scheduler)
    where, scheduler_where = str(found.network / CONFIG), str(found.scheduler)
    _check_class(settings, where)
    tensors = _weights(found.network)
    try:
        own = own_config(settings, where)
        if own is None:
            described = read_config(settings, scheduler, where, scheduler_where)
        else:
            check_plausible(own, tensors, f"{where}: {OWN}")
            described = read_written(settings, scheduler, own, where, scheduler_where)
        check_plausible(described.config, tensors, where)
        with seeded(None):  # the fresh weights are drawn from the caller's generator, which is restored
            model = DDPM(described.config)
        own_values = settings.get(OWN)
        if own is not None and isinstance(own_values, dict) and "spacings" in own_values:
            model.take_spacings(own_values["spacings"], f"{where}: {OWN}.spacings")
    except (ConfigError, InvalidValueError) as error:
        raise CheckpointError(str(error)) from error
    _fill(model, described, tensors, str(found.network))
    if own is None and scheduler is None:
        LOG.warning("%s has no scheduler: its chain is taken to be 1000 linear betas from 1e-4 to 0.02", path)
    return model.eval()


def read_scheduler(path: Path) -> Json | None:
    """Return the configuration of the scheduler of a folder of diffusers, or of this file; None for a folder without.

    Raises:
        CheckpointError: there is no such path, or it cannot be read.
    """
    if os.path.isfile(path):
        return _object(path)
    if not os.path.isdir(path):
        raise CheckpointError(f"{path} must be a folder of diffusers or a scheduler's configuration, but is not there")
    own = path / SCHEDULER if os.path.isfile(path / SCHEDULER) else _located(path).scheduler
    return None if own is None else _object(own)


def _located(path: Path) -> DiffusersFolder:
    index = _object(path / INDEX) if os.path.isfile(path / INDEX) else {}
    _check_parts(index, path)
    network = path / "unet" if os.path.isfile(path / "unet" / CONFIG) else path
    absolute = Path(os.path.abspath(path))  # the name of "." is that of the working directory
    beside = absolute.parent if absolute.name.startswith("unet") else path
    places = (path / "scheduler" / SCHEDULER, path / SCHEDULER, beside / "scheduler" / SCHEDULER)
    return DiffusersFolder(network, next((place for place in places if os.path.isfile(place)), None))


def _check_parts(index: Json, path: Path) -> None:
    """Check that a pipeline has a UNet2DModel and a scheduler, and nothing else that computes."""
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    parts = {name: kind for name, kind in parts.items() if kind is not None and name != "scheduler"}
    if index and parts != {"unet": "UNet2DModel"}:
        found = ", ".join(f"{name} {shown(kind)}" for name, kind in parts.items()) or "no network"
        raise CheckpointError(
            f"{path / INDEX} must be that of a pipeline of a UNet2DModel called unet and a scheduler, such as "
            f"DDPMPipeline or DDIMPipeline, got {shown(index.get('_class_name'))} with {found}"
        )


def _check_class(settings: Json, where: str) -> None:
    name = settings.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise CheckpointError(f"{where} must be the configuration of a UNet2DModel, got {shown(name)}")


def _object(path: Path) -> Json:
    content = folders.read_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {shown(content)}")
    return content


def _weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a network's folder: of one file, of the shards of an index, or of the only variant."""
    if os.path.isfile(folder / f"{STEM}{ENDING}"):
        return folders.read_file(folder / f"{STEM}{ENDING}")
    if os.path.isfile(folder / f"{STEM}{SHARDS}"):
        return _shards(folder, folder / f"{STEM}{SHARDS}")
    check_no_pickle(folder)
    names = sorted(name for name in os.listdir(folder) if name.startswith(f"{STEM}.") and not SHARD.fullmatch(name))
    indexes = [name for name in names if name.startswith(f"{STEM}{ENDING}.index.") and name.endswith(".json")]
    variants = [name for name in names if name.endswith(ENDING)] + indexes  # such as .fp16
    if len(variants) != 1:
        found = f"the variants {', '.join(variants)}" if variants else "no weights"
        raise CheckpointError(f"{folder} must hold {STEM}{ENDING}, or one variant of it, but it holds {found}")
    file = folder / variants[0]
    return _shards(folder, file) if indexes else folders.read_file(file)


def _shards(folder: Path, index: Path) -> dict[str, Tensor]:
    names = _object(index).get("weight_map")
    files = set(names.values()) if isinstance(names, dict) and all(type(n) is str for n in names.values()) else set()
    if not files or any(Path(name).name != name or not name.endswith(ENDING) for name in files):
        raise CheckpointError(f"{index} must have a weight_map from tensors to {ENDING} files of its folder")
    tensors: dict[str, Tensor] = {}
    for name in sorted(files):
        tensors |= folders.read_file(folder / name)
    return tensors


def _fill(model: DDPM, described: Described, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a file into a model."""
    network = model.network
    assert isinstance(network, ConcatUNet)
    entries = entries_of(network, described.flip_sin_to_cos, add_null_label=described.classes > 0)
    expected = network.state_dict()
    state = read_tensors(entries, tensors, expected, where, "a UNet2DModel")
    folders.check_state(where, state, expected)
    network.load_state_dict(state)
