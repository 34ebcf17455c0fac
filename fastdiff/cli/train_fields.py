"""Written by `python -m fastdiff.cli.write_fields`, not by hand: flags and presets of `fastdiff train`."""

# ruff: noqa: E501

from dataclasses import dataclass
from typing import Annotated, Literal

from .choices import choice, hint

MODELS = ("vdm", "ddpm", "vae", "hvae", "diffusevae", "restoration")
PRESETS = (
    "digits                  vdm         digits     0.4 M",
    "vdm-digits              vdm         digits     0.4 M",
    "ddpm-digits             ddpm        digits     0.4 M",
    "flow-digits             vdm         digits     0.4 M",
    "edm-digits              vdm         digits     0.4 M",
    "vae-digits              vae         digits     0.1 M",
    "hvae-digits             hvae        digits     0.1 M",
    "diffusevae-digits       diffusevae  digits     0.5 M",
    "diffusevae2-digits      diffusevae  digits     0.5 M",
    "superresolution2-digits restoration digits     0.4 M",
    "superresolution4-digits restoration digits     0.4 M",
    "denoising-digits        restoration digits     0.4 M",
    "letters                 vdm         letters    0.5 M",
    "vdm-letters             vdm         letters    0.5 M",
    "ddpm-letters            ddpm        letters    0.5 M",
    "vae-letters             vae         letters    0.5 M",
    "hvae-letters            hvae        letters    0.7 M",
    "diffusevae-letters      diffusevae  letters    1.0 M",
    "diffusevae2-letters     diffusevae  letters    1.0 M",
    "vdm-cifar10             vdm         cifar10    30.6 M",
    "vdm-imagenet32          vdm         imagenet32 122.1 M",
    "vdm-imagenet64          vdm         imagenet64 237.6 M",
    "ddpm-cifar10            ddpm        cifar10    35.7 M",
    "vae-cifar10             vae         cifar10    9.2 M",
    "vae-celeba64            vae         celeba64   14.0 M",
    "diffusevae-cifar10      diffusevae  cifar10    45.0 M",
    "diffusevae2-cifar10     diffusevae  cifar10    45.0 M",
    "diffusevae-celeba64     diffusevae  celeba64   92.7 M",
)


@dataclass
class TrainingFields:
    """The training. What is not given is the preset's, or for own data as in brackets."""

    data: Annotated[str | None, hint("")] = None
    """Name or path of the data set."""
    max_steps: Annotated[int | None, hint("50000")] = None
    """Number of optimiser steps."""
    batch_size: Annotated[int | None, hint("64")] = None
    """Images per step, over all processes."""
    accumulate: Annotated[int | None, hint("1")] = None
    """Number of parts that each process computes its share of a batch in, one after the other. The result is that of the whole batch up to rounding."""
    precision: Annotated[str | None, choice("fp32", "bf16"), hint("fp32")] = None
    """Of the networks: fp32; or bf16, where they compute in bfloat16 (autocast), and the weights, the noise schedule and the loss stay in float32."""
    compile: Annotated[bool | None, hint("no")] = None
    """Compile the model with torch.compile."""
    loss: Annotated[
        str | None,
        choice("elbo", "simple", "min-snr", "sigmoid", "flow", "edm"),
        hint("elbo; simple for ddpm, diffusevae, restoration"),
    ] = None
    """The training loss: the bound (elbo), or a weighted diffusion loss (fastdiff.diffusion.LOSSES)."""
    T: Annotated[int | Literal["none"] | None, hint("none")] = None
    """Number of steps of the bound that is minimised; none for the model's own."""
    stratified: Annotated[bool | None, hint("yes")] = None
    """Spread the times of a batch evenly; otherwise draw them independently."""
    learning_rate: Annotated[float | None, hint("0.0005; 0.001 for vae, hvae")] = None
    """Peak learning rate of AdamW."""
    schedule_learning_rate: Annotated[float | None, hint("0.01")] = None
    """Peak learning rate of the parameters of the noise schedule."""
    warm_up: Annotated[int | None, hint("500")] = None
    """Steps of linear warm-up."""
    decay: Annotated[str | None, choice("cosine", "constant"), hint("cosine")] = None
    """Learning rate after the warm-up: cosine to zero at max_steps, or constant."""
    weight_decay: Annotated[float | None, hint("0.01")] = None
    """Decay of weight matrices and kernels; biases, norms and the schedule have none."""
    beta_1: Annotated[float | None, hint("0.9")] = None
    """Decay rates of AdamW's averages of the gradient and of its square."""
    beta_2: Annotated[float | None, hint("0.99")] = None
    """Decay rates of AdamW's averages of the gradient and of its square."""
    clip_norm: Annotated[float | Literal["none"] | None, hint("1")] = None
    """Upper bound of the gradient norm, or none. The interior of a learned schedule, which follows another loss, is clipped by its own norm."""
    ema: Annotated[float | None, hint("0.9995")] = None
    """Decay of the averaged weights; it warms up as (1 + k) / (10 + k)."""
    shift: Annotated[float | None, hint("0")] = None
    """Probability that a training image is shifted by up to one pixel each way (filled with level 0) and labelled as augmented; needs a model with augmented=True."""
    flip: Annotated[float | None, hint("0")] = None
    """Probability that a training image is mirrored left to right; it keeps its label."""
    label_dropout: Annotated[float | None, hint("0.5")] = None
    """Probability that a label is replaced by the null label."""
    seed: Annotated[int | None, hint("0")] = None
    """Seed of everything that is drawn, the initial weights included."""
    first_stage: Annotated[str | None, hint("none")] = None
    """Where the VAE of a DiffuseVAE comes from; none for other models."""


@dataclass
class ImageFields:
    """How images are read; they are the preset's, or for own data as in brackets."""

    size: Annotated[int | Literal["none"] | None, hint("none")] = None
    """Side of the square images; none keeps the stored size, which must be the same for all."""
    resize: Annotated[int | Literal["none"] | None, hint("none")] = None
    """Length of the shorter side before the crop, >= size; none: size."""
    crop: Annotated[str | None, choice("center", "random"), hint("center")] = None
    """Where the square is cut out: center, or random for training images (held-out ones stay centred)."""
    color: Annotated[str | None, choice("grey", "rgb", "none"), hint("none")] = None
    """Grey or rgb converts; none keeps the stored colours, and all images must be grey, or all RGB."""
    classes: Annotated[bool | None, hint("no")] = None
    """Labels from the names of the folders, for a folder of images."""
    held_out: Annotated[int | Literal["none"] | None, hint("none")] = None
    """Number of images held out of a folder without train/ and test/; none: one in twenty, from 1 to 1000."""
    skip_damaged: Annotated[bool | None, hint("no")] = None
    """Leave out the files of a folder that cannot be read, with a warning that counts them. Every file is decoded once when the folder is opened, in several processes, since nothing less finds the damaged ones."""


@dataclass
class RunFields:
    """How the run is kept and shown; none of it changes the numbers."""

    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Number of checkpoints that are kept."""
    evaluations: int = 8
    """How many times the bound is evaluated during training."""
    pictures: bool = True
    """Draw a picture of samples after each evaluation, always from the same noise."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""
    progress: bool = True
    """Show progress bars on stderr; without them a run prints lines, for a log."""
    log_every: Annotated[int | None, hint("")] = None
    """Steps between these lines, rounded up to a multiple of 50; 0 prints none. By default one a minute. Every evaluation has a line too."""
    workers: Annotated[int | None, hint("")] = None
    """Processes that read images ahead, see fastdiff.training.feed."""
    allow_changed_data: bool = False
    """Resume although files of the data set have changed, or are left out now; the change is recorded, and the order of the images is another one from there on."""
