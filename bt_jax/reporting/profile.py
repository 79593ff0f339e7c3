"""Profiles a few steps: a trace, the operations that take longest, and the fraction of the device's peak."""

import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from bt_jax.errors import first_line
from bt_jax.planning.chips import CHIPS
from bt_jax.runtime.paths import as_path

# Dense FLOP/s from data sheets: in bfloat16, and in the way JAX multiplies float32 by default (TF32 on NVIDIA GPUs since
# Ampere, one bfloat16 pass on TPUs). The first name that occurs in a device's kind counts. Newer TPUs are in chips.py.
PEAKS = {
    "H200": (989e12, 494e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494e12),
    "B200": (2250e12, 1125e12),
    "A100": (312e12, 156e12),
    "A10": (125e12, 62.5e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "V100": (125e12, 15.7e12),  # float16 on tensor cores in place of bfloat16; likewise T4
    "T4": (65e12, 8.1e12),
    "TPU v3": (61.5e12, 61.5e12),  # JAX's devices are cores here, two per chip; likewise v2
    "TPU v2": (22.5e12, 22.5e12),
}
TOP = 10  # number of operations to print


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s from a device's data sheet, or None if the device is not known."""
    for chip in CHIPS.values():
        if chip.device_kind == device_kind:
            return chip.flops / chip.devices
    for name, (bfloat16, float32) in PEAKS.items():
        if name.lower() in device_kind.lower():
            return bfloat16 if dtype == "bfloat16" else float32
    return None


def flops_of(function: Callable, *arguments: Any) -> float:
    """FLOPs of a call over all devices, as XLA counts them before optimising.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    # As a GPU's program: in a CPU's, convolutions hide in loops whose body would be counted once (bt_jax/models/conv.py).
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    cost = lowered.cost_analysis() or {}
    return float((cost[0] if isinstance(cost, list) else cost).get("flops", 0.0))


class Profiler:
    """Wraps a jitted step and traces `config.steps` steps, after the first `config.after` of this process.

    Of several processes the first alone traces, as all would write into one folder. No failure of a trace ends a run.
    """

    def __init__(self, config: ConfigDict, workdir: epath.Path, dtype: str, say: Callable[[str], None]):
        """Args:
        config: `config.profile` of a run.
        dtype: of the computation.
        say: called with the report.
        """
        self._config, self._folder, self._dtype, self._say = config, workdir / "profile", dtype, say
        self._traces = bool(config.steps) and jax.process_index() == 0
        self._done = self._traced = 0
        self._start: float | None = None
        self._programs: dict[Any, Any] = {}
        self._last: Any = None

    def wrap(self, step: Any, flops: Callable[[], float]) -> Callable:
        """The step with tracing around it, or the step itself if nothing is to be traced.

        Args:
          step: a jitted function of (state, delivery) -> (state, metrics).
          flops: returns the FLOPs of a single step; called once.
        """
        if not self._config.steps:
            return step

        def profiled(state, delivery):
            # Compiled here for the program's text, which says where the trace's operations come from; by all processes,
            # as they compile one program together.
            key = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(delivery))
            if key not in self._programs:
                self._programs[key] = step.lower(state, delivery).compile()
            if self._traces and self._start is None and self._done >= self._config.after and self._traced == 0:
                self._trying(lambda: self._begin(state))
            state, metrics = self._programs[key](state, delivery)
            steps = max(jax.tree.leaves(metrics)[0].size, 1)
            self._done += steps
            if self._start is not None:
                self._traced += steps
                if self._traced >= self._config.steps:
                    jax.block_until_ready(metrics)
                    seconds, self._start = time.perf_counter() - self._start, None
                    self._trying(lambda: self._end(seconds, flops))
            return state, metrics

        return profiled

    def close(self) -> None:
        """Stops a trace that the end of the run cut short, and reports it."""
        if self._start is not None:
            self._start = None
            self._trying(jax.profiler.stop_trace)
            self._say(f"profile   the run ended after {self._traced} of {self._config.steps} steps of the trace")
        elif self._traces and not self._traced:
            self._say(
                f"profile   nothing was traced: the run ended after {self._done} steps, and profile.after is "
                f"{self._config.after}"
            )

    def _begin(self, state: Any) -> None:
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(self._folder))
        self._start = time.perf_counter()

    def _end(self, seconds: float, flops: Callable[[], float]) -> None:
        jax.profiler.stop_trace()
        self._say(self._report(seconds, flops()))

    def _trying(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a trace is never worth a run
            self._traces = False
            why = first_line(error).rstrip(".") or type(error).__name__
            self._say(
                f"profile   the trace in {self._folder} failed after {self._traced} steps ({why}); the run goes on"
            )

    def _report(self, seconds: float, flops: float) -> str:
        device, count = jax.devices()[0], jax.device_count()
        each = seconds / self._traced
        lines = [f"profile   {self._traced} steps, {1e3 * each:.4g} ms each, traced to {self._folder}"]
        peak = peak_flops(device.device_kind, self._dtype)
        rate = flops / each
        text = f"{flops / 1e9:.4g} GFLOP a step, {rate / 1e12:.4g} TFLOP/s"
        if peak is None:
            lines.append(f"{text}; the peak of {device.device_kind} is not known")
        else:
            lines.append(
                f"{text}, {rate / (peak * count):.1%} of the peak of {count} × {device.device_kind} in {self._dtype}"
            )
        operations = operation_times(newest_trace(self._folder))
        whole = sum(operations.values())
        if not whole:
            lines.append("the trace has no operations")
        where = {}
        for program in self._programs.values():
            where |= origins(program.as_text())
        for name, spent in sorted(operations.items(), key=lambda item: -item[1])[:TOP]:
            origin = where.get(name, "")
            lines.append(f"{1e3 * spent / self._traced:9.3f} ms {spent / whole:6.1%}  {name:<32.32} {origin}".rstrip())
        lines.append(f"to view it: https://ui.perfetto.dev, or tensorboard --logdir {self._folder} (needs xprof)")
        return ("\n" + " " * 10).join(lines)


def newest_trace(folder: epath.Path) -> epath.Path:
    """The newest .xplane.pb in a folder of traces."""
    # Each trace is in a folder named after its time.
    return max(as_path(folder, "the folder of traces").glob("plugins/profile/*/*.xplane.pb"), key=str)


def operation_times(trace: epath.Path) -> dict[str, float]:
    """Seconds spent in each operation of the compiled programs, by its name, over all devices; loops count as their body."""
    data = jax.profiler.ProfileData.from_serialized_xspace(trace.read_bytes())
    planes = list(data.planes)  # these do not keep `data` alive
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    times: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        # jaxlib creates its iterators' types on first use, which Python 3.12 warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in devices or planes:
            for line in plane.lines:
                if plane.name.startswith("/device:TPU") and line.name != "XLA Ops":
                    continue
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name is None and plane.name.startswith("/device:GPU") and line.name.startswith("Stream"):
                        name = event.name  # a kernel in a CUDA graph does not name its operation
                    if name is None or re.match(r"(while|conditional|call)(\.|$)", str(name)):
                        continue
                    times[str(name)] += event.duration_ns / 1e9
    return dict(times)


def origins(text: str) -> dict[str, str]:
    """The part of the source that each operation in a compiled program's text comes from, where known."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{.*?op_name=\"([^\"]*)\"", line):
            # As in jit(program)/transpose(jvp(TwinNetwork))/encoder/layer1_0/conv1/conv_general_dilated.
            parts = [
                part for part in match[2].split("/") if "(" not in part and part not in ("while", "body", "closed_call")
            ]
            found[match[1]] = ("backward " if "transpose(" in match[2] else "") + "/".join(parts[-4:])
    return found
