"""The devices and processes of a run."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.rules import anything, at_least


@contradiction("mesh.coordinator", "mesh.processes", "mesh.process_index")
def _processes_by_hand(coordinator, processes, index):
    given = (coordinator != "", processes > 0, index >= 0)
    alone = processes == 1 and not given[0] and not given[2]
    if any(given) and not all(given) and not alone:
        return "mesh.coordinator, mesh.processes and mesh.process_index must be set together or not at all"
    if all(given) and index >= processes:
        return f"mesh.process_index is {index}, but must be less than mesh.processes, {processes}"
    return None


MESH = Group(
    "mesh",
    "devices and processes",
    {
        "data": Field(
            -1,
            lambda v: None if v == -1 or v >= 1 else "must be a number of devices, or -1 for all",
            "Devices that a batch is split over; -1 for all, divided by mesh.model",
            resume="free",
        ),
        "model": Field(
            1,
            at_least(1),
            "Devices that share each layer of Barlow Twins' projector and its momentum, or what a method of one's own splits by `partition`",
            resume="free",
        ),
        "cpu_devices": Field(
            0,
            at_least(0),
            "Devices that a CPU counts as; 0 for one per core, or fewer where batches would not divide. Set nothing here if "
            "XLA_FLAGS or JAX_NUM_CPU_DEVICES does; accelerators ignore it",
            resume="free",
        ),
        "coordinator": Field(
            "",
            anything,
            "host:port of process 0, on clusters that JAX does not recognise",
            resume="free",
            own=True,
        ),
        "processes": Field(
            0,
            at_least(0),
            "Number of processes, with coordinator; 1 without coordinator runs this process alone",
            resume="free",
        ),
        "process_index": Field(
            -1, at_least(-1), "Number of this process, from 0; with coordinator", resume="free", own=True
        ),
        "join_seconds": Field(
            300, at_least(5), "Seconds that processes wait for each other at the start", resume="free"
        ),
        "heartbeat_seconds": Field(
            100, at_least(5), "If a process does not answer for this long, all others end", resume="free"
        ),
    },
    (_processes_by_hand,),
)
