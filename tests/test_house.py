"""The rules of the house: imports run down, functions can be seen whole, the package holds what it should."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 60

# A module may import from lower floors, and from its own floor only a module named before it.
FLOORS = [
    ["fastdiff_kernels"],
    ["kernels"],
    ["config", "schedules", "process", "likelihood", "storage", "samplers", "vlb"],
    [
        "models.blocks",
        "models.unet",
        "models.concat_unet",
        "models.base",
        "models.diffusion",
        "models.vdm",
        "models.ddpm",
        "models.vae_networks",
        "models.bottleneck_vae",
        "models.hvae",
        "models.refiner",
        "models.diffusevae",
        "models.degradations",
        "models.restorer",
        "models",
    ],
    [
        "data",
        "cifar",
        "image_folder",
        "datasets",
        "digit_features",
        "frechet",
        "training",
        "checkpoint",
        "plots",
        "sampling_loop",
        "latent_mixture",
        "sampling_sources",
        "sample",
        "interpolation",
        "reconstruction",
        "ode",
        "evaluation",
        "runs",
    ],
    [""],
    [
        "presets",
        "studies.budget",
        "studies.runner",
        "studies.figures",
        "studies.prose",
        "studies.study",
        "studies.statistics",
        "studies.noise_schedules_report",
        "studies.noise_schedules",
        "studies.latent_steps_report",
        "studies.latent_steps",
        "studies.speed_up_report",
        "studies.speed_up",
        "studies.restoration_report",
        "studies.restoration",
        "studies",
        "commands.arguments",
        "commands.drawing",
        "commands.training",
        "commands.latents",
        "commands.measuring",
        "commands.studies",
        "commands",
        "cli",
        "__main__",
    ],
]
KERNEL_FLOORS = [
    ["launch"],
    ["checks", "noise"],
    ["diffuse", "eps_loss", "fourier", "sampler_step", "decoder_nll", "gaussian"],
    ["group_norm_kernels", "group_norm"],
    [""],
]


def imports_of(path: Path, package: str, parts: list[str]) -> set[str]:
    """Names, relative to ``package``, of the modules of the house that a file imports; kernels as fastdiff_kernels."""
    here = [package, *parts]
    if path.name != "__init__.py":
        here = here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            known = [f"{module}.{alias.name}" for alias in node.names if is_module(f"{module}.{alias.name}")]
            found |= set(known or [module])
    inside = {name.removeprefix(package).lstrip(".") for name in found if name.split(".")[0] == package}
    return inside | ({"fastdiff_kernels"} if any(n.split(".")[0] == "fastdiff_kernels" for n in found) else set()) - (
        {"fastdiff_kernels"} if package == "fastdiff_kernels" else set()
    )


def is_module(name: str) -> bool:
    stem = Path(*name.split("."))
    return any((ROOT / root / stem).with_suffix(".py").is_file() for root in (".", "kernels")) or any(
        (ROOT / root / stem / "__init__.py").is_file() for root in (".", "kernels")
    )


def modules_of(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.mark.parametrize(
    ("root", "floors"), [(ROOT / "fastdiff", FLOORS), (ROOT / "kernels/fastdiff_kernels", KERNEL_FLOORS)]
)
def test_imports_run_down_only(root, floors):
    height = {name: (floor, place) for floor, names in enumerate(floors) for place, name in enumerate(names)}
    modules = modules_of(root)
    without_floor = set(modules) - set(height) - {"assets"}
    assert not without_floor, f"give these modules a floor: {without_floor}"
    for name, path in modules.items():
        if name == "assets":
            continue
        parts = name.split(".") if name else []
        for imported in imports_of(path, root.name, parts):
            assert height[imported] < height[name], f"{path} imports {imported!r}, which is not below it"


def test_the_kernels_import_torch_and_triton_only():
    allowed = {"torch", "triton", "fastdiff_kernels", *sys.stdlib_module_names}
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_no_function_is_too_long_to_see():
    for folder in ("fastdiff", "kernels", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    assert length <= LONGEST, f"{path}:{node.lineno} {node.name} has {length} lines, allowed {LONGEST}"


def test_a_package_named_kernels_is_never_shadowed():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_wheel_and_sdist_hold_the_two_packages(tmp_path):
    """The wheel's top-level names are exactly the two packages, and the assets travel with it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name.startswith("fastdiff_triton-")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"fastdiff", "fastdiff_kernels"}
    model = {f"fastdiff/assets/digits/{name}" for name in ("config.json", "manifest.json", "model.safetensors")}
    assets = {"digits.npz", "digits-classifier.safetensors", "ATTRIBUTION.md"}
    needed = {f"fastdiff/assets/{name}" for name in assets} | {"fastdiff_kernels/noise.py"}
    assert needed | model <= set(names)
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"kernels/fastdiff_kernels/noise.py", "fastdiff/assets/digits.npz", "tests/test_house.py"} <= packed


def run_python(code: str, **environment: str) -> str:
    """Run a program in a fresh process with only the given settings of ours; return what it prints."""
    path = f"{ROOT}:{ROOT / 'kernels'}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everything_runs_without_triton(tmp_path):
    """With triton absent the package imports, names the backend, and computes, gradients too."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['triton'] = None\n")
    code = (
        "import torch, fastdiff\n"
        "from fastdiff.kernels import *\n"
        "x = torch.randn(2, 3, 4, 4, requires_grad=True)\n"
        "z = diffuse(x, torch.zeros(2), Noise(0))\n"
        "z, _ = sampler_step(fourier_features(z)[:, :3], z, torch.ones(7), Noise(1))\n"
        "eps_loss(z, Noise(0), torch.ones(2)).sum().backward()\n"
        "print(fastdiff.backend(), x.grad.shape)\n"
    )
    out = run_python(code, PYTHONPATH=f"{tmp_path}:{ROOT}:{ROOT / 'kernels'}")
    assert out == "torch torch.Size([2, 3, 4, 4])"


def test_sample_is_the_function_and_a_module():
    code = (
        "import fastdiff\nfrom fastdiff import sample\nfrom fastdiff.sample import sample as inner\n"
        "print(callable(fastdiff.sample), fastdiff.sample is sample is inner)\n"
    )
    assert run_python(code) == "True True"


def test_importing_is_quiet_and_does_not_import_what_it_need_not():
    code = "import sys, fastdiff\nprint(sorted({'PIL.Image', 'matplotlib', 'tyro'} & set(sys.modules)))\n"
    assert run_python(code) == "[]"


@pytest.mark.parametrize(("interpret", "expected"), [("1", "interpreter"), ("0", "torch")])
def test_the_environment_chooses_the_backend(interpret, expected):
    assert run_python("import fastdiff; print(fastdiff.backend())", TRITON_INTERPRET=interpret) == expected
