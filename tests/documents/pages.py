"""The examples of README.md and of the site's pages, in the order in which a reader meets them.

An example is a block of Python, or one command of a shell: a line of a block ```sh or ```console, or a line of an
indented block that begins with one of `PROGRAMS`.
"""

import re
import shlex
from dataclasses import dataclass

from sources import ROOT

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
PROGRAMS = ("fastdiff", "hf", "make", "nohup", "pip", "pre-commit", "pytest", "python", "python3", "torchrun")
COMMAND = re.compile(rf"^ *(?:\$ +)?((?:\w+=\S+ +)*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})\b.*)$")
SHELLS = ("sh", "bash", "shell", "console")


@dataclass(frozen=True)
class Example:
    """A block of Python or a command, and where it stands."""

    page: str
    line: int
    language: str  # "python" or "shell"
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text if self.language == 'shell' else 'a block of Python'}"


def examples(page: str, text: str | None = None) -> list[Example]:
    """Return the examples of a page, by default of the file of that name."""
    lines = ((ROOT / page).read_text() if text is None else text).splitlines()
    found, block, fence, start, in_code = [], [], None, 0, True
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if fence == "python":
                found.append(Example(page, start, "python", "\n".join(block) + "\n"))
            fence, block, start = (line[3:].split()[0] if line[3:] else "") if fence is None else None, [], number + 1
        elif fence == "python":
            block.append(line)
        elif fence is None or fence in SHELLS:
            in_code = fence is not None or (line.startswith("    ") and in_code)
            command = COMMAND.match(line) if in_code else None
            if command is not None:
                found.append(Example(page, number, "shell", command[1].strip()))
            in_code = in_code or not line.strip()  # an indented block begins after an empty line
    assert fence is None, f"{page}:{start}: a block that does not end"
    return found


def inline_commands(page: str) -> list[Example]:
    """Return the commands of fastdiff with a flag that stand inside a sentence, in backticks; … stands for anything."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    found = [" ".join(words.split()) for words in re.findall(r"(?<!`)`(fastdiff [^`]+ -[^`]+)`(?!`)", text)]
    return [Example(page, 0, "shell", command) for command in found if "…" not in command and "..." not in command]


def arguments(command: str) -> list[str] | None:
    """Return the arguments of a command of fastdiff, also of one that torchrun or nohup starts; None for another."""
    words = shlex.split(command, comments=True)
    for operator in (">", "2>&1", "&", "|"):
        words = words[: words.index(operator)] if operator in words else words
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
        words = words[1:] if words[0] == "--" else words
    if words[0] == "nohup":
        words = words[1:]
    if words[:3] == ["python", "-m", "fastdiff"]:
        words = words[2:]
    return words[1:] if words[0] == "fastdiff" else None
