"""How the examples are made small, and which are not run: tables, each line with its reason."""

import re

# Python: what is written in the page, what is run in its place. The numbers are the reader's; the calls stay the same.
PYTHON = [
    (r"\bmax_steps=[\d_]+", "max_steps=2", "a training step takes as long as any other"),
    (r'"max_steps": \d+', '"max_steps": 3', "a resumed run takes a step more"),
    (r"\bsteps=(?:[2-9]\d|\d{3,})", "steps=3", "a step is as any other; 3 are enough for every order"),
    (r"\bdraws=\d+", "draws=1", "draws repeat the same"),
    (r"\bfor step in range\(\d+\)", "for step in range(2)", "as max_steps="),
    (r"(?<=sigmas\(model, )\d+", "4", "as steps="),
    (r"\bwidth=16\b", "width=8", "a smaller network of the same kind"),
]  # fmt: skip

# Commands: the same for flags.
SHELL = [
    (r"(?<=--max-steps )\d+", "2", "as max_steps="),
    (r"(?<=--steps )[\d,]+", "3", "as steps="),
    (r"(?<=--calls )[\d,]+", "4", "as steps="),
    (r"(?<=--draws )\d+", "1", "draws repeat the same"),
    (r"(?<=--T )\d\S*", "3,inf", "a bound of T steps takes no longer, but each T does"),
    (r"(?<=--ode )\d+", "1", "steps of the ODE's solver"),
    (r"(?<=--samples )\d+", "2", "importance samples repeat the same"),
    (r"(?<=--resample )\d+", "2", "repetitions of a step"),
    (r"(?<=-n )\d+|(?<=--n )\d+", "8", "images are drawn in batches that are all alike"),
    (r"(?<=--size )(?:32|64)", "8", "16 times fewer pixels"),
    (r"(?<=--resize )\d+", "10", "goes with --size"),
    (r"(?<=--width )\d+", "8", "a smaller network of the same kind"),
]  # fmt: skip

# Flags that are added to a command where it does not have them.
ADDED = [
    (r"train (?!.*--resume)", "--max-steps 2", "a training step takes as long as any other"),
    (r"train (?!.*--resume).*--size", "--batch-size 4", "a batch of a few images"),
    (r"train (?!.*--resume).*--size", "--width 8", "a smaller network of the same kind"),
    (r"train (?!.*--resume).*--size", "--blocks 1", "a smaller network of the same kind"),
    (r"sample ", "-n 8", "images are drawn in batches that are all alike"),
    (r"fd (?!\S+/ |\S+\.npz )", "--n 20", "the distance needs two images"),
    (r"evaluate ", "--draws 1", "draws repeat the same"),
    (r"(?:interpolate|invert) ", "--steps 3", "as steps="),
    (r"interpolate ", "--rows 1", "rows repeat the same"),
    (r"mixture ", "--components 1,2", "a mixture of 20 is fitted as one of 2"),
]  # fmt: skip

# What no flag makes small: names of the sources, and what stands in their place.
PATCHES = [
    ("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 3, "as steps="),
    ("fastdiff.training.feed.default_workers", lambda: 0, "workers take seconds to start"),
    ("fastdiff.training.keeping.NUM_SAMPLES", 4, "the picture of an evaluation"),
]

IN_ITS_OWN_PROCESS = {"docs/add-a-kernel.md": "registers an operation, which other tests would find"}

NOT_RUN = [
    (r"fastdiff demo.*", "serves until it is interrupted; tests/demo, and tests/browser with a browser"),
    (r"make \w.*", "set-up and commands of a clone; .ci/run makes them"),
    (r"(?:\.venv/bin/)?pip .*|python3? -m (?:venv|pip) .*", "installs from a network"),
    (r"torchrun .*", "several processes; tests/training/test_several_processes.py and tests/sharded start them"),
    (r"nohup .*", "runs in the background; tests/training/test_signals.py"),
    (r"fastdiff fd .*inception.*", "needs weights of 90 MB that are not shipped; tests/cli/test_fd_features.py"),
    (r"fastdiff fd .*--features letters.*", "features of 23,205 letters; digits take the same path"),
    (r"fastdiff convert .*", "needs the weights of others; tests/cli/test_convert.py makes some"),
    (r".*\bpython3? (?:benchmarks|tests)/.*", "takes minutes; tests/benchmarks and tests/studies call what it calls"),
    (r"fastdiff \w+ [A-Z]+ .*", "a word in capitals stands for a folder of the reader's"),
    (r"fastdiff evaluate letters.*", "2,418 images of 28×28 pixels take minutes; digits take the same path"),
    (r"fastdiff .*--compile\b.*", "compiles for a minute; tests/evaluation/test_compiled.py"),
]  # fmt: skip


def smaller_python(text: str) -> str:
    """Return a block of Python with the numbers of `PYTHON`."""
    for pattern, replacement, _ in PYTHON:
        text = re.sub(pattern, replacement, text)
    return text


def smaller_command(words: list[str]) -> list[str]:
    """Return the arguments of a command with the numbers of `SHELL` and the flags of `ADDED`."""
    command = " ".join(words)  # no argument of an example has a space
    for pattern, replacement, _ in SHELL:
        command = re.sub(pattern, replacement, command)
    for pattern, flag, _ in ADDED:
        names = {"-n": ("-n", "--n")}.get(flag.split()[0], (flag.split()[0],))
        if re.match(pattern, command) and not set(names) & set(command.split()):
            command += f" {flag}"
    return command.split()


def reason_not_run(command: str) -> str | None:
    """Return why a command is not run; None for one that is."""
    return next((reason for pattern, reason in NOT_RUN if re.fullmatch(pattern, command)), None)
