"""The state of torch's random generators, which belongs to the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's generators of the CPU and of a GPU, and restore their states at the end; None does not seed."""
    device = torch.device(device)
    gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if gpu else [], device_type="cuda"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the other GPUs too
            if gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield
