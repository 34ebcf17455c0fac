"""The command ``train``."""

from dataclasses import dataclass

from tyro.conf import DisallowNone, configure

from .train_options import TrainOptions


@configure(DisallowNone)  # for completions, which do not come from `parse`
@dataclass
class Train(TrainOptions):
    """Train a preset, or a small model of your own images. Ctrl-C leaves a checkpoint; --resume continues from it to
    the same weights."""

    def run(self) -> int:
        """Start or resume the run, and print its result."""
        self.check()

        import torch

        from ..io.processes import joined
        from .training import Training

        with joined(self.device) as device:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return Training(self, device).run()
