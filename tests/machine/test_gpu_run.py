"""`gpu_run` from end to end on the machine: out of time, killed, continued; and benchmarks that only a GPU runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("draw", "diffuse", "eps_loss drawn", "fourier_features", "sampler_step plain", "gaussian_log_ratio")
SPEED = "test_operation[cuda-cifar-float32-diffuse-given]", "test_operation[cuda-cifar-bfloat16-diffuse-drawn]"
GROUPS = "every kernel once", "compile the operations and the norm", "speed of the operations and the norm"
ONLY = (
    rf"every_kernel_once\[({'|'.join(KERNELS)})-cuda\]"
    r"|test_operation\[cuda-cifar-(float32-diffuse-given|bfloat16-diffuse-drawn)\]"
)
GRAPHS = (
    "test_correctness.py::test_a_replayed_graph_draws_fresh_noise[torch.bfloat16-cuda]",
    "test_correctness.py::test_a_captured_training_step[cuda]",
    "test_networks.py::test_forward_replayed[cuda-16-float32]",
    "test_operations.py::test_operation[cuda-cifar-float32-fourier_features-forward]",
    "test_operations.py::test_operation[cuda-cifar-bfloat16-group_norm_silu-skip]",
    "test_operations.py::test_host_cost[cuda-decoder_nll]",
)
FIRST, MINUTES = 2, 3.0  # tests after which the first run's time is over; time of each run

# gpu_run with a clock that stands still until FIRST tests have ended, and then is past the end
CLOCKED = f"""
import gpu_batches, gpu_run, sys
from pathlib import Path

journal = Path(sys.argv[sys.argv.index("--out") + 1], "journal.jsonl")

def clock():
    ended = journal.read_text().count('"ended"') if journal.exists() else 0
    almost = {60.0 * MINUTES} - 0.02 if journal.exists() else 0.0  # so that it is looked at often
    return {60.0 * MINUTES} + 1.0 if ended >= {FIRST} else almost

if __name__ == "__main__":
    gpu_run.monotonic = gpu_batches.monotonic = clock
    sys.exit(gpu_run.main())
"""


def environment(**more: str) -> dict[str, str]:
    """Variables without those of this process that name a backend or a cache."""
    left_out = ("TRITON_CACHE_DIR", "FASTDIFF_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in left_out and "PYTEST" not in name}
    path = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "benchmarks", "tests"))
    return {**kept, "PYTHONPATH": path, **more}


class Run:
    """Runs of `gpu_run` that continue one another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "clocked.py").write_text(CLOCKED)
        self.environment = environment(TRITON_INTERPRET="1", FASTDIFF_BACKEND="torch")  # which it has to undo

    def start(self, program: Path) -> subprocess.Popen:
        arguments = ["--plugin", "machine.gpu", "--workers", "1", "--minutes", str(MINUTES), "--only", ONLY]
        folders = ["--out", str(self.out), "--cache", str(self.folder / "cache")]
        return subprocess.Popen(
            [sys.executable, str(program), *arguments, *folders], env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def finish(self, program: Path) -> str:
        """Run to the end; return what was printed."""
        process = self.start(program)
        try:
            printed, _ = process.communicate(timeout=180.0)
        finally:
            end_session(process.pid)
        assert process.returncode == 0, printed
        return printed

    def kill_after_first_rows(self) -> None:
        """Kill the process as soon as there is a row, as somebody would who kills by its number."""
        process = self.start(ROOT / "benchmarks/gpu_run.py")
        assert process.stdout is not None
        try:
            wait_until(lambda: list(self.out.glob("*.json")) or process.poll() is not None, 180.0)
            assert process.poll() is None, process.stdout.read()
            process.kill()
            wait_until(lambda: not session(process.pid), 20.0)  # nothing goes on measuring
        finally:
            end_session(process.pid)
            process.communicate()

    def compiled(self) -> set[str]:
        """Names of the kernels in the cache of compiled ones."""
        return {path.stem for path in self.folder.glob("cache/triton/*/*.cubin")}

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "journal.jsonl").read_text().splitlines() if line]

    def settled(self) -> set[str]:
        """Tests that ended well."""
        ended = [event for event in self.events() if event["event"] == "ended"]
        assert {event["outcome"] for event in ended} == {"passed"}, ended
        return {event["test"].rpartition("::")[2] for event in ended}

    def rows(self) -> dict[tuple, dict]:
        (path,) = self.out.glob("*.json")
        content = json.loads(path.read_text())
        assert content["machine"]["gpu"] == "PTX machine"
        return {(row["case"], row["dtype"], row["timing"], row["against"]): row for row in content["rows"]}


def wait_until(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def session(number: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def end_session(number: int) -> None:
    for process in session(number):
        os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("gpu_run"))


def test_a_run_that_is_out_of_time_killed_and_continued(runs):
    """Nothing that passed is repeated, rows of all runs are merged, and what is left is printed."""
    before = set((ROOT / "benchmarks/results").iterdir())
    printed = runs.finish(runs.folder / "clocked.py")
    first = runs.settled()
    assert FIRST <= len(first) < len(KERNELS)
    assert f"every kernel once: {len(first)} of {len(KERNELS)} done\n" in printed
    assert f"    {len(KERNELS) - len(first)} left: one needs about" in printed
    assert f"{GROUPS[2]}: 0 of 2 done\n    2 left: one needs about" in printed
    assert (runs.out / "summary.txt").read_text() in printed

    runs.kill_after_first_rows()
    second, rows = runs.settled(), runs.rows()
    assert {f"test_every_kernel_once[{name}-cuda]" for name in KERNELS} <= second
    assert len(rows) == 2  # against eager and torch.compile

    printed = runs.finish(ROOT / "benchmarks/gpu_run.py")
    assert "left: one needs" not in printed
    assert all(f"{name}: {count} of {count} done\n" in printed for name, count in zip(GROUPS, (6, 2, 2), strict=True))
    begun = [event["test"].rpartition("::")[2] for event in runs.events() if event["event"] == "begun"]
    assert all(begun.count(name) == 1 for name in first)
    assert runs.settled() == {*second, *SPEED}
    merged = runs.rows()
    assert len(merged) == 4
    done = second & set(SPEED)
    assert all(merged[key] == rows[key] for key in rows) or not done
    assert {"draw_kernel", "diffuse_kernel", "step_kernel"} <= runs.compiled()
    assert set((ROOT / "benchmarks/results").iterdir()) == before  # what a stand-in measures is not published


def test_captured_graphs_and_their_benchmarks(tmp_path):
    """Every call once: values are checked, nothing is timed. Results go nowhere."""
    tests = [str(ROOT / "benchmarks" / name) for name in GRAPHS]
    options = [
        "-p",
        "pytest_benchmark.plugin",
        "-p",
        "no:cacheprovider",
        "-p",
        "machine.gpu",
        "--compile-only",
        "--quick",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], capture_output=True, text=True, check=False,
        cwd=ROOT, env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", TRITON_CACHE_DIR=str(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(GRAPHS)} passed" in done.stdout
