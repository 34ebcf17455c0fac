"""The call that made the pictures, as Python and as a shell command. Both give the images of `drawing.draw`."""

import shlex

from ..cli.labels import parse_label
from ..data import ImageOptions
from ..diffusion import SAMPLERS
from ..io.processes import check_device
from ..kernels import InvalidValueError
from .drawing import ALL, Choice
from .models import Subject

WIDTH = 88  # of a line of Python


def python_call(subject: Subject, choice: Choice) -> str:
    """Return Python code that draws the images into the variable ``images``, uint8 [n, C, H, W] in 0 .. 255."""
    return _program(*_parts(subject, choice))


def shell_call(subject: Subject, choice: Choice) -> str:
    """Return a shell command that draws the images into the picture ``samples.png``.

    It is ``fastdiff sample``, or a Python program where that has no flag for it: shifted latents, restoration.
    """
    if subject.needs_cond or (choice.moved and subject.has_latent):
        imports, lines = _parts(subject, choice)
        imports.append("from fastdiff.io.pictures import image_grid, write_picture")
        lines.append('write_picture(image_grid(images), "samples.png")')
        return f"python - <<'EOF'\n{_program(imports, lines)}EOF\n"
    words = ["fastdiff", "sample", choice.model, "-n", str(choice.n)]
    if subject.samplers:
        words += ["--sampler", choice.sampler, "--steps", str(choice.steps)]
        words += ["--spacing", choice.spacing] if choice.spacing != "time" else []
    words += ["--seed", str(choice.seed)]
    if choice.label is not None:
        words += ["--label", _flag_of_label(subject, choice.label)]
    words += ["--guidance", f"{choice.guidance:g}"] if choice.guided else []
    words += ["--mixture", choice.mixture] if choice.mixture and subject.has_latent else []
    words += ["--device", str(subject.device)] if subject.device != check_device("auto") else []
    return shlex.join([*words, "--out", "samples.png"]) + "\n"


def _parts(subject: Subject, choice: Choice) -> tuple[list[str], list[str]]:
    """Return the imports and the other lines of `python_call`."""
    imports, lines = ["import fastdiff"], []
    model, options = _quoted(choice.model), [str(choice.n)]
    device = "" if subject.device.type == "cpu" else _quoted(str(subject.device))
    if subject.samplers:
        sampler = _quoted(choice.sampler)
        if choice.spacing != "time":
            kind = SAMPLERS[choice.sampler].__name__
            imports.append(f"from fastdiff.diffusion import {kind}")
            sampler = f"{kind}(spacing={_quoted(choice.spacing)})"
        options += [f"steps={choice.steps}", f"sampler={sampler}"]
    options.append(f"seed={choice.seed}")
    options += [f"labels={_labels(subject, choice)}"] if choice.label is not None else []
    options += [f"guidance={choice.guidance:g}"] if choice.guided else []
    shifted = bool(choice.moved) and subject.has_latent
    if choice.mixture and subject.has_latent and not shifted:
        options.append(f"latents=fastdiff.Latents(mixture={_quoted(choice.mixture)})")
    if shifted or subject.needs_cond:
        lines.append(f"model = fastdiff.load({model})" + (f".to({device})" if device else ""))
        model = "model"
        noise = f"fastdiff.Noise({choice.seed})" + (".to(model.device)" if device else "")
        if subject.needs_cond:
            kinds, data = _data(subject)
            imports.append(f"from fastdiff.data import {kinds}")
            lines.append(f"x = {data}.test_images[:{choice.n}]" + (".to(model.device)" if device else ""))
            lines.append(f"cond = model.example_cond(x, {noise})")
            options.append("cond=cond")
        if shifted:
            if choice.mixture:
                imports.append("from fastdiff.sampling import load_mixture")
                lines.append(f"z = load_mixture({_quoted(choice.mixture)}).draw({choice.n}, {noise})")
            else:
                lines.append(f"z = model.prior_latents({choice.n}, {noise})")
            lines += [f"z[:, {k}] {'-' if value < 0 else '+'}= {abs(value)}" for k, value in choice.moved]
            options.append("latents=fastdiff.Latents(z=z)")
    elif device:
        options.append(f"device={device}")
    return imports, [*lines, _call("images = fastdiff.sample", ", ".join([model, *options]))]


def _program(imports: list[str], lines: list[str]) -> str:
    return "\n".join([*imports, "", *lines]) + "\n"


def _data(subject: Subject) -> tuple[str, str]:
    """Return what to import from `fastdiff.data`, and the call that loads the data of a model's training."""
    name = _quoted(str(subject.data_name))
    if subject.image_options == ImageOptions():
        return "load_dataset", f"load_dataset({name})"
    return "ImageOptions, load_dataset", f"load_dataset({name}, {subject.image_options})"


def _quoted(text: str) -> str:
    """Return a text as Python with double quotes where that needs no escapes."""
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)


def _labels(subject: Subject, choice: Choice) -> str:
    """Return the argument ``labels`` as Python."""
    if choice.label == ALL:
        return f"[k % {len(subject.classes)} for k in range({choice.n})]"
    assert isinstance(choice.label, int)
    return _quoted(subject.classes[choice.label]) if subject.model.config.class_names else str(choice.label)


def _flag_of_label(subject: Subject, label: int | str) -> str:
    """Return the value of ``--label`` that means this class: its name, unless that could mean another one."""
    if label == ALL:
        return ALL
    assert isinstance(label, int)
    name = subject.classes[label]
    try:
        if name != ALL and not name.startswith("-") and parse_label(name, subject.model.config) == label:
            return name
    except InvalidValueError:  # the name of one class and the number of another
        pass
    return f"number:{label}"


def _call(function: str, arguments: str) -> str:
    """Return a call in one line, or its arguments in a line of their own where that is too long."""
    line = f"{function}({arguments})"
    return line if len(line) <= WIDTH else f"{function}(\n    {arguments}\n)"
