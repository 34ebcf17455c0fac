"""Mutated files of checkpoints whose checksums are right, so that the parsers and checks behind them are reached."""

import json

import torch

import fastdiff
from fastdiff.io.configuration import to_dict
from fastdiff.training.metrics import truncate_metrics
from fastdiff.training.state import load_training

from .fault import Attempt, Outcome, Tries, fault, only_errors_of_users
from .limits import bounded, guarded
from .rewriting import mutated, mutated_json, mutated_safetensors, rewrite, rewritten_tensors, tensors_of
from .subjects import checkpoint, small_model, small_vae, whole_lines


def says(found: object, written: object) -> bool:
    """Whether a configuration is what a JSON file says, up to 1 for 1.0 and keys that the file leaves to defaults."""
    if isinstance(found, dict) and isinstance(written, dict):
        return all(key in found and says(found[key], value) for key, value in written.items())
    if isinstance(found, (list, tuple)) and isinstance(written, list):
        return len(found) == len(written) and all(map(says, found, written))
    return found == written and isinstance(found, bool) == isinstance(written, bool)


@fault(
    "mutated JSON of checkpoints", "faults 2.14, 2.15; ecosystem 6, 9", tries=2500, quick=60,
    done="A value, key or byte of config.json, state.json or the manifest is changed, with its checksum made right",
    must_hold="a FastdiffError, or a model of exactly the configuration that the file holds; at most 1 s and 200 MB",
)  # fmt: skip
def mutated_checkpoint_json(tries: Tries):
    folders = [
        checkpoint(tries.folder / "training"), small_model().save(tries.folder / "vdm"),
        small_vae().save(tries.folder / "vae"),
    ]  # fmt: skip
    original = {folder: {file: file.read_bytes() for file in folder.iterdir()} for folder in folders}
    with guarded():
        for attempt in tries:
            path = attempt.random.choice(folders)
            file = attempt.random.choice(sorted(path.glob("*.json")))
            content = mutated_json(file.read_bytes(), attempt.random)
            (file.write_bytes if file.name == "manifest.json" else lambda data, file=file: rewrite(file, data))(content)
            yield load_json(tries, attempt, path, file.name)
            for name, data in original[path].items():
                name.write_bytes(data)


def load_json(tries: Tries, attempt: Attempt, path, file: str) -> Outcome:
    wrong: list[str] = []
    load = load_training if path.name == "training" and attempt.random.random() < 0.5 else fastdiff.load
    with bounded(tries, attempt, wrong), only_errors_of_users(attempt, file, wrong):
        loaded = load(path)
        model = loaded if load is fastdiff.load else loaded.model
        tries.count("loaded")
        written = json.loads((path / "config.json").read_bytes())
        if not says(json.loads(json.dumps(to_dict(model.config))), written["config"]):
            wrong.append(f"try {attempt.number}: {file} was read as another configuration")
    return "; ".join(wrong) or None


@fault(
    "mutated tensors of checkpoints", "faults 1; ecosystem 6, 9", tries=2500, quick=60,
    done="The header or the bytes of a safetensors file are changed, with its checksum made right",
    must_hold="a FastdiffError, or a model with exactly the numbers that the file holds; at most 1 s and 200 MB",
)  # fmt: skip
def mutated_tensors(tries: Tries):
    folders = [checkpoint(tries.folder / "training"), small_vae().save(tries.folder / "vae")]
    with guarded():
        for attempt in tries:
            path = attempt.random.choice(folders)
            file = attempt.random.choice(sorted(path.glob("*.safetensors")))
            data, manifest = file.read_bytes(), (path / "manifest.json").read_bytes()
            rewrite(file, mutated_safetensors(data, attempt.random))
            yield load_tensors(tries, attempt, path, file)
            file.write_bytes(data)
            (path / "manifest.json").write_bytes(manifest)


def load_tensors(tries: Tries, attempt: Attempt, path, file) -> Outcome:
    wrong: list[str] = []
    with bounded(tries, attempt, wrong), only_errors_of_users(attempt, file.name, wrong):
        if path.name == "training":
            found = load_training(path).tensors()[file.stem]
        else:
            found = fastdiff.load(path).state_dict()
        tries.count("loaded")
        written = tensors_of(file.read_bytes())
        differ = [name for name, value in found.items() if not torch.equal(value, written[name])]
        if differ or found.keys() != written.keys():
            wrong.append(f"try {attempt.number}: {file.name} was read with other numbers in {differ[:3]}")
    return "; ".join(wrong) or None


@fault(
    "keys, tensors and shapes that do not belong", "ecosystem 9", tries=60, quick=6,
    done="Tensors are removed, added, renamed, transposed or converted in a file, up to three at once",
    must_hold="one CheckpointError that lists every one of them",
)  # fmt: skip
def wrong_tensors(tries: Tries):
    model = small_model()
    for attempt in tries:
        path, tensors = model.save(attempt.folder / "model"), dict(model.state_dict())
        changed = attempt.random.sample(sorted(name for name in tensors if tensors[name].dim()), 3)
        for name in changed[: attempt.random.randint(1, 3)]:
            value = tensors.pop(name)
            kind = attempt.random.randrange(4)
            if kind == 1:
                tensors[name] = value[None]
            elif kind == 2:
                tensors[name] = value.double()
            elif kind == 3:
                tensors[f"{name}.more"] = value
        gone = [name for name in changed if name not in tensors or tensors[name] is not model.state_dict()[name]]
        touched = [name for name in gone if name not in tensors or tensors[name].shape != model.state_dict()[name].shape
                   or tensors[name].dtype != torch.float32]  # fmt: skip
        rewritten_tensors(path / "model.safetensors", tensors)
        try:
            fastdiff.load(path)
            yield f"try {attempt.number}: loaded without {touched}"
        except fastdiff.FastdiffError as error:
            silent = [name for name in touched if name not in str(error)]
            yield f"try {attempt.number}: {silent} not named in {error}" if silent else None


@fault(
    "mutated metrics", "faults 2.2", tries=200, quick=20,
    done="metrics.jsonl of a run is mutated or cut, and the run is resumed",
    must_hold="the run resumes, and every line that follows is whole",
)  # fmt: skip
def mutated_metrics(tries: Tries):
    rows = b"".join(json.dumps({"event": "train", "step": step, "loss": 1.5}).encode() + b"\n" for step in range(9))
    for attempt in tries:
        path, wrong = attempt.folder / "metrics.jsonl", []
        path.write_bytes(mutated(rows, attempt.random))
        with only_errors_of_users(attempt, "metrics.jsonl", wrong):
            truncate_metrics(path, 5, finished=False)
            kept = whole_lines(path)
            if any(row.get("step", 0) > 5 for row in kept):
                wrong.append(f"try {attempt.number}: kept {kept}")
        yield "; ".join(wrong) or None
