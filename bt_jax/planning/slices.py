"""The devices of a TPU slice, from libtpu without a TPU, for compiling for a mesh."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import jax

from bt_jax.errors import UserError, first_line
from bt_jax.planning.chips import Topology


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a slice, for compiling for a mesh of them without a TPU.

    Raises:
      UserError: libtpu is not installed, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "plans are compiled with libtpu, which is not installed; pip install '.[pod-plan]', or pip install libtpu (Linux "
            "only)."
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
    """Keeps libtpu from asking a metadata server, warning that there is none, and locking chips that another process uses."""
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
