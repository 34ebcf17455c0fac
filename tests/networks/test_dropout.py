"""Dropout layers of networks: masks of (seed, step, sample, layer), their numbers, and how the noise reaches them."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastdiff.kernels import InvalidValueError, Noise, dropout
from fastdiff.networks import (
    ConcatUNetConfig,
    ConvVAEConfig,
    Dropout,
    UNetConfig,
    number_dropouts,
    set_dropout_noise,
)

UNET = UNetConfig(widths=(8, 12), blocks=1, embedding=8, dropout=0.3, heads=2, max_groups=4)
CONCAT = ConcatUNetConfig(
    width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.3, heads=2, max_groups=4, embedding_bias=True
)


def unet(config=UNET, seed: int = 0) -> nn.Module:
    """A network in training mode all of whose parameters are random: layers that start at zero would hide a mask."""
    network = config.build(3, 3, (8, 8), 0)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.train()


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.linspace(0.1, 0.9, batch)


def layers_of(network: nn.Module) -> list[Dropout]:
    return [module for module in network.modules() if isinstance(module, Dropout)]


def call(network: nn.Module, noise: Noise | None, *args: torch.Tensor) -> torch.Tensor:
    set_dropout_noise(network, noise)
    return network(*args)


@pytest.mark.parametrize("config", [UNET, CONCAT], ids=["unet", "concat"])
def test_layers_are_numbered_in_order(config):
    layers = layers_of(unet(config))
    assert len(layers) > 3
    assert [layer.layer for layer in layers] == list(range(len(layers)))


def test_the_networks_of_a_vae_have_different_numbers():
    encoder, decoder = ConvVAEConfig(widths=(8, 12), blocks=2).build((1, 8, 8), 4)
    numbers = [layer.layer for network in (encoder, decoder) for layer in layers_of(network)]
    assert numbers == list(range(8))


def test_a_layer_is_the_operation_of_its_number():
    network, x = nn.Sequential(Dropout(0.5), nn.Identity(), Dropout(0.5)).train(), torch.randn(3, 40)
    number_dropouts(network)
    noise = Noise(1, 2, 3, 4)
    expected = dropout(dropout(x, 0.5, noise, 0), 0.5, noise, 1)
    assert torch.equal(call(network, noise, x), expected)


@pytest.mark.parametrize("config", [UNET, CONCAT], ids=["unet", "concat"])
def test_a_part_of_a_batch_is_a_part_of_the_whole(config):
    """Convolutions differ by about 1e-6 between batch sizes; a mask of another sample differs by much more."""
    network, (x, t) = unet(config), inputs(6)
    whole = call(network, Noise(1, 2), x, t)
    torch.testing.assert_close(
        call(network, Noise(1, 2, first_sample=2), x[2:5], t[2:5]), whole[2:5], rtol=1e-4, atol=1e-4
    )
    assert (call(network, Noise(1, 2), x[2:5], t[2:5]) - whole[2:5]).abs().max() > 0.01


def test_steps_differ_and_the_same_step_does_not():
    network, x = unet(), inputs()
    first, second = call(network, Noise(1, 0), *x), call(network, Noise(1, 1), *x)
    assert torch.equal(call(network, Noise(1, 0), *x), first)
    assert not torch.allclose(first, second, atol=0.01)


def test_layers_differ():
    """Each layer of a network drops other elements of the same input."""
    network, x = unet(), torch.ones(1, 1024)
    set_dropout_noise(network, Noise(1))
    masks = [layer(x) != 0 for layer in layers_of(network)]
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert 200 < int((mask != other).sum()) < 650  # 2 · 0.3 · 0.7 · 1024 = 430


def test_the_share_of_dropped_elements():
    """Within 4 standard errors of 77/256."""
    layer, x = Dropout(0.3).train(), torch.ones(64, 1024)
    set_dropout_noise(layer, Noise(5))
    p = 77 / 256
    assert abs(float((layer(x) == 0).double().mean()) - p) <= 4.0 * math.sqrt(p * (1.0 - p) / x.numel())


def test_evaluation_and_p_0_are_the_identity():
    x = torch.randn(2, 3)
    for layer in (Dropout(0.5).eval(), Dropout(0.0).train()):
        for noise in (None, Noise(1)):
            assert call(layer, noise, x) is x


def test_without_a_noise_it_is_pytorchs_dropout():
    layer, x = Dropout(0.5).train(), torch.randn(2, 30)
    for noise in (Noise(1), None):
        set_dropout_noise(layer, noise)
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    assert torch.equal(found, nn.functional.dropout(x, 0.5))


def test_a_probability_that_rounds_to_1_is_rejected():
    with pytest.raises(InvalidValueError, match=r"Dropout: p must be in .*got 0.999"):
        Dropout(0.999)


class Owner(nn.Module):
    """Holds a network as a model does, and passes the noise on."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.network = nn.Linear(2, 2), unet()

    def forward(self, x: torch.Tensor, t: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        set_dropout_noise(self, Noise.from_key(key))
        return self.network(x, t)


def test_a_copy_has_a_noise_of_its_own():
    """Its layers read the copy's noise, also where it was copied while the first had one."""
    owner, x = Owner(), inputs()
    first = owner(*x, Noise(1).key)
    twin = copy.deepcopy(owner)
    assert [layer.layer for layer in layers_of(twin)] == [layer.layer for layer in layers_of(owner)]
    assert not torch.allclose(twin(*x, Noise(2).key), first, atol=0.01)
    assert torch.equal(owner.network(*x), first)  # still with its own noise
    assert torch.equal(twin(*x, Noise(1).key), first)


def test_the_noise_is_no_state_and_no_module():
    owner = Owner()
    names = list(owner.state_dict()), [name for name, _ in owner.named_modules()]
    owner(*inputs(), Noise(1).key)
    assert names == (list(owner.state_dict()), [name for name, _ in owner.named_modules()])
    assert not any("dropout" in name for name in names[0])


def test_layers_of_a_network_that_never_numbered_them_are_found():
    network = nn.Sequential(nn.Sequential(Dropout(0.5)), Dropout(0.5)).train()
    set_dropout_noise(network, Noise(1))
    x = torch.ones(1, 64)
    assert torch.equal(network[0](x), dropout(x, 0.5, Noise(1)))
    assert torch.equal(network[1](x), dropout(x, 0.5, Noise(1)))


@pytest.mark.slow
def test_a_compiled_network_takes_a_new_step_without_compiling():
    """Values and gradients are those of eager calls; the noise is set inside the compiled function."""
    owner, x = Owner(), inputs()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(owner, fullgraph=True, backend=counter)
    results = []
    for step in range(3):
        key = Noise(1, step).key
        for function in (compiled, owner):
            owner.zero_grad()
            y = function(*x, key)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in owner.network.parameters())])
        for found, expected in zip(*results[-2:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    assert not torch.allclose(results[0][0], results[2][0], atol=0.01)


@pytest.mark.slow
def test_a_noise_that_is_set_outside_compiles_nothing_either():
    network, x = unet(), inputs()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for step in range(3):
        set_dropout_noise(network, Noise(1, step))
        torch.testing.assert_close(compiled(*x), network(*x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
