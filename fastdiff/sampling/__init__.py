"""Images from models: sampling, interpolation in the latents, reconstruction, mixtures of latents."""

from .engine import Engine, sample_images
from .images import draw_images
from .interpolation import interpolate
from .mixtures import LatentMixture, MixtureError, fit_mixture, load_mixture
from .reconstruction import Reconstruction, reconstruct

__all__ = [
    "Engine", "LatentMixture", "MixtureError", "Reconstruction", "draw_images", "fit_mixture", "interpolate",
    "load_mixture", "reconstruct", "sample_images",
]  # fmt: skip
