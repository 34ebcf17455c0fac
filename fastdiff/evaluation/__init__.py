"""Measures of a model: bits per dimension, the ODE's likelihood, Fréchet distance, PSNR, diagnostics of latents."""

from .bits_per_dim import OWN, Evaluation, evaluate, evaluate_ode, standard_error
from .dequantization import DEQUANTIZATIONS
from .digit_features import DigitClassifier, load_digit_classifier
from .frechet import Frechet, fd, fd_digits, frechet_distance
from .latents import evaluate_latents
from .ode import DIVERGENCES, ode_log_density
from .ode_bound import OdeBound, ode_nats
from .psnr import psnr

__all__ = [
    "DEQUANTIZATIONS", "DIVERGENCES", "OWN", "DigitClassifier", "Evaluation", "Frechet", "OdeBound", "evaluate",
    "evaluate_latents", "evaluate_ode", "fd", "fd_digits", "frechet_distance", "load_digit_classifier",
    "ode_log_density", "ode_nats", "psnr", "standard_error",
]  # fmt: skip
