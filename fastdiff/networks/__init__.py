"""Networks: U-Nets for diffusion models, encoders and decoders for VAEs. Plain modules that know nothing of diffusion.

Every configuration builds its own network. A further network needs a class of configuration with the same methods, and
a place in one of the two unions below.
"""

from .blocks import Gaussian
from .bottleneck_vae import BottleneckDecoder, BottleneckEncoder, BottleneckVAEConfig
from .concat_unet import ConcatUNet, ConcatUNetConfig
from .conv_vae import ConvDecoder, ConvEncoder, ConvVAEConfig
from .dropout import Dropout, number_dropouts, set_dropout_noise
from .latent_link import LatentLink
from .unet import UNet, UNetConfig

UNetConfigs = UNetConfig | ConcatUNetConfig
VAENetworkConfigs = ConvVAEConfig | BottleneckVAEConfig

__all__ = [
    "BottleneckDecoder",
    "BottleneckEncoder",
    "BottleneckVAEConfig",
    "ConcatUNet",
    "ConcatUNetConfig",
    "ConvDecoder",
    "ConvEncoder",
    "ConvVAEConfig",
    "Dropout",
    "Gaussian",
    "LatentLink",
    "UNet",
    "UNetConfig",
    "UNetConfigs",
    "VAENetworkConfigs",
    "number_dropouts",
    "set_dropout_noise",
]
