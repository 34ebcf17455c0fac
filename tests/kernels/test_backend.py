"""What is imported when: Triton at the first launch, the backend from the environment, private names of PyTorch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastdiff_kernels import (
    BackendError,
    FastdiffError,
    Noise,
    UnsupportedTransformError,
    backend,
    diffuse,
    eps_loss,
    registration,
    use_backend,
)
from lengths import usually

private = importlib.import_module("fastdiff_kernels._torch_private")
choice = importlib.import_module("fastdiff_kernels.backend")  # the package's attribute `backend` is the function
ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> str:
    """Run a program in a fresh process with only these settings of ours; return what it prints."""
    path = f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_environment_overrides_the_choice(monkeypatch):
    assert backend() == "torch"
    with use_backend("interpreter"):
        assert backend() == "interpreter"
    monkeypatch.setenv("FASTDIFF_BACKEND", "auto")
    choice._chosen.cache_clear()
    assert backend() == "interpreter"
    monkeypatch.setenv("FASTDIFF_BACKEND", "cuda")
    choice._chosen.cache_clear()
    with pytest.raises(BackendError, match=r"FASTDIFF_BACKEND.*'cuda'") as caught:
        backend()
    assert isinstance(caught.value, FastdiffError)
    with pytest.raises(BackendError, match="needs a GPU"), use_backend("triton"):
        pass
    monkeypatch.undo()
    choice._chosen.cache_clear()


ONE_OF_EACH = """
import sys, torch
from fastdiff_kernels import *
x, row = torch.randn(2, 3, 4, 4, requires_grad=True), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
def everything(x):
    z = diffuse(x, torch.zeros(2), Noise(0))
    z, _ = sampler_step(fourier_features(dropout(z, 0.5, Noise(0)))[:, :3], z, row, Noise(1))
    z = group_norm_silu(z, 3, torch.ones(3), torch.zeros(3))
    z, kl = reparameterize(z, z, Noise(2))
    nll = decoder_nll(torch.zeros(z.shape, dtype=torch.uint8), z, torch.zeros(2))
    return (eps_loss(z, Noise(0), torch.ones(2)) + gaussian_log_ratio(z, z, x, x, z) + kl + nll).sum()
(gradient,) = torch.autograd.grad(everything(x), x)
"""


@pytest.mark.parametrize(("interpret", "expected"), [("1", "interpreter True"), ("0", "torch False")])
def test_triton_is_imported_at_the_first_launch(interpret, expected):
    code = (
        "import sys, fastdiff_kernels\nassert 'triton' not in sys.modules\nfastdiff_kernels.backend()\n"
        f"assert 'triton' not in sys.modules\n{ONE_OF_EACH}\nprint(backend(), 'triton' in sys.modules)\n"
    )
    assert run_python(code, TRITON_INTERPRET=interpret) == expected


def test_the_kernel_modules_hold_the_real_objects_afterwards():
    """Kernels, constants and modules of Triton; also where Triton was imported first, or a module comes later."""
    code = (
        "import triton, triton.language as tl, torch, fastdiff_kernels.noise_kernels as kernels\n"
        "from fastdiff_kernels import _triton, diffuse\n"
        "from triton.runtime.interpreter import InterpretedFunction\n"
        "waiting = kernels.draw_kernel\n"
        "kernels.draw_triton(torch.zeros(4, dtype=torch.int64), [3], torch.float32, True)\n"
        "assert isinstance(kernels.draw_kernel, InterpretedFunction) and waiting.decorated is kernels.draw_kernel\n"
        "assert kernels.tl is tl and kernels.constexpr is tl.constexpr is type(kernels._TWO_M32)\n"
        "assert _triton.tl is tl and isinstance(_triton.jit(lambda x: x), InterpretedFunction)\n"
        "waiting[(1,)](torch.zeros(4, dtype=torch.int64), torch.empty(3), 3, 1, NORMAL=True, FAST=False, BLOCK=16)\n"
    )
    run_python(code, TRITON_INTERPRET="1")


def test_a_launch_without_triton_is_an_error_that_says_so():
    code = (
        "import sys\nsys.modules['triton'] = None\n"
        f"{ONE_OF_EACH}\nfrom fastdiff_kernels._triton import load\n"
        "try:\n    load()\nexcept BackendError as error:\n    print(backend(), 'triton package' in str(error))\n"
    )
    assert run_python(code, TRITON_INTERPRET="1") == "torch True"


def test_the_interpreter_cannot_be_chosen_later():
    code = (
        "import os, fastdiff_kernels\nfrom fastdiff_kernels._triton import load\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "try:\n    load()\nexcept fastdiff_kernels.BackendError as error:\n    print(error)\n"
    )
    assert "TRITON_INTERPRET" in run_python(code)


PRIVATE = {
    "torch._C": ["_len_torch_dispatch_stack", "_are_functorch_transforms_active", "_get_tracing_state"],
    "torch.autograd.forward_ad": ["_current_level"],
    "torch._C._functorch": [
        "TransformType",
        "get_interpreter_stack",
        "get_unwrapped",
        "is_batchedtensor",
        "is_functorch_wrapped_tensor",
        "maybe_get_level",
    ],
}


def test_every_private_name_is_known():
    """Only `_torch_private` names what begins with an underscore in PyTorch, and no more than is removed below."""
    sources = {path.name: path.read_text() for path in (ROOT / "kernels/fastdiff_kernels").glob("*.py")}
    private = sources.pop("_torch_private.py")
    assert not [name for name, text in sources.items() if "torch._" in text or "forward_ad" in text]
    imports = [node for node in ast.walk(ast.parse(private)) if isinstance(node, ast.ImportFrom)]
    found = {
        alias.name for node in imports for alias in node.names if "_C" in str(node.module) or alias.name.startswith("_")
    }
    assert found == {name for names in PRIVATE.values() for name in names}


@pytest.fixture
def reload_private():
    """Import `_torch_private` again, as the package would find PyTorch now, and as it was at the end."""

    def reload() -> None:
        torch.compiler.reset()
        importlib.reload(private)
        for name in ("plain_eager", "functorch_transforms", "in_forward_mode", "vmap_levels", "batched_levels"):
            setattr(registration, name, getattr(private, name))

    yield reload
    reload()


def rejects(call, *errors) -> bool:
    try:
        call()
    except errors:
        return True
    return False


NAMES = [(module, name) for module, names in PRIVATE.items() for name in names]


@pytest.mark.parametrize(("module", "name"), usually([NAMES[0], *NAMES[3:5]], NAMES, True))
def test_without_a_private_name_of_torch(module, name, monkeypatch, reload_private):
    """Values, gradients, compilation, vmap, and the rejections stay right; a call only takes longer."""
    x, gamma, eps = torch.randn(3, 2, 5), torch.zeros(3), torch.randn(3, 2, 5)

    def loss(x):
        return eps_loss(diffuse(x, gamma, Noise(1)), Noise(2), torch.ones(3)).sum()

    def gradient(function):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, create_graph=True)[0]

    value, expected = loss(x), gradient(loss).detach()
    with monkeypatch.context() as patch:
        patch.delattr(importlib.import_module(module), name)
        reload_private()
    assert registration.plain_eager() is (module == "torch._C._functorch")
    assert torch.equal(loss(x), value)
    assert torch.equal(gradient(loss), expected)
    with use_backend("interpreter"):
        torch.testing.assert_close(gradient(loss), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled), expected)
    mapped = torch.func.vmap(diffuse)(x, torch.zeros(3, 2), eps)
    assert torch.equal(mapped, torch.stack([diffuse(*row) for row in zip(x, torch.zeros(3, 2), eps, strict=True)]))
    assert rejects(
        lambda: torch.func.vmap(lambda x, g: diffuse(x, g, Noise(1)))(x, torch.zeros(3, 2)), UnsupportedTransformError
    )
    assert rejects(lambda: torch.func.jvp(loss, (x,), (x,)), UnsupportedTransformError)
    assert rejects(lambda: torch.func.grad(loss)(x), RuntimeError)  # of ours, or where we cannot know of PyTorch
    again = gradient(loss)
    assert rejects(lambda: again.sum().backward(), UnsupportedTransformError)
