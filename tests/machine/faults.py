"""What the machine raises. Every message names the kernel, the instruction, and a program and thread where it fails."""


class MachineError(Exception):
    """A compiled kernel did what it must not do, or what the machine does not know."""


class SyntaxFault(MachineError):
    """PTX that the parser does not understand, or a reference to a name that is not declared."""


class UnknownInstruction(MachineError):
    """An opcode, modifier, operand or special register that the machine does not execute. Nothing is skipped."""


class BadLaunch(MachineError):
    """Arguments or a grid that do not fit the kernel."""


class OutOfBounds(MachineError):
    """An access outside the arguments of the launch, or outside the shared memory of the block."""


class Misaligned(MachineError):
    """An access at an address that is not a multiple of its width."""


class Race(MachineError):
    """Two threads access a word of shared memory without a barrier in between, and one of them writes."""


class Uninitialised(MachineError):
    """An address, a branch or a result depends on a register or a shared word that was never written."""


class BarrierFault(MachineError):
    """A barrier, or an exchange within a warp, that not all of its threads reach."""


class RunawayKernel(MachineError):
    """A kernel that leaves its program, or does not end."""
