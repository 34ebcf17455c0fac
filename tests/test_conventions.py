"""Conventions of the code, counted over its syntax trees: models carry behaviour, few `Any`, names that are gone."""

import ast
import inspect
import re
from collections import Counter

from sources import at, nodes

import fastdiff

MAX_MODEL_CHECKS, MAX_ANY, MAX_SAMPLE_PARAMETERS = 2, 60, 14
CODE = ("fastdiff", "kernels", "benchmarks")
OLD_CODE = "benchmarks/number_cases/old_api.py"  # calls the version before these names

# Words of earlier versions, which were not the field's: no identifier is one of them or has one as a part.
GONE = {"walk", "intervals", "fraction", "by_mean", "with_x", "with_eps", "refuse", "told", "centre", "goal", "arm"}
GONE_CLASSES = re.compile("NumberEmbedding|Refiner|Refined|Restorer|^Arm$|^Outcome$|^Pass$")
# A file whose text has none of them has no such name
GONE_WORDS = f"(?i:{'|'.join(GONE)})|" + GONE_CLASSES.pattern.replace("^", r"\b").replace("$", r"\b")
# Words with another meaning elsewhere, which are no parameters and no fields of configurations.
GONE_PARAMETERS = {"head", "grid", "given", "picture"}


def test_callers_do_not_ask_what_a_model_is():
    classes = {node.name for _, node in nodes("fastdiff/models") if isinstance(node, ast.ClassDef)}
    assert {"Model", "VDM", "DiffuseVAE"} <= classes
    found = [
        at(file, node)
        for file, node in nodes("fastdiff", having=r"isinstance|issubclass|type\(|\bcase\b")
        if not file.startswith("fastdiff/models/") and asks_for_a_class(node, classes)
    ]
    assert len(found) <= MAX_MODEL_CHECKS, found


def asks_for_a_class(node: ast.AST, classes: set[str]) -> bool:
    """Whether a node is isinstance(x, C), issubclass(x, C), type(x) is C or a pattern C(), for one of the classes."""
    if isinstance(node, ast.Call):
        asks = isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass")
        return asks and any(named(part) & classes for part in node.args[1:])
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        types = any(isinstance(part, ast.Call) and named(part.func) == {"type"} for part in parts)
        return types and any(named(part) & classes for part in parts)
    return isinstance(node, ast.MatchClass) and bool(named(node.cls) & classes)


def named(node: ast.AST) -> set[str]:
    """All names and attributes inside a node."""
    parts = list(ast.walk(node))
    return {part.id for part in parts if isinstance(part, ast.Name)} | {
        part.attr for part in parts if isinstance(part, ast.Attribute)
    }


def test_the_counters_count():
    classes = {"VDM"}
    for code in ("isinstance(m, (VDM, X))", "isinstance(m, models.VDM)", "type(m) is VDM", "type(m) in (VDM, X)"):
        assert asks_for_a_class(ast.parse(code, mode="eval").body, classes), code
    for code in ("isinstance(m, X)", "m.kind is VDM", "isinstance(VDM, type)"):
        assert not asks_for_a_class(ast.parse(code, mode="eval").body, classes), code


def test_few_values_have_any_type():
    """Counted by files in the message."""
    found: Counter[str] = Counter()
    for file, node in nodes("fastdiff", having=r"\bAny\b"):
        found[file] += isinstance(node, ast.Name) and node.id == "Any"
        for hint in annotations(node):
            if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
                found[file] += len(re.findall(r"\bAny\b", hint.value))
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            assert name != "model" or ast.unparse(node.annotation).strip("'") != "Any", at(file, node)
    assert found.total() <= MAX_ANY, +found


def annotations(node: ast.AST) -> list[ast.expr]:
    hints = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [hint for hint in hints if isinstance(hint, ast.expr)]


def identifiers(node: ast.AST) -> list[str]:
    """The names that a node defines or uses."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.keyword(arg=str(name)):
            return [name]
    return []


def is_gone(identifier: str) -> bool:
    words = f"_{identifier.lower().strip('_')}_"
    return any(f"_{word}_" in words for word in GONE) or GONE_CLASSES.search(identifier) is not None


def test_names_that_are_gone_do_not_come_back():
    found = []
    for file, node in nodes(*CODE, having=GONE_WORDS):
        if file == OLD_CODE:
            continue
        outside = isinstance(node, ast.Attribute) and ast.unparse(node) in ("ast.walk", "os.walk")
        found += [f"{at(file, node)} {name}" for name in identifiers(node) if is_gone(name) and not outside]
    assert not found


def test_parameters_and_fields_have_the_words_of_the_field():
    found = []
    for file, node in nodes(*CODE, having="|".join(GONE_PARAMETERS)):
        names: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            names = [part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)]
            launches = isinstance(node, ast.FunctionDef) and node.name == "__getitem__"  # kernel[grid](...)
            names = [name for name in names if not (launches and name == "grid")]
        if isinstance(node, ast.ClassDef):
            names = [ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)]
        found += [f"{at(file, node)} {name}" for name in names if name in GONE_PARAMETERS and file != OLD_CODE]
    assert not found


def test_sample_has_few_parameters():
    parameters = inspect.signature(fastdiff.sample).parameters.values()
    assert len(parameters) <= MAX_SAMPLE_PARAMETERS
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


def test_constants_of_kernels_are_expressions():
    """A device function returns a constant in Triton 3.7 and a tensor in 3.6, from which no constant can be made."""
    annotated = [
        (at(file, node), node.value)
        for file, node in nodes("kernels", having=": constexpr = ")
        if isinstance(node, ast.AnnAssign) and "constexpr" in named(node.annotation)
    ]
    assert annotated
    assert not [where for where, value in annotated if isinstance(value, ast.Call)]
