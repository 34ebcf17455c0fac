"""Images from models: sampling, editing, inversion, interpolation, reconstruction, restoration, mixtures of latents."""

from .bulk import Samples, sample_to_folder
from .editing import edit, inpaint
from .engine import Engine, sample_images
from .images import draw_images
from .interpolation import interpolate
from .inversion import from_latents, invert
from .mixtures import LatentMixture, MixtureError, fit_mixture, load_mixture
from .reconstruction import Reconstruction, reconstruct
from .restoration import restore
from .sample_folder import SampleFolderError

__all__ = [
    "Engine", "LatentMixture", "MixtureError", "Reconstruction", "SampleFolderError", "Samples", "draw_images", "edit",
    "fit_mixture", "from_latents", "inpaint", "interpolate", "invert", "load_mixture", "reconstruct", "restore",
    "sample_images", "sample_to_folder",
]  # fmt: skip
