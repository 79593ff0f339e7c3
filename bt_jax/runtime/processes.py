"""Several processes as one run: they find each other, check that they run the same thing, and end together.

JAX's coordination service, which runs in process 0, joins the processes and monitors them: when one stops answering for
`mesh.heartbeat_seconds`, or process 0 is gone, it ends all the others with `abort()`. No Python code runs then, so a small
companion process holds the message for the user in advance. An exception in one process is published in the service's
key-value store, so that the others end within seconds instead of waiting for it.
"""

import atexit
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax

# The key-value store has no public name; Orbax imports it from here too.
from jax._src.distributed import global_state
from ml_collections import ConfigDict

from bt_jax import console
from bt_jax.config import fields_of, flatten
from bt_jax.errors import Preempted, UserError, first_line
from bt_jax.runtime import machine

_ENDED = "bt_jax/ended"
_LOST = ("Gloo", "NCCL", "Socket closed", "Connection closed", "Connection reset")  # in errors of broken collectives
_rounds = itertools.count()
_leaving = threading.Lock()  # acquired by the thread that ends the process, and never released


def start_processes(config: ConfigDict) -> None:
    """Joins the processes of a run into one; does nothing on a single host.

    `coordinator`, `processes` and `process_index` decide where they are set. Otherwise the cluster does, if there is one:
    Open MPI, Slurm (in `srun`), a TPU pod on Compute Engine or GKE, of one slice or several, or an indexed Kubernetes job.
    `processes=1` without a coordinator makes this process run alone on any cluster. In Slurm and Open MPI each process has one
    GPU, the one with its number on the host; the only process of its host has all that it sees.

    Args:
      config: `config.mesh` of a run.

    Raises:
      UserError: the coordinator cannot be reached within `join_seconds`, or a package that joining needs is missing.
    """
    if jax.distributed.is_initialized():
        return
    if config.coordinator:
        cluster, arguments = config.coordinator, _explicit(config)
    elif config.processes == 1 or (found := _cluster(os.environ)) is None:
        return
    else:
        cluster, arguments = found
    wanted = (
        f"all {config.processes} of them, each with its own mesh.process_index and with the same mesh.coordinator"
        if config.coordinator
        else "all of them"
    )
    _last_words.say(
        f"the processes could not be joined through {cluster} within {config.join_seconds} seconds; start {wanted}, and "
        "open the coordinator's port between their hosts"
    )
    try:
        jax.distributed.initialize(
            **arguments,
            # JAX gives up five seconds after this.
            initialization_timeout=max(1, config.join_seconds - 5),
            # The service checks once a second, and an abort takes some seconds.
            heartbeat_timeout_seconds=max(1, config.heartbeat_seconds - 4),
        )
    except (RuntimeError, ValueError, OSError, ImportError, IndexError) as error:
        _last_words.say("")
        if cluster == _TPU_VM and "coordinator_address" in str(error):  # JAX found no other hosts
            return
        raise UserError(
            f"the processes could not be joined through {cluster} ({first_line(error)}); set mesh.coordinator, "
            "mesh.processes and mesh.process_index, or mesh.processes=1 to run this process alone."
        ) from None
    me, count = global_state.process_id, global_state.num_processes
    if count == 1:
        _last_words.say("")
        return
    _last_words.say(
        f"this process, {me} of {count}, was ended because it or another process of the run was killed, or did not answer "
        f"for {config.heartbeat_seconds} seconds (the lines above may say which); start all of them again, and the run "
        "resumes from its last checkpoint"
    )
    if threading.current_thread() is threading.main_thread():
        # absl's faulthandler would print every thread's stack before that message.
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
    threading.Thread(target=_listen, daemon=True).start()


def alone(config: ConfigDict) -> bool:
    """Whether `start_processes` will leave this process by itself."""
    if jax.distributed.is_initialized() or config.coordinator:
        return False
    return config.processes == 1 or _cluster(os.environ) is None


_TPU_VM = "the TPU pod of this VM"


def _cluster(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """The cluster that this process is part of, and the arguments for JAX to join it; None on a single host.

    Clusters are tried in JAX's own order, so that a TPU slice in Kubernetes counts as a TPU slice. Importing JAX sets the
    environment variables that show whether there are TPU chips.
    """

    def count(name):
        return int(environment.get(name) or "1")

    def devices(alone_on_its_host):
        # On these clusters JAX gives a process the one GPU that has its number on the host. An empty sequence restricts nothing.
        return {"local_device_ids": ()} if alone_on_its_host and "JAX_LOCAL_DEVICE_IDS" not in environment else {}

    if count("OMPI_COMM_WORLD_SIZE") > 1:
        arguments = devices(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1")
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return "Open MPI", arguments
        if importlib.util.find_spec("mpi4py") is None:
            raise UserError(
                "joining processes under Open MPI 5 needs mpi4py, which is not installed; pip install mpi4py, or set "
                "mesh.coordinator, mesh.processes and mesh.process_index."
            )
        return "Open MPI", arguments | {"cluster_detection_method": "mpi4py"}
    if "SLURM_STEP_NODELIST" in environment:  # inside srun; a plain command in an allocation runs alone
        tasks = count("SLURM_NTASKS")
        return ("Slurm", devices(tasks == count("SLURM_STEP_NUM_NODES"))) if tasks > 1 else None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts or "TPU_PROCESS_ADDRESSES_PATH" in environment:
        several = hosts is None or "," in hosts or count("MEGASCALE_NUM_SLICES") > 1
        return ("the TPU pod", {}) if several else None
    if "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment:
        return _TPU_VM, {}  # Compute Engine's metadata knows the other hosts, if there are any
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "joining the pods of a Kubernetes job needs the package kubernetes, which is not installed; pip install "
                "'jax[k8s]', or set mesh.coordinator, mesh.processes and mesh.process_index, or mesh.processes=1 to run "
                "this process alone."
            )
        return "Kubernetes", {}
    return None


def _explicit(config: ConfigDict) -> dict[str, Any]:
    """The arguments for the coordinator that the config names, once it answers.

    Without this check JAX ends the process with a C++ stack trace.
    """
    host, _, port = config.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"mesh.coordinator is {config.coordinator!r}, but must be a host and a port from 1 to 65535, such as 10.0.0.1:1234."
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
    """Joins the processes of a run, checks that all have the same config and code, and ends them together.

    With several processes, an exception in one ends them all with status 1 and a message.

    Raises:
      UserError: as `start_processes` and `agree` raise it. On a single host the body's own exceptions pass through.
    """
    machine.prepare(config, alone=alone(config.mesh))
    start_processes(config.mesh)
    if global_state.num_processes == 1:
        machine.keep_programs(os.environ)
        yield
        return
    try:
        own = {name for name, field in fields_of(config).items() if field.own}
        same = {name: value for name, value in flatten(config).items() if name not in own}
        agree("config", {**same, "workdir": str(workdir), "JAX": jax.__version__, "code of bt_jax": code_fingerprint()})
        yield
    except Preempted:  # all leave at this step, and each has saved its part
        raise
    except BaseException as error:  # an interrupt too: the others would wait for this process
        _end(error)


def agree(what: str, facts: Mapping[str, Any], seconds: int = 300) -> None:
    """Checks that all processes of a run have the same facts; all must call it, in the same order.

    Args:
      what: what the facts are called in an error message.
      facts: JSON-serialisable values by name.
      seconds: how long to wait for the others.

    Raises:
      UserError: some processes have other facts than process 0 (the same message on every process), or did not call this.
    """
    client: Any = global_state.client
    me = global_state.process_id
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
            client.key_value_set(f"{key}/differ/{me:05}", console.printable(f"process {me} ({'; '.join(differ)})"))
        client.wait_at_barrier(key, milliseconds)
        found = [text for _, text in sorted(client.key_value_dir_get(f"{key}/differ/"))]
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {me} waited {seconds} seconds for the others to compare their {what} ({first_line(error)}); look at "
            "their output, and start all of them again."
        ) from None
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"not all processes have the {what} of process 0: {', '.join(found[:4])}{more}; start all of them with the "
            "same command, code and files."
        )


def code_fingerprint() -> str:
    """A fingerprint of this package's source."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _LastWords:
    """A message for standard error in case this process is ended before it can print one.

    The companion process reads messages from a pipe. When the pipe closes it prints the last one, unless it is empty.
    """

    _COMPANION = "import sys\nwords = ''\nfor words in sys.stdin: pass\nsys.stderr.write(words.lstrip())"

    def __init__(self):
        self._companion: subprocess.Popen[str] | None = None
        self._pipe: IO[str] | None = None

    def say(self, sentence: str) -> None:
        if self._pipe is None:
            command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", self._COMPANION]
            self._companion = subprocess.Popen(  # its own session, so that Ctrl-C does not end it first
                command, stdin=subprocess.PIPE, start_new_session=True, text=True, encoding="utf-8"
            )
            self._pipe = self._companion.stdin
            atexit.register(self.say, "")
        assert self._pipe is not None
        with contextlib.suppress(OSError):  # it was killed
            self._pipe.write(f"error: {console.printable(sentence)}.\n" if sentence else "\n")
            self._pipe.flush()


_last_words = _LastWords()


def _listen() -> None:
    """Ends this process once another has published why it ended."""
    client: Any = global_state.client
    while True:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # none has
            _leave(f"error: {client.key_value_try_get(_ENDED)}")
        time.sleep(1)


def _end(error: BaseException) -> None:
    """Prints what ended this process, publishes it for the others, and exits."""
    me, count = global_state.process_id, global_state.num_processes
    client: Any = global_state.client
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, UserError):
        reason, text = str(error), f"error: {error}"
    elif isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and any(sign in str(error) for sign in _LOST):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the other may have published why
            _leave(f"error: {client.blocking_key_value_get(_ENDED, 3000)}")
        reason = f"it lost the others in the middle of a step ({first_line(error)})"
        text = (
            f"error: process {me} of {count} lost the others in the middle of a step, so one of them was killed or cut off "
            f"({first_line(error)}); start all of them again, and the run resumes from its last checkpoint."
        )
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    ended = console.printable(f"process {me} of {count} ended, and so all do: {reason}")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(_ENDED, ended, allow_overwrite=True)
    _leave(text)


def _leave(text: str) -> None:
    """Ends this process at once: a normal exit would make JAX wait for the others."""
    _leaving.acquire()
    console.flush()
    console.warn(text)
    _last_words.say("")
    time.sleep(3 if global_state.process_id == 0 else 1)  # for the others to read it; the store ends with process 0
    os._exit(1)
