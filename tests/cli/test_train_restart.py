"""torchrun starts the processes of a training again, and it goes on from the last checkpoint."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sources import ROOT


@pytest.mark.slow
def test_torchrun_goes_on_after_a_process_was_killed(tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (12, 4, 4), np.uint8)
    np.savez(tmp_path / "few.npz", levels=17, train_images=images[:10], test_images=images[10:])
    program = [str(ROOT / "tests" / "cli" / "train_and_die.py"), "train", "few.npz", "--width", "4", "--blocks", "1"]
    options = ["--model", "vae", "--batch-size", "4", "--max-steps", "4", "--save-every", "1", "--evaluations", "0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *program, *options, "--device", "cpu", "--out", "run"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("resumed after step 2") == 1
    assert (tmp_path / "run" / "step-00000004").is_dir()
    assert (tmp_path / "run" / "model").is_dir()
