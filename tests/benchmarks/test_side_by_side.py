"""The comparison with diffusers: its sides compute the same, it notices if not, and it writes what it measured."""

import json
import sys
from itertools import pairwise

import pytest
import torch
from sources import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # as its modules import each other

import readme
import side_by_side
from side_by_side import Case, cases_of, ratios_of, sides_of
from side_calls import DIFFUSERS, FASTDIFF, DifferentError, check_close, check_levels, forward_sides
from side_models import SIZES, pair_of, scheduler_of, timesteps_of

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")


@pytest.mark.parametrize("what", ["forward", "sampling", "training"])
@pytest.mark.parametrize(("size", "count", "of"), [("tiny", 177_427, (3, 32, 32)), ("28x28", 1_112_801, (1, 28, 28))])
def test_eager_sides_are_made_and_run(size, count, of, what):
    """Their checks compare eps_hat, images and losses before anything is timed."""
    sides, parameters, shape = sides_of(Case(what, size, 2, "fp32", "cpu", 5), ())
    assert (parameters, shape) == (count, of)
    assert {DIFFUSERS, FASTDIFF} <= set(sides)
    results = [sides[name]()() for name in (DIFFUSERS, FASTDIFF)]
    if what == "sampling":
        assert all(images.shape == (2, *of) and images.dtype == torch.uint8 for images in results)


def test_bfloat16_is_compared_as_well():
    forward_sides(pair_of("tiny", CPU, torch.bfloat16), 2, torch.bfloat16, CPU, ())


def test_other_weights_are_noticed():
    pair = pair_of("tiny", CPU)
    with torch.no_grad():
        pair.network.middle_in.conv_in.bias[0] += 0.1
    with pytest.raises(DifferentError, match="eps_hat"):
        forward_sides(pair, 2, torch.float32, CPU, ())
    with pytest.raises(DifferentError, match="nan"):
        check_close("loss", torch.tensor(torch.nan), torch.tensor(1.0), torch.float32)
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    check_levels(black, black, torch.float32)
    with pytest.raises(DifferentError, match="2 levels"):
        check_levels(black + 2, black, torch.float32)


@pytest.mark.parametrize("steps", [50, 25, 10, 5])
def test_timesteps_are_those_of_their_scheduler(steps):
    assert torch.equal(scheduler_of(steps).timesteps, timesteps_of(steps))


def test_sizes_have_their_parameters():
    for size, expected in (("6.5M", 6_472_195), ("35.7M", 35_746_307)):
        with torch.device("meta"):
            network = diffusers.UNet2DModel(**SIZES[size])
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_ratios_are_taken_round_by_round_against_the_fastest_mode():
    samples = {
        "diffusers": [4.0, 8.0, 4.0], "diffusers compiled": [2.0, 4.0, 2.0], "diffusers max-autotune": [3.0, 3.0, 3.0],
        "fastdiff": [2.0, 4.0, 2.0], "fastdiff best": [1.0, 2.0, 1.0],
    }  # fmt: skip
    found = {key: middle for key, (_, middle, _) in ratios_of(samples).items()}
    assert found == {
        "diffusers / fastdiff": 2.0, "diffusers compiled / fastdiff": 1.0,
        "diffusers / fastdiff best": 4.0, "diffusers compiled / fastdiff best": 2.0,
    }  # fmt: skip
    alone = {name: times for name, times in samples.items() if name.startswith("fastdiff")}
    assert {key: middle for key, (_, middle, _) in ratios_of(alone).items()} == {"fastdiff / fastdiff best": 2.0}


def test_the_command_writes_what_readme_shows(tmp_path, monkeypatch, capsys):
    path = tmp_path / "docs/side-by-side-cpu.json"
    arguments = ["--quick", "--eager", "--what", "forward", "training", "--rounds", "3", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["side_by_side.py", *arguments])
    assert side_by_side.main() == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [row["case"]["what"] for row in content["rows"]] == ["forward", "training"]
    for row in content["rows"]:
        assert (row["rounds"], row["failed"]) == (3, {})
        assert all(low <= high for times in row["seconds"].values() for low, high in pairwise(times))
        assert f"{1e3 * row['seconds'][FASTDIFF][1]:.1f} ms" in printed
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    lines = readme.side_tables().splitlines()
    assert [line.split(" | ")[1] for line in lines[4:]] == ["forward, fp32", "training, fp32"]
    assert f"{content['rows'][0]['ratios']['diffusers / fastdiff'][1]:.2f} (" in lines[4]


def test_results_of_several_commands_are_merged():
    def content(machine, *cases):
        rows = [{"case": {"what": what, "batch": 1}, "parameters": 1, "seconds": seconds} for what, seconds in cases]
        return {"machine": machine, "quick": False, "rows": rows, "footprint": []}

    old, new = content("A", ("forward", 1), ("training", 2)), content("A", ("forward", 3))
    both = side_by_side.merged(old, new)
    assert both == content("A", ("forward", 3), ("training", 2)) == side_by_side.merged(both, new)
    assert side_by_side.merged(content("B", ("training", 2)), new) == new


def test_cases_are_those_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("sys.argv", ["side_by_side.py", "--what", "forward", "vdm"])
    cases = cases_of(side_by_side.arguments())
    expected = [("28x28", 1), ("28x28", 16), ("6.5M", 1), ("6.5M", 16), ("35.7M", 1)]
    assert [(case.size, case.batch) for case in cases] == expected
    assert {case.what for case in cases} == {"forward"}  # `vdm` is for a GPU
