"""What a compiled program does, read from its text: the data that its devices exchange, and its traffic with memory.

`jax.stages.Compiled` counts FLOPs and allotted memory itself, but of collectives it tells nothing, and of memory traffic
only a sum in which what stays on the chip counts as well.
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
# Names for what is already there: they move nothing.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which devices exchange data.

    Attributes:
      kind: one of `KINDS`.
      shapes: its results on one device.
      group: how many devices take part in it together.
      source: the JAX operation that it comes from, such as jit(train_step)/jvp(loss)/shard_map/all_to_all.
    """

    kind: str
    shapes: tuple[Shape, ...]
    group: int
    source: str

    @property
    def bytes(self) -> int:
        """Of its results on one device."""
        return sum(size_in_bytes(shape) for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that leave each device, by the algorithms that send least (rings; direct where each has its own)."""
        others = self.group - 1
        factor = {
            "all-reduce": 2 * others / self.group,  # a reduce-scatter and an all-gather
            "all-gather": others / self.group,
            "reduce-scatter": others,  # of a result that is one part of what went in
            "all-to-all": others / self.group,
            "collective-permute": 1,
        }[self.kind]
        return self.bytes * factor


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a program.

    Args:
      text: of the compiled program (`jax.stages.Compiled.as_text()`), as it stands after partitioning. What stands in a
        loop counts once.
      devices: how many the program is for.
    """
    found, computation = [], ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line
        elif match := _COLLECTIVE.search(line):
            shapes, kind, start = tuple(_shapes(match[1])), match[2], match[3]
            if start and kind == "all-gather":  # (what goes in, what comes out)
                shapes = shapes[len(shapes) // 2 :]
            elif start and kind == "collective-permute":  # the same, and two semaphores
                shapes = shapes[1:2]
            group = _group(line, devices)
            if computation.startswith("%all-reduce-scatter"):  # a sum of which each device keeps its part
                kind = "reduce-scatter"
                shapes = tuple((dtype, (int(np.prod(dims)) // group,)) for dtype, dims in shapes)
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(kind, shapes, group, source[1] if source else ""))
    return found


def size_in_bytes(shape: Shape) -> int:
    dtype, dims = shape
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    return -(-bits * int(np.prod(dims, dtype=np.int64)) // 8)


def memory_traffic(text: str) -> int:
    """Bytes that a device reads from and writes to its main memory in a run of the program.

    The operands and results of each instruction of the program's main computation (a fusion is one), but for those that
    the compiler keeps in the chip's own fast memory, memory space S(1) and up. An operand of which an instruction uses a
    part counts whole, and so does one that the compiler brings on the chip once for several.
    """
    entry = text[text.index("\nENTRY") :]
    here: dict[str, int] = {}  # bytes in main memory of each instruction's results
    total = 0
    for line in entry.splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, result, operation, rest = match.groups()
        here[name] = sum(size_in_bytes(shape) for shape in _shapes(result, main_memory=True))
        if operation in _FREE or operation.endswith("-done"):
            continue
        if operation == "slice-start":  # ((the whole), the part, …)
            total += size_in_bytes(list(_shapes(result))[1])
            continue
        total += here[name]
        if operation != "copy-start":  # (the copy, the original, …): both stand among its results
            total += sum(here.get(operand, 0) for operand in _operands(rest))
    return total


def _shapes(text: str, main_memory: bool = False) -> Iterator[Shape]:
    """The shapes in the type of an instruction's results; with `main_memory` only of what lies there."""
    for dtype, dims, layout in _SHAPE.findall(text):
        if not (main_memory and re.search(r"S\([1-9]", layout)):
            yield dtype, tuple(int(size) for size in dims.split(",") if size)


def _operands(rest: str) -> list[str]:
    """The names in an instruction's parentheses, of which `rest` is what follows the first."""
    return re.findall(r"%[\w.-]+", rest.split(")", 1)[0])


def _group(line: str, devices: int) -> int:
    """How many devices each of an instruction's replica groups has; there are three ways to write them, and none."""
    if match := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", line):
        return max(1, len(match[1].split(",")))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", match[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'([^']*)'", match[2])]))
    return devices
