"""What all diffusion models share: a schedule, a network's prediction, the variational bound, the training loss.

The latents are z_t, t from 1 (noise) to 0 (data). Every step p(z_s | z_t) is a Gaussian whose mean follows from
eps_hat, and a decoder p(x | z_0) ends the chain. T counts the calls of the network that sampling makes: T Gaussian
steps, or T - 1 and the decoder's call where the decoder calls the network too (DDPM).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diffusion.bound import (
    Objective,
    Vlb,
    check_T,
    finite_times,
    loss_weight,
    prior_nats,
    stratified_times,
    training_times,
)
from ..diffusion.schedules import Schedule, gamma_table
from ..diffusion.spacings import spacings_from_json, spacings_to_json
from ..io.folders import Json
from ..kernels import InvalidTypeError, InvalidValueError, Noise, Stream, diffuse, eps_loss
from ..networks.dropout import set_dropout_noise
from .base import Diffusion, ParameterGroups, group_parameters
from .diffusion_sampling import DiffusionSampling


class DiffusionModel(DiffusionSampling):
    """A model with a diffusion: its bound and its training loss. Subclasses set ``gamma`` and ``network`` and implement
    `predict`, `recon_nats` and `most_likely`.
    """

    @property
    def unconditional_diffusion(self) -> Diffusion:
        return self

    def eps_hat(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Predict the noise in z_t [B, C, H, W] float32 at gamma [B]; see `predict`."""
        return self.predict(z_t, gamma, labels, cond)[0]

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """Return -log p(x | z_0) in nats, [B], for x uint8 [B, C, H, W]."""
        raise NotImplementedError

    def labels_or_null(self, where: str, labels: Tensor | None, z_t: Tensor) -> Tensor | None:
        """Return the labels that the network is called with: checked, and null labels in place of None if it has any.

        Raises:
            InvalidTypeError, InvalidValueError: labels that do not fit.
        """
        self.check_labels(where, labels, z_t.shape[0])
        if labels is None and self.config.num_labels:
            return torch.full((z_t.shape[0],), self.null_label, device=z_t.device)
        return labels

    def draw_cond(self, x: Tensor, noise: Noise) -> tuple[Tensor | None, Tensor | None]:
        """Draw the conditioning images of data x uint8, and return them with the nats of what they were drawn from.

        None, None for a model without conditioning images.
        """
        return None, None

    # -------------------------------------------------------------------------------------------- bound

    def vlb(
        self,
        x: Tensor,
        noise: Noise,
        T: int | None = None,
        labels: Tensor | None = None,
        total: int | None = None,
        proposal: Schedule | None = None,
    ) -> Vlb:
        """Return one unbiased draw of the bound for every image, in nats (Kingma et al. 2021, eq. 11).

        -log p(x) <= E[-log p(x | z_0)] + KL(q(z_1 | x) || N(0, I)) + diffusion. Arguments as in `Model.vlb`.
        """
        self.check_images("vlb", x)
        self.check_noise("vlb", noise)
        self.check_labels("vlb", labels, len(x))
        num_transitions = self.num_transitions(self.check_T("vlb", T))
        if proposal is not None and num_transitions is not None:
            raise InvalidValueError(f"vlb: proposal must be None at a finite T, got T = {T}")
        u = stratified_times(noise, len(x), total).to(x.device)
        cond, cond_nats = self.draw_cond(x, noise)
        data = self.to_unit(x)
        recon, prior = self._end_terms(x, data, noise, labels, cond)
        diffusion = self._diffusion(data, noise, u, num_transitions, labels, cond, proposal)
        return Vlb(recon, plus_cond(prior, cond_nats), diffusion)

    def _end_terms(
        self, x: Tensor, data: Tensor, noise: Noise, labels: Tensor | None, cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-log p(x | z_0) for one z_0 ~ q(z_0 | x), and KL(q(z_1 | x) || N(0, I)), [B] each; data is x in [-1, 1]."""
        gamma_0, gamma_1 = self.gamma.endpoints()
        z_0 = diffuse(data, gamma_0.expand(len(x)), drawn_once(noise.at(stream=Stream.RECON), data))
        return self.recon_nats(x, z_0, labels, cond), prior_nats(data, gamma_1)

    def _diffusion(
        self,
        data: Tensor,
        noise: Noise,
        u: Tensor,
        num_transitions: int | None,
        labels: Tensor | None,
        cond: Tensor | None,
        proposal: Schedule | None = None,
    ) -> Tensor:
        """The diffusion term of data in [-1, 1] at times u float64 [B] in [0, 1), [B].

        T = infinity: ½ gamma'(t) |eps - eps_hat|² (Kingma et al. 2021, eq. 17), for any schedule between the model's
        endpoints: the model's own, or a proposal. Finite T: the number of steps times
        KL(q(z_s | z_t, x) || p(z_s | z_t)) of the step that u selects.
        """
        eps = drawn_once(noise.at(stream=Stream.DIFFUSION), data)
        if num_transitions is None:
            gamma_t, slope = (self.gamma if proposal is None else proposal).both(u)
            eps_hat = self.eps_hat(diffuse(data, gamma_t.float(), eps), gamma_t.float(), labels, cond)
            return eps_loss(eps_hat, eps, 0.5 * slope.float())
        s, t = finite_times(u, num_transitions)
        gamma_s, gamma_t = self.gamma(s), self.gamma(t)  # float64: at large T they differ by little
        eps_hat, v = self.predict(diffuse(data, gamma_t.float(), eps), gamma_t.float(), labels, cond)
        return self.kl_nats(eps_hat, v, eps, gamma_s, gamma_t, num_transitions)

    def kl_nats(
        self,
        eps_hat: Tensor,
        v: Tensor | None,
        eps: Noise | Tensor,
        gamma_s: Tensor,
        gamma_t: Tensor,
        factor: float = 1.0,
    ) -> Tensor:
        """Return ``factor`` times KL(q(z_s | z_t, x) || p(z_s | z_t)), [B], where p has the variance of q.

        ½ expm1(gamma_t - gamma_s) |eps - eps_hat|² (Kingma et al. 2021, eq. 14), for float64 gammas [B].
        """
        return eps_loss(eps_hat, eps, (0.5 * factor * torch.expm1(gamma_t - gamma_s)).float())

    def end_terms(self, x: Tensor, noise: Noise, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cond, cond_nats = self.draw_cond(x, noise)
        recon, prior = self._end_terms(x, self.to_unit(x), noise, labels, cond)
        return recon, plus_cond(prior, cond_nats)

    def transition_nats(
        self, x: Tensor, noise: Noise, u: Tensor, num_transitions: int, labels: Tensor | None = None
    ) -> Tensor:
        data, cond = self.to_unit(x), self.draw_cond(x, noise)[0]
        return self._diffusion(data, noise, u, num_transitions, labels, cond)

    def check_T(self, where: str, T: int | None) -> int | None:
        check_T(where, T, 1 + self.network_decoder)
        return T

    def num_transitions(self, T: int | None) -> int | None:
        return None if T is None else T - self.network_decoder

    def check_schedule(self) -> None:
        gamma_table(self.gamma, 256)

    # -------------------------------------------------------------------------------------------- training

    def forward(
        self,
        x: Tensor,
        noise: Noise,
        labels: Tensor | None = None,
        loss: str = "elbo",
        T: int | None = None,
        stratified: bool = True,
        total: int | None = None,
    ) -> Objective:
        """Return the training loss of a batch: recon + prior + a weighted diffusion term (`loss_weight`).

        The weight trains the network only. Learned endpoints follow the gradient of the bound for every loss. The
        interior of a learned schedule follows that of the squared diffusion term in continuous time, and that of the
        bound at finite T. Arguments as in `Model.forward`.
        """
        self.check_images("forward", x)
        self.check_noise("forward", noise)
        self.check_labels("forward", labels, len(x))
        num_transitions = self.num_transitions(self.check_T("forward", T if T is not None else self.T))
        set_dropout_noise(self, noise)
        u = training_times(noise, len(x), stratified, total).to(x.device)
        gamma_t, slope, follow = self._gamma_for_training(u, num_transitions)
        weight = loss_weight(loss, gamma_t.detach(), slope.detach())
        if loss != "elbo" and gamma_t.requires_grad:
            # The network follows the loss, the schedule the bound: the gradient that reaches gamma_t through the
            # network has the factor ``weight``, which is replaced by that of the bound, ½ slope.
            # Where the weight underflows, the gradient does too, and the factor must not be infinite.
            factor = 0.5 * slope.detach() / weight.clamp(min=1e-30)
            gamma_t.register_hook(lambda gradient: gradient * factor)
        cond, cond_nats = self.draw_cond(x, noise)
        data = self.to_unit(x)
        eps = drawn_once(noise.at(stream=Stream.DIFFUSION), data)
        eps_hat = self.eps_hat(diffuse(data, gamma_t, eps), gamma_t, labels, cond)
        recon, prior = self._end_terms(x, data, noise, labels, cond)
        if loss == "elbo":
            diffusion = objective = eps_loss(eps_hat, eps, 0.5 * slope)
        else:
            square = eps_loss(eps_hat, eps, torch.ones_like(slope))
            diffusion = 0.5 * slope * square.detach()
            objective = weight * square + (diffusion - diffusion.detach())
        follow(diffusion.detach())
        vlb = Vlb(recon, plus_cond(prior, cond_nats), diffusion)
        return Objective(recon + prior + objective, vlb.detach(), gamma_t.detach())

    def _gamma_for_training(
        self, u: Tensor, num_transitions: int | None
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], None]]:
        """Return gamma_t and gamma'(t), float32 [B] each, and what takes the loss, see `Schedule.for_training`.

        At finite T, T expm1(gamma_t - gamma_s) is in the place of gamma'(t).
        """
        if num_transitions is None:
            gamma_t, slope, follow = self.gamma.for_training(u)
            return gamma_t.float(), slope.float(), follow
        s, t = finite_times(u, num_transitions)
        gamma_t = self.gamma(t)
        slope = num_transitions * torch.expm1(gamma_t - self.gamma(s))
        return gamma_t.float(), slope.float(), lambda loss: None

    def gamma_range(self) -> tuple[Tensor, Tensor]:
        low, high = self.gamma.endpoints()
        return low.detach(), high.detach()

    def parameter_groups(self) -> ParameterGroups:
        return group_parameters(self, self.gamma)

    # -------------------------------------------------------------------------------------------- files

    def description(self) -> Json:
        content = super().description()
        if not self.spacings:
            return content
        spacings = spacings_to_json(self.spacings)
        spacings_from_json(spacings, "spacings", self.network_decoder)  # or `fastdiff.load` would reject it
        return content | {"spacings": spacings}

    def take_spacings(self, spacings: object, where: str = "spacings") -> None:
        self.spacings = spacings_from_json(spacings, where, self.network_decoder)


def drawn_once(noise: Noise, like: Tensor) -> Noise | Tensor:
    """Return noise that several operations take: a tensor on a CPU, where to draw it again costs more than to keep it.

    On a GPU the kernels draw it from the counter wherever they need it.
    """
    return noise.normal(like.shape, device=like.device) if like.device.type == "cpu" else noise


def check_network(network: object) -> None:
    """Raise an InvalidTypeError for a network of the user's own that is no module; None stands for none."""
    if network is not None and not isinstance(network, nn.Module):
        raise InvalidTypeError(f"network must be a torch.nn.Module or None, got {network!r}")


def checked_output(out: Tensor, x: Tensor, channels: int) -> Tensor:
    """Return the output of a network for x [B, ..., H, W]; raise an InvalidValueError unless [B, channels, H, W]."""
    shape = (x.shape[0], channels, *x.shape[2:])
    if tuple(out.shape) != shape:
        raise InvalidValueError(f"network must return shape {shape}, got {tuple(out.shape)}")
    return out.to(x.dtype)  # under autocast the network's output has 16 bits


def plus_cond(prior: Tensor, cond_nats: Tensor | None) -> Tensor:
    """Return the prior term of the bound with the nats of what cond was drawn from, see `DiffusionModel.draw_cond`."""
    return prior if cond_nats is None else prior + cond_nats
