"""The network between two layers of latents of a hierarchical VAE."""

from torch import Tensor, nn

from .blocks import Gaussian


class LatentLink(nn.Module):
    """Map a latent z [B, latent] to the mean and log-variance of the next layer's Gaussian, [B, latent] each.

    The mean is z plus the output of an MLP with two hidden layers of ``hidden`` units, so the link starts near N(z, I).
    """

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.gaussian = Gaussian(hidden, latent)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        change, logvar = self.gaussian(self.hidden(z))
        return z + change, logvar
