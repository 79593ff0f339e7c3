"""What a process sets up before JAX starts: a CPU device per core, memory that is kept, and the compilation cache.

Nothing here changes what a run computes, except that on a CPU the device count follows the number of cores (DESIGN: the
device count is not a hyper-parameter), and all of it gives way to what the user has set.
"""

import ctypes
import hashlib
import importlib.util
import math
import os
import pathlib
import platform
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax.config import flatten
from bt_jax.errors import UserError
from bt_jax.runtime.paths import cache_folder

MOST_DEVICES = 8  # by default: XLA divides each one's work among all cores too, and small batches are slow
CACHE_BYTES = 2 * 2**30
_FLEXIBLE = "judge.batch_size"  # rounded to what divides
_jax_config: Any = jax.config  # whose names type checkers do not know
_COUNT_FLAG = "xla_force_host_platform_device_count"


def prepare(config: ConfigDict, *, alone: bool) -> None:
    """Sets up CPU devices and memory for a run; the first thing that a task does, before JAX looks at its devices.

    Args:
      config: of the whole run.
      alone: whether this is the only process of the run; several on one machine would share its cores.

    Raises:
      UserError: `mesh.cpu_devices` is set, but the devices exist already or other settings make them.
    """
    make_cpu_devices(config, alone)
    if on_cpu():
        keep_memory(os.environ)


def on_cpu() -> bool:
    """Whether JAX will run on the CPU, as far as can be told before it has started."""
    if _jax_config.jax_platforms:
        return _jax_config.jax_platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


# Devices.


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_cpu_devices(config: ConfigDict, alone: bool) -> None:
    """As many CPU devices as `config.mesh` asks for; without effect on accelerators.

    XLA has a thread for each core, but some operations use only one of them, so that a single device leaves cores idle.
    """
    wanted = config.mesh.cpu_devices
    set_by_user = _jax_config.jax_num_cpu_devices != -1 or _COUNT_FLAG in os.environ.get("XLA_FLAGS", "")
    if not wanted and (set_by_user or not alone):
        return
    if wanted and set_by_user:
        raise UserError(
            f"mesh.cpu_devices is {wanted}, but XLA_FLAGS or JAX_NUM_CPU_DEVICES sets the number of CPU devices too; "
            "leave one of them out."
        )
    try:
        _jax_config.update("jax_num_cpu_devices", wanted or default_devices(config, cores()))
    except RuntimeError:  # a program that calls tasks has used JAX before
        if wanted and len(jax.devices("cpu")) != wanted:
            raise UserError(
                f"mesh.cpu_devices is {wanted}, but JAX has started with {len(jax.devices('cpu'))} CPU devices; start the "
                "run before anything else uses JAX, or leave mesh.cpu_devices at 0."
            ) from None


def default_devices(config: ConfigDict, available: int) -> int:
    """The largest number of devices up to `available` that every batch of the run, and its mesh, divides among."""
    mesh = config.mesh
    if mesh.data != -1:
        return min(mesh.data * mesh.model, available)
    sizes = [value for name, value in flatten(config).items() if name.endswith("batch_size") and name != _FLEXIBLE]
    common = math.gcd(*sizes)
    fitting = (n for n in range(min(available, MOST_DEVICES), 0, -1) if common % n == 0 and n % mesh.model == 0)
    return next(fitting, 1)


def more_cores(mesh: Mesh) -> str:
    """For summaries: `; 6 cores` where a run on CPU devices has fewer of them than its process has cores, otherwise nothing."""
    on_cpu = mesh.devices.flat[0].platform == "cpu" and jax.process_count() == 1
    return f"; {cores()} cores" if on_cpu and mesh.size < cores() else ""


# Memory.


def keep_memory(environment: Mapping[str, str]) -> None:
    """Makes the C library keep freed memory for the next step; without effect where that is not glibc.

    Otherwise it returns each of XLA's large buffers to the system after every step, and the kernel clears them page by page
    at the next: a quarter of a convolution's time on a virtual machine. Only memory of the main arena can be kept, so all
    threads use that one; they must not have started.
    """
    if sys.platform != "linux" or any(n.startswith("MALLOC_") or n == "GLIBC_TUNABLES" for n in environment):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or platform.libc_ver()[0] != "glibc":
        return
    for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h


# Compiled programs.


def keep_programs(environment: Mapping[str, str]) -> None:
    """Turns on JAX's compilation cache in the user's cache folder, unless the user has set a folder or turned it off.

    JAX_COMPILATION_CACHE_DIR is another folder, JAX_ENABLE_COMPILATION_CACHE=0 turns it off. Each kind of processor has a
    folder of its own, as programs for one may not run on another and home directories are shared.
    """
    if _jax_config.jax_compilation_cache_dir or not _jax_config.jax_enable_compilation_cache:
        return
    folder = cache_folder(environment) / "xla" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prune(folder, CACHE_BYTES)
    except OSError:  # a read-only home directory, or none: programs are compiled at each start, as ever
        return
    _jax_config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in environment:
        _jax_config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A full disk, or a file that another process has not finished: the program is compiled.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {platform.processor()} {flags}".encode()).hexdigest()[:12]


def prune(folder: pathlib.Path, most: int) -> None:
    """Deletes the oldest files until at most `most` bytes are left, and empty ones, which a full disk leaves behind."""
    files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.iterdir()), reverse=True)
    total = 0
    for _, size, file in files:
        total += size
        if total > most or not size:
            file.unlink(missing_ok=True)
