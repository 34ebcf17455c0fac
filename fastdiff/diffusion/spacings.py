"""Explicit times of a sampler, and the times that a model brings for samplers of few calls of the network.

Times that are optimised for one model and one number of steps save calls (Align Your Steps, Sabour et al. 2024). A
model keeps them as data, ``model.spacings[sampler][steps]``: the name of the sampler, the number of steps, and the
times from 0 to 1. They are saved in config.json beside the weights.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..io.configuration import ConfigError, convert
from ..kernels import InvalidValueError

CHAIN_SPACINGS = ("leading", "trailing", "linspace")
Times = tuple[float, ...]
Spacings = Mapping[str, Mapping[int, Times]]  # by the name of the sampler and the number of steps
WANTED = "increasing times from 0 to 1"


def check_times(times: Sequence[float]) -> str | None:
    """Return None for times 0 = t_0 < t_1 < ... = 1, and what they must be for any other."""
    increasing = all(low < high for low, high in pairwise(times))
    return None if len(times) >= 2 and times[0] == 0.0 and times[-1] == 1.0 and increasing else f"be {WANTED}"


def chain_steps(spacing: str, count: int, steps: int) -> list[int]:
    """Return the steps of a chain of ``count`` that ``steps`` sampler steps take, 0 .. count - 1, increasing.

    These are the timesteps of diffusers' schedulers of these names (Lin et al. 2024, table 2): ``"leading"``: i times
    count // steps, i = 0 .. steps - 1; ``"trailing"``: count - 1 and then each count / steps lower, rounded;
    ``"linspace"``: evenly from 0 to count - 1, rounded. Halves are rounded to even numbers.

    Raises:
        InvalidValueError: more steps than the chain has.
    """
    if steps > count:
        raise InvalidValueError(f"steps must be <= {count}, those of the chain, with spacing {spacing!r}, got {steps}")
    i = torch.arange(steps, dtype=torch.float64)
    if spacing == "leading":
        chosen = i * (count // steps)
    elif spacing == "trailing":
        gap = (count - count / steps) - count  # rounded as NumPy's arange rounds it, for halves to fall the same way
        chosen = torch.round(count + (steps - 1 - i) * gap) - 1
    else:
        chosen = torch.round(i * ((count - 1) / max(1, steps - 1)))
    return [int(each) for each in chosen.tolist()]


def spacings_to_json(spacings: Spacings) -> dict[str, dict[str, list[float]]]:
    """Return a model's spacings in plain JSON types."""
    return {name: {str(steps): list(times) for steps, times in each.items()} for name, each in spacings.items()}


def spacings_from_json(data: Any, where: str, network_decoder: bool) -> Spacings:
    """Return the spacings of a model from JSON types; ``where`` names the source in errors.

    There is one time more than steps, or, where the decoder calls the network and so takes a step, as many.

    Raises:
        ConfigError: something else than times by the name of a sampler and the number of steps.
    """
    found: dict[str, dict[int, Times]] = {}
    for name, by_steps in convert(dict[str, Any], data, where).items():
        found[name] = {}
        for steps, values in convert(dict[str, Any], by_steps, f"{where}.{name}").items():
            place = f"{where}.{name}.{steps}"
            times = convert(Times, values, place)
            wanted = check_times(times)
            if wanted is not None:
                raise ConfigError(f"{place} must {wanted}, got {values!r}")
            if steps != str(len(times) - 1 + network_decoder):
                raise ConfigError(f"{place} must be the times of {steps} steps, got {len(times)} times")
            found[name][int(steps)] = times
    return found
