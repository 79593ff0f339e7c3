"""bt_jax/reporting/profile.py: a trace of some steps and what is read from it; peaks by the name of a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bt_jax.reporting.profile import PEAKS, Profiler, flops_of, newest_trace, operation_times, origins, peak_flops

N = 256


def run(tmp_path, steps, after, calls):
    """What is printed, and how many products of two N × N matrices a step made."""
    said = []
    profiler = Profiler(ConfigDict({"steps": steps, "after": after}), tmp_path, "float32", said.append)

    def step(state, delivery):
        with jax.named_scope("product"):
            state = jnp.tanh(state @ delivery)
        return state, {"loss": jnp.sum(state)}

    wrapped = profiler.wrap(jax.jit(step, donate_argnums=0), lambda: 2.0 * N**3)
    state = jnp.ones((N, N))
    for _ in range(calls):
        state, _ = wrapped(state, jnp.eye(N))
    profiler.close()
    return said


def test_a_trace_is_written_once_and_told_of(tmp_path):
    """After the given number of steps, for the given number; the slowest operations, and where in the source they come from."""
    said = run(tmp_path, steps=3, after=2, calls=9)
    assert len(said) == 1 and said[0].startswith("profile   3 steps, ")
    assert "0.03355 GFLOP a step" in said[0] and "the peak of cpu is not known" in said[0]
    assert "product/dot_general" in said[0]
    times = operation_times(newest_trace(tmp_path / "profile"))
    assert times and all(seconds > 0 for seconds in times.values())
    shares = [float(line.split("ms")[1].split("%")[0]) for line in said[0].splitlines() if "%" in line]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(
    ("after", "sentence"),
    [(2, "the run ended after 2 of 5 steps of the trace"), (9, "nothing was traced: the run ended after 4")],
)
def test_a_run_that_ends_too_early(tmp_path, after, sentence):
    assert sentence in run(tmp_path, steps=5, after=after, calls=4)[0]


def test_several_processes(tmp_path, monkeypatch):
    """The first alone traces: all of them would write into one folder."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert run(tmp_path, steps=2, after=1, calls=5) == [] and not list(tmp_path.iterdir())


def test_a_trace_that_fails(tmp_path, monkeypatch):
    """One that is half written, and one that cannot begin: the run goes on, with a sentence."""
    stop = jax.profiler.stop_trace

    def cut():
        stop()
        newest_trace(tmp_path / "profile").write_bytes(b"\x0a\xff")

    monkeypatch.setattr(jax.profiler, "stop_trace", cut)
    (said,) = run(tmp_path, steps=2, after=1, calls=5)
    assert said.startswith(f"profile   the trace in {tmp_path}/profile failed after 2 steps (")
    assert said.endswith("); the run goes on") and "XSpace" in said

    def fail(_):
        raise RuntimeError("Profile has already been started.")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    assert run(tmp_path, steps=2, after=1, calls=5) == [
        f"profile   the trace in {tmp_path}/profile failed after 0 steps (Profile has already been started); the run goes on"
    ]


def test_nothing_stands_around_a_step_that_is_not_traced(tmp_path):
    step = jax.jit(lambda state, delivery: (state, {}))
    assert Profiler(ConfigDict({"steps": 0, "after": 1}), tmp_path, "float32", print).wrap(step, float) is step


def test_peaks():
    """The device kinds that JAX reports, and an unknown one."""
    for kind, dtype, peak in (
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12), ("NVIDIA H200", "float32", 494e12), ("Tesla T4", "bfloat16", 65e12),
        ("NVIDIA L4", "bfloat16", 121e12), ("NVIDIA L40S", "bfloat16", 362e12), ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("TPU v5 lite", "bfloat16", 197e12), ("TPU v5", "float32", 459e12), ("TPU7x", "bfloat16", 1153.5e12), ("cpu", "float32", None),
    ):  # fmt: skip
        assert peak_flops(kind, dtype) == peak
    assert all(bfloat16 >= float32 for bfloat16, float32 in PEAKS.values())


def test_counting_and_origins():
    """2·N³ of a product; an operation's line names its layer and its direction."""
    a = jax.ShapeDtypeStruct((N, N), np.float32)
    assert flops_of(lambda a, b: a @ b, a, a) == pytest.approx(2 * N**3, rel=0.01)
    text = (
        '  ROOT %conv.3 = f32[2]{0} convolution(...), metadata={op_name="jit(step)/transpose(jvp(Net))/encoder/conv1/conv" x=1}\n'
        '  add.1 = f32[] add(...), metadata={op_name="jit(step)/while/body/optimizer/add"}\n  %p = f32[] parameter(0)\n'
    )
    assert origins(text) == {"conv.3": "backward encoder/conv1/conv", "add.1": "optimizer/add"}
