"""From data to the device: batches made ahead in worker processes, copied without waiting."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..data import DataError
from ..kernels import FastdiffError, InvalidValueError
from .batches import StepBatches
from .signals import ignore_in_worker

Batch = tuple[Tensor, Tensor | None]  # images and labels
MAX_WORKERS = 4  # unless asked for more: a decoder feeds several hundred images per second


def default_workers() -> int:
    """Return the number of worker processes for data that are decoded when they are used."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_WORKERS, allowed or 1)


def feed(batches: StepBatches, steps: range, device: torch.device, workers: int | None = None) -> Iterator[Batch]:
    """Yield the batches of the steps on a device.

    Args:
        batches: by step.
        steps: which, in their order.
        device: where they are used.
        workers: processes that make batches ahead; 0 makes them in this process. None chooses: none for images in
            memory. Images in the memory of another device than the CPU, which worker processes cannot use, always have
            none.

    Raises:
        InvalidValueError: a number of workers that is none.
        DataError: an image that cannot be read, or a worker process that has ended.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise InvalidValueError(f"workers must be an integer >= 0 or None, got {workers!r}")
    if isinstance(batches.images, Tensor):  # a forked worker cannot use a GPU
        workers = 0 if batches.images.device.type != "cpu" else workers or 0
    elif workers is None:
        workers = default_workers()
    if workers == 0:
        for step in steps:
            yield _moved(batches[step], device)
        return
    loader = DataLoader(
        _CatchingErrors(batches), batch_size=None, sampler=steps, num_workers=workers, collate_fn=_as_is,
        pin_memory=device.type == "cuda", worker_init_fn=ignore_in_worker, prefetch_factor=4,
        generator=torch.Generator(),  # otherwise the loader draws a seed from the caller's
    )  # fmt: skip
    iterator = iter(loader)
    try:
        for item in iterator:
            if isinstance(item, FastdiffError):
                raise item
            yield _moved(item, device)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(f"a process that reads images has ended, perhaps for lack of memory: {error}") from error
    finally:
        iterator = None  # ends the workers now, although an error may keep this frame


class _CatchingErrors(TorchDataset):
    """Return an error as an item, since a DataLoader would wrap its message in the worker's traceback."""

    def __init__(self, batches: StepBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | FastdiffError:
        try:
            return self.batches[step]
        except FastdiffError as error:
            return error


def _as_is(item: object) -> object:
    return item


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    return images.to(device, non_blocking=True), None if labels is None else labels.to(device, non_blocking=True)
