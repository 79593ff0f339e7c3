"""The task `pod_plan`: compiles a config's train step for a TPU slice without a TPU, and reports what to expect.

It is the step that a run would compile, including the optimizer, with the same compiler (libtpu), so memory and collectives
are those of the run. Times are not: they follow from a chip's published figures, and no run can be faster.
"""

import json
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import config as config_lib
from bt_jax import console
from bt_jax.data.sources.make import make_source
from bt_jax.data.views.spec import batch_spec
from bt_jax.engine.state import abstract_state, check_split, count_parameters
from bt_jax.engine.step import jit_step, make_train_step
from bt_jax.errors import UserError
from bt_jax.facts import Facts
from bt_jax.methods import make_method
from bt_jax.optim import make_optimizer
from bt_jax.planning.chips import Topology, known, parse_topology
from bt_jax.planning.compiled import KINDS, collectives, memory_traffic
from bt_jax.planning.plan import Plan, as_json, search, table, trial_line
from bt_jax.planning.slices import devices_of
from bt_jax.runtime import mesh as mesh_lib
from bt_jax.runtime.files import write_whole
from bt_jax.runtime.paths import as_path


def pod_plan(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints the plan of `config` for `config.pod.topology`, or with `config.pod.search` a plan for the largest batch.

    Returns:
      The content of WORKDIR/pod_plan_<topology>.json.

    Raises:
      UserError: libtpu is not installed, the topology is unknown, views are made on the device, the mesh or the batch does not
        divide, or the file cannot be written.
    """
    config_lib.check(config)
    _check_views(config)
    folder = as_path(workdir, "--workdir")
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and libtpu must not look for chips
    if not config.pod.topology:
        raise UserError(f"pod.topology is empty, but must name a slice when task is 'pod_plan': {known()}.")
    topology = parse_topology(config.pod.topology)
    images, classes, found = config.pod.images, config.pod.num_classes, f"pod.images is {config.pod.images}"
    if not images:
        source = make_source(config.data, "train")
        images, classes, found = len(source), source.num_classes, f"{source.name} has {len(source)} images"
    if images < config.batch_size:
        raise UserError(f"{found}, fewer than a batch of {config.batch_size}; set batch_size to at most {images}.")
    console.say(f"compiling {config.model.arch} for {topology.devices} devices of {topology.name}; this takes minutes")
    mesh = mesh_lib.make_mesh(config.mesh, devices_of(topology))
    mesh_lib.check_batch_size(mesh, config.batch_size)
    trials: dict[int, Plan | str] = {}

    def compile_at(batch_size: int) -> Plan | str:
        if batch_size not in trials:
            facts = Facts(images, classes, batch_size, config.epochs)
            trials[batch_size] = plan = make_plan(config, mesh, topology, facts)
            if config.pod.search:
                console.say(trial_line(batch_size, plan, topology))
        return trials[batch_size]

    wanted = config.batch_size
    if config.pod.search:
        most = images // mesh.size
        wanted = mesh.size * max(1, search(lambda n: compile_at(n * mesh.size), wanted // mesh.size, most))
    plan = compile_at(wanted)
    if isinstance(plan, str):
        console.say(f"does not fit: {plan}")
        result = {"fits": False, "why": plan}
    else:
        console.say(table(plan, images, config.epochs))
        result = as_json(plan, images, config.epochs)
    result = {"task": "pod_plan", "topology": topology.name, "batch_size": wanted, **result}
    if config.pod.search:
        result["tried"] = {
            size: not isinstance(plan, str) and plan.memory <= plan.capacity for size, plan in trials.items()
        }
    path = folder / f"pod_plan_{topology.name.replace(':', '_')}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**result, "config": {**config.to_dict(), "batch_size": wanted}}, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}), so the plan is only in the output above; free some "
            "space, and run the same command again."
        ) from error
    console.say(f"written   {path}")
    return result


def _check_views(config: ConfigDict) -> None:
    """Raises UserError unless the host makes the views: else a run's program holds the set and makes them, here it would not."""
    if config.data.views != "host":
        several = config.steps_per_dispatch > 1
        raise UserError(
            f"data.views is {config.data.views!r}{f' and steps_per_dispatch {config.steps_per_dispatch}' * several}, but a plan is of "
            "single steps whose views come from the host; set data.views to 'host'"
            f"{' and steps_per_dispatch to 1' * several}."
        )


def make_plan(config: ConfigDict, mesh: Mesh, topology: Topology, facts: Facts) -> Plan | str:
    """Compiles the train step of a config for a mesh of a slice's devices.

    Returns:
      The plan, or the compiler's message if the step does not fit into memory.
    """
    method = make_method(config, facts, mesh)
    optimizer = make_optimizer(config.optimizer, facts, width=getattr(method, "width", None))
    spec = batch_spec(method.view_groups, facts.batch_size)
    state = abstract_state(method, optimizer, spec, mesh)
    check_split(method, state, mesh)
    rows = mesh_lib.over_batch(mesh)
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows), spec)
    begin = time.monotonic()
    try:
        program: Any = (
            jit_step(make_train_step(method, optimizer, config.seed), state, mesh).lower(state, batch).compile()
        )
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
        batch_size=facts.batch_size,
        views=sum(group.num_views for group in method.view_groups),
        seconds_to_compile=seconds,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=program.cost_analysis()["flops"],
        loss_flops=method.loss_flops(facts.batch_size),
        traffic=memory_traffic(text),
        collectives={kind: sum_ for kind, sum_ in sums.items() if sum_["count"]},
    )
