"""Runs the examples of a page in this process, in one session and the current folder."""

import contextlib
import io
import time
from pathlib import Path

from documents.pages import Example, arguments, examples
from documents.prepared import WRITES_PHOTOS, make_folders, make_models
from documents.reductions import reason_not_run, smaller_command, smaller_python
from sources import ROOT

import fastdiff
from fastdiff.cli.main import main

WRITTEN = {  # where a command writes without --out
    "sample": "samples.png", "interpolate": "strips.png", "reconstruct": "reconstructions.png", "edit": "edited.png",
    "inpaint": "inpainted.png", "restore": "restored.png", "invert": "latents.safetensors",
}  # fmt: skip


def run_page(page: str) -> None:
    """Run all examples of a page, then load what they saved. A block that writes photos/ comes first."""
    session: dict[str, object] = {"__name__": "__main__"}
    for example in sorted(examples(page), key=lambda example: WRITES_PHOTOS not in example.text):
        make_models(example.text)
        start = time.process_time()
        run(example, session)
        print(f"{time.process_time() - start:6.2f} s  {example}", flush=True)  # pytest -s shows what takes long
    for path in Path().glob("*/config.json"):
        if not path.parent.name.startswith("own-"):  # needs parts that no checkpoint holds, and that its page passes
            fastdiff.load(path.parent)


def run(example: Example, session: dict) -> None:
    """Run an example, made small; what fails is named by its place in the page."""
    if example.language == "python":
        source = "\n" * (example.line - 1) + smaller_python(example.text)
        exec(compile(source, str(ROOT / example.page), "exec"), session)
        return
    if reason_not_run(example.text) is not None:
        return
    words = arguments(example.text)
    assert words is not None, f"{example}: neither a command of fastdiff nor in NOT_RUN of reductions.py"
    words = smaller_command(words)
    make_folders(words)
    out = Path(words[words.index("--out") + 1] if "--out" in words else WRITTEN.get(words[0], "."))
    if out.is_file():
        out.unlink()  # an example before has written it, which a reader may not have run
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(words)
    assert code == 0, f"{example}: fastdiff {' '.join(words)}\n{output.getvalue()}"
