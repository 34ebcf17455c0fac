"""Measures of a model: bits per dimension, ODE likelihood, Fréchet distance, precision and recall, PSNR, latents."""

from .bits_per_dim import OWN, Evaluation, evaluate, evaluate_ode, standard_error
from .dequantization import DEQUANTIZATIONS
from .digit_features import DigitClassifier, load_digit_classifier
from .features import FeaturesError, image_features, load_features
from .frechet import Frechet, compare_features, fd, fd_digits, frechet_distance
from .latents import evaluate_latents
from .ode import DIVERGENCES, ode_log_density
from .ode_bound import OdeBound, ode_nats
from .precision_recall import PrecisionRecall, precision_recall
from .psnr import PairedPsnr, paired_psnr, psnr

__all__ = [
    "DEQUANTIZATIONS", "DIVERGENCES", "OWN", "DigitClassifier", "Evaluation", "FeaturesError", "Frechet", "OdeBound",
    "PairedPsnr", "PrecisionRecall", "compare_features", "evaluate", "evaluate_latents", "evaluate_ode", "fd",
    "fd_digits", "frechet_distance", "image_features", "load_digit_classifier", "load_features", "ode_log_density",
    "ode_nats", "paired_psnr", "precision_recall", "psnr", "standard_error",
]  # fmt: skip
