"""Calls of the command line in this process, in an empty folder."""

import pytest

from fastdiff.cli.main import main


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command; return its exit code and what it prints to stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def few_samples(monkeypatch) -> None:
    """Few images, and steps, for the samples at the end of a run."""
    monkeypatch.setattr("fastdiff.models.diffusion_sampling.DEFAULT_STEPS", 2)
    monkeypatch.setattr("fastdiff.training.keeping.NUM_SAMPLES", 2)
