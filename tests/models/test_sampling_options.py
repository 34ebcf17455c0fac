"""The options of `fastdiff.sample` that each kind of model accepts; the others are rejected in one sentence."""

import pytest
import torch
from tiny import small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff.diffusion import Ancestral, as_sampler
from fastdiff.kernels import InvalidValueError
from fastdiff.models import Edit, Latents, Request

DIFFUSION = {"steps", "sampler", "initial", "edit"}
LABELS = {"labels", "guidance"}
ACCEPTED = {
    "vdm": (small, DIFFUSION),
    "vdm with classes": (lambda: small(num_classes=3), DIFFUSION | LABELS),
    "ddpm": (small_ddpm, DIFFUSION),
    "ddpm with classes": (lambda: small_ddpm(num_classes=3), DIFFUSION | LABELS),
    "hvae": (small_vae, {"latents"}),
    "diffusevae": (small_diffusevae, DIFFUSION | {"cond", "latents"}),
    "diffusevae with classes": (lambda: small_diffusevae(num_classes=3), DIFFUSION | LABELS | {"cond", "latents"}),
    "restoration": (small_restoration, DIFFUSION | {"cond"}),
    "restoration with classes": (lambda: small_restoration(num_classes=3), DIFFUSION | LABELS | {"cond"}),
}
VALUES = {
    "steps": 4, "sampler": as_sampler("ddim"), "labels": torch.tensor([1, 2]), "guidance": 2.0,
    "cond": torch.zeros(2, 1, 8, 8), "latents": Latents(temperature=0.5), "initial": torch.zeros(2, 1, 8, 8),
    "edit": Edit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_accepted_options(kind):
    make, accepted = ACCEPTED[kind]
    model = make()
    assert model.sampling_options == accepted
    needed = {"cond": torch.zeros(2, *model.cond_shape)} if kind.startswith("restoration") else {}
    for name in accepted:
        values = needed | {name: needed.get(name, VALUES[name])}
        values |= {"labels": VALUES["labels"]} if name == "guidance" else {}
        model.prepare(Request(2, **values))


@pytest.mark.parametrize("kind", ACCEPTED)
def test_rejected_options(kind):
    make, accepted = ACCEPTED[kind]
    model = make()
    for name in set(VALUES) - accepted - {"initial", "edit"}:
        with pytest.raises(InvalidValueError, match=f"takes no {name}") as caught:
            fastdiff.sample(model, 2, **{name: VALUES[name]})
        message = str(caught.value)
        assert message.startswith(f"sample: a {model.kind} model")
        assert "\n" not in message
        assert all(option in message for option in accepted - {"initial", "edit"})
        assert "initial" not in message  # no options of `fastdiff.sample`
        assert "edit" not in message


def test_defaults_are_no_options():
    images = fastdiff.sample(small_vae(), 2, steps=None, sampler=Ancestral(), labels=None, guidance=None, latents=None)
    assert images.shape == (2, 1, 8, 8)
