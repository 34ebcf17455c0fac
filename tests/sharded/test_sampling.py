"""Sampling divided among two, three or four processes: the images of one process, bit for bit."""

import pytest
import torch
from processes import launch
from sharded import COUNTS, results, write_inputs
from sharded_run import SAMPLING, draw, drawn_here
from tiny import small

from fastdiff import sample
from fastdiff.cli.main import main


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", SAMPLING)
def test_every_process_has_the_images_of_one(case, count):
    expected = SAMPLING[case](False)
    for found in results(count):
        assert found[case].dtype == torch.uint8
        assert torch.equal(found[case], expected)


def test_the_images_of_a_single_process_are_those_of_sample():
    assert torch.equal(SAMPLING["7 images in 4 batches"](True), sample(small(), 7, 3, seed=5, output="levels"))


@pytest.mark.parametrize("count", COUNTS)
def test_the_callback_is_called_where_the_batch_is_drawn(count):
    """Five batches of 2, 2, 2, 2 and 1 images, with two steps each."""
    sizes = [2, 2, 2, 2, 1]
    for rank, found in enumerate(results(count)):
        assert found["sizes"] == [size for size in sizes[rank::count] for _ in range(2)]
        assert torch.equal(found["drawn"], draw(small(), 9, 2, False, steps=2))
    assert drawn_here()[1] == [size for size in sizes for _ in range(2)]


@pytest.mark.parametrize("count", COUNTS)
def test_an_error_in_one_process_ends_all(count):
    """After the round in which it happened, the second of 60 / count, with the mode of the model restored."""
    for rank, found in enumerate(results(count)):
        kind, message, calls, training = found["error"]
        if rank == 1:
            assert (kind, message, calls) == ("ValueError", "the callback's own", "4")
        else:
            assert (kind, message, calls) == ("PeerError", f"rank 1 of {count} failed: the callback's own", "6")
        assert training == "True"


@pytest.mark.parametrize("count", COUNTS)
def test_the_bar_is_the_first_processs_and_counts_its_own_batches(count):
    total = 2 * len(range(0, 5, count))
    bars = [found["bar"] for found in results(count)]
    assert "sampling 9 images" in bars[0]
    assert f"{total}/{total} " in bars[0]
    assert bars[1:] == [""] * (count - 1)


@pytest.mark.slow
def test_the_command_in_two_processes_writes_the_picture_of_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    command = ["sample", "model", "-n", "5", "--steps", "3", "--batch-size", "2", "--device", "cpu", "--out"]
    ended = launch(["-m", "fastdiff", *command, "two.png"], 2)
    assert [one.returncode for one in ended] == [0, 0], ended
    assert [one.stdout for one in ended] == ["wrote two.png (5 images)\n", ""]
    assert [one.stderr for one in ended] == ["", ""]  # no terminal, no progress bar
    assert main([*command, "one.png"]) == 0
    assert capsys.readouterr().out == "wrote one.png (5 images)\n"
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
