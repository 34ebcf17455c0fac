"""What README.md says holds: its tables come from committed files, its code runs, its figures are the model's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff
from fastdiff.checkpoint import embedded_names
from fastdiff.datasets import digits
from fastdiff.evaluation import evaluate
from fastdiff.presets import preset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_those_of_the_committed_files():
    """`python benchmarks/readme.py` writes them."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/readme.py"), "--check"], check=False)
    assert done.returncode == 0, "README.md is not what `python benchmarks/readme.py` writes"


def test_the_first_example_runs(tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "fastdiff.sample" in block)
    code = code.replace("steps=250", "steps=2").replace("guidance=2.0", "steps=2, guidance=2.0")
    check = "print(images.shape == (16, 1, 8, 8), len(sevens), model.levels)\n"
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "4", "17"], done.stderr


def test_the_training_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = next(block for block in blocks if "VDMConfig(" in block).replace("steps=1000", "steps=3, batch_size=4")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3"], done.stderr
    assert fastdiff.load(tmp_path / "my-model").config.schedule == "learned"


def test_the_restoration_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = next(block for block in blocks if "fastdiff.reconstruction" in block).replace("steps=50", "steps=2")
    for name in ("superresolution2-digits", "vae-digits"):
        preset(name).build().save(tmp_path / "runs" / name)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.count("tensor(") == 2, done.stderr


def test_the_two_stages_example_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = next(block for block in blocks if "take_first_stage" in block).replace(
        "steps=20_000", "steps=1, batch_size=2"
    )
    preset("vae-digits").build().save(tmp_path / "runs" / "vae-digits")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert fastdiff.load(tmp_path / "my-diffusevae").config.formulation == 2


def test_the_kernels_examples_run():
    """Noising, features and loss; and the sampler's step by a counter."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    blocks = [block for block in blocks if "fastdiff.kernels" in block and "fastdiff.reconstruction" not in block]
    assert len(blocks) == 2
    before = (
        "import torch\nx = z_t = eps_hat = torch.randn(2, 3, 4, 4)\ngamma = w = torch.ones(2)\n"
        "table = torch.rand(5, 7)\nnetwork = lambda features: features[:, :3]\n"
    )
    after = "print(tuple(features.shape), tuple(loss.shape), tuple(z_s.shape), noise.counter.tolist())\n"
    code = before + "\n".join(blocks) + after
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 15, 4, 4) (2,) (2, 3, 4, 4) [1]", done.stderr


def test_the_embedded_model_is_small_and_as_good_as_its_record_says():
    """The bound at 16 draws per image against the recorded one at 64: the draws' own error is about 0.005."""
    assert embedded_names() == ["digits"]
    folder = ROOT / "fastdiff/assets/digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    record = json.loads((folder / "config.json").read_text())["record"]["evaluation"]
    model = fastdiff.load("digits")
    result = evaluate(model, digits().test_images, draws=16)
    assert result.mean == pytest.approx(record["bpd"], abs=0.02)
    assert record["bpd"] < 1.68
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in README


def test_embedded_digits_are_recognised_by_their_neighbours():
    """Of ten samples per class nearly all have a training image of that very class as nearest neighbour."""
    data, model = digits(), fastdiff.load("digits")
    labels = [k for k in range(10) for _ in range(10)]
    drawn = fastdiff.sample(model, 100, steps=50, labels=labels, output="levels").flatten(1).double()
    assert data.train_labels is not None
    distance = (drawn[:, None] - data.train_images.flatten(1).double()[None]).square().sum(2)
    found = data.train_labels[distance.argmin(1)]
    assert sum(int(a) == b for a, b in zip(found, labels, strict=True)) >= 90
