"""Interfaces of other libraries: a scheduler for diffusers, k-diffusion's denoisers and samplers, weights in files.

Each module imports the library that it serves, and none is imported before it is used. Checkpoints of diffusers are
read by `fastdiff.load`; weights without a configuration beside them are read here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kdiffusion
    from .improved_diffusion import load_improved_diffusion
    from .samplers import diffusers_sampler
    from .scheduler import FastdiffScheduler
    from .vdm import load_vdm

_HOMES: dict[str, str] = {
    "FastdiffScheduler": "scheduler",
    "diffusers_sampler": "samplers",
    "kdiffusion": "kdiffusion",
    "load_improved_diffusion": "improved_diffusion",
    "load_vdm": "vdm",
}

__all__ = ["FastdiffScheduler", "diffusers_sampler", "kdiffusion", "load_improved_diffusion", "load_vdm"]


def __getattr__(name: str) -> Any:
    """Import a public name, or a module, at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdiff.interop' has no attribute {name!r}")
    module = import_module(f"fastdiff.interop.{_HOMES[name]}")
    return module if _HOMES[name] == name else getattr(module, name)
