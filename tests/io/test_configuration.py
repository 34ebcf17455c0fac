"""Configurations: what fields accept, JSON, unions by kind, and names of earlier versions."""

import json
import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.io.configuration import (
    ConfigError,
    at_least,
    between,
    configuration,
    differences,
    each,
    field,
    from_dict,
    more_than,
    not_empty,
    one_of,
    to_dict,
)
from fastdiff.kernels import FastdiffError
from fastdiff.models import (
    AddNoise,
    ConvVAEConfig,
    DDPMConfig,
    DiffuseVAEConfig,
    Downsample,
    HVAEConfig,
    RestorationConfig,
    UNetConfig,
    VDMConfig,
)
from fastdiff.training import TrainConfig

# ------------------------------------------------------------------------------------------------ fields


@configuration
class Round:
    """A member of a union, tagged by its kind."""

    radius: float = field(more_than(0.0), default=1.0)
    kind: str = field(one_of("round"), default="round")


@configuration
class Square:
    """Another member."""

    side: int = field(at_least(1), default=2)
    kind: str = field(one_of("square"), default="square")


@configuration
class Plain:
    """A member without a kind."""

    name: str = "plain"


@configuration
class Every:
    """A field of each type."""

    count: int = field(at_least(1))
    scale: float = field(between(0.0, 1.0, open_above=True), default=0.5)
    rate: float | None = field(more_than(0.0), default=None)
    flag: bool = False
    name: str = field(one_of("a", "b"), default="a")
    pair: tuple[int, int] | None = None
    widths: tuple[int, ...] = field(each(at_least(1)), not_empty, default=(1,))
    table: dict[str, int] | None = None
    shape: Round | Square = field(factory=Round)
    part: Plain | Square | None = None

    def __attrs_post_init__(self) -> None:
        if self.flag and self.name == "b":
            raise ConfigError("Every: flag must be False where name is b")


ACCEPTED = [
    ("count", 3, 3), ("scale", 0, 0.0), ("scale", 0.999, 0.999), ("rate", 2, 2.0), ("rate", None, None),
    ("flag", True, True), ("name", "b", "b"), ("pair", [1, 2], (1, 2)), ("pair", None, None), ("widths", [5], (5,)),
    ("widths", (1, 2, 3), (1, 2, 3)), ("table", {"x": 1}, {"x": 1}), ("shape", Square(side=4), Square(side=4)),
    ("shape", {"kind": "square", "side": 4}, Square(side=4)), ("part", {"name": "x"}, Plain(name="x")),
    ("part", {"kind": "square"}, Square()), ("part", {}, Plain()), ("part", Square(), Square()), ("part", None, None),
]  # fmt: skip
REJECTED = [
    ("count", [0, -1, 1.0, True, "1", None, [1]]),
    ("scale", [1.0, -0.1, math.nan, math.inf, "0.5", True, None, 10**400]),
    ("rate", [0.0, -1, math.inf, math.nan, "x"]), ("flag", [0, 1, "yes", None]), ("name", ["c", "", 1, None]),
    ("pair", [[1], [1, 2, 3], 3, [1, 2.0], [1, None], "ab", {1: 2}]), ("widths", [[], [0], [1, -1], [1.0], 3, None]),
    ("table", [[], "x", 3]),
    ("shape", [{}, {"side": 3}, {"kind": "oval"}, {"kind": ["square"]}, {"kind": "square", "radius": 1.0}, None, 3]),
    ("shape", ["x", {"kind": "square", "side": 0}, Plain()]),
    ("part", [{"kind": "round"}, {"kind": None}, {"side": 3}, 3, Round()]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), ACCEPTED)
def test_values_that_a_field_accepts(name, value, expected):
    """A list stands for a tuple and an int for a float, on construction and in JSON alike."""
    built = Every(**({"count": 1} | {name: value}))
    assert getattr(built, name) == expected
    assert type(getattr(built, name)) is type(expected)
    if not attrs.has(type(value)):
        data = json.loads(json.dumps({"count": 1} | {name: value}))
        assert from_dict(Every, data, "here") == built


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=name) for name, values in REJECTED for value in values]
)
def test_values_that_a_field_rejects(name, value):
    with pytest.raises(ConfigError, match=f"Every: {name}"):
        Every(**({"count": 1} | {name: value}))
    with pytest.raises(ConfigError, match=rf"^here.*\b{name}"):
        from_dict(Every, {"count": 1} | {name: value}, "here")


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        (at_least(2), [2, 3.5], [1, 1.99, -math.inf]), (more_than(2), [2.01, 1e300], [2, math.inf, math.nan]),
        (between(0, 1), [0, 0.5, 1], [-0.01, 1.01, math.nan]), (between(0, 1, open_below=True), [0.01, 1], [0, 1.01]),
        (between(0, 1, open_above=True), [0, 0.99], [1, -0.01]), (one_of("a", 3), ["a", 3], ["b", 4, ""]),
        (each(at_least(1)), [(), (1, 2)], [(0,), (1, 0)]), (not_empty, [(0,)], [()]),
    ],
)  # fmt: skip
def test_checks(check, inside, outside):
    assert [check(value) for value in inside] == [None] * len(inside)
    assert all(isinstance(check(value), str) for value in outside)


def test_configurations_are_frozen_values():
    config = Every(count=1, pair=(1, 2))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.count = 2
    with pytest.raises(TypeError):
        Every(1)
    changed = attrs.evolve(config, count=2)
    assert (changed.count, changed.pair, config.count) == (2, (1, 2), 1)
    with pytest.raises(ConfigError, match="count"):
        attrs.evolve(config, count=0)
    with pytest.raises(ConfigError, match="flag") as error:
        from_dict(Every, {"count": 1, "flag": True, "name": "b"}, "here")
    assert isinstance(error.value, FastdiffError)


def test_keys():
    with pytest.raises(ConfigError, match=r"here\.shape has unknown keys color, size"):
        from_dict(Every, {"count": 1, "shape": {"kind": "round", "size": 1, "color": 2}}, "here")
    with pytest.raises(ConfigError, match="here lacks the keys count"):
        from_dict(Every, {}, "here")
    for data in ([], None, "x", 3):
        with pytest.raises(ConfigError, match="here must be an object"):
            from_dict(Every, data, "here")


def test_differences():
    data = {"shape": (1, 8, 8), "levels": 17}
    one = HVAEConfig(**data, network=ConvVAEConfig(widths=(8,)))
    other = HVAEConfig(**data, depth=2, network=ConvVAEConfig(widths=(8, 16)))
    assert differences(one, other) == "depth is 1, expected 2, network.widths is (8,), expected (8, 16)"
    assert differences(AddNoise(), Downsample()) == (
        "deviation is 0.5, expected absent, kind is noise, expected downsample, factor is absent, expected 2"
    )
    assert differences(one, one) == ""


# ------------------------------------------------------------------------------------------------ models, old and new

positive = st.floats(0.001, 10.0)
beta = st.floats(1e-6, 0.4)
common = {"shape": st.just((1, 8, 8)), "levels": st.integers(2, 256)}
labels = {"num_classes": st.integers(0, 12), "augmented": st.booleans()}
unet = st.builds(UNetConfig, widths=st.sampled_from([(8,), (8, 16)]), heads=st.sampled_from([1, 2]))
conv = st.builds(ConvVAEConfig, widths=st.sampled_from([(8,), (8, 12)]), dropout=st.floats(0.0, 0.9))
ddpm = {
    **common, **labels, "T": st.integers(2, 2000), "beta_first": beta, "beta_last": st.floats(0.4, 0.99),
    "beta_count": st.integers(2, 2000), "variance": st.sampled_from(["fixed_small", "fixed_large", "learned"]),
    "prediction": st.sampled_from(["epsilon", "x", "v", "velocity", "score"]), "network": unet,
    "continuous_noise_conditioning": st.booleans(),
}  # fmt: skip
vae = {
    "depth": st.integers(1, 5), "latent": st.integers(1, 64), "beta": positive, "free_bits": positive, "network": conv,
}  # fmt: skip
degradation = st.builds(Downsample, factor=st.sampled_from([2, 4, 8])) | st.builds(AddNoise, deviation=positive)
formulation = st.sampled_from([1, 2])


@st.composite
def diffusevae(draw) -> DiffuseVAEConfig:
    fields = {name: draw(strategy) for name, strategy in ddpm.items()}
    first = HVAEConfig(
        shape=fields["shape"], levels=fields["levels"], **{name: draw(strategy) for name, strategy in vae.items()}
    )
    return DiffuseVAEConfig(**fields, formulation=draw(formulation), vae=first)


MODELS = {
    "vdm": st.builds(
        VDMConfig, **common, **labels, gamma_0=st.floats(-30.0, -1.0), gamma_1=st.floats(0.0, 30.0), network=unet,
        learn_endpoints=st.booleans(), fourier=st.none() | st.sampled_from([(3, 4), (7, 8), (0, 30)]),
        schedule=st.sampled_from(["linear", "cosine", "beta-linear", "flow", "learned"]),
        prediction=st.sampled_from(["epsilon", "x", "v", "velocity", "score", "edm", "categorical"]),
        sigma_data=positive,
    ),
    "ddpm": st.builds(DDPMConfig, **ddpm),
    "hvae": st.builds(HVAEConfig, **common, **vae),
    "diffusevae": diffusevae(),
    "restoration": st.builds(RestorationConfig, **ddpm, formulation=formulation, degradation=degradation),
    "train": st.builds(
        TrainConfig, data=st.text(max_size=5), max_steps=st.integers(1, 10**9), T=st.none() | st.integers(1, 1000),
        loss=st.sampled_from(["elbo", "simple"]), clip_norm=st.none() | positive, seed=st.integers(0, 2**64 - 1),
        first_stage=st.none() | st.text(max_size=5),
    ),
}  # fmt: skip

# The names of version 0.1.0, written down here once more.
OLD_KEYS = {"num_classes": "classes", "prediction": "head", "continuous_noise_conditioning": "continuous", "T": "steps"}
OLD_TRAIN_KEYS = {"max_steps": "steps", "T": "bound_steps"}
OLD_VALUES = {
    "head": {"epsilon": "eps", "categorical": "levels"},
    "variance": {"fixed_small": "small", "fixed_large": "large"},
}
SECOND_STAGE = [name for name in ddpm if name not in common]


def in_old_names(config: object) -> dict:
    """The JSON that version 0.1.0 would have written."""
    kind, data = type(config).__name__, json.loads(json.dumps(to_dict(config)))
    keys = OLD_TRAIN_KEYS if kind == "TrainConfig" else OLD_KEYS
    if kind == "DiffuseVAEConfig":
        data["vae"] = {keys.get(name, name): value for name, value in data["vae"].items()}
    if kind in ("DiffuseVAEConfig", "RestorationConfig"):
        stage = {name: data.pop(name) for name in SECOND_STAGE}
        data |= {"refiner": _old({"shape": data["shape"], "levels": data["levels"], **stage}, keys)}
        data |= {"num_classes": 0, "augmented": False}
    return _old(data, keys)


def _old(data: dict, keys: dict[str, str]) -> dict:
    named = {keys.get(name, name): value for name, value in data.items()}
    return {name: OLD_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
            for name, value in named.items()}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=40)
@given(data=st.data())
def test_configurations_survive_json_and_their_old_names(kind, data):
    config = data.draw(MODELS[kind])
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))), "here")
    assert again == config
    assert [type(value) for value in attrs.astuple(again)] == [type(value) for value in attrs.astuple(config)]
    old = in_old_names(config)
    assert not {"num_classes", "prediction", "continuous_noise_conditioning", "max_steps"} & set(old)
    assert from_dict(type(config), json.loads(json.dumps(old)), "here") == config


def test_old_names_are_read_in_their_own_class_only():
    """`steps` was T of a DDPM and max_steps of a training, and never a key of a VDM; errors use the present names."""
    with pytest.raises(ConfigError, match="unknown keys steps"):
        from_dict(VDMConfig, {"shape": [1, 8, 8], "levels": 17, "steps": 3}, "here")
    with pytest.raises(ConfigError, match="unknown keys head"):
        from_dict(HVAEConfig, {"shape": [1, 8, 8], "levels": 17, "head": "eps"}, "here")
    for data, name in (({"steps": 1}, "T"), ({"head": "noise"}, "prediction"), ({"classes": -1}, "num_classes")):
        with pytest.raises(ConfigError, match=f"{name} must"):
            from_dict(DDPMConfig, {"shape": [1, 8, 8], "levels": 17} | data, "here")
    for value in (3, None, []):
        with pytest.raises(ConfigError, match="unknown keys refiner"):
            from_dict(RestorationConfig, {"refiner": value}, "here")
