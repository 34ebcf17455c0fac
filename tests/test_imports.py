"""What importing and starting load, each in a fresh process: torch and triton at their first use, not before."""

import subprocess
import sys

import pytest
from sources import ROOT

PATH = f"{ROOT}:{ROOT / 'kernels'}"
LOADED = "print(sorted({'torch', 'triton', 'numpy', 'attrs', 'PIL', 'matplotlib', 'tyro'} & set(sys.modules)))\n"


def run_python(code: str, **environment: str) -> str:
    """Run a program in a fresh process with these settings only; return what it prints."""
    settings = {"PATH": "/usr/bin:/bin", "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_fastdiff_and_its_kernels_import_nothing():
    assert run_python("import sys, fastdiff, fastdiff_kernels\n" + LOADED) == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "import fastdiff\nfunction = fastdiff.sample",
        "from fastdiff import sample as function",
        "import fastdiff.sample\nfunction = fastdiff.sample",
        "from fastdiff.sample import sample as function",
    ],
)
def test_every_way_to_sample_gives_the_function(code):
    """And none of them imports torch."""
    after = "import sys, fastdiff\nimport fastdiff.sample\nfrom fastdiff.sample import sample\n"
    same = "print(function is sample is fastdiff.sample, callable(function), end=' ')\n"
    assert run_python(f"{code}\n{after}{same}{LOADED}") == "True True []"


def test_help_and_usage_errors_do_not_import_torch():
    """`fastdiff --help`, the help of every command, and arguments that are wrong whatever the model is.

    Nor typeguard, which tyro imports for some annotations, and which takes as long as tyro itself.
    """
    code = (
        "import sys, contextlib, io\nfrom fastdiff.cli.main import main\n"
        "def code(*arguments):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        try:\n            return main(list(arguments))\n"
        "        except SystemExit as exit:\n            return exit.code\n"
        "from fastdiff.cli.main import COMMANDS as commands\n"
        "print({code(*command, '--help') for command in [[], *([name] for name in commands)]})\n"
        "print({code(*words.split()) for words in sys.argv[1:]}, end=' ')\n"
    )
    wrong = [
        "nonsense",
        "sample --nonsense",
        "sample --n many",
        "sample --n 0",
        "sample --sampler rk4",
        "sample --threads 0",
        "sample --out no/such/folder.png",
        "train --save-every 0",
        "evaluate --T 1,x",
        "fd --n 1",
        "fd --steps 1,inf",
        "reconstruct digits --degradation blur",
        "reconstruct digits --out x.pig",
        "interpolate digits --out x.pig",
        "mixture digits --components 0",
    ]
    code = code.replace("sys.argv[1:]", repr(wrong))
    code += "print({'torch', 'triton', 'numpy', 'typeguard'} & set(sys.modules))\n"
    assert run_python(code) == "{0}\n{2} set()"


def test_everything_runs_without_triton(tmp_path):
    """With triton absent the package imports, names the backend, computes, gradients too, and samples."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['triton'] = None\n")
    code = (
        "import torch, fastdiff\nfrom fastdiff import *\nfrom fastdiff.kernels import *\n"
        "x = torch.randn(2, 3, 4, 4, requires_grad=True)\n"
        "z = diffuse(x, torch.zeros(2), Noise(0))\n"
        "row = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])\n"
        "z, _ = sampler_step(fourier_features(z)[:, :3], z, row, Noise(1))\n"
        "eps_loss(z, Noise(0), torch.ones(2)).sum().backward()\n"
        "print(backend(), tuple(x.grad.shape), tuple(sample(load('digits'), 2, steps=1).shape))\n"
    )
    assert run_python(code, PYTHONPATH=f"{tmp_path}:{PATH}") == "torch (2, 3, 4, 4) (2, 1, 8, 8)"
