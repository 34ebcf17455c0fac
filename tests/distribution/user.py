# pyright: strict
"""What a user of the installed package may write: `run.py` checks its types against the wheel. It is never executed."""

from pathlib import Path
from typing import assert_type

import torch
from fastdiff_kernels import to_unit_range

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise, diffuse, eps_loss
from fastdiff.models import VDM, VDMConfig

assert_type(fastdiff.__version__, str)
model = VDM(VDMConfig(shape=(1, 8, 8), levels=17))
model.save(Path("model"))
x = to_unit_range(digits().train_images[:16], model.levels)
noise = Noise(seed=0, step=3)
gamma = torch.zeros(len(x))
z_t = diffuse(x, gamma, noise)
assert_type(z_t, torch.Tensor)
eps_hat = model.eps_hat(z_t, gamma)
assert_type(eps_loss(eps_hat, noise, gamma), torch.Tensor)
images = fastdiff.sample(model, 4, steps=10, sampler=DDIM(eta=0.5), labels=[1, 2, 3, 4])
result = evaluate(fastdiff.load("digits"), digits().test_images, draws=2)
assert_type(result.mean, float)
try:
    fastdiff.sample("digits", 4, guidance=fastdiff.Guidance(2.0))
except fastdiff.FastdiffError as error:
    print(error)
