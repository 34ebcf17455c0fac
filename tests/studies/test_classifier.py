"""Training of the classifiers whose features FD-digits and FD-letters use: reproducible, and the file loads."""

from dataclasses import replace

import pytest
import torch

from benchmarks.studies import classifier
from benchmarks.studies.classifier import classify, save_classifier, scores, shift_randomly, train_classifier
from fastdiff.data import LETTERS, Dataset, digits, letters
from fastdiff.evaluation import CLASSIFIERS, ImageClassifier, load_classifier
from fastdiff.kernels import InvalidValueError


def test_training_is_a_function_of_the_seed():
    state = torch.get_rng_state()
    models = [train_classifier(digits(), steps=3, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["head.weight"], models[2]["head.weight"])


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [({}, 0, "steps"), ({"train_labels": None}, 3, "must have labels"), ({"name": "other"}, 3, "digits, letters")],
)
def test_wrong_input(changes, steps, words):
    with pytest.raises(InvalidValueError, match=words):
        train_classifier(replace(digits(), **changes), steps)


def test_the_command_writes_a_file_that_loads(tmp_path, capsys):
    out = tmp_path / "own.safetensors"
    threads = torch.get_num_threads()
    try:
        classifier.main(["digits", "--out", str(out), "--steps", "60"])
    finally:
        torch.set_num_threads(threads)
    found = classify(load_classifier("digits", out), digits().test_images)
    score = float((found == digits().test_labels).double().mean())
    assert score > 0.8
    assert f"test_accuracy {round(score, 4)}" in capsys.readouterr().out


def test_the_scores_of_a_classifier_that_knows_one_letter():
    """One that says E of every image: in closed form from the counts of the letters."""
    data = letters()
    model = ImageClassifier(CLASSIFIERS["letters"]).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.eye(26)[4])
    few = slice(0, 2418, 7)
    parts = data.train_images[:50], data.train_labels[:50], data.test_images[few], data.test_labels[few]
    data = Dataset("letters", data.levels, data.num_classes, *parts, class_names=LETTERS)
    counts = torch.bincount(data.test_labels, minlength=26)
    found = scores(model, data)
    assert found["test_accuracy"] == round(float(counts[4] / counts.sum()), 4)
    assert found["test_accuracy_by_class"] == {name: float(name == "E") for name in LETTERS}
    expected = sorted((int(n) for label, n in enumerate(counts) if label != 4), reverse=True)[:10]
    assert list(found["test_confusions"].values()) == expected
    assert all(name.endswith(" as E") for name in found["test_confusions"])


@pytest.mark.parametrize("data", CLASSIFIERS)
def test_weights_are_saved_bit_by_bit(tmp_path, data):
    model = ImageClassifier(CLASSIFIERS[data])
    save_classifier(tmp_path / "own.safetensors", model, {"steps": 0})
    loaded = load_classifier(data, tmp_path / "own.safetensors").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_shifted_image_is_one_of_nine():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 3, 4] = 16
    shifted = shift_randomly(image.expand(900, -1, -1, -1))
    assert (shifted.flatten(1).sum(1) == 16).all()
    counts = shifted[:, 0].ne(0).sum(0)
    assert int(counts[2:5, 3:6].sum()) == 900
    assert int(counts[2:5, 3:6].min()) > 60  # 100 expected; the deviation is 9.4
