"""``fastdiff convert``: single files of other libraries become checkpoint folders."""

import json
from dataclasses import fields

import attrs
import numpy as np
import official_vdm
import openai_unet
import pytest
import torch
from safetensors.torch import save_file

import fastdiff
from fastdiff.cli.convert import NOT_SETTINGS, ImprovedDiffusion
from fastdiff.interop import load_improved_diffusion, load_vdm
from fastdiff.models.formats.improved_diffusion_flags import ImprovedDiffusionFlags


def same(one, other) -> bool:
    state = other.state_dict()
    return one.config == other.config and all(
        torch.equal(state[name], value) for name, value in one.state_dict().items()
    )


def test_improved_diffusion(run, tmp_path):
    save_file(
        openai_unet.random_state(openai_unet.parameters(32, (1, 2), 1, learn_sigma=True), 0), "theirs.safetensors"
    )
    flags = {"image_size": 8, "num_channels": 32, "channel_mult": "1,2", "num_res_blocks": 1, "learn_sigma": True}
    flags |= {"attention_resolutions": "2", "noise_schedule": "cosine", "rescale_timesteps": False}
    code, out, err = run(
        "convert", "improved-diffusion", "theirs.safetensors", "ours", "--image-size", "8", "--num-channels", "32",
        "--channel-mult", "1,2", "--num-res-blocks", "1", "--learn-sigma", "True", "--attention-resolutions", "2",
        "--noise_schedule", "cosine", "--rescale-timesteps", "no",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.startswith("wrote ours: a ddpm model of images 3×8×8, ")
    assert same(fastdiff.load("ours"), load_improved_diffusion("theirs.safetensors", **flags))
    record = json.loads((tmp_path / "ours" / "config.json").read_text())["record"]["converted"]
    assert (record["format"], record["file"]) == ("ImprovedDiffusion", "theirs.safetensors")
    assert record["settings"]["noise_schedule"] == "cosine"
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "- origin: converted from theirs.safetensors, weights of improved-diffusion or guided-diffusion" in card


def test_lines_of_flags_as_their_scripts_take_them(run):
    """The MODEL_FLAGS and DIFFUSION_FLAGS of their documentation, at a smaller size."""
    save_file(
        openai_unet.random_state(openai_unet.parameters(32, (1, 2), 1, learn_sigma=True), 0), "theirs.safetensors"
    )
    model = "--image_size 8 --num_channels 32 --num_res_blocks 1 --learn_sigma True --dropout 0.3 --class_cond False"
    model += " --channel_mult 1,2 --attention_resolutions 2 --use_checkpoint False --use_fp16 True"
    diffusion = "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --use_kl true"
    flags = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "learn_sigma": True, "dropout": 0.3}
    flags |= {"channel_mult": "1,2", "attention_resolutions": "2", "diffusion_steps": 4000, "noise_schedule": "cosine"}
    code, _, err = run("convert", "improved-diffusion", "theirs.safetensors", "ours", *f"{model} {diffusion}".split())
    assert (code, err) == (0, "")
    assert same(fastdiff.load("ours"), load_improved_diffusion("theirs.safetensors", **flags))


def test_vdm(run):
    theirs = official_vdm.random_parameters(official_vdm.parameters(32, 1, False, True, "monotone"), 0)
    np.savez("theirs.npz", **{name: value.numpy() for name, value in theirs.items()})
    code, out, err = run("convert", "vdm", "theirs.npz", "ours", "--image-size", "8", "--gamma-min", "-12")
    assert (code, err) == (0, "")
    assert out.startswith("wrote ours: a vdm model of images 3×8×8, ")
    assert same(fastdiff.load("ours"), load_vdm("theirs.npz", image_size=8, gamma_min=-12.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("improved-diffusion theirs.safetensors ours", "contradicts flags: num_channels must be 32, got 128"),
        (
            "improved-diffusion theirs.safetensors ours --num-channels 5",
            "num_channels must be a positive multiple of 32",
        ),
        ("improved-diffusion theirs.safetensors ours --timestep_respacing ddim50", "timestep_respacing must be ''"),
        ("improved-diffusion nothing.npz ours", "must be a .safetensors or .npz file that exists, got nothing.npz"),
        ("improved-diffusion theirs.pt ours", "it is a pickle"),
        ("vdm theirs.safetensors ours", "must hold the parameters of a VDM"),
        ("vdm theirs.safetensors ours --image-size 0", "--image-size must be an integer >= 1, got 0"),
    ],
)
def test_errors(run, tmp_path, arguments, message):
    save_file(openai_unet.random_state(openai_unet.parameters(32, (1, 2), 1), 0), "theirs.safetensors")
    torch.save({}, "theirs.pt")
    code, out, err = run("convert", *arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("value", ["perhaps", "2", ""])
def test_what_is_no_boolean(run, capsys, value):
    with pytest.raises(SystemExit, match="2"):
        run("convert", "improved-diffusion", "theirs.safetensors", "ours", "--learn_sigma", value)
    assert "must be True or False" in capsys.readouterr().err


def test_the_flags_of_the_command_are_those_of_the_function():
    known = {field.name: field.default for field in attrs.fields(ImprovedDiffusionFlags)}
    offered = {field.name: field.default for field in fields(ImprovedDiffusion) if field.name not in NOT_SETTINGS}
    assert offered == known
