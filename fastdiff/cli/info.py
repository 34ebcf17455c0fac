"""The command ``info``."""

from dataclasses import dataclass

SHOWN_CLASSES = 30  # names of classes


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
        for name in embedded_names():
            print(f"  {name}: {described(name)}")
        return 0


def described(name: str) -> str:
    """Return what an embedded model is of: its images, and the classes that --label takes."""
    from ..checkpoints import load
    from ..models.image_data import listed

    model = load(name)
    sides = "×".join(map(str, model.shape))
    classes = f", classes {listed(model.config.names, SHOWN_CLASSES)}" if model.num_classes else ""
    return f"{model.kind}, images {sides} with {model.levels} levels{classes}"
