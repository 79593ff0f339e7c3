"""A compiled step on a TPU slice: its memory, time and the duration of a run, as a table and as JSON."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from bt_jax.planning.chips import Topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of the compiled step, per device unless stated otherwise.

    Attributes:
      parameters: of the whole network.
      batch_size: over all devices.
      views: per image.
      seconds_to_compile: on this machine.
      arguments, temporaries, results, program: bytes of HBM for state and batch, for intermediate values, for results that
        do not replace an argument, and for the code.
      flops: per step.
      loss_flops: of the loss's products, which `flops` includes once and which take six passes (precision "highest").
      traffic: bytes to and from HBM per step (bt_jax/planning/compiled.py).
      collectives: by kind, their count, the bytes of their results and the bytes that the device sends.
    """

    topology: Topology
    mesh: dict[str, int]
    parameters: int
    batch_size: int
    views: int
    seconds_to_compile: float
    arguments: int
    temporaries: int
    results: int
    program: int
    flops: float
    loss_flops: float
    traffic: int
    collectives: dict[str, dict[str, float]]

    @property
    def memory(self) -> int:
        """Bytes of HBM that the step needs."""
        return self.arguments + self.temporaries + self.results + self.program

    @property
    def capacity(self) -> int:
        """Bytes of HBM of a device."""
        return self.topology.chip.memory // self.topology.chip.devices

    @property
    def times(self) -> dict[str, float]:
        """Lower bounds, in seconds per step, for products, memory traffic and communication.

        Communication uses all links of a chip at once, and adds the slice's latency for each collective.
        """
        chip = self.topology.chip
        sent = sum(kind["sent"] for kind in self.collectives.values())
        waits = sum(kind["count"] for kind in self.collectives.values()) * self.topology.all_reduce_seconds
        return {
            "products": (self.flops + 5 * self.loss_flops) / chip.flops * chip.devices,
            "memory": self.traffic / chip.bandwidth * chip.devices,
            "links": sent / chip.links * chip.devices + waits,
        }


def search(plan_at: Callable[[int], Plan | str], start: int, most: int, close: float = 0.03) -> int:
    """The largest number of images per device whose step fits, to within 3 %; 0 if not even one does.

    Memory grows with the number of images, but not quite linearly, as the compiler saves memory when it must. The first
    guesses extrapolate linearly; later ones halve the interval.

    Args:
      plan_at: compiles the step for a number of images per device.
      start: the first number to try.
      most: the largest number to try.
    """
    fits: dict[int, Plan] = {}
    low, high, n = 0, most + 1, max(1, min(start, most))  # low fits or is 0, high does not fit
    while True:
        plan = plan_at(n)
        if isinstance(plan, str) or plan.memory > plan.capacity:
            high = n
        else:
            fits[n], low = plan, n
        if high - low <= max(1, close * low):
            return low
        n = _guess(fits, low, high)


def _guess(fits: dict[int, Plan], low: int, high: int) -> int:
    """The next number to try between low and high: extrapolates linearly twice, then takes the middle."""
    if not low:
        return max(1, high // 2)
    plan = fits[low]
    if len(fits) == 1:
        fixed, per_image = plan.arguments, plan.temporaries / low
    else:
        other = min((n for n in fits if n != low), key=lambda n: abs(n - low))
        per_image = (plan.memory - fits[other].memory) / (low - other)
        fixed = plan.memory - per_image * low
    along = int((plan.capacity - fixed) / per_image) if per_image > 0 else 0
    if len(fits) <= 2 and low < along < min(high, 4 * low):
        return along
    return 4 * low if 4 * low < high else (low + high) // 2


def trial_line(batch_size: int, plan: Plan | str, topology: Topology) -> str:
    if isinstance(plan, str):
        return f"batch {batch_size}: does not fit ({plan})"
    verdict = "fits" if plan.memory <= plan.capacity else "does not fit"
    return f"batch {batch_size}: {verdict}, {_gb(plan.memory)} of {_gb(plan.capacity)} GB; compiled in {plan.seconds_to_compile:.0f} s"


def as_json(plan: Plan, images: int, epochs: int) -> dict[str, Any]:
    """All figures of a plan, and those that follow from them."""
    times = plan.times
    numbers = {
        name: value for name, value in dataclasses.asdict(plan).items() if name not in ("topology", "batch_size")
    }
    bound, after_another = max(times.values()), sum(times.values())
    return {
        "chips": plan.topology.chips,
        "fits": plan.memory <= plan.capacity,
        **numbers,
        "seconds": {**times, "bound": bound, "one_after_another": after_another},
        "images_per_second": plan.batch_size / bound,
        "days": _days(bound, plan, images, epochs),
    }


def _days(seconds: float, plan: Plan, images: int, epochs: int) -> float:
    return seconds * (images // plan.batch_size) * epochs / 86400


def table(plan: Plan, images: int, epochs: int) -> str:
    """A plan as text for people."""
    topology, times = plan.topology, plan.times
    devices = math.prod(plan.mesh.values())
    each = "" if topology.chip.devices == 1 else f", {topology.chip.devices} devices each"
    bound, after_another = max(times.values()), sum(times.values())
    limit = {"products": "the products", "memory": "memory", "links": "the links"}[
        max(times, key=lambda part: times[part])
    ]
    fits = "fits" if plan.memory <= plan.capacity else "DOES NOT FIT"
    lines = {
        "chips": f"{topology.chips} × {topology.name.partition(':')[0]}{each}; mesh "
        + " × ".join(f"{name} {size}" for name, size in plan.mesh.items()),
        "batch": f"{plan.batch_size}, {plan.batch_size / devices:g} images per device, {plan.views} view{'s' * (plan.views > 1)} each",
        "compiled": f"in {plan.seconds_to_compile:.0f} s on this machine; {plan.parameters / 1e6:.1f} M parameters",
        "memory": f"{_gb(plan.memory)} of {_gb(plan.capacity)} GB per device: {fits}\n"
        f"arguments {_gb(plan.arguments)}, temporaries {_gb(plan.temporaries)}, results {_gb(plan.results)}, "
        f"program {_gb(plan.program)}",
        "work": f"{plan.flops / 1e12:.3g} TFLOP per step and device (the loss, in float32: {plan.loss_flops / 1e12:.2g}); "
        f"{_gb(plan.traffic)} GB to and from HBM",
        "traffic": "\n".join(
            f"{kind:<18} {sum_['count']:4.0f} ×, results {sum_['bytes'] / 1e6:8.1f} MB, sent {sum_['sent'] / 1e6:8.1f} MB"
            for kind, sum_ in plan.collectives.items()
        )
        or "none",
        "a step": f"products {_ms(times['products'])}, memory {_ms(times['memory'])}, links {_ms(times['links'])}\n"
        f"at least {_ms(bound)}, limited by {limit}; {_ms(after_another)} without overlap",
        "speed": f"at most {plan.batch_size / bound:,.0f} images/s; {plan.batch_size / after_another:,.0f} without overlap",
        "a run": f"{epochs} epochs of {images:,} images: at least {_days(bound, plan, images, epochs):.2g} days, "
        f"{_days(after_another, plan, images, epochs):.2g} without overlap",
        "figures": f"{topology.chip.source}",
    }
    return "\n".join(f"{title:<9} " + text.replace("\n", "\n" + " " * 10) for title, text in lines.items())


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}" if count < 99.95e9 else f"{count / 1e9:.0f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
