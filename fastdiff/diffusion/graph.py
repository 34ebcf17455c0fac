"""The sampling loop as a captured graph: the host starts a recorded row again and again, and does nothing else.

A row is recorded once: the network (guided rows: once on twice the batch), the sampler's step, and the advance of the
counter that selects the next row of the table and the next noise. All tensors of the recording have fixed addresses. A
batch copies its latents, table, seed and inputs into them, replays, and reads the result, so one recording serves all
batches of one shape and plans of equal `Traits`.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import Noise, Stream
from .loop import Callback, Denoiser, Inputs, Loop, Traits, check_finite, copy_of, sample_latents
from .plan import Plan

LOG = logging.getLogger("fastdiff")
WARM_UP = 2  # rows before a recording: kernels are compiled and chosen, and libraries allocate what they keep
KEPT = 4  # recordings at a time, each with the memory of one batch


class Graphs(Protocol):
    """What records a function without arguments, as CUDA graphs do; its tensors keep their addresses."""

    def capture(self, body: Callable[[], None], warm_up: Callable[[], None]) -> Callable[[], None]:
        """Record ``body`` after calling ``warm_up``, and return what replays it."""
        ...


class CudaGraphs:
    """CUDA graphs on the current device; the recordings of one object are never replayed at once, and share memory.

    Warm-up and recording have a stream each, of this object's own: the stream that PyTorch takes by default is one for
    the whole process, on the device of the first recording, and libraries keep memory for every stream.
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.side, self.stream = torch.cuda.Stream(), torch.cuda.Stream()

    def capture(self, body: Callable[[], None], warm_up: Callable[[], None]) -> Callable[[], None]:
        """Record ``body``, see `Graphs`. After an error the current stream is the one that it was."""
        current, failed = torch.cuda.current_stream(), []
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            warm_up()
        current.wait_stream(self.side)
        graph = torch.cuda.CUDAGraph()
        try:
            # of this thread alone: the threads of a data loader may allocate meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                try:
                    body()
                except Exception as error:
                    failed.append(error)  # the end of an invalid recording raises an error of its own
                    raise
        except Exception as error:
            raise (failed[0] if failed else error) from None
        finally:
            torch.cuda.set_stream(current)
        return graph.replay


class CapturedLoop:
    """One recording: a `Loop`, a state at fixed addresses, and a replay for plain and for guided rows.

    Arguments as in `sample_latents`; they are examples of what `run` takes.
    """

    def __init__(
        self,
        graphs: Graphs,
        denoiser: Denoiser,
        initial: Tensor,
        plan: Plan,
        noise: Noise,
        shared_noise: bool,
        keeps_x_hat: bool,
    ) -> None:
        null_inputs = None if denoiser.null_inputs is None else _copies(denoiser.null_inputs)
        self.denoiser = Denoiser(denoiser.predict, _copies(denoiser.inputs), null_inputs)
        self.loop = Loop(self.denoiser, plan, noise, initial.device, shared_noise, keeps_x_hat)
        self.state = self.loop.start(initial.clone())
        self.busy = False  # while it runs: a callback may sample with the same engine
        self.replays: dict[bool, Callable[[], None]] = {}
        for guided in sorted(set(denoiser.guided_rows(plan))):
            self.replays[guided] = graphs.capture(partial(self._row, guided), partial(self._warm_up, guided))

    def _row(self, guided: bool) -> None:
        following = self.loop.advance(self.state, guided)
        # from the end of each list: an earlier estimate moves on before its place is taken
        for mine, new in reversed(list(zip(self.state.tensors(), following.tensors(), strict=True))):
            mine.copy_(new)

    def _warm_up(self, guided: bool) -> None:
        for _ in range(WARM_UP):
            self._row(guided)
            self.loop.noise.counter.zero_()  # the next row is inside the table, however short that is

    def run(self, denoiser: Denoiser, initial: Tensor, plan: Plan, noise: Noise, callback: Callback | None) -> Tensor:
        """Run the loop; arguments as in `sample_latents`, of the shapes and the traits that were recorded."""
        self.busy = True
        try:
            self._load(denoiser, initial, plan, noise)
            state, calls = self.state, 0
            for row, guided in enumerate(denoiser.guided_rows(plan)):
                self.replays[guided]()
                calls += 1 + guided
                if callback is not None and state.x_hat is not None:
                    callback(row // plan.calls_per_step, calls, copy_of(state.z), copy_of(state.x_hat))
            return check_finite(state.z.clone(), calls)
        finally:
            self.busy = False

    def _load(self, denoiser: Denoiser, initial: Tensor, plan: Plan, noise: Noise) -> None:
        """Copy what a batch has of its own into the tensors of the recording."""
        loop = self.loop
        for tensor in self.state.tensors():
            tensor.zero_()
        self.state.z.copy_(initial)
        loop.rows.copy_(plan.table)
        loop.gamma.copy_(plan.gamma)
        if loop.bounds is not None and plan.log_variance is not None:
            loop.bounds.copy_(plan.log_variance)
        if loop.path is not None and plan.brownian is not None:
            loop.path.nodes.copy_(plan.brownian.nodes)
            loop.path.weights.copy_(plan.brownian.weights)
        loop.noise.key.copy_(noise.at(step=0, stream=Stream.SAMPLER).key)
        _copy_into(self.denoiser.tensors(), denoiser.tensors())
        _copy_into(loop.doubled or (), self.denoiser.doubled() or ())


class GraphCache:
    """The recordings of one model, by everything that a recording depends on; the least recently used ones go.

    Args:
        graphs: what records; a new `CudaGraphs` by default.
    """

    def __init__(self, graphs: Graphs | None = None) -> None:
        self.graphs = graphs
        self.loops: OrderedDict[Hashable, CapturedLoop] = OrderedDict()
        self.own = graphs is None
        self.failed: set[Hashable] = set()  # what could not be recorded

    def clear(self) -> None:
        """Forget all recordings and failures, and free the memory."""
        self.loops.clear()
        self.failed.clear()
        if self.own:
            self.graphs = None  # the next recording has a new pool of memory, on the device that is then current

    @torch.no_grad()
    def sample_latents(
        self,
        denoiser: Denoiser,
        initial: Tensor,
        plan: Plan,
        noise: Noise,
        shared_noise: bool = False,
        callback: Callback | None = None,
        context: Hashable = None,
    ) -> Tensor:
        """As `fastdiff.diffusion.sample_latents`, recorded and replayed; without a graph where recording fails.

        ``context`` is what else a recording depends on: the addresses of the weights, the precision.
        """
        # a recording and its replay are those of the current device's streams, which may be another than the model's
        with torch.cuda.device(initial.device) if initial.is_cuda else nullcontext():
            loop = self._loop(denoiser, initial, plan, noise, shared_noise, callback is not None, context)
            if loop is None or loop.busy:
                return sample_latents(denoiser, initial, plan, noise, shared_noise, callback)
            return loop.run(denoiser, initial, plan, noise, callback)

    def _loop(
        self,
        denoiser: Denoiser,
        initial: Tensor,
        plan: Plan,
        noise: Noise,
        shared_noise: bool,
        keeps_x_hat: bool,
        context: Hashable,
    ) -> CapturedLoop | None:
        """Return the recording that fits, made now if there is none; None if that fails."""
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in denoiser.tensors())
        guided = frozenset(denoiser.guided_rows(plan))
        key = (
            initial.shape, initial.stride(), initial.device, Traits.of(plan), shapes, guided, shared_noise, keeps_x_hat,
            context,
        )  # fmt: skip
        if key in self.failed:
            return None
        if key in self.loops:
            self.loops.move_to_end(key)
            return self.loops[key]
        while len(self.loops) >= KEPT:
            self.loops.popitem(last=False)
        self.graphs = CudaGraphs() if self.graphs is None else self.graphs
        try:
            loop = CapturedLoop(self.graphs, denoiser, initial, plan, noise, shared_noise, keeps_x_hat)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self.failed:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                LOG.warning("sampling runs without a captured graph: %s", reason)
            self.failed.add(key)
            return None
        self.loops[key] = loop
        return loop


def _copy_into(places: Inputs, sources: Inputs) -> None:
    """Copy tensors into others, which keep their addresses; None stands in the same places of both."""
    for place, source in zip(places, sources, strict=True):
        if place is not None and source is not None:
            place.copy_(source)


def _copies(inputs: Inputs) -> Inputs:
    return tuple(None if tensor is None else tensor.clone() for tensor in inputs)
