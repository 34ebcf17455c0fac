"""The command ``info``."""

from dataclasses import dataclass


@dataclass
class Info:
    """Print versions, backend, presets and embedded models."""

    def run(self) -> int:
        """Print what is installed."""
        import torch

        from .. import __version__
        from ..checkpoints import embedded_names
        from ..kernels import backend
        from ..presets import PRESETS

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(f"fastdiff {__version__}, torch {torch.__version__}, backend {backend()}, device {device}")
        print(f"presets: {', '.join(PRESETS)}")
        print(f"embedded models: {', '.join(embedded_names())}")
        return 0
