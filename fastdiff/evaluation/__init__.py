"""Measures of a model: bits per dimension, ODE likelihood, Fréchet distance, precision and recall, PSNR, latents."""

from .bits_per_dim import OWN, Evaluation, evaluate, evaluate_ode, standard_error
from .classifiers import CLASSIFIERS, ImageClassifier, load_classifier
from .dequantization import DEQUANTIZATIONS
from .features import FeaturesError, image_features, load_features
from .frechet import Frechet, compare_features, fd, fd_digits, fd_embedded, fd_letters, frechet_distance
from .groups import GroupMean, group_means, group_standard_error
from .latents import evaluate_latents
from .ode import DIVERGENCES, ode_log_density
from .ode_bound import OdeBound, ode_nats
from .precision_recall import PrecisionRecall, neighbour_radii, precision_recall
from .psnr import PairedPsnr, paired_psnr, psnr

__all__ = [
    "CLASSIFIERS", "DEQUANTIZATIONS", "DIVERGENCES", "OWN", "Evaluation", "FeaturesError", "Frechet", "GroupMean",
    "ImageClassifier", "OdeBound", "PairedPsnr", "PrecisionRecall", "compare_features", "evaluate", "evaluate_latents",
    "evaluate_ode", "fd", "fd_digits", "fd_embedded", "fd_letters", "frechet_distance", "group_means",
    "group_standard_error", "image_features", "load_classifier", "load_features", "neighbour_radii", "ode_log_density",
    "ode_nats", "paired_psnr", "precision_recall", "psnr", "standard_error",
]  # fmt: skip
