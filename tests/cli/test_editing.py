"""The commands on a user's images: edit, inpaint, invert and back, restore."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import images, small, small_ddpm, small_restoration, small_vae

from fastdiff.diffusion import DDIM
from fastdiff.io.pictures import to_pil, to_uint8
from fastdiff.sampling import edit, from_latents, inpaint, invert, restore

MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[:, :4] = True
X = images(3)


@pytest.fixture
def here(run, tmp_path):
    """A folder with small models, three pictures of 17 levels, and a mask."""
    small(num_classes=3).save("model")
    small_ddpm(prediction="v").save("smooth")
    small_restoration().save("restorer")
    small_vae().save("one")
    (tmp_path / "in").mkdir()
    for name, image in zip("abc", to_uint8(X, 17), strict=True):
        to_pil(image).save(f"in/{name}.png")
        to_pil(image[:, :4, :4].contiguous()).save(f"small-{name}.png")
    Image.fromarray(MASK.numpy()).save("mask.png")
    return run


def read(path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture).copy())


def test_edit_a_folder(here):
    """Variant k of image i has the noise of sample 3 k + i."""
    flags = ["--strength", "0.4", "--steps", "3", "--sampler", "ddim", "--eta", "0.5", "--seed", "4"]
    code, out, err = here("edit", "model", "in", *flags, "--variants", "2", "--out", "edited/")
    assert code == 0, err
    assert "wrote edited (6 images)" in out
    expected = edit("model", X.repeat(2, 1, 1, 1), 0.4, 3, DDIM(eta=0.5), 4)
    for k, name in enumerate(["a-0", "b-0", "c-0", "a-1", "b-1", "c-1"]):
        assert torch.equal(read(f"edited/{name}.png"), expected[k, 0])
    code, _, err = here("edit", "model", "in", *flags, "--out", "edited/")
    assert code == 2
    assert "--out must be a new or an empty folder" in err


def test_edit_with_a_class(here):
    flags = ["--steps", "3", "--label", "2", "--guidance", "2", "--n", "2"]
    assert here("edit", "model", "in", *flags, "--out", "edited.npz")[0] == 0
    expected = edit("model", X[:2], 0.5, 3, labels=2, guidance=2.0)
    assert torch.equal(torch.from_numpy(np.load("edited.npz")["arr_0"]).permute(0, 3, 1, 2), expected)
    assert here("edit", "model", "edited.npz", "--steps", "2", "--out", "again.npz")[0] == 0  # what was written is read


def test_inpaint_shows_what_is_covered(here):
    """Rows of the picture: the images, what is known of them, the results; the left halves of the second are grey."""
    code, out, err = here(
        "inpaint", "model", "in", "--mask", "mask.png", "--steps", "3", "--resample", "2", "--no-caption"
    )
    assert code == 0, err
    assert "wrote inpainted.png (3 images)" in out
    sheet = read("inpainted.png")
    assert sheet.shape == (3 * 68 + 4, 3 * 68 + 4)
    expected = inpaint("model", X, MASK, 3, resample=2)
    tiles = sheet[4:, 4:].unfold(0, 64, 68).unfold(1, 64, 68)[..., ::8, ::8]
    whole = to_uint8(X, 17)
    assert torch.equal(tiles[0], whole[:, 0])
    assert torch.equal(tiles[1], torch.where(MASK, 128, whole[:, 0]).byte())
    assert torch.equal(tiles[2], expected[:, 0])


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_invert_and_back(here, ending):
    flags = ["--steps", "12"]
    code, out, err = here("invert", "smooth", "in", *flags, "--check", "--out", f"z.{ending}")
    assert code == 0, err
    assert "192 of 192 pixels keep their level, all of them in 3 images" in out
    code, out, err = here("invert", "smooth", f"z.{ending}", "--back", *flags, "--out", "back/")
    assert code == 0, err
    for k, image in enumerate(to_uint8(X, 17)):
        assert torch.equal(read(f"back/{k:05}.png"), image[0])
    if ending == "npz":
        assert np.array_equal(np.load("z.npz")["latents"], invert("smooth", X, 12).numpy())


@pytest.mark.parametrize("dtype", [">f4", "<f8", np.longdouble, np.float16])
def test_latents_of_every_float(here, dtype):
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).half().float()
    np.savez("z.npz", latents=z.numpy().astype(dtype))
    code, _, err = here("invert", "smooth", "z.npz", "--back", "--steps", "2", "--sampler", "ddim", "--out", "x.npz")
    assert code == 0, err
    expected = from_latents("smooth", z, 2, "ddim").permute(0, 2, 3, 1)
    assert np.array_equal(np.load("x.npz")["arr_0"], expected.numpy())


def test_restore(here):
    code, out, err = here("restore", "restorer", "small-a.png", "--steps", "3", "--variants", "2", "--no-caption")
    assert code == 0, err
    assert "wrote restored.png (2 images)" in out
    small_x = X[:1, :, :4, :4].contiguous()
    expected = restore("restorer", small_x.repeat(2, 1, 1, 1), 3).images
    shown = torch.cat([small_x.repeat_interleave(2, 2).repeat_interleave(2, 3), expected])
    assert torch.equal(tiles_of("restored.png"), to_uint8(shown, 17)[:, 0])
    assert here("restore", "one", "in", "--out", "restored/")[0] == 0
    assert torch.equal(read("restored/b.png"), to_uint8(restore("one", X).images, 17)[1, 0])


def test_restore_of_a_class(here):
    small_restoration(num_classes=2, class_names=("a", "b")).save("classes")
    out = ["--steps", "2", "--out", "x.npz"]
    code, _, err = here("restore", "classes", "small-a.png", *out, "--label", "b", "--guidance", "2")
    assert code == 0, err
    expected = restore("classes", X[:1, :, :4, :4].contiguous(), 2, labels="b", guidance=2.0).images
    assert np.array_equal(np.load("x.npz")["arr_0"], to_uint8(expected, 17).permute(0, 2, 3, 1))


def tiles_of(path) -> torch.Tensor:
    """The images of a picture with one column, at their own size."""
    sheet = read(path)
    return torch.stack([sheet[4 + 68 * k : 68 + 68 * k : 8, 4:68:8] for k in range(len(sheet) // 68)])


WRONG = [
    ("edit model in --strength 0", "strength must"), ("edit one in", "must have a diffusion"),
    ("edit model small-a.png", "--fit"), ("edit model nothing", "there is no file nothing"),
    ("edit model in --n 0", "--n must"),
    ("edit model in --variants 0", "--variants must"), ("edit model in --out x.pig", "--out must"),
    ("edit model in --eta 1", "--eta"), ("edit restorer in --steps 2", "cond must"),
    ("inpaint model in --mask small-a.png", "small-a.png must be a mask of 8×8"),
    ("inpaint model in --mask mask.png --sampler heun --resample 2", "resample must be 1"),
    ("inpaint model in --mask none.png", "none.png"),
    ("invert model in --sampler ancestral", "sampler must be ddim"),
    ("invert model in --out x.png", "--out must end in .safetensors"),
    ("invert model z.safetensors --back --fit", "--fit must be absent"),
    ("invert model other.safetensors --back", "'latents'"),
    ("invert model mask.png --back", ".safetensors or .npz"),
    ("invert model z.safetensors --back --n -1", "--n must be an integer >= 1"),
    ("invert model z.safetensors --back --n 0", "--n must be an integer >= 1"),
    ("invert model flat.npz --back", "latents of shape [N, C, H, W], got ()"),
    ("invert model whole.safetensors --back", "of floats"), ("invert model huge.npz --back", "finite"),
    ("restore model in", "restoration model"), ("restore restorer in", "4×4"),
    ("restore restorer small-a.png --variants 0", "--variants"),
]  # fmt: skip


def test_commands_that_are_rejected(here):
    save_file({"z": torch.zeros(1, 1, 8, 8)}, "other.safetensors")
    save_file({"latents": torch.zeros(1, 1, 8, 8)}, "z.safetensors")
    save_file({"latents": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "whole.safetensors")
    np.savez("flat.npz", latents=np.float64(1))
    np.savez("huge.npz", latents=np.full((1, 1, 8, 8), 1e300))
    for command, message in WRONG:
        code, _, err = here(*command.split())
        assert code == 2, command
        assert message in err, (command, err)
