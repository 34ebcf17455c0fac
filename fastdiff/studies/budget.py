"""What a run of a study costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Optimiser steps per model, seeds per setting, draws per held-out image.

    Raises:
        ValueError: too few to give a claim an error.
    """

    steps: int
    seeds: int
    draws: int = 128

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seeds", 2), ("draws", 10)):
            if getattr(self, name) < least:
                raise ValueError(f"Budget: {name} is {getattr(self, name)}; allowed: at least {least}")
