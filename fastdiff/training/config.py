"""The configuration of a training run."""

import math

from ..data.options import ImageOptions
from ..diffusion import LOSSES
from ..io.configuration import at_least, between, configuration, field, more_than, one_of

DECAYS = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16")


@configuration
class TrainConfig:
    """How a model is trained.

    Args:
        data: name or path of the data set.
        images: how the images of the data set become those of the model: size, crop, colour, classes.
        max_steps: number of optimiser steps.
        batch_size: images per step, over all processes.
        accumulate: number of parts that each process computes its share of a batch in, one after the other. The result
            is that of the whole batch up to rounding.
        precision: of the networks: ``"fp32"``; or ``"bf16"``, where they compute in bfloat16 (autocast), and the
            weights, the noise schedule and the loss stay in float32.
        compile: compile the model with `torch.compile`.
        loss: the training loss: the bound (``"elbo"``), or a weighted diffusion loss (`fastdiff.diffusion.LOSSES`).
        T: number of steps of the bound that is minimised; None for the model's own.
        stratified: spread the times of a batch evenly; otherwise draw them independently.
        learning_rate: peak learning rate of AdamW.
        schedule_learning_rate: peak learning rate of the parameters of the noise schedule.
        warm_up: steps of linear warm-up.
        decay: learning rate after the warm-up: ``"cosine"`` to zero at ``max_steps``, or ``"constant"``.
        weight_decay: decay of weight matrices and kernels; biases, norms and the schedule have none.
        beta_1, beta_2: decay rates of AdamW's averages of the gradient and of its square.
        clip_norm: upper bound of the gradient norm, or None. The interior of a learned schedule, which follows another
            loss, is clipped by its own norm.
        ema: decay of the averaged weights; it warms up as (1 + k) / (10 + k).
        shift: probability that a training image is shifted by up to one pixel each way (filled with level 0) and
            labelled as augmented; needs a model with ``augmented=True``.
        flip: probability that a training image is mirrored left to right; it keeps its label.
        label_dropout: probability that a label is replaced by the null label.
        seed: seed of everything that is drawn, the initial weights included.
        first_stage: where the VAE of a DiffuseVAE comes from; None for other models.
    """

    data: str
    images: ImageOptions = field(factory=ImageOptions)
    max_steps: int = field(at_least(1))
    batch_size: int = field(at_least(1), default=64)
    accumulate: int = field(at_least(1), default=1)
    precision: str = field(one_of(*PRECISIONS), default="fp32")
    compile: bool = False
    loss: str = field(one_of(*LOSSES), default="elbo")
    T: int | None = field(at_least(1), default=None)
    stratified: bool = True
    learning_rate: float = field(more_than(0.0), default=2e-3)
    schedule_learning_rate: float = field(more_than(0.0), default=1e-2)
    warm_up: int = field(at_least(0), default=200)
    decay: str = field(one_of(*DECAYS), default="cosine")
    weight_decay: float = field(at_least(0.0), default=0.01)
    beta_1: float = field(between(0.0, 1.0, open_above=True), default=0.9)
    beta_2: float = field(between(0.0, 1.0, open_above=True), default=0.99)
    clip_norm: float | None = field(more_than(0.0), default=1.0)
    ema: float = field(between(0.0, 1.0, open_above=True), default=0.999)
    shift: float = field(between(0.0, 1.0), default=0.0)
    flip: float = field(between(0.0, 1.0), default=0.0)
    label_dropout: float = field(between(0.0, 1.0), default=0.5)
    seed: int = field(between(0, 2**64, open_above=True), default=0)
    first_stage: str | None = None

    def learning_rate_factor(self, step: int) -> float:
        """Return the factor of the learning rates at a step: the warm-up, then half a cosine or 1."""
        warm = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.decay == "constant":
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.max_steps)))
