"""Explicit times of a sampler, and the times that a model brings for samplers of few calls of the network.

Times that are optimised for one model and one number of steps save calls (Align Your Steps, Sabour et al. 2024). A
model keeps them as data, ``model.spacings[sampler][steps]``: the name of the sampler, the number of steps, and the
times from 0 to 1. They are saved in config.json beside the weights.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..io.configuration import ConfigError, convert

Times = tuple[float, ...]
Spacings = Mapping[str, Mapping[int, Times]]  # by the name of the sampler and the number of steps
WANTED = "increasing times from 0 to 1"


def check_times(times: Sequence[float]) -> str | None:
    """Return None for times 0 = t_0 < t_1 < ... = 1, and what they must be for any other."""
    increasing = all(low < high for low, high in pairwise(times))
    return None if len(times) >= 2 and times[0] == 0.0 and times[-1] == 1.0 and increasing else f"be {WANTED}"


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
