"""Training of the classifier whose features FD-digits uses: reproducible, and its file loads."""

import math

import pytest
import torch

from benchmarks.studies import digit_classifier
from benchmarks.studies.digit_classifier import accuracy, save_digit_classifier, shift_randomly, train_digit_classifier
from fastdiff.data import digits
from fastdiff.evaluation import DigitClassifier, load_digit_classifier
from fastdiff.kernels import InvalidValueError


def test_training_is_a_function_of_the_seed():
    state = torch.get_rng_state()
    models = [train_digit_classifier(digits(), steps=3, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["head.weight"], models[2]["head.weight"])
    with pytest.raises(InvalidValueError, match="steps"):
        train_digit_classifier(digits(), 0)


def test_the_command_writes_a_file_that_loads(tmp_path, capsys):
    out = tmp_path / "own.safetensors"
    threads = torch.get_num_threads()
    try:
        digit_classifier.main(["--out", str(out), "--steps", "60"])
    finally:
        torch.set_num_threads(threads)
    model = load_digit_classifier(out)
    score = accuracy(model, digits().test_images, digits().test_labels)
    assert score > 0.8
    assert f"test_accuracy {score:.4f}" in capsys.readouterr().out
    assert math.isnan(accuracy(model, digits().test_images, None))


def test_weights_are_saved_bit_by_bit(tmp_path):
    model = DigitClassifier()
    save_digit_classifier(tmp_path / "own.safetensors", model, {"steps": 0})
    loaded = load_digit_classifier(tmp_path / "own.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_shifted_image_is_one_of_nine():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 3, 4] = 16
    shifted = shift_randomly(image.expand(900, -1, -1, -1))
    assert (shifted.flatten(1).sum(1) == 16).all()
    counts = shifted[:, 0].ne(0).sum(0)
    assert int(counts[2:5, 3:6].sum()) == 900
    assert int(counts[2:5, 3:6].min()) > 60  # 100 expected; the deviation is 9.4
