"""Reads the text of PTX: one kernel with its parameters, registers, shared memory, labels and instructions.

Only the structure is read here; what an instruction means is decided by the families of instructions (`steps`).
"""

import re
from dataclasses import dataclass, field

from machine.faults import SyntaxFault

WIDTHS = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4,
          "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "f16x2": 4, "bf16x2": 4, "f32x2": 8}  # fmt: skip
ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)(?:\s+\.ptr)?(?:\s+\.\w+)*?(?:\s+\.align\s+\d+)?\s+([\w$]+)$")
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
LABEL = re.compile(r"([\w$]+):")
INSTRUCTION = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
SKIPPED = re.compile(r"\.(?:loc|file|pragma|section|maxntid|minnctapersm)\b[^\n;]*;?")


@dataclass(frozen=True)
class Instruction:
    """One statement: ``@%p1 ld.global.v2.b32 {%r1, %r2}, [%rd1+8];``."""

    text: str
    line: int
    opcode: str  # with its modifiers
    operands: tuple[str, ...]
    guard: str | None = None
    negated: bool = False


@dataclass
class Kernel:
    """A parsed kernel."""

    name: str
    parameters: list[tuple[str, str]]  # name and type
    threads: int | None  # of a block, where the text says so
    registers: dict[str, str] = field(default_factory=dict)  # name and type
    shared: dict[str, int] = field(default_factory=dict)  # name and offset of static shared memory
    static_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name and index of the next instruction


def parse(text: str) -> Kernel:
    """Read the kernel in a text of PTX.

    Raises:
        SyntaxFault: the text holds no kernel, or a statement that is not understood.
    """
    text = text.partition("\t.section")[0]  # debug information
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
    entry = ENTRY.search(text)
    if entry is None:
        raise SyntaxFault("the PTX holds no .visible .entry")
    name, parameters, directives = entry.groups()
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", directives)
    count = None
    if threads is not None:
        count = int(threads[1]) * int(threads[2] or 1) * int(threads[3] or 1)
    kernel = Kernel(name, _parameters(parameters), count)
    _shared(kernel, text[: entry.start()])
    _Body(kernel, text, entry.end()).read()
    return kernel


def _parameters(text: str) -> list[tuple[str, str]]:
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = PARAMETER.match(part)
        if match is None:
            raise SyntaxFault(f"a parameter that is not understood: {part}")
        found.append((match[2], match[1]))
    return found


def _shared(kernel: Kernel, text: str) -> None:
    """Place static shared memory from offset 0 on, and dynamic shared memory (without a size) behind it."""
    dynamic = []
    for align, name, size in SHARED.findall(text):
        if not size:
            dynamic.append(name)
            continue
        kernel.static_bytes = -(-kernel.static_bytes // int(align)) * int(align)
        kernel.shared[name] = kernel.static_bytes
        kernel.static_bytes += int(size)
    kernel.static_bytes = -(-kernel.static_bytes // 16) * 16
    kernel.shared |= dict.fromkeys(dynamic, kernel.static_bytes)


class _Body:
    """Reads statements up to the brace that closes the kernel. Registers are local to their braces."""

    def __init__(self, kernel: Kernel, text: str, start: int) -> None:
        self.kernel, self.text, self.at = kernel, text, start
        self.scopes: list[dict[str, str]] = [{}]  # name in the text and name in the kernel
        self.line = text.count("\n", 0, start) + 1

    def read(self) -> None:
        while True:
            self._skip(re.compile(r"\s*"))
            if self.at >= len(self.text):
                raise SyntaxFault(f"{self.kernel.name}: the kernel is not closed by a brace")
            head = self.text[self.at]
            label = LABEL.match(self.text, self.at)
            if head == "{":
                self.scopes.append({})
                self.at += 1
            elif head == "}":
                self.scopes.pop()
                self.at += 1
                if not self.scopes:
                    return
            elif label is not None and not self.text.startswith("::", label.end() - 1):
                self.kernel.labels[label[1]] = len(self.kernel.instructions)
                self.at = label.end()
            elif not self._skip(SKIPPED):
                self._statement()

    def _skip(self, pattern: re.Pattern) -> bool:
        match = pattern.match(self.text, self.at)
        if match is None:
            return False
        self.line += match[0].count("\n")
        self.at = match.end()
        return True

    def _statement(self) -> None:
        end = self.text.find(";", self.at)
        if end < 0:
            raise SyntaxFault(f"{self.kernel.name}, line {self.line}: a statement without a semicolon")
        statement, line = self.text[self.at : end].strip(), self.line
        self.line += self.text.count("\n", self.at, end)
        self.at = end + 1
        if statement.startswith(".reg"):
            self._declare(statement)
        elif match := SHARED.match(statement):
            _shared(self.kernel, match[0])
        else:
            self._instruction(statement, line)

    def _declare(self, statement: str) -> None:
        match = REGISTERS.match(statement)
        if match is None:
            raise SyntaxFault(f"{self.kernel.name}, line {self.line}: {statement}")
        for name in (part.strip() for part in match[2].split(",")):
            counted = re.fullmatch(r"([%\w$]+)<(\d+)>", name)
            names = [f"{counted[1]}{k}" for k in range(int(counted[2]))] if counted else [name]
            for declared in names:
                unique = declared if declared not in self.kernel.registers else f"{declared}@{self.at}"
                self.scopes[-1][declared] = unique
                self.kernel.registers[unique] = match[1]

    def _instruction(self, statement: str, line: int) -> None:
        match = INSTRUCTION.fullmatch(statement)
        if match is None:
            raise SyntaxFault(f"{self.kernel.name}, line {line}: {statement}")
        negated, guard, opcode, rest = match.groups()
        operands = tuple(self._resolved(part) for part in split_operands(rest))
        text = " ".join(statement.split()) + ";"
        guard = None if guard is None else self._resolved(guard)
        self.kernel.instructions.append(Instruction(text, line, opcode, operands, guard, bool(negated)))

    def _resolved(self, operand: str) -> str:
        """The operand with the kernel's names for registers of inner scopes."""
        if len(self.scopes) == 1:
            return operand

        def name(match: re.Match) -> str:
            return next((scope[match[0]] for scope in reversed(self.scopes) if match[0] in scope), match[0])

        return re.sub(r"[%A-Za-z_$][\w$]*", name, operand)


def split_operands(text: str) -> list[str]:
    """Split at the commas outside of braces and brackets, without white space."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        elif not char.isspace():
            current += char
    return [*parts, current] if current else parts
