"""The data set that a command takes for a model whose files do not say what it was trained on."""

import pytest
from tiny import small

from fastdiff.cli.arguments import load_data


@pytest.mark.parametrize(("shape", "name"), [((1, 8, 8), "digits"), ((1, 28, 28), "letters")])
def test_it_is_the_embedded_one_of_the_model_s_images(tmp_path, shape, name):
    small().save(tmp_path / "model")
    assert load_data(str(tmp_path / "model"), None, shape).name == name
    assert load_data(str(tmp_path / "model"), "digits", shape).name == "digits"


def test_of_other_images_it_must_be_named(run):
    """No data set of another size is taken, whose error would be about a data set that nobody asked for."""
    small(shape=(3, 4, 4), levels=256).save("model")
    code, _, err = run("evaluate", "model", "--draws", "1")
    assert code == 2
    assert "--data must be set, since model does not record what data it was trained on" in err
