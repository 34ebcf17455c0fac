"""Pickles and single files are rejected with what to do instead; the command in the message works."""

import io
import pickle
import shlex
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from tiny import small

import fastdiff
from fastdiff.checkpoints.pickles import check_no_pickle, is_pickle
from fastdiff.io.folders import CheckpointError


class Bomb:
    """Pickles to a call that ends the tests."""

    def __reduce__(self):
        return sys.exit, ("a pickle was executed",)


def saved_by_torch(value: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


CONTENTS = {
    "zip": lambda: saved_by_torch({"a": torch.ones(2)}),
    "legacy": lambda: saved_by_torch({"a": torch.ones(2)}, zipped=False),
    **{f"protocol {n}": lambda n=n: pickle.dumps(Bomb(), n) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.BIN", "w.pkl", "w", "w.safetensors"])
@pytest.mark.parametrize("content", CONTENTS)
def test_pickles_by_any_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(CONTENTS[content]())
    for call in (check_no_pickle, fastdiff.load):
        with pytest.raises(CheckpointError, match="it is a pickle, which can run any program") as error:
            call(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    assert "weights_only=True" in str(error.value)


def test_a_pickle_by_its_name_alone(tmp_path):
    """Protocols 0 and 1 have no mark, and a truncated file none either."""
    for name, data in (("w.ckpt", pickle.dumps(Bomb(), 0)), ("w.bin", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="it is a pickle"):
            fastdiff.load(tmp_path / name)


def test_a_folder_of_pickles(tmp_path):
    """A folder is named by the pickle in it, unless there are safetensors to read."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(saved_by_torch({}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin must be a safetensors file"):
        fastdiff.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(save({"a": torch.ones(1)}))
    check_no_pickle(tmp_path)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_safetensors_that_begin_like_a_pickle(tmp_path, length):
    """The length of the header is written first: 640 is the bytes 80 02, a pickle of protocol 2."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + b"\1")
    assert path.read_bytes()[:1] == b"\x80"
    assert load_file(path)["a"].tolist() == [1]
    assert not is_pickle(path)
    path.rename(tmp_path / "w.bin")
    check_no_pickle(tmp_path / "w.bin")


def test_what_is_no_pickle(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", b"x")
    (tmp_path / "words").write_text("words")
    for name in ("a.npz", "images.zip", "words", "nothing.pt", "a\0b.pt"):
        check_no_pickle(tmp_path / name)
    small().save(tmp_path / "model")
    check_no_pickle(tmp_path / "model")


@pytest.mark.parametrize("nested", [None, "ema", "state_dict", "model"])
def test_the_command_of_the_message_converts(tmp_path, monkeypatch, nested):
    """Executed as the message holds it, on nested weights that share memory and are not contiguous."""
    tied = torch.randn(3, 4)
    weights = {"a": tied, "b": tied, "c": tied.T, "d": tied[0]}
    content = weights if nested is None else {nested: weights, "model_args": "words", "step": 3}
    path = tmp_path / "it's a file.pt"
    path.write_bytes(saved_by_torch(content))
    with pytest.raises(CheckpointError) as error:
        fastdiff.load(path)
    command = shlex.split(str(error.value).splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    exec(command[2], {})
    converted = load_file(tmp_path / "it's a file.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], value) for name, value in weights.items())


def test_the_averaged_weights_are_converted_where_there_are_both(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    path.write_bytes(saved_by_torch({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}))
    with pytest.raises(CheckpointError) as error:
        check_no_pickle(path)
    command = shlex.split(str(error.value).splitlines()[-1])
    monkeypatch.setattr(sys, "argv", ["-c", *command[3:]])
    exec(command[2], {})
    assert load_file(tmp_path / "w.safetensors")["a"].tolist() == [1.0]


def test_single_files(tmp_path):
    model = small().save(tmp_path / "model")
    for path in (model / "model.safetensors", tmp_path / "a.npz"):
        if not path.exists():
            np.savez(path, a=np.zeros(3))
        with pytest.raises(CheckpointError, match="must be a folder") as error:
            fastdiff.load(path)
        for what in (str(path), "diffusers", "load_improved_diffusion", "load_vdm"):
            assert what in str(error.value)
    with pytest.raises(CheckpointError, match=r"got the file .*config\.json"):
        fastdiff.load(model / "config.json")
