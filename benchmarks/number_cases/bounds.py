"""Cases on bounds, likelihoods, latents, interpolation and restoration."""

from collections.abc import Iterator
from typing import Any

import torch
from number_cases.families import (
    COUNT,
    EMBEDDED,
    FAMILIES,
    LABELLED,
    LABELS,
    RESTORATION,
    SHIFTED,
    VAES,
    Case,
    fresh,
    held_out,
    mixture_of_three,
)

EVERY_LABEL = torch.tensor([3, 10, 11, 1, 10, 0, 11, 9])  # 10 is no label, 11 is augmented
LOSSES = ("elbo", "simple", "min-snr", "sigmoid")


def cases() -> Iterator[Case]:
    """All cases of this file."""
    yield from bounds()
    yield from evaluations()
    yield from latents()
    yield from restorations()


def bounds() -> Iterator[Case]:
    """The terms of every family's bound at several T, and its training losses."""
    for family in FAMILIES:
        depth = 4 if family.startswith("hvae") else 1
        steps = ("own", None, depth) if family in VAES else ("own", None, 10, 2 if family not in LABELLED[:2] else 1)

        def terms(api: Any, family: str, T: Any) -> Any:
            labels = LABELS.repeat(2) if family in LABELLED else None
            return api.vlb(fresh(api, family), held_out(api), T, labels)

        for T in steps:
            yield Case(f"bound, {family}: T={T}", lambda api, family=family, T=T: terms(api, family, T))
        yield Case(f"bound, {family}: autocast to bfloat16", lambda api, family=family: under_autocast(api, family))
        for loss in LOSSES[:1] if family in VAES else LOSSES:
            yield Case(f"loss, {family}: {loss}", lambda api, family=family, loss=loss: gradients(api, family, loss))


def under_autocast(api: Any, family: str) -> Any:
    """The terms of the bound with the network in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return api.vlb(fresh(api, family), held_out(api, 4), "own", None)


def gradients(api: Any, family: str, loss: str) -> Any:
    """A training loss at its own T and at T = 10, and the gradients of both together."""
    model = fresh(api, family)
    x, labels = held_out(api), LABELS.repeat(2) if family in LABELLED else None
    values = [api.objective(model, x, loss, T, labels) for T in ((None,) if family in VAES else (None, 10))]
    torch.stack([value[0].mean() for value in values]).sum().backward()
    return [values, [p.grad for p in model.parameters() if p.grad is not None]]


def evaluations() -> Iterator[Case]:
    """Rows of `evaluate`, also over all steps of a chain; the probability-flow ODE; FD-digits."""
    for family in FAMILIES:
        for T in ("own", None) if family not in VAES else ("own",):
            yield Case(
                f"evaluate, {family}: T={T}",
                lambda api, family=family, T=T: api.evaluate(
                    fresh(api, family), held_out(api, 40), T=T, draws=3, batch_size=32
                ),
            )
    for family in (EMBEDDED, "vdm, learned schedule", "ddpm, fixed_small", "ddpm, fixed_large", "ddpm, learned"):
        yield Case(
            f"evaluate, {family}: exact",
            lambda api, family=family: api.evaluate(fresh(api, family), held_out(api), T=6, draws=2, exact=True),
        )
    for family in (EMBEDDED, "vdm, learned schedule", "ddpm, fixed_small"):
        yield Case(
            f"ode, {family}",
            lambda api, family=family: api.evaluate_ode(fresh(api, family), held_out(api, 8), None, steps=3, draws=2),
        )
    yield Case(
        "ode, embedded: labels", lambda api: api.evaluate_ode(fresh(api, EMBEDDED), held_out(api, 8), LABELS, 3, 1)
    )
    yield Case(
        "evaluate, embedded: labels",
        lambda api: api.evaluate(fresh(api, EMBEDDED), held_out(api, 8), EVERY_LABEL, T=None, draws=4, seed=5),
    )

    def distance(api: Any) -> Any:
        result = api.fd_digits(api.digits().test_images[:64])
        return [result.value, result.standard_error]

    yield Case("fd_digits", distance)


def latents() -> Iterator[Case]:
    """What autoencoders have: encoding, likelihoods, diagnostics, mixtures of latents, interpolation."""
    for family in VAES:

        def encoding(api: Any, family: str = family) -> Any:
            model, x = fresh(api, family), held_out(api)
            noise = api.Noise(9)
            return [model.encode(x), model.log_likelihood(x, noise, 3), model.decode(model.encode(x)[0][0])]

        yield Case(f"encode, decode, log_likelihood: {family}", encoding)
    for family in (*VAES, "diffusevae"):
        yield Case(
            f"evaluate_latents, {family}",
            lambda api, family=family: api.evaluate_latents(fresh(api, family), held_out(api, 40)),
        )

    def density(api: Any) -> Any:
        mixture = api.mixture(*mixture_of_three())
        drawn = mixture.draw(20, api.Noise(5, first_sample=3), 0.8)
        return [drawn, mixture.log_density(drawn)]

    yield Case("mixture of latents: draws and densities", density)
    for vary, family in (
        ("latent", "vae"), ("latent", "hvae"), ("class", "vae"), ("latent", "diffusevae"), ("noise", "diffusevae"),
        ("class", "diffusevae"), ("latent", "diffusevae2, v"), ("noise", "diffusevae2, v"),
        ("class", "diffusevae2, v"), ("noise", "vdm"), ("noise", "ddpm, learned"),
    ):  # fmt: skip

        def strip(api: Any, vary: str = vary, family: str = family) -> Any:
            options = {} if family in VAES else {"steps": 4, "sampler": "dpm-solver" if vary == "noise" else "ddim"}
            model, data = fresh(api, family), api.digits()
            images, z = api.interpolate(model, vary, rows=2, count=4, seed=6, data=data, **options)
            return z if family in SHIFTED else [images, z]

        yield Case(f"interpolate, {family}: {vary}", strip, 1e-3 if family in SHIFTED else 0.0)


def restorations() -> Iterator[Case]:
    """Reconstruction and restoration, with PSNR."""
    for family in ("vae", "hvae", "diffusevae", "diffusevae2, v", *RESTORATION):
        kinds = ((None, 0.0),) if family in RESTORATION else ((None, 0.0), ("downsample", 2), ("noise", 0.5))
        for kind, amount in kinds:

            def restore(api: Any, family: str = family, kind: Any = kind, amount: float = amount) -> Any:
                options = {} if family in VAES else {"steps": 5, "sampler": "ancestral"}
                degradation = None if kind is None else api.degradation(kind, amount)
                model = fresh(api, family)
                images, z, *others = api.restore(model, held_out(api, COUNT), degradation, **options)
                return z if family in SHIFTED else [images, z, *others]

            yield Case(f"reconstruct, {family}: {kind}", restore, 1e-3 if family in SHIFTED else 0.0)
