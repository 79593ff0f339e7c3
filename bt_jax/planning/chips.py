"""TPU chips and the slice shapes they come in: published figures, for planning runs without a TPU."""

import dataclasses
import math
import re

from bt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
      compiler_name: libtpu's name for it in a topology's name.
      device_kind: JAX's name for its devices.
      memory: bytes of HBM.
      bandwidth: bytes/s between HBM and the chip.
      flops: FLOP/s of bfloat16 products with float32 accumulation.
      links: bytes/s sent over all links to other chips of a slice, half of the bidirectional figure.
      axes: number of axes of a slice's torus.
      devices: number of JAX devices per chip.
      largest: shape of the largest slice.
      source: where the figures are published.
    """

    compiler_name: str
    device_kind: str
    memory: int
    bandwidth: float
    flops: float
    links: float
    axes: int
    devices: int
    largest: tuple[int, ...]
    source: str


_GIB = 2**30
CHIPS = {
    "v4": Chip("v4", "TPU v4", 32 * _GIB, 1.2e12, 275e12, 300e9, 3, 1, (16, 16, 16),
               "cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023, arXiv 2304.01433, six of 50 GB/s"),
    "v5e": Chip("v5e", "TPU v5 lite", 16 * _GIB, 819e9, 197e12, 200e9, 2, 1, (16, 16), "cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip("v5p", "TPU v5", 95 * _GIB, 2765e9, 459e12, 600e9, 3, 1, (16, 16, 24), "cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip("v6e", "TPU v6 lite", 32 * _GIB, 1638e9, 918e12, 400e9, 2, 1, (16, 16), "cloud.google.com/tpu/docs/v6e"),
    "7x": Chip("tpu7x", "TPU7x", 192 * _GIB, 7380e9, 2307e12, 600e9, 3, 2, (16, 24, 24), "cloud.google.com/tpu/docs/tpu7x"),
}  # fmt: skip

# Latency of a message to the next chip: about a microsecond (Austin et al. 2025, How to Scale Your Model, chapter 3,
# jax-ml.github.io/scaling-book/sharding).
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of a pod: a chip, and the number of chips along each axis.

    Attributes:
      name: such as v5e:4x4.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def all_reduce_seconds(self) -> float:
        """The latency of an all-reduce over the slice: once out and back along the ring of each axis."""
        return HOP_SECONDS * sum(side for side in self.shape if side > 1)


def parse_topology(name: str) -> Topology:
    """The `Topology` of a name such as `v5e:4x4`.

    Raises:
      UserError: an unknown chip, or a shape that it does not come in (known ones are listed).
    """
    generation, _, sides = name.partition(":")
    chip = CHIPS.get(generation.removeprefix("tpu"))
    if chip is None or not re.fullmatch(r"\d+(x\d+)*", sides):
        raise UserError(f"the topology {name!r} is not known; it must be a chip and a shape, such as {known()}.")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != chip.axes:
        raise UserError(
            f"the topology {name!r} has {len(shape)} axes, but slices of {generation} have {chip.axes}: {known()}."
        )
    if 0 in shape or any(side > most for side, most in zip(sorted(shape), sorted(chip.largest), strict=True)):
        largest = "x".join(map(str, chip.largest))
        raise UserError(f"the topology {name!r} does not exist: slices of {generation} have from 1 chip to {largest}.")
    return Topology(name, chip, shape)


def known() -> str:
    """Examples for all chips, for error messages."""
    examples = {2: "4x4 or 16x16", 3: "2x2x1 or 4x4x8"}
    return "; ".join(f"{name}:{examples[chip.axes]}" for name, chip in CHIPS.items())
