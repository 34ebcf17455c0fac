"""The command ``demo``: a page to play with, in the browser."""

import socket
from contextlib import suppress
from dataclasses import dataclass

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .common_flags import Computing

HOST = "127.0.0.1"


@dataclass
class Demo(Computing):
    """Open a page to play with a model: sampler, calls, seed, class, guidance, latents; and the call of what it shows.

    It is served to this machine alone, and loads nothing from anywhere. It needs the extra `demo`. Ctrl-C ends it.
    """

    model: tyro.conf.Positional[str | None] = None
    """Checkpoint folder or run folder to offer, beside the embedded models and those in runs/."""
    port: int = 7860
    """Port on 127.0.0.1; 0 takes a free one."""

    def run(self) -> int:
        """Serve the page until it is interrupted."""
        port = free_port(self.port)

        from ..demo.drawing import DEFAULT_MODEL
        from ..demo.models import Subject, kept, model_names
        from ..demo.page import serve

        device = str(self.chosen_device())
        subject_of = kept(lambda name: Subject(name, device))
        if self.model is not None:
            subject_of(self.model)  # an error before the page is there
        with suppress(KeyboardInterrupt):  # the way to end it
            serve(lambda: model_names(self.model), self.model or DEFAULT_MODEL, subject_of, port)
        return 0


def free_port(port: int) -> int:
    """Return a port on 127.0.0.1 that nothing listens on: this one, or for 0 any.

    Raises:
        InvalidValueError: it is in use, or no port.
    """
    if not 0 <= port < 2**16:
        raise InvalidValueError(f"--port must be in 0 .. 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InvalidValueError(f"--port must be free on {HOST}, got {port}: {error.strerror}") from error
        return probe.getsockname()[1]
