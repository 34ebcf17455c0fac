"""The layout of the project: imports go to lower layers, files and functions are short, the wheel is complete."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from graphlib import CycleError, TopologicalSorter

import pytest
from sources import ROOT, at, files, functions, imports, modules, nodes

# Folders of fastdiff, and its modules that are in none, from the lowest layer to the highest. A module imports from
# lower layers and from its own folder. The highest layer counts as one folder.
LAYERS = [
    ["kernels"],
    ["io"],
    ["diffusion", "data", "networks"],
    ["models"],
    ["checkpoints"],
    ["sampling", "interop"],
    ["evaluation"],
    ["training"],
    ["presets", "demo", "cli", "__main__"],
]
PUBLIC = {"fastdiff", "fastdiff.sample"}  # import whatever they need when they are used, and nothing before
ASSETS = "fastdiff.assets"  # data: no code
MAX_FUNCTION, MAX_FILE = 60, 400  # lines


def layer_and_folder(name: str) -> tuple[int, str]:
    """Return the layer of a module, and the folder within which it may import freely."""
    if name.startswith("fastdiff_kernels"):
        return 0, "kernels"
    part = "presets" if name in PUBLIC else name.split(".")[1]
    (layer,) = [number for number, parts in enumerate(LAYERS) if part in parts]
    return layer, "the highest layer" if layer == len(LAYERS) - 1 else part


def test_the_folders_are_those_of_the_layers():
    assert len(LAYERS) <= 9
    directly = {path.stem for path in (ROOT / "fastdiff").glob("*.py")}
    assert directly == {"__init__", "__main__", "kernels", "presets", "sample"}
    folders = {path.parent.name for path in (ROOT / "fastdiff").glob("*/__init__.py")} - {"assets"}
    assert folders | {"kernels", "presets", "__main__"} == {part for parts in LAYERS for part in parts}


def test_imports_go_to_lower_layers():
    """Inside functions and for type checking too."""
    wrong = []
    for name in set(modules("fastdiff")) - PUBLIC - {ASSETS}:
        layer, folder = layer_and_folder(name)
        for imported in imports(name) - {ASSETS}:
            other, other_folder = layer_and_folder(imported)
            if not (other < layer or other_folder == folder):
                wrong.append(f"{name} of layer {layer} imports {imported} of layer {other}")
    assert not wrong


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_public_modules_import_when_they_are_used(name):
    assert imports(name, when_imported=True) <= PUBLIC


@pytest.mark.parametrize("package", ["fastdiff", "fastdiff_kernels"])
def test_no_import_is_circular(package):
    """Inside a folder too. Only what imports a name at its first use may be imported by the modules that it imports."""
    lazy = PUBLIC | {"fastdiff_kernels"}
    graph = {name: imports(name, when_imported=name in lazy) - {name} for name in modules(package)}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_kernels_import_torch_and_triton_only():
    allowed = {"torch", "triton", "fastdiff_kernels", *sys.stdlib_module_names}
    for file, node in nodes("kernels"):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert {name.split(".")[0] for name in names} <= allowed, at(file, node)
    assert not (ROOT / "kernels" / "__init__.py").exists(), "a top-level package `kernels` would shadow another one"


def test_functions_and_files_are_short():
    for file, node in functions("fastdiff", "kernels", "tests", "benchmarks", "tools"):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        assert length <= MAX_FUNCTION, f"{at(file, node)}: {node.name} has {length} lines"
    for path in files("fastdiff", "kernels"):
        length = len(path.read_text().splitlines())
        assert length <= MAX_FILE, f"{path.relative_to(ROOT)} has {length} lines"


def test_wheel_and_sdist_hold_the_two_packages(tmp_path):
    """The wheel holds the two packages with the assets, and neither studies nor tests; the sdist holds everything."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name.startswith("fastdiff_triton-")
    packed = zipfile.ZipFile(wheel).namelist()
    held = {name for name in packed if ".dist-info/" not in name}
    sources = {name.replace("kernels/", "", 1) for name in map(_relative, files("fastdiff", "kernels"))}
    assert {name for name in held if name.endswith(".py")} == sources
    assets = (path for path in (ROOT / "fastdiff/assets").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assets = {_relative(path) for path in assets} - sources
    assert held - sources == assets | {"fastdiff/py.typed", "fastdiff_kernels/py.typed"}
    for name in ("LICENSE", "fastdiff/assets/ATTRIBUTION.md", "fastdiff/assets/letters-fonts.md"):
        assert any(each.endswith(f".dist-info/licenses/{name}") for each in packed), name
    with tarfile.open(sdist) as archive:
        everything = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"kernels/fastdiff_kernels/noise.py", "tests/test_layout.py", "tools/set_up.py", "CITATION.cff", "LICENSE"}
    wanted |= {"benchmarks/studies/study.py", "benchmarks/studies/letters-packages.txt"}
    assert wanted | assets <= everything


def _relative(path) -> str:
    return path.relative_to(ROOT).as_posix()
