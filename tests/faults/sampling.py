"""Sampling: memory that is too small, batches, processes, long requests, transforms."""

import gc
import os

import torch
from tiny import small, small_ddpm, small_diffusevae, small_vae

import fastdiff
from fastdiff.kernels import Noise, UnsupportedTransformError, diffuse, dropout, eps_loss, reparameterize

from .fault import Tries, fault
from .limits import peak_megabytes
from .subjects import small_model

KINDS = [small, small_ddpm, small_vae, small_diffusevae]


def options(number: int) -> dict:
    return {} if number % 4 == 2 else {"steps": 3}


@fault(
    "memory that is too small for a batch", "ecosystem 19", tries=40, quick=8,
    done="The network raises torch.OutOfMemoryError for batches above a random size, of 0 to 9",
    must_hold="the batch is halved until it fits, and the images are the same, bit for bit where the network is; for 0 "
    "a FastdiffError",
)  # fmt: skip
def out_of_memory(tries: Tries):
    for attempt in tries:
        model, most = KINDS[attempt.number % 4](), attempt.random.randint(0, 9)
        expected = fastdiff.sample(model, 13, **options(attempt.number))
        name = "decode" if attempt.number % 4 == 2 else "predict"
        real = getattr(model, name)

        def limited(x, *args, real=real, most=most, **more):
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(x, *args, **more)

        setattr(model, name, limited)
        try:
            found = fastdiff.sample(model, 13, **options(attempt.number))
        except fastdiff.FastdiffError as error:
            yield None if most == 0 else f"try {attempt.number}: {error}"
            continue
        differing = float((found != expected).float().mean())
        yield None if differing <= 0.01 and most else f"try {attempt.number}: {differing:.1%} of the pixels differ"


@fault(
    "batch sizes", "faults 1; ecosystem 20", tries=48, quick=4,
    done="The same images are sampled in batches of 1, 2, 7, 13 and 64, with one thread and with two",
    must_hold="image i is the same, up to one level in at most 1 % of the pixels (the sums of the network)",
)  # fmt: skip
def batch_sizes(tries: Tries):
    for attempt in tries:
        model, seed = KINDS[attempt.number % 4](), attempt.random.getrandbits(32)
        reference = fastdiff.sample(model, 13, seed=seed, output="levels", **options(attempt.number))
        size = attempt.random.choice([1, 2, 7, 13])
        threads = torch.get_num_threads()
        torch.set_num_threads(attempt.random.choice([1, 2]))
        found = fastdiff.sample(model, 13, seed=seed, batch_size=size, output="levels", **options(attempt.number))
        torch.set_num_threads(threads)
        difference = (found.int() - reference.int()).abs()
        tries.count("images that are the same in every bit", int((difference.flatten(1).amax(1) == 0).sum()))
        tries.count("images", 13)
        good = int(difference.max()) <= 1 and float((difference > 0).float().mean()) <= 0.01
        yield None if good else f"try {attempt.number}: batches of {size}: by up to {int(difference.max())} levels"


@fault(
    "a long request", "faults 1", tries=10, quick=0,
    done="20,000 images are sampled in ten parts of 2000",
    must_hold="memory grows by less than 50 MB and no descriptor stays open after the first part",
)  # fmt: skip
def long_request(tries: Tries):
    model = small_model()
    memory = descriptors = 0.0
    for number in tries.numbers:
        fastdiff.sample(model, 2000, steps=2, batch_size=500, seed=number)
        gc.collect()
        if number == tries.numbers[0]:
            memory, descriptors = peak_megabytes(), len(os.listdir("/proc/self/fd"))
        grown, more = peak_megabytes() - memory, len(os.listdir("/proc/self/fd")) - descriptors
        tries.largest("MB more", round(grown, 1))
        yield f"part {number}: {grown:.0f} MB and {more} descriptors more" if grown > 50 or more else None


@fault(
    "vmap over noise", "faults 2.3", tries=16, quick=4,
    done="torch.func.vmap maps an operation that draws from a Noise",
    must_hold="an error, as every sample would have the same noise; with noise given as a tensor it works",
)  # fmt: skip
def vmap(tries: Tries):
    x, zeros = torch.randn(3, 2, 4), torch.zeros(3, 2)
    eps = torch.randn(3, 2, 4)
    operations = [
        (lambda x, v: diffuse(x, v, Noise(1)), lambda x, v, e: diffuse(x, v, e)),
        (lambda x, v: eps_loss(x, Noise(1), v), lambda x, v, e: eps_loss(x, e, v)),
        (lambda x, v: reparameterize(x, x, Noise(1)), lambda x, v, e: reparameterize(x, x, e)),
        (lambda x, v: dropout(x, 0.5, Noise(1)), None),
    ]
    for attempt in tries:
        drawn, given = operations[attempt.number % 4]
        try:
            torch.func.vmap(drawn)(x, zeros)
            yield f"try {attempt.number}: it was mapped"
            continue
        except UnsupportedTransformError:
            pass
        if given is not None:
            torch.func.vmap(given)(x, zeros, eps)
        yield None
