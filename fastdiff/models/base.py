"""What every model of the family answers: its data, loss, bound, sampling, parameter groups, and how it is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ..diffusion.bound import Objective, Vlb
from ..diffusion.schedules import Schedule
from ..io.configuration import ConfigError
from ..io.folders import CARD, Json, has_edited_card, write_folder
from ..kernels import InvalidTypeError, InvalidValueError, Noise
from .card import model_card
from .degradations import Degradation
from .image_data import ImageConfig, ImageModel
from .requests import DEFAULTS, Draw, Request, Start
from .saving import check_savable, describe


@dataclass(frozen=True)
class ParameterGroups:
    """The parameters of a model that are trained, by how an optimiser treats them.

    decayed: weight matrices and kernels, with weight decay. plain: biases, norms and the like, without. schedule:
    parameters of the noise schedule. interior: those among ``schedule`` that are trained on the variance of the loss.
    """

    decayed: list[nn.Parameter]
    plain: list[nn.Parameter]
    schedule: list[nn.Parameter]
    interior: list[nn.Parameter]


class Diffusion(Protocol):
    """A diffusion of p(x): what the probability-flow ODE needs of a `DiffusionModel`."""

    gamma: Schedule

    @property
    def levels(self) -> int: ...

    @property
    def dims(self) -> int: ...

    @property
    def pixel_scale(self) -> float: ...

    def to_unit(self, x: Tensor) -> Tensor: ...

    def check_images(self, where: str, x: object) -> None: ...

    def eps_hat(self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None) -> Tensor: ...

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None) -> Tensor: ...


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and restore the mode of each of its submodules at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class Model(ImageModel):
    """A generative model of images uint8 [C, H, W] with values in 0 .. levels - 1.

    Subclasses set ``kind``, their name in config.json, and ``config_class``, and implement `forward`, `vlb`, `check_T`
    and `prepare`. ``parts`` names the parts of the user's own that the constructor takes. ``latent_variables`` holds
    "z" for a model with an autoencoder and "x_T" for one with a diffusion.
    """

    config_class: ClassVar[type[ImageConfig]]
    parts: ClassVar[tuple[str, ...]] = ()
    latent_variables: ClassVar[tuple[str, ...]] = ()

    @property
    def title(self) -> str:
        """The word for the model in messages: its ``kind``, but "vae" for a hierarchical VAE of one layer."""
        return self.kind

    @property
    def T(self) -> int | None:
        """The model's own number of steps; None for continuous time."""
        return None

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
        """Return the training loss of a batch, and the bound estimated from the same draws, in nats.

        A batch may be a part of a larger one: with ``noise.first_sample`` the number of its first sample there, and
        ``total``, every sample takes the noise, the time and the dropout mask that it has in the whole.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: the source of all draws; sample b of the batch is ``noise.first_sample + b``.
            labels: int64 [B], or None.
            loss: one of `fastdiff.diffusion.LOSSES`.
            T: number of steps of the bound that is trained; None for the model's own.
            stratified: spread the times of the batch evenly; otherwise draw them independently.
            total: number of samples of the global batch, which the times are spread over; by default this batch.

        Raises:
            InvalidTypeError, InvalidValueError: images, labels, T or loss that do not fit.
        """
        raise NotImplementedError

    def check_divisible(self) -> None:
        """Raise a ConfigError if the training loss of a batch is not the mean over its parts."""

    def gamma_range(self) -> tuple[Tensor, Tensor] | None:
        """Return gamma(0) and gamma(1), scalars without a graph; None for a model without a diffusion."""
        return None

    def parameter_groups(self) -> ParameterGroups:
        """Return the parameters by how an optimiser treats them."""
        return group_parameters(self, None)

    def check_trainable(self) -> None:
        """Raise a ConfigError if something is missing that training needs."""

    def take_first_stage(self, vae: "Model") -> None:
        """Copy the weights of a trained VAE into the model's first stage.

        Raises:
            InvalidTypeError, ConfigError: the model has no first stage, or one of another configuration.
        """
        raise ConfigError(f"first_stage must be None for a {self.kind} model, which has no first stage")

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
        """Return one unbiased draw of the upper bound on -log p(x) for every image, in nats.

        Args:
            x: data uint8 [B, C, H, W] in [0, levels).
            noise: the source of all draws; sample b of the batch is ``noise.first_sample + b``.
            T: number of steps, or None for continuous time.
            labels: int64 [B], or None.
            total: number of samples that the times are stratified over; by default this batch.
            proposal: in continuous time, the schedule whose density p(gamma) = 1 / gamma'(t) gamma is drawn from,
                between the model's endpoints; by default the model's own. The bound does not depend on it, the
                variance of its estimate does.

        Raises:
            InvalidTypeError, InvalidValueError: images, labels or T that do not fit, or a proposal for a finite T or a
                model without a diffusion.
        """
        raise NotImplementedError

    def check_T(self, where: str, T: int | None) -> int | None:
        """Return T, checked.

        Raises:
            InvalidValueError: T is not a number of steps that the model can have.
        """
        raise NotImplementedError

    def num_transitions(self, T: int | None) -> int | None:
        """Return the number of Gaussian steps at T; None in continuous time and for a model without such steps."""
        return None

    def transition_nats(
        self, x: Tensor, noise: Noise, u: Tensor, num_transitions: int, labels: Tensor | None = None
    ) -> Tensor:
        """Return ``num_transitions`` times the KL of the step that u float64 [B] in [0, 1) selects, [B]."""
        raise NotImplementedError

    def end_terms(self, x: Tensor, noise: Noise, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the reconstruction and the prior term of the bound, [B] each."""
        raise NotImplementedError

    def check_schedule(self) -> None:
        """Raise a ScheduleError if the model has a noise schedule that is not increasing."""

    # -------------------------------------------------------------------------------------------- sampling and latents

    @property
    def sampling_options(self) -> frozenset[str]:
        """The options of `fastdiff.sample` that the model accepts, among the keys of `requests.DEFAULTS`."""
        return frozenset()

    def prepare(self, request: Request) -> Draw:
        """Check a request, and return what draws its batches.

        Raises:
            InvalidTypeError, InvalidValueError: options that the model does not accept, or that do not fit it.
        """
        raise NotImplementedError

    def example_cond(self, x: Tensor, noise: Noise) -> Tensor | None:
        """Return the option ``cond`` of `fastdiff.sample` for data x uint8, for a model that cannot sample without."""
        return None

    def check_options(self, request: Request) -> None:
        """Reject the options of a request that the model does not accept."""
        for name, default in DEFAULTS.items():
            value = getattr(request, name)
            is_set = value is not None if default is None else value != default
            if is_set and name not in self.sampling_options:
                accepted = ", ".join(sorted(self.sampling_options - {"initial", "edit"}))
                unlabelled = name in ("labels", "guidance") and not self.num_classes
                what = f"{self.kind} model" + (" without classes" if unlabelled else "")
                raise InvalidValueError(f"sample: a {what} takes no {name}; it takes {accepted}")

    @property
    def unconditional_diffusion(self) -> Diffusion:
        """The model itself, for a diffusion model whose network needs nothing but the latent, gamma and labels.

        Raises:
            InvalidTypeError: any other model.
        """
        raise InvalidTypeError(f"a {self.kind} model is no diffusion model of p(x), which the ODE is defined for")

    def reconstruction_start(
        self, images: Tensor, degradation: Degradation | None, seed: int, batch_size: int
    ) -> Start:
        """Return what reconstruction of images uint8 [N, C, H, W] starts from: latents z, or conditioning images.

        Raises:
            InvalidTypeError, InvalidValueError: the model cannot reconstruct images, or not with this degradation.
        """
        raise InvalidTypeError(f"reconstruct: a {self.kind} model cannot reconstruct images")

    @property
    def degraded_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that `restoration_start` takes."""
        return self.shape

    def restoration_start(self, degraded: Tensor, batch_size: int) -> Start:
        """Return what restoration of degraded images starts from: latents z, or conditioning images.

        Args:
            degraded: uint8 levels [N, *degraded_shape].
            batch_size: images per call of an encoder.

        Raises:
            InvalidTypeError, InvalidValueError: the model cannot restore images, or not these.
        """
        raise InvalidTypeError(
            f"restore: model must be a restoration model, a DiffuseVAE or a VAE, got a {self.kind} model, which can "
            "edit and inpaint"
        )

    def edit_cond(self, images: Tensor, batch_size: int) -> Tensor | None:
        """Return the option ``cond`` of `fastdiff.sample` with which images uint8 [N, C, H, W] are edited as a whole.

        None for a model without conditioning images, and for one whose conditioning images the caller must know.
        """
        return None

    @property
    def autoencoder(self) -> "Model":
        """The model that encodes images to latents z and decodes them: a VAE itself, or a DiffuseVAE's first stage.

        Raises:
            InvalidTypeError: the model has no such latents.
        """
        raise InvalidTypeError(f"a {self.kind} model has no latents z; a VAE or a DiffuseVAE has")

    @property
    def latent_size(self) -> int:
        """Number of dimensions of a latent z of an autoencoder."""
        return self.autoencoder.latent_size

    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the mean and log-variance of q for every layer of latents, [B, latent] each, lowest layer first."""
        return self.autoencoder.encode(x)

    def decode(self, z: Tensor, noise: Noise | None = None, layer: int = 1) -> Tensor:
        """Return the images uint8 [B, C, H, W] of latents z [B, latent] of a layer."""
        return self.autoencoder.decode(z, noise, layer)

    def prior_latents(self, count: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draw z_1 [count, latent] from the prior."""
        return self.autoencoder.prior_latents(count, noise, temperature)

    def layer_nats(self, x: Tensor, noise: Noise) -> list[Tensor]:
        """Return one draw of the bound's term of every layer of latents, [B] each, lowest layer first."""
        return self.autoencoder.layer_nats(x, noise)

    # -------------------------------------------------------------------------------------------- files

    def description(self) -> Json:
        """Return the content of config.json: kind, configuration, the user's own parts, versions."""
        return describe(self)

    def take_spacings(self, spacings: object, where: str = "spacings") -> None:
        """Set the times that the model brings for samplers (`DiffusionModel.spacings`), from config.json.

        Raises:
            ConfigError: a model without a diffusion, or times that are not allowed.
        """
        raise ConfigError(f"{where} must be absent for a {self.kind} model, which has no sampler")

    def save(self, path: str | Path, record: Json | None = None, license: str | None = None) -> Path:
        """Write a checkpoint folder atomically; see `fastdiff.load`.

        It holds config.json, model.safetensors, manifest.json, and a model card, README.md: what
        ``huggingface_hub.upload_folder`` needs, as it is. Nothing checks the card, which may be edited. A card that was
        edited stays when the folder is written again, as do files of your own beside it; one that was not is replaced.

        Args:
            path: the folder. It may be new, empty, a checkpoint to replace, or a new clone of a hub's repository, whose
                files stay.
            record: a dictionary of plain JSON types that is kept in config.json, such as the origin of the weights. The
                card shows figures and settings in it, see `fastdiff.models.card.model_card`.
            license: identifier of the license of the weights for the card, in lower case, such as ``"mit"``.

        Raises:
            CheckpointError: weights that `fastdiff.load` would reject (not finite, not of the configuration), a path
                where something else is, or files that cannot be written.
            InvalidTypeError, InvalidValueError: a record that is no dictionary; a license that is no identifier, or one
                where an edited card stays.
        """
        check_savable(self, str(path))
        if record is not None and not isinstance(record, dict):
            raise InvalidTypeError(f"record must be a dictionary of plain JSON types or None, got {record!r}")
        card = model_card(self, record, license)
        if license is not None and has_edited_card(path):
            raise InvalidValueError(
                f"license must be None where {Path(path) / CARD} was edited, which stays; write the license there, got "
                f"{license!r}"
            )
        description = self.description() | ({"record": record} if record is not None else {})
        return write_folder(path, {"config.json": description, "model.safetensors": self.state_dict()}, card)

    def save_diffusers(self, path: str | Path) -> Path:
        """Write the model as a pipeline of diffusers, see `DDPM.save_diffusers`.

        Raises:
            ConfigError: any other model: diffusers has no pipeline for it.
        """
        raise ConfigError(
            f"{path} cannot be written as a DDPMPipeline of diffusers: model must be a ddpm model, whose network takes "
            f"the latent alone and a timestep, got a {self.kind} model"
        )


def uncompiled(model: object) -> tuple[object, bool]:
    """Return the module that ``torch.compile`` wrapped, and True; anything else as it is, and False."""
    inner = getattr(model, "_orig_mod", None)
    return (model, False) if inner is None else (inner, True)


def check_model(where: str, model: object) -> Model:
    """Return the argument if it is a model.

    Raises:
        InvalidTypeError: it is something else.
    """
    if not isinstance(model, Model):
        raise InvalidTypeError(f"{where}: model must be a fastdiff model (fastdiff.load), got a {type(model).__name__}")
    return model


def group_parameters(model: nn.Module, schedule: Schedule | None) -> ParameterGroups:
    """Group the parameters of a model whose noise schedule is ``schedule``; frozen ones are left out."""
    of_schedule = [] if schedule is None else list(schedule.parameters())
    interior = [] if schedule is None else schedule.interior_parameters()
    apart = {id(parameter) for parameter in of_schedule}
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if id(parameter) not in apart and parameter.requires_grad:
            matrix = parameter.dim() >= 2 and not name.endswith("position")
            (decayed if matrix else plain).append(parameter)
    return ParameterGroups(decayed, plain, of_schedule, interior)
