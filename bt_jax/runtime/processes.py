"""Several processes as one run: how they find each other, that they run the same thing, and that they end together.

JAX's coordination service, which lives in process 0, joins the processes and watches them: when one stops answering for
`mesh.heartbeat_seconds`, or process 0 is gone, it ends all the others by `abort()`. No Python code runs then, so the
sentence that the user gets is left beforehand with a small companion process. Whatever ends one process by an exception
is told to the others through the service's key-value store, and they end within seconds rather than wait for it.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# The key-value store has no public name; Orbax takes it from here as well.
from jax._src.distributed import global_state
from ml_collections import ConfigDict

from bt_jax.config.schema import flatten
from bt_jax.errors import Preempted, UserError, first_line

# What may differ between the processes of a run: no weight and no collective depends on it.
OWN_FIELDS = (
    "mesh.process_index",
    "mesh.coordinator",
    "data.data_dir",
    "data.threads",
    "data.prefetch",
    "data.download",
)

_ENDED = "bt_jax/ended"
_LOST = ("Gloo", "NCCL", "Socket closed", "Connection closed", "Connection reset")  # in errors of a broken collective
_rounds = itertools.count()
_leaving = threading.Lock()  # taken by whoever ends the process, and never given back


def start_processes(config: ConfigDict) -> None:
    """Joins the processes of a run into one; does nothing on a single host.

    With `coordinator`, `processes` and `process_index` as they say; without, as the cluster says where there is one: Open
    MPI, Slurm (in `srun`), a TPU pod of Compute Engine or GKE, one slice or several, an indexed job of Kubernetes.
    `processes=1` alone keeps this process to itself, whatever the cluster says.

    Args:
      config: `config.mesh` of a run.

    Raises:
      UserError: the coordinator cannot be reached within `join_seconds`; the cluster lacks what it takes to join.
    """
    if jax.distributed.is_initialized():
        return
    if config.coordinator:
        cluster, arguments = config.coordinator, _explicit(config)
    elif config.processes == 1 or (found := _cluster(os.environ)) is None:
        return
    else:
        cluster, arguments = found
    _last_words.say(
        f"the processes could not be joined through {cluster} within {config.join_seconds} seconds; start as many as "
        "there should be, each with a number of its own and all with the same coordinator, whose port must be open"
    )
    try:
        jax.distributed.initialize(
            **arguments,
            # JAX gives up five seconds after this.
            initialization_timeout=max(1, config.join_seconds - 5),
            # The service looks once a second, and an abort takes its time.
            heartbeat_timeout_seconds=max(1, config.heartbeat_seconds - 4),
        )
    except (RuntimeError, ValueError, OSError, ImportError, IndexError) as error:
        _last_words.say("")
        if cluster == _TPU_VM and "coordinator_address" in str(error):  # JAX knows of no other hosts either
            return
        raise UserError(
            f"the processes could not be joined through {cluster} ({first_line(error)}); give mesh.coordinator, "
            "mesh.processes and mesh.process_index, or mesh.processes=1 for this process alone."
        ) from None
    me, count = global_state.process_id, global_state.num_processes
    if count == 1:
        _last_words.say("")
        return
    _last_words.say(
        f"this process, {me} of {count}, was ended because it or another of the run was killed, or did not answer for "
        f"{config.heartbeat_seconds} seconds (the lines above may tell which); start all of them again, and the run goes "
        "on from its last checkpoint"
    )
    threading.Thread(target=_listen, daemon=True).start()


_TPU_VM = "the TPU pod of this VM"


def _cluster(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """What this process is part of, and what JAX must be told to join it; None on a single host.

    In JAX's own order, so that a TPU slice in Kubernetes is a TPU slice. Importing JAX leaves marks in the environment
    that tell whether there are TPU chips.
    """

    def count(name):
        return int(environment.get(name) or "1")

    if count("OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return "Open MPI", {}
        if importlib.util.find_spec("mpi4py") is None:
            raise UserError(
                "Open MPI 5 is joined through mpi4py, which is not installed; pip install mpi4py, or give "
                "mesh.coordinator, mesh.processes and mesh.process_index."
            )
        return "Open MPI", {"cluster_detection_method": "mpi4py"}
    if "SLURM_STEP_NODELIST" in environment:  # inside srun; a plain command in an allocation is alone
        return ("Slurm", {}) if count("SLURM_NTASKS") > 1 else None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts or "TPU_PROCESS_ADDRESSES_PATH" in environment:
        several = hosts is None or "," in hosts or count("MEGASCALE_NUM_SLICES") > 1
        return ("the TPU pod", {}) if several else None
    if "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment:
        return _TPU_VM, {}  # Compute Engine's metadata knows the other hosts, if there are any
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "the pods of a Kubernetes job are joined through the package kubernetes, which is not installed; pip "
                "install 'jax[k8s]', or give mesh.coordinator, mesh.processes and mesh.process_index, or "
                "mesh.processes=1 for this process alone."
            )
        return "Kubernetes", {}
    return None


def _explicit(config: ConfigDict) -> dict[str, Any]:
    """The arguments for a coordinator that the config names, once it has been seen to answer.

    JAX itself would end the process with a C++ stack trace.
    """
    host, _, port = config.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"mesh.coordinator is {config.coordinator!r}, but must be a host and a port, like 10.0.0.1:1234."
        )
    if config.process_index == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"port {port} of mesh.coordinator cannot be opened on process 0 ({error.strerror}); choose another."
            ) from None
    else:
        _reach(host.strip("[]"), int(port), config)
    return {
        "coordinator_address": config.coordinator,
        "num_processes": config.processes,
        "process_id": config.process_index,
        "local_device_ids": None,
        "cluster_detection_method": "deactivate",
    }


def _reach(host: str, port: int, config: ConfigDict) -> None:
    until = time.monotonic() + config.join_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.5 > until:
                raise UserError(
                    f"process {config.process_index} could not reach the coordinator {config.coordinator} within "
                    f"{config.join_seconds} seconds ({error.strerror or error}); start process 0 on that host, "
                    "with this port open."
                ) from None
            time.sleep(0.5)


@contextlib.contextmanager
def joined(config: ConfigDict, workdir: str) -> Iterator[None]:
    """Joins the processes of a run, sees that all have the same config and code, and lets them end together.

    An exception in one process of several ends them all with status 1 and a sentence, this one first.

    Raises:
      UserError: as `start_processes` and `agree` do, on a single host also whatever the body raises.
    """
    start_processes(config.mesh)
    if global_state.num_processes == 1:
        yield
        return
    try:
        own = {name: value for name, value in flatten(config).items() if name not in OWN_FIELDS}
        agree("config", {**own, "workdir": str(workdir), "JAX": jax.__version__, "code of bt_jax": _code()})
        yield
    except Preempted:  # all leave at this step, and each has saved its part
        raise
    except BaseException as error:  # an interrupt as well: the others would wait for this process
        _end(error)


def agree(what: str, facts: Mapping[str, Any], seconds: int = 300) -> None:
    """Sees that all processes of a run hold the same facts; all must call it, in the same order.

    Args:
      what: names the facts, in the sentence of an error.
      facts: values that JSON can hold, by name.
      seconds: how long to wait for the others.

    Raises:
      UserError: those of some processes differ from those of process 0 (the same sentence on every process), or some did
        not call this.
    """
    client, me = global_state.client, global_state.process_id
    if global_state.num_processes == 1:
        return
    key, milliseconds = f"bt_jax/{next(_rounds)}", 1000 * seconds
    mine = json.dumps(dict(facts), default=str)
    try:
        if me == 0:
            client.key_value_set(f"{key}/first", mine)
        first, here = json.loads(client.blocking_key_value_get(f"{key}/first", milliseconds)), json.loads(mine)
        names = [name for name in {**first, **here} if first.get(name) != here.get(name)]
        if names:
            differ = [f"{name} is {here.get(name)!r} and not {first.get(name)!r}" for name in names[:4]]
            differ += [f"{len(names) - 4} more"] * (len(names) > 4)
            client.key_value_set(f"{key}/differ/{me:05}", f"process {me} ({'; '.join(differ)})")
        client.wait_at_barrier(key, milliseconds)
        found = [text for _, text in sorted(client.key_value_dir_get(f"{key}/differ/"))]
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {me} waited {seconds} seconds for the others to compare their {what} ({first_line(error)}); see what "
            "they say, and start all of them again."
        ) from None
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"not all processes have the {what} of process 0: {', '.join(found[:4])}{more}; start all with the same "
            "command, code and files."
        )


def _code() -> str:
    """A fingerprint of this package's source."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _LastWords:
    """A sentence for standard error in case this process is ended without a chance to say it.

    The companion reads sentences from a pipe; when the pipe closes it prints the last one, if that is not empty.
    """

    _COMPANION = "import sys\nwords = ''\nfor words in sys.stdin: pass\nsys.stderr.write(words.lstrip())"

    def __init__(self):
        self._companion = None

    def say(self, sentence: str) -> None:
        if self._companion is None:
            command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", self._COMPANION]
            self._companion = subprocess.Popen(  # its own session, so that Ctrl-C does not end it first
                command, stdin=subprocess.PIPE, start_new_session=True, text=True, encoding="utf-8"
            )
            atexit.register(self.say, "")
        self._companion.stdin.write(f"error: {sentence}.\n" if sentence else "\n")
        self._companion.stdin.flush()


_last_words = _LastWords()


def _listen() -> None:
    """Ends this process when another has told why it ends."""
    while True:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has
            _leave(f"error: {global_state.client.key_value_try_get(_ENDED)}")
        time.sleep(1)


def _end(error: BaseException) -> None:
    """Says what ended this process, tells the others, and leaves."""
    me, count, client = global_state.process_id, global_state.num_processes, global_state.client
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, UserError):
        reason, text = str(error), f"error: {error}"
    elif isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _LOST):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the other may have told why
            _leave(f"error: {client.blocking_key_value_get(_ENDED, 3000)}")
        reason = f"it lost the others in the middle of a step ({first_line(error)})"
        text = (
            f"error: process {me} of {count} lost the others in the middle of a step, so one of them was killed or cut off "
            f"({first_line(error)}); start all of them again, and the run goes on from its last checkpoint."
        )
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(_ENDED, f"process {me} of {count} ended, and so all do: {reason}", allow_overwrite=True)
    _leave(text)


def _leave(text: str) -> None:
    """Ends this process at once: JAX's own way out would wait for the others."""
    _leaving.acquire()
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    _last_words.say("")
    time.sleep(3 if global_state.process_id == 0 else 1)  # for the others to hear of it; the store goes with process 0
    os._exit(1)
