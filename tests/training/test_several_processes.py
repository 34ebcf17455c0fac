"""Training by two and four processes (gloo, on this machine) against one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from lengths import usually
from processes import launch
from training.trained_by_processes import train_run, train_some

from fastdiff.training.state import load_training

SCRIPT = Path(__file__).with_name("trained_by_processes.py")
# Numbers of processes, and the steps that they take. FASTDIFF_LONG=1 takes 200, as a run that one wants to trust does.
RUNS = [(2, 20), (4, 20), (2, 200 if os.environ.get("FASTDIFF_LONG") else 60)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A function that trains in one process, this one, for so many steps, and returns what it writes."""
    folder = tmp_path_factory.mktemp("trained")

    def trained(steps: int) -> dict[str, np.ndarray]:
        out = folder / f"{steps}.npz"
        if not out.exists():
            train_some(steps, out)
        return dict(np.load(out))

    return trained


def relative(a: dict, b: dict, names: list[str]) -> float:
    """|a - b| / |a| over some tensors."""
    pairs = [(a[name].astype(np.float64).ravel(), b[name].astype(np.float64).ravel()) for name in names]
    first, second = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(np.linalg.norm(first - second) / max(np.linalg.norm(first), 1e-12))


@pytest.mark.parametrize(("count", "steps"), usually(RUNS[:1], RUNS, True))
def test_several_processes_train_as_one_does(one, count, steps, tmp_path):
    """Noise, times, dropout, augmentation and order are those of one process; sums are added in another order.

    Measured after 200 steps: losses within 2.2e-6, weights 6e-6, a tensor at most 9e-5; after 3 steps weights 2e-8.
    """
    for done in launch([SCRIPT, steps, tmp_path / "out.npz"], count, timeout=200):
        assert done.returncode == 0, done.stderr
    other, alone = dict(np.load(tmp_path / "out.npz")), one(steps)
    np.testing.assert_allclose(other["losses"], alone["losses"], rtol=1e-5)
    for step, bound in ((3, 1e-6), (steps, 1e-4)):
        for averaged in (False, True):
            names = [name for name in other if name.startswith(f"{step}/") and ("/ema/" in name) == averaged]
            assert relative(alone, other, names) < bound, (step, averaged)
            for name in names:
                assert relative(alone, other, [name]) <= 1e-3, name


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """Two, then one, then four; metrics, checkpoints and evaluations are written once."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train_run(straight, 20)
    for count, max_steps in ((2, 8), (1, 14), (4, 20)):
        if count == 1:
            train_run(broken, max_steps)
        ended = launch([SCRIPT, "run", broken, max_steps], count, timeout=120) if count > 1 else []
        for number, done in enumerate(ended):
            assert done.returncode == 0, done.stderr
            assert ("held-out images" in done.stderr) == (number == 0)
    one, other = (load_training(folder / "step-00000020") for folder in (straight, broken))
    weights = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
    for (name, a), b in weights:
        assert float((a - b).detach().norm()) <= 1e-4 * float(a.detach().norm()), name
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    found, expected = bounds(broken), bounds(straight)
    assert {8, 14, 20} <= set(found)
    assert found[20] == pytest.approx(expected[20], rel=1e-5)


def bounds(folder: Path) -> dict[int, float]:
    """The evaluated bounds of a run by step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["bpd"] for row in rows if row["event"] == "evaluate"}
