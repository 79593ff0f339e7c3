"""The task `pod_plan`: compiles a config's train step for a TPU pod that is not there, and tells what to expect of it.

It is the step that a run would compile, optimiser included, by the same compiler (libtpu), so memory and collectives are
those of the run. Times are not: they are what the published rates of a chip allow, a bound that no run gets below.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import abstract_state, count_parameters
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.errors import UserError, first_line
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim.recipe import make_optimizer
from bt_jax.planning.chips import Topology, known, parse_topology
from bt_jax.planning.compiled import KINDS, collectives, memory_traffic
from bt_jax.runtime import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiled step is and does; per device where nothing else is said.

    Attributes:
      parameters: of the whole network.
      batch_size: over all devices.
      seconds_to_compile: on this machine.
      arguments, temporaries, results, program: bytes of HBM: state and batch; what a step needs besides; what comes out
        and does not lie where an argument was; the code.
      flops: of a step.
      loss_flops: of the loss's products, which are among `flops` once and take six passes (precision "highest").
      traffic: bytes that go to and from HBM in a step (bt_jax/planning/compiled.py).
      collectives: by kind, how many there are, the bytes of their results and the bytes that leave the device.
    """

    topology: Topology
    mesh: dict[str, int]
    parameters: int
    batch_size: int
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
        """Bytes of HBM that the step takes."""
        return self.arguments + self.temporaries + self.results + self.program

    @property
    def capacity(self) -> int:
        """Bytes of HBM that there are."""
        return self.topology.chip.memory // self.topology.chip.devices

    @property
    def times(self) -> dict[str, float]:
        """Seconds that a step takes at least for its products, for its memory traffic, and for what it sends.

        The latter by all links of a chip at once, and for each collective the time that a message takes through the slice.
        """
        chip = self.topology.chip
        sent = sum(kind["sent"] for kind in self.collectives.values())
        waits = sum(kind["count"] for kind in self.collectives.values()) * self.topology.all_reduce_seconds
        return {
            "products": (self.flops + 5 * self.loss_flops) / chip.flops * chip.devices,
            "memory": self.traffic / chip.bandwidth * chip.devices,
            "links": sent / chip.links * chip.devices + waits,
        }


def pod_plan(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints the plan of `config` for `config.pod.topology`, or a plan for the largest batch with `config.pod.search`.

    Returns:
      What is also written to WORKDIR/pod_plan_<topology>.json.

    Raises:
      UserError: libtpu is not installed; an unknown topology; a mesh or a batch that does not divide.
    """
    config_lib.check(config)
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and libtpu shall not look for chips
    if not config.pod.topology:
        raise UserError(f"pod.topology is empty, but must name a slice when task is 'pod_plan': {known()}.")
    topology = parse_topology(config.pod.topology)
    images = config.pod.images or len(make_source(config.data, "train"))
    if images < config.batch_size:
        raise UserError(
            f"pod.images is {images}, fewer than a batch of {config.batch_size}; set batch_size to at most {images}."
        )
    print(
        f"compiling {config.model.arch} for {topology.devices} devices of {topology.name}; this takes minutes",
        flush=True,
    )
    mesh = mesh_lib.make_mesh(config.mesh, devices_of(topology))
    mesh_lib.check_batch_size(mesh, config.batch_size)
    trials: dict[int, Plan | str] = {}

    def compile_at(batch_size: int) -> Plan | str:
        if batch_size not in trials:
            config.batch_size = batch_size
            trials[batch_size] = plan = make_plan(config, mesh, topology, images)
            if config.pod.search:
                print(_trial(batch_size, plan, topology), flush=True)
        return trials[batch_size]

    wanted = config.batch_size
    if config.pod.search:
        most = images // mesh.size
        wanted = mesh.size * max(1, search(lambda n: compile_at(n * mesh.size), wanted // mesh.size, most))
    plan = compile_at(wanted)
    if isinstance(plan, str):
        print(f"does not fit: {plan}")
        result = {"fits": False, "why": plan}
    else:
        print(table(plan, images, config.epochs))
        result = as_json(plan, images, config.epochs)
    result = {"task": "pod_plan", "topology": topology.name, "batch_size": wanted, **result}
    if config.pod.search:
        result["tried"] = {
            size: not isinstance(plan, str) and plan.memory <= plan.capacity for size, plan in trials.items()
        }
    folder = epath.Path(workdir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pod_plan_{topology.name.replace(':', '_')}.json"
    path.write_text(json.dumps({**result, "config": config.to_dict()}, indent=2) + "\n")
    print(f"written   {path}")
    return result


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a slice that is not there, for a mesh to compile for.

    Raises:
      UserError: libtpu is not installed, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "plans are compiled by libtpu, which is not installed; pip install '.[pod-plan]', or pip install libtpu (Linux only)."
        )
    from jax.experimental import topologies  # imports the TPU plugin

    settings: dict[str, Any] = {}
    if topology.chips < 4:  # of a host's four chips
        settings["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    if topology.chip.compiler_name in ("v4", "v5p"):
        settings["chip_config_name"] = "megacore"  # a chip's two cores are one device, as on the real machines
    name = f"{topology.chip.compiler_name}:{'x'.join(map(str, topology.shape))}"
    try:
        with _not_on_a_pod():
            return topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UserError(
            f"libtpu has no topology {topology.name} ({first_line(error)}); hosts have 2×2 chips, so sides are even, as in "
            f"{'4x4' if topology.chip.axes == 2 else '4x4x4'}."
        ) from None


@contextlib.contextmanager
def _not_on_a_pod() -> Iterator[None]:
    """Keeps libtpu from asking a metadata server where it is, from complaining that nobody answers, and from taking the
    chips for itself that another process may be using.
    """
    words = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    missing = {name: word for name, word in words.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def make_plan(config: ConfigDict, mesh: Mesh, topology: Topology, images: int) -> Plan | str:
    """Compiles the train step of a config for a mesh of devices that are not there.

    Args:
      images: of an epoch.

    Returns:
      The plan, or what the compiler says where it could not fit the step into memory.
    """
    method = make_method(config, Facts(images, 0, config.batch_size, config.epochs), mesh)
    optimizer = make_optimizer(
        config.optimizer,
        batch_size=config.batch_size,
        steps_per_epoch=images // config.batch_size,
        epochs=config.epochs,
    )
    batch = batch_spec(method.view_groups, config.batch_size, mesh_lib.over_batch(mesh))
    state = abstract_state(method, optimizer, batch, mesh)
    begin = time.monotonic()
    try:
        program = jit_step(make_train_step(method, optimizer, config.seed), state, mesh).lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return (
            re.sub(r"^RESOURCE_EXHAUSTED: (E\d+: )?(\w+: )?", "", str(error))
            .split(" HLO module")[0]
            .splitlines()[0]
            .strip()
        )
    seconds = time.monotonic() - begin
    memory, text = program.memory_analysis(), program.as_text()
    sums = {kind: {"count": 0, "bytes": 0, "sent": 0.0} for kind in KINDS}
    for collective in collectives(text, mesh.size):
        kind = sums[collective.kind]
        kind["count"] += 1
        kind["bytes"] += collective.bytes
        kind["sent"] += collective.sent
    return Plan(
        topology=topology,
        mesh=dict(mesh.shape),
        parameters=count_parameters(state.params),
        batch_size=config.batch_size,
        seconds_to_compile=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=program.cost_analysis()["flops"],
        loss_flops=method.loss_flops(config.batch_size),
        traffic=memory_traffic(text),
        collectives={kind: sum_ for kind, sum_ in sums.items() if sum_["count"]},
    )


def search(plan_at: Callable[[int], Plan | str], start: int, most: int, close: float = 0.03) -> int:
    """The largest number of images a device whose step fits, to within 3 %; 0 where not even one does.

    Memory grows by the image, but not quite evenly: the compiler saves where it has to. So the first guess goes along the
    line through what is known, and what follows halves the interval in which the answer lies.

    Args:
      plan_at: compiles the step for a number of images a device.
      start: the first to try.
      most: no more than these.
    """
    fits: dict[int, Plan] = {}
    low, high, n = 0, most + 1, max(1, min(start, most))  # low fits or is none, high does not
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
    """Where to look between low and high: along the line through what fits, twice; then in the middle."""
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


def _trial(batch_size: int, plan: Plan | str, topology: Topology) -> str:
    if isinstance(plan, str):
        return f"batch {batch_size}: does not fit ({plan})"
    verdict = "fits" if plan.memory <= plan.capacity else "does not fit"
    return f"batch {batch_size}: {verdict}, {_gb(plan.memory)} of {_gb(plan.capacity)} GB; compiled in {plan.seconds_to_compile:.0f} s"


def as_json(plan: Plan, images: int, epochs: int) -> dict[str, Any]:
    """All numbers of a plan, and what follows from them."""
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
    """A plan for a person to read."""
    topology, times = plan.topology, plan.times
    devices = math.prod(plan.mesh.values())
    each = "" if topology.chip.devices == 1 else f", {topology.chip.devices} devices each"
    bound, after_another = max(times.values()), sum(times.values())
    limit = {"products": "the products", "memory": "memory", "links": "the links"}[max(times, key=times.get)]
    fits = "fits" if plan.memory <= plan.capacity else "DOES NOT FIT"
    lines = {
        "chips": f"{topology.chips} × {topology.name.partition(':')[0]}{each}; mesh "
        + " × ".join(f"{name} {size}" for name, size in plan.mesh.items()),
        "batch": f"{plan.batch_size}, {plan.batch_size / devices:g} images a device, two views each",
        "compiled": f"in {plan.seconds_to_compile:.0f} s on this machine; {plan.parameters / 1e6:.1f} M parameters",
        "memory": f"{_gb(plan.memory)} of {_gb(plan.capacity)} GB a device: {fits}\n"
        f"arguments {_gb(plan.arguments)}, temporaries {_gb(plan.temporaries)}, results {_gb(plan.results)}, "
        f"program {_gb(plan.program)}",
        "work": f"{plan.flops / 1e12:.3g} TFLOP a step and device (of which the loss, in float32, {plan.loss_flops / 1e12:.2g}); "
        f"{_gb(plan.traffic)} GB to and from HBM",
        "traffic": "\n".join(
            f"{kind:<18} {sum_['count']:4.0f} ×, results {sum_['bytes'] / 1e6:8.1f} MB, sent {sum_['sent'] / 1e6:8.1f} MB"
            for kind, sum_ in plan.collectives.items()
        )
        or "none",
        "a step": f"products {_ms(times['products'])}, memory {_ms(times['memory'])}, links {_ms(times['links'])}\n"
        f"at least {_ms(bound)}, by {limit}; {_ms(after_another)} one after another",
        "rate": f"at most {plan.batch_size / bound:,.0f} images/s; {plan.batch_size / after_another:,.0f} one after another",
        "a run": f"{epochs} epochs of {images:,} images: {_days(bound, plan, images, epochs):.2g} days at least, "
        f"{_days(after_another, plan, images, epochs):.2g} one after another",
        "rates of": f"{topology.chip.source}",
    }
    return "\n".join(f"{title:<9} " + text.replace("\n", "\n" + " " * 10) for title, text in lines.items())


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}" if count < 99.95e9 else f"{count / 1e9:.0f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
