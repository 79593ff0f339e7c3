"""What a compiled program costs, read from its text: the data that devices exchange, and the memory traffic.

`jax.stages.Compiled` reports FLOPs and memory use itself, but nothing about collectives, and memory traffic only as a sum
that includes what stays on the chip.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

Shape = tuple[str, tuple[int, ...]]  # ("f32", (256, 8192))

_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][a-z-]*)\((.*)")
# Instructions that only name existing data; they move nothing.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which devices exchange data.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results on one device.
      group: the number of devices that take part in it together.
      source: the JAX operation that it comes from, such as jit(train_step)/jvp(loss)/shard_map/all_to_all.
    """

    kind: str
    shapes: tuple[Shape, ...]
    group: int
    source: str

    @property
    def bytes(self) -> int:
        """Size of its results on one device."""
        return sum(size_in_bytes(shape) for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that each device sends, by the algorithms that send least (rings, or direct messages)."""
        others = self.group - 1
        factor = {
            "all-reduce": 2 * others / self.group,  # a reduce-scatter and an all-gather
            "all-gather": others / self.group,
            "reduce-scatter": others,  # of a result that is one part of the operand
            "all-to-all": others / self.group,
            "collective-permute": 1,
        }[self.kind]
        return self.bytes * factor


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a program.

    Args:
      text: of the compiled program (`jax.stages.Compiled.as_text()`), after partitioning. A loop's body counts once.
      devices: the number of devices that the program is for.
    """
    found, computation = [], ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line
        elif match := _COLLECTIVE.search(line):
            shapes, kind, start = tuple(_shapes(match[1])), match[2], match[3]
            if start and kind == "all-gather":  # (operands, results)
                shapes = shapes[len(shapes) // 2 :]
            elif start and kind == "collective-permute":  # the same, and two semaphores
                shapes = shapes[1:2]
            group = _group(line, devices)
            if computation.startswith("%all-reduce-scatter"):  # a sum of which each device keeps a part
                kind = "reduce-scatter"
                shapes = tuple((dtype, (int(np.prod(dims)) // group,)) for dtype, dims in shapes)
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(kind, shapes, group, source[1] if source else ""))
    return found


def size_in_bytes(shape: Shape) -> int:
    dtype, dims = shape
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return -(-bits * int(np.prod(dims, dtype=np.int64)) // 8)


@dataclasses.dataclass(frozen=True)
class Movement:
    """What one instruction reads from and writes to main memory.

    Attributes:
      bytes: both together.
      operation: such as fusion, copy or all-reduce.
      convolution: whether it is a fusion around a convolution or a product, which TPU programs write as convolutions too.
      source: the JAX operation that it comes from, "" if none is named.
    """

    bytes: int
    operation: str
    convolution: bool
    source: str


def memory_traffic(text: str) -> int:
    """Bytes that a device reads from and writes to main memory in one run of the program: the sum of `movements`."""
    return sum(movement.bytes for movement in movements(text))


def movements(text: str) -> list[Movement]:
    """The traffic of each instruction between a device and its main memory.

    Counts the operands and results of each instruction in the program's main computation (a fusion is one instruction),
    except those that the compiler keeps in the chip's own fast memory, memory spaces S(1) and up. An operand counts in full
    even if an instruction uses only a part of it, or if the compiler loads it once for several instructions.
    """
    start = text.index("\nENTRY")
    around_convolutions = _with_convolutions(text[:start])
    in_memory: dict[str, int] = {}  # bytes in main memory of each instruction's results
    found = []
    for line in text[start:].splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, result, operation, rest = match.groups()
        in_memory[name] = sum(size_in_bytes(shape) for shape in _shapes(result, main_memory=True))
        if operation in _FREE or operation.endswith("-done"):
            continue
        if operation == "slice-start":  # ((the whole), the part, …)
            moved = size_in_bytes(list(_shapes(result))[1])
        else:
            moved = in_memory[name]
            if operation != "copy-start":  # (the copy, the original, …): its results include both
                moved += sum(in_memory.get(operand, 0) for operand in _operands(rest))
        called, source = re.search(r"calls=(%[\w.-]+)", line), re.search(r'op_name="([^"]*)"', line)
        convolution = called is not None and called[1] in around_convolutions
        found.append(Movement(moved, operation, convolution, source[1] if source else ""))
    return found


def _with_convolutions(text: str) -> set[str]:
    """The names of the computations that hold a convolution."""
    names, computation = set(), ""
    for line in text.splitlines():
        if line.startswith("%"):
            computation = line.split()[0]
        elif " convolution(" in line:
            names.add(computation)
    return names


def _shapes(text: str, main_memory: bool = False) -> Iterator[Shape]:
    """The shapes in the type of an instruction's results; with `main_memory`, only those in main memory."""
    for dtype, dims, layout in _SHAPE.findall(text):
        if not (main_memory and re.search(r"S\([1-9]", layout)):
            yield dtype, tuple(int(size) for size in dims.split(",") if size)


def _operands(rest: str) -> list[str]:
    """The operands in an instruction's parentheses; `rest` is the text after the opening one."""
    return re.findall(r"%[\w.-]+", rest.split(")", 1)[0])


def _group(line: str, devices: int) -> int:
    """The size of an instruction's replica groups, which are written in one of three ways or not at all."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", line):
        return max(1, len(match[1].split(",")))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", match[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'([^']*)'", match[2])]))
    return devices
