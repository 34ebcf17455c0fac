"""What every diffusion model has in common: a schedule, a prediction, and the bound over any number of steps.

A chain of latents z_t, t from 1 to 0, each step a Gaussian whose mean follows from eps_hat, and a decoder p(x | z_0).
A bound at T = ``steps`` counts the calls of the network that sampling makes: T steps between gamma(1) and gamma(0), or
T - 1 and the decoder's where the decoder asks the network too (DDPM).
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import Noise, Stream, centre, diffuse, eps_loss
from ..schedules import Schedule
from ..vlb import (
    Objective,
    Vlb,
    check_steps,
    finite_times,
    independent_times,
    loss_weight,
    prior_nats,
    stratified_times,
)
from .base import Model


class DiffusionModel(Model):
    """A model that the sampling loop can use.

    Subclasses give ``gamma``, `predict`, `recon_nats` and `decode`, and may say that their decoder asks the network
    (``network_decoder``), what variance their steps have (``variance``, see `fastdiff.samplers.VARIANCES`), and their
    own number of steps.
    """

    gamma: Schedule
    network_decoder: ClassVar[bool] = False
    variance: str = "small"

    @property
    def steps(self) -> int | None:
        """The model's own T; None for continuous time."""
        return None

    @property
    def offset(self) -> Tensor | None:
        """A picture that the chain is shifted by, [B, C, H, W]: its latents are then x_t less the picture."""
        return None

    def predict(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return eps_hat for z_t [B, C, H, W] at gamma [B] given labels int64 [B] or None, and what a model with
        learned variances says of them: how far the log variance is from the small (0) to the large one (1), like z_t.
        """
        raise NotImplementedError

    def eps_hat(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise in z_t [B, C, H, W] float32 at gamma [B]; labels int64 [B], or None for unconditional."""
        return self.predict(z_t, gamma, labels)[0]

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None) -> Tensor:
        """-log p(x | z_0) in nats, [B], for x uint8 [B, C, H, W]."""
        raise NotImplementedError

    def decode(self, z_0: Tensor) -> Tensor:
        """Turn the sampler's result [B, C, H, W] (z_0, or x_hat of a network decoder) into levels, uint8."""
        raise NotImplementedError

    def conditions(self, where: str, labels: Tensor | None, z_t: Tensor) -> Tensor | None:
        """Check labels, and put "no label" where there are none but the network tells conditions apart.

        Raises:
            TypeError, ValueError: labels that do not fit.
        """
        self.check_labels(where, labels, z_t.shape[0])
        if labels is None and self.config.conditions:
            return torch.full((z_t.shape[0],), self.no_label, device=z_t.device)
        return labels

    def intervals(self, where: str, steps: int | None) -> int | None:
        """Number of Gaussian steps at T = ``steps``, checked; None for continuous time.

        Raises:
            ValueError: fewer steps than one, or than two where the decoder takes one.
        """
        check_steps(where, steps, 1 + self.network_decoder)
        return None if steps is None else steps - self.network_decoder

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        steps: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats.

        Diffusion term, T = infinity: ½ gamma'(t) |eps - eps_hat|² (Kingma et al. 2021, eq. 17); finite T: the number
        of steps times the KL of one, at one stratified time per image. Reconstruction and prior: `fastdiff.vlb`.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: what all draws derive from; sample b is ``noise.first_sample + b``.
            steps: T, or None for continuous time.
            labels: int64 [B], or None.
            total: number of samples that the times are stratified over, by default this batch.

        Raises:
            TypeError, ValueError: images, labels or steps that do not fit.
        """
        self.check_images("vlb", x)
        intervals = self.intervals("vlb", steps)
        u = stratified_times(noise, len(x), total).to(x.device)
        diffusion = self.diffusion_nats(centre(x, self.levels), noise, u, intervals, labels)
        return Vlb(*self.end_terms(x, noise, labels), diffusion)

    def end_terms(self, x: Tensor, noise: Noise, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the prior term, [B] each."""
        centred = centre(x, self.levels)
        gamma_0, gamma_1 = self.gamma.endpoints()
        z_0 = diffuse(centred, gamma_0.expand(len(x)), noise.at(stream=Stream.RECON))
        return self.recon_nats(x, z_0, labels), prior_nats(centred, gamma_1)

    def diffusion_nats(
        self, centred: Tensor, noise: Noise, u: Tensor, intervals: int | None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the diffusion term at given times, [B].

        Args:
            centred: data float32 [B, C, H, W] in [-1, 1].
            noise: of z_t.
            u: float64 [B] in [0, 1), uniform for an unbiased draw; with ``intervals`` it chooses one of them.
            intervals: number of Gaussian steps, None for continuous time.
            labels: int64 [B], or None.
        """
        eps = noise.at(stream=Stream.DIFFUSION)
        if intervals is None:
            gamma_t, slope = self.gamma.both(u)
            eps_hat = self.eps_hat(diffuse(centred, gamma_t.float(), eps), gamma_t.float(), labels)
            return eps_loss(eps_hat, eps, 0.5 * slope.float())
        s, t = finite_times(u, intervals)
        gamma_s, gamma_t = self.gamma(s), self.gamma(t)  # float64: at large T their difference has no digits in float32
        eps_hat, fraction = self.predict(diffuse(centred, gamma_t.float(), eps), gamma_t.float(), labels)
        return self.kl_nats(eps_hat, fraction, eps, gamma_s, gamma_t, intervals)

    def kl_nats(
        self,
        eps_hat: Tensor,
        fraction: Tensor | None,
        eps: Noise,
        gamma_s: Tensor,
        gamma_t: Tensor,
        repeats: float = 1.0,
    ) -> Tensor:
        """Return ``repeats`` times KL(q(z_s | z_t, x) || p(z_s | z_t)), [B]; here p has the variance of q.

        ½ expm1(gamma_t - gamma_s) |eps - eps_hat|² (Kingma et al. 2021, eq. 14), for float64 gammas [B].
        """
        return eps_loss(eps_hat, eps, (0.5 * repeats * torch.expm1(gamma_t - gamma_s)).float())

    def objective(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        steps: int | None = None,
        stratified: bool = True,
    ) -> Objective:
        """Return the training loss of every image, and the bound that the same draws estimate, in nats.

        The loss is recon + prior + a weighted diffusion term, at stratified times; see `fastdiff.vlb.loss_weight`. The
        weights are the network's: whatever they are, learned endpoints get the gradient of the bound, and the interior
        of a learned schedule that of the squared diffusion term (in continuous time; at finite T that of the bound).

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: what all draws derive from.
            labels: int64 [B], or None.
            loss: one of `fastdiff.vlb.LOSSES`.
            steps: T of the bound that is trained, None for the model's own.
            stratified: whether the times of the batch are spread evenly, or drawn independently.

        Raises:
            TypeError, ValueError: images, labels, steps or loss that do not fit.
        """
        self.check_images("objective", x)
        intervals = self.intervals("objective", steps if steps is not None else self.steps)
        u = (stratified_times if stratified else independent_times)(noise, len(x)).to(x.device)
        later: list[Tensor] = []  # the loss that the schedule's hooks wait for
        if intervals is None:
            gamma_t, slope = self.gamma.for_training(u, lambda: later[0])
        else:
            s, t = finite_times(u, intervals)
            gamma_t = self.gamma(t)
            slope = intervals * torch.expm1(gamma_t - self.gamma(s))
        gamma_t, slope = gamma_t.float(), slope.float()
        eps, weight = noise.at(stream=Stream.DIFFUSION), loss_weight(loss, gamma_t.detach(), slope.detach())
        if loss != "elbo" and gamma_t.requires_grad:  # the network follows the loss, the schedule the bound
            gamma_t.register_hook(lambda gradient: gradient * (0.5 * slope.detach() / weight))
        eps_hat = self.eps_hat(diffuse(centre(x, self.levels), gamma_t, eps), gamma_t, labels)
        recon, prior = self.end_terms(x, noise, labels)
        if loss == "elbo":
            diffusion = goal = eps_loss(eps_hat, eps, 0.5 * slope)
        else:
            square = eps_loss(eps_hat, eps, torch.ones_like(slope))
            diffusion = 0.5 * slope * square.detach()
            goal = weight * square + (diffusion - diffusion.detach())
        later.append(diffusion.detach())
        return Objective(recon + prior + goal, Vlb(recon, prior, diffusion).detach())
