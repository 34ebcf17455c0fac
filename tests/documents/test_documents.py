"""Every example of README.md and of the site runs: page by page, in order, in one session and one folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from documents.pages import PAGES, arguments, examples, inline_commands
from documents.prepared import make_files
from documents.reductions import IN_ITS_OWN_PROCESS, PATCHES
from documents.running import run_page
from lengths import usually
from sources import ROOT

from fastdiff.cli.main import command_of
from fastdiff.evaluation import evaluate

WITH_EXAMPLES = [page for page in PAGES if examples(page)]
LONG = [f"docs/{name}.md" for name in ("add-a-kernel", "how-do-i", "likelihoods", "vae-diffusevae")]  # ten seconds each


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A folder with what a reader has, and what no flag makes small made small."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value, _ in PATCHES:
        monkeypatch.setattr(name, value)
    monkeypatch.setattr(
        "fastdiff.training.keeping.evaluate", lambda *values, **options: evaluate(*values, **options | {"draws": 1})
    )
    return tmp_path


@pytest.mark.parametrize("page", usually([page for page in WITH_EXAMPLES if page not in LONG], WITH_EXAMPLES))
def test_the_examples_run(page, folder):
    if "from diffusers import" in (ROOT / page).read_text():
        pytest.importorskip("diffusers")
    if page not in IN_ITS_OWN_PROCESS:
        run_page(page)
        return
    code = "import sys; from documents.running import run_page; run_page(sys.argv[1])"
    paths = {"PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "tests"))}
    done = subprocess.run([sys.executable, "-c", code, page], env=os.environ | paths, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_parse(page):
    """Names and flags exist, also of commands that are not run or stand in a sentence."""
    for example in [*examples(page), *inline_commands(page)]:
        words = arguments(example.text) if example.language == "shell" else None
        if words and not {"--help", "--version"} & set(words):
            try:
                command_of(words)
            except SystemExit:
                pytest.fail(f"{example}: cannot be parsed")


def test_examples_are_found():
    page = "\n".join([
        "text", "    make believe that this is a sentence", "", "    fastdiff sample digits  # a comment", "    ^C",
        "```python", "x = 1", "", "y = 2", "```", "```console", "$ fastdiff info", "prints", "```", "```",
        "fastdiff no", "```",
    ])  # fmt: skip
    found = [(example.line, example.text) for example in examples("page.md", page)]
    assert found == [(4, "fastdiff sample digits  # a comment"), (7, "x = 1\n\ny = 2\n"), (12, "fastdiff info")]
    assert arguments("torchrun --nproc-per-node 2 -m -- fastdiff sample a --n 2") == ["sample", "a", "--n", "2"]
    assert arguments("nohup fastdiff train a > log 2>&1 &") == ["train", "a"]
    assert arguments("make test") is None


def test_the_docs_extra_is_pinned():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {re.split(r"[\[>=]", name)[0] for name in extra} <= set(pinned)
