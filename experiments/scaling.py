"""Step time by number of chips, on paper: extends a few pod plans to all sizes between and beyond them.

    python experiments/scaling.py experiments/results/pod_plans/*v4*.json

The plans (bt_jax/tasks/pod_plan.py) are of one config and one kind of chip, with different numbers of images per device. A
device's FLOPs and memory traffic are interpolated linearly between the two plans nearest in images per device; what it sends
follows from the step:

    gradients     2 · G · (P-1)/P bytes, with G from the plans
    the loss      8 · N·D/P bytes for its all-to-alls in bfloat16, 2 · 8N² · (P-1)/P for its Gram matrices; or
                  2 · 4D² · (P-1)/P for C, if form "auto" picks that
    latency       at least 1 µs per chip on each axis of the slice, for each of the plans' collectives

This gives two bounds: all three overlap perfectly, or not at all.
"""

import argparse
import json
import math
import pathlib

import numpy as np

from bt_jax.losses import choose_form
from bt_jax.planning.chips import Topology, parse_topology

PAYS_OFF = 1.3  # twice the chips pay off if they give at least this speed-up


def shape_of(chips: int, axes: int) -> tuple[int, ...]:
    """The most even shape with a power of two of chips."""
    power = round(math.log2(chips))
    return tuple(2 ** ((power + i) // axes) for i in range(axes))


class Model:
    """The step of one config on any number of one kind of chip."""

    def __init__(self, plans: list[dict]):
        self.chip = parse_topology(plans[0]["topology"]).chip
        self.generation = plans[0]["topology"].partition(":")[0]
        config = plans[0]["config"]
        if others := {plan["config"]["method"] for plan in plans} - {"barlow_twins"}:
            raise SystemExit(
                f"error: plans of {', '.join(sorted(others))} are among these; the loss is Barlow Twins' here."
            )
        self.d = config.get("barlow_twins", config["model"])["projector"][-1]  # older plans have it under model
        plans = sorted(plans, key=self._images)
        self.images = np.array([self._images(plan) for plan in plans])
        self.flops = np.array([plan["flops"] - plan["loss_flops"] for plan in plans])
        self.traffic = np.array([plan["traffic"] for plan in plans])
        reduced = [plan["collectives"]["all-reduce"]["bytes"] - 8 * plan["batch_size"] ** 2 for plan in plans]
        self.gradients = float(np.mean(reduced))
        self.count = max(sum(kind["count"] for kind in plan["collectives"].values()) for plan in plans)

    @staticmethod
    def _images(plan: dict) -> float:
        return plan["batch_size"] / math.prod(plan["mesh"].values())

    def _along(self, values: np.ndarray, images: float) -> float:
        """The plans' values for a number of images per device, interpolated from the nearest two."""
        if len(values) == 1:
            return float(values[0] * images / self.images[0])
        i = int(np.clip(np.searchsorted(self.images, images), 1, len(values) - 1))
        slope = (values[i] - values[i - 1]) / (self.images[i] - self.images[i - 1])
        return float(values[i - 1] + slope * (images - self.images[i - 1]))

    def times(self, topology: Topology, n: int) -> dict[str, float]:
        """Seconds per step at batch `n` for products, memory and links."""
        p, chip = topology.devices, self.chip
        if choose_form(n, self.d, p) == "gram":
            loss, summed, exchanged = 8 * n * n * self.d / p, 8 * n * n, 8 * n * self.d / p
        else:
            loss, summed, exchanged = 6 * n * self.d**2 / p, 4 * self.d**2, 0
        sent = 2 * (self.gradients + summed) * (p - 1) / p + exchanged
        return {
            "products": (self._along(self.flops, n / p) + 6 * loss) / chip.flops * chip.devices,
            "memory": self._along(self.traffic, n / p) / chip.bandwidth * chip.devices,
            "links": sent / chip.links * chip.devices + self.count * topology.all_reduce_seconds,
        }


def rows(model: Model, batch_of: dict[int, int]) -> str:
    """The table's rows, one for each number of chips and its batch."""
    lines, before = [], None
    for chips, n in batch_of.items():
        shape = shape_of(chips, model.chip.axes)
        topology = Topology(f"{model.generation}:{'x'.join(map(str, shape))}", model.chip, shape)
        times = model.times(topology, n)
        bound, after_another = max(times.values()), sum(times.values())
        rate = n / after_another
        gain = f"{rate / before:.2f}" if before else ""
        note = " no longer pays off" if before and rate / before < PAYS_OFF else ""
        cells = [f"{1000 * times[part]:.2f}" for part in ("products", "memory", "links")]
        cells += [f"{1000 * bound:.2f} to {1000 * after_another:.2f}", f"{rate:,.0f} to {n / bound:,.0f}", gain + note]
        name = topology.name.partition(":")[2]
        lines.append(f"| {chips} | {name} | {n} | {n / topology.devices:g} | " + " | ".join(cells) + " |")
        before = rate
    return "\n".join(lines)


HEAD = """| chips | shape | batch | images per device | products, ms | memory, ms | links, ms | step, ms | images/s | gain from doubling |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time by number of chips, on paper.")
    parser.add_argument("plans", nargs="+", type=pathlib.Path, help="of one config and one kind of chip")
    parser.add_argument("--batch", type=int, default=2048, help="the fixed batch")
    parser.add_argument("--per-device", type=int, default=32, help="the fixed number of images per device")
    parser.add_argument("--most", type=int, default=1024, help="the largest number of chips")
    arguments = parser.parse_args()
    plans = [json.loads(path.read_text()) for path in arguments.plans]
    model = Model(plans)
    sizes = [2**i for i in range(3, round(math.log2(arguments.most)) + 1)]
    print(f"{model.generation}; the model and its plans, milliseconds:\n")
    print("| plan | batch | products | memory | links |\n|---|---|---|---|---|")
    for plan in plans:
        found = model.times(parse_topology(plan["topology"]), plan["batch_size"])
        cells = [f"{1000 * found[part]:.2f} for {1000 * plan['seconds'][part]:.2f}" for part in found]
        print(f"| {plan['topology']} | {plan['batch_size']} | " + " | ".join(cells) + " |")
    print(f"\nBatch {arguments.batch}:\n\n{HEAD}\n" + rows(model, dict.fromkeys(sizes, arguments.batch)))
    grown = {chips: chips * model.chip.devices * arguments.per_device for chips in sizes}
    print(f"\n{arguments.per_device} images per device:\n\n{HEAD}\n" + rows(model, grown))


if __name__ == "__main__":
    main()
