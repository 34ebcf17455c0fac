"""A stand-in for CUDA graphs on a CPU: it records the operations of a function, and runs the same ones again.

As a CUDA graph does, a replay runs the recorded operations on the recorded tensors, at their addresses: whatever the
host did besides is not repeated, so a function that reads a value back, decides by it, or leaves a result at a new
address gives wrong numbers. The recording itself rejects what a CUDA graph cannot hold: reading a tensor on the host,
and making one from numbers of the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu", "equal"}
MAKES = {"tensor", "as_tensor", "from_numpy", "asarray"}
FORBIDDEN = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::lift_fresh"}


class HostWorkError(RuntimeError):
    """The recorded function does what a graph cannot hold."""


class _Guard(TorchFunctionMode):
    """Rejects reads of values outside of operations: some of them reach no dispatcher on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False  # an operation may read values on a CPU where its kernel would not

    def __torch_function__(self, function, types, arguments=(), options=None):
        name = getattr(function, "__name__", "")
        if not self.inside and name in READS | MAKES:
            raise HostWorkError(f"{name} is called while a graph is recorded")
        return function(*arguments, **(options or {}))


class Recording(TorchDispatchMode):
    """Operations with their arguments and results, in order."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard, self.calls = guard, []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.name().partition(".")[0]
        if name in FORBIDDEN:
            raise HostWorkError(f"{name} is called while a graph is recorded")
        self.guard.inside = True
        try:
            result = operation(*arguments, **(options or {}))
        finally:
            self.guard.inside = False
        self.calls.append((operation, arguments, options or {}, result))
        return result

    def replay(self) -> None:
        """Run the operations again; the results go where they were."""
        for operation, arguments, options, result in self.calls:
            again = operation(*arguments, **options)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # not a view, nor an operation in place
                    old.copy_(new)


def _tensors(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [each for each in result if isinstance(each, Tensor)] if isinstance(result, (list, tuple)) else []


class RecordedGraphs:
    """Records as `fastdiff.diffusion.graph.CudaGraphs` does; ``recordings`` counts, ``replayed`` too."""

    def __init__(self) -> None:
        self.recordings = self.replayed = 0

    def capture(self, body: Callable[[], None], warm_up: Callable[[], None]) -> Callable[[], None]:
        warm_up()
        guard = _Guard()
        recording = Recording(guard)
        with torch.no_grad(), guard, recording:
            body()
        self.recordings += 1

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                recording.replay()

        return replay
