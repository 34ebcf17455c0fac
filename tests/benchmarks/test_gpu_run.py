"""`gpu_run` from end to end on a CPU, its groups, and how results are merged."""

import json
import os
import re
import subprocess
import sys
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import ROOT

from benchmarks import gpu_run
from benchmarks.gpu_batches import Runner
from benchmarks.gpu_run import GROUPS
from benchmarks.report import merge_into, merged, row_key

MACHINE = {"gpu": "A", "torch": "2", "triton": "3", "backend": "triton"}
LACKING = ("tyro", "PIL", "diffusers", "hypothesis", "matplotlib", "sklearn", "torchmetrics", "xdist")
NAMES = ("device", "timing", "dtype", "operation", "case", "against")
ROWS = st.builds(
    lambda values, shape, seconds: dict(zip(NAMES, values, strict=True)) | {"shape": shape, "seconds": seconds},
    st.tuples(*[st.sampled_from("xy")] * len(NAMES)),
    st.lists(st.integers(1, 2), min_size=1, max_size=2),
    st.integers(0, 9),
)
CONTENTS = st.builds(
    lambda rows: {"machine": MACHINE, "quick": False, "rows": rows}, st.lists(ROWS, unique_by=row_key, max_size=6)
)


@given(CONTENTS, CONTENTS)
def test_merging_keeps_every_measurement_and_the_newest_of_each(old, new):
    both = merged(old, new)
    found = {row_key(row): row for row in both["rows"]}
    assert len(found) == len(both["rows"])
    assert found == {row_key(row): row for row in (*old["rows"], *new["rows"])}
    assert merged(both, new) == both == merged(old, both)  # idempotent
    others = {
        **old,
        "rows": [row for row in old["rows"] if row_key(row) not in {row_key(each) for each in new["rows"]}],
    }
    assert merged(others, new) == merged(new, others)


@pytest.mark.parametrize("change", [{"gpu": "B"}, {"torch": "2.1"}, {"triton": None}, {"backend": "torch"}])
def test_other_machines_do_not_mix(change):
    row = dict.fromkeys(NAMES, "x") | {"shape": [1]}
    old = {"machine": MACHINE, "quick": False, "rows": [row]}
    new = {"machine": MACHINE | change, "quick": False, "rows": [row | {"dtype": "y"}]}
    assert merged(old, new) == new
    quick = deepcopy(old) | {"quick": True}
    assert merged(quick, old) == old


def test_a_merge_into_a_file_replaces_it_whole(tmp_path):
    row = dict.fromkeys(NAMES, "x") | {"shape": [1]}
    path = tmp_path / "new" / "a.json"
    for name in ("x", "y", "x"):
        merge_into(path, {"machine": MACHINE, "quick": False, "rows": [row | {"case": name}]})
    assert [row["case"] for row in json.loads(path.read_text())["rows"]] == ["x", "y"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
def test_an_end_to_end_run_on_a_cpu_and_its_continuation(tmp_path, monkeypatch, capsys):
    """A small case of an operation is checked and timed, its rows are written; a second run has nothing to do."""
    only = r"cpu-cifar-float32-diffuse-given|every_kernel_once\[diffuse( drawn)?-|test_forward\[cuda"
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--quick", "--only", only, "--out", str(out), "--cache", str(tmp_path / "cache")]
    command = [sys.executable, str(ROOT / "benchmarks/gpu_run.py"), *arguments, "--minutes", "3", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.iterdir())) == 4
    (path,) = out.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["operation"], row["case"], row["against"]) for row in rows] == [("diffuse", "noise given", "eager")]
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines() if line]
    ended = [event for event in events if event["event"] == "ended"]
    assert [event["outcome"] for event in ended] == ["passed"] * 3
    assert "test_operation[cpu-cifar-float32-diffuse-given]" in ended[-1]["test"]
    assert "every kernel once: 2 of 2 done" in done.stdout
    assert "left: one needs" not in done.stdout
    assert (out / "summary.txt").read_text() in done.stdout

    monkeypatch.setattr(gpu_run.Runner, "prepare", lambda self: None)
    monkeypatch.setattr(gpu_run.Runner, "tests", lambda self: ([event["test"] for event in ended], True))
    monkeypatch.setattr(gpu_run.Runner, "run", lambda *_: pytest.fail("nothing is left to run"))
    monkeypatch.setattr("sys.argv", ["gpu_run.py", *arguments])
    assert gpu_run.main() == 0
    assert "every kernel once: 2 of 2 done" in capsys.readouterr().out


def test_every_group_has_tests_and_every_test_a_group(tmp_path):
    """The patterns name what is there. On a GPU the last group is empty: it is for what nobody thought of.

    The benchmarks are collected without what a machine without a package index may lack.
    """
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING!r}))\n")
    command = [sys.executable, str(ROOT / "benchmarks/gpu_run.py"), "--list", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith(" "):
            found[next(reversed(found))].append(line.strip())
        else:
            found[line] = []
    assert list(found) == [group.name for group in GROUPS]
    assert [name for name in found if not found[name]] == ["what is in no other group"]
    run = [test for group in GROUPS if group.phase == "run" for test in found[group.name]]
    assert len(set(run)) == len(run)
    assert not any("cpu" in test.partition("[")[2] for test in run)
    parallel = {test for group in GROUPS if group.parallel and group.phase == "run" for test in found[group.name]}
    assert parallel == {
        test for test in run if "test_correctness" in test and not re.search("graph|captured|2_to_", test)
    }


def test_without_a_gpu_nothing_counts_as_done(tmp_path, monkeypatch, capsys):
    """All tests would be skipped, which is not to be remembered."""
    monkeypatch.setattr(gpu_run.Runner, "prepare", lambda self: None)
    monkeypatch.setattr(gpu_run.Runner, "tests", lambda self: (["a.py::test_every_kernel_once[x-cuda]"], False))
    monkeypatch.setattr("sys.argv", ["gpu_run.py", "--out", str(tmp_path), "--cache", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu_run.main()
    assert "there is no GPU to measure" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_runner_knows_the_device_of_a_test(tmp_path):
    cpu, cuda = (Runner(tmp_path, tmp_path, device) for device in ("cpu", "cuda"))
    assert Runner(tmp_path, tmp_path, "cpu", plugins=("one", "two")).arguments("x")[-5:] == [
        "-p",
        "one",
        "-p",
        "two",
        "x",
    ]
    assert cpu.has("a.py::test[cpu-cifar]")
    assert not cpu.has("a.py::test[x-cuda]")
    assert cuda.has("a.py::test[cuda]")
    assert cuda.has("a.py::test")
