"""A diffusion model whose network call is compiled."""

from torch import Tensor

from ..diffusion import Execution
from ..models import Diffusion


class CompiledDiffusion:
    """The same diffusion of p(x) with ``eps_hat`` called as an `Execution` says."""

    def __init__(self, diffusion: Diffusion, execution: Execution) -> None:
        self.diffusion, self.gamma = diffusion, diffusion.gamma
        self.eps_hat = execution.call(diffusion.eps_hat)

    @property
    def levels(self) -> int:
        """Number of values that a pixel can take."""
        return self.diffusion.levels

    @property
    def dims(self) -> int:
        """Number of dimensions of one image."""
        return self.diffusion.dims

    @property
    def pixel_scale(self) -> float:
        """Factor on the centres of the levels' bins that gives the data."""
        return self.diffusion.pixel_scale

    def to_unit(self, x: Tensor) -> Tensor:
        """Map levels to the data in [-1, 1]."""
        return self.diffusion.to_unit(x)

    def check_images(self, where: str, x: object) -> None:
        """Check a batch of data, see `fastdiff.models.Model`."""
        self.diffusion.check_images(where, x)

    def recon_nats(self, x: Tensor, z_0: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return -log p(x | z_0) in nats, [B]."""
        return self.diffusion.recon_nats(x, z_0, labels)
