"""The project's sources as syntax trees, for the tests that look at the code itself."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = {"fastdiff": ROOT, "fastdiff_kernels": ROOT / "kernels"}


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def files(*folders: str) -> list[Path]:
    """Return the Python files below folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file: the tests that look at all of them share what takes long."""
    return tuple(ast.walk(tree(path)))


def nodes(*folders: str, having: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of the files below folders, with the name of its file.

    Files whose text the regular expression ``having`` does not match are left out before they are parsed.
    """
    for path in files(*folders):
        if re.search(having, path.read_text()):
            name = str(path.relative_to(ROOT))
            yield from ((name, node) for node in nodes_of(path))


def functions(*folders: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of the files below folders, with the name of its file; expressions hold none."""

    def below(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.expr, ast.expr_context)):
                yield child
                yield from below(child)

    for path in files(*folders):
        for node in below(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield str(path.relative_to(ROOT)), node


def at(file: str, node: ast.AST) -> str:
    """Return where a node stands, for messages."""
    return f"{file}:{getattr(node, 'lineno', 0)}"


def modules(package: str) -> dict[str, Path]:
    """Return the files of a package by the full name of their module."""
    root = SOURCE_ROOTS[package]
    found = {}
    for path in files(str((root / package).relative_to(ROOT))):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def all_modules() -> dict[str, Path]:
    return {name: path for package in SOURCE_ROOTS for name, path in modules(package).items()}


def imports(name: str, when_imported: bool = False) -> set[str]:
    """Return the project's modules that a module imports, by full name.

    With ``when_imported`` only those that are imported with it: not inside functions, not for type checking.
    """
    path = all_modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _at_import(tree(path)) if when_imported else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: package.count(".") + 2 - node.level]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            # `from .package import module` imports the module, `from .module import name` the module before it
            found |= {full if (full := f"{source}.{alias.name}") in all_modules() else source for alias in node.names}
    return found & set(all_modules())


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        if not typing and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _at_import(child)
