"""bt_jax/runtime/preemption.py: signals are recorded, shared and answered; Slurm is asked to requeue the job."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from bt_jax.errors import Preempted
from bt_jax.runtime.preemption import Preemption

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]
WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP, as when the terminal is closed"}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted(number, capsys):
    """The run notices it at the next step and exits with status 75; afterwards signals do what they did before."""
    before = [signal.getsignal(n) for n in SIGNALS]
    with Preemption() as preemption:
        assert not preemption.reached()
        os.kill(os.getpid(), number)
        assert preemption.reached() and preemption.signal == signal.Signals(number).name
        with pytest.raises(Preempted) as left:
            preemption.leave("step 2 of 9 is saved in x")
    assert left.value.code == 75 and isinstance(left.value, SystemExit)
    assert (
        f"stopped by {WORDS.get(number, signal.Signals(number).name)}: step 2 of 9 is saved in x"
        in capsys.readouterr().err
    )
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_second_ctrl_c(capfd):
    """Has its usual effect, whenever it comes; the first says so at once."""
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached() and preemption.signal == "SIGTERM"
        assert capfd.readouterr().err == ("Ctrl-C: stopping after saving; a second Ctrl-C ends the run at once\n")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    code = "import os, signal; from bt_jax.runtime.preemption import Preemption\n"
    code += "signal.signal(signal.SIGINT, signal.SIG_DFL)\nwith Preemption():\n for _ in 'ab': os.kill(os.getpid(), signal.SIGINT)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGINT


def test_a_job_that_ignores_its_terminal(monkeypatch):
    """As under nohup, or in the background of a script: it stays ignored."""
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)]
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.reached()
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.reached()
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_what_may_be_broken_off(capsys):
    """Is, by a signal in its middle or before it; what follows is not."""
    done = []

    def work():
        done.append("begun")
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("ended")

    with Preemption() as preemption:
        assert preemption.finished(lambda: done.append("first"))
        assert not preemption.finished(work)
        assert not preemption.finished(work)
        assert done == ["first", "begun"]
        os.kill(os.getpid(), signal.SIGTERM)  # noted a second time, and nothing more
        assert preemption.reached()


def test_outside_of_the_main_thread():
    """Python cannot handle signals there, and the run works without."""
    found = []

    def run():
        with Preemption() as preemption:
            found.extend([preemption.reached(), preemption.finished(lambda: None)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, True]


OF_THE_SERVICE = """
import os, signal, sys, time
import jax, jax.numpy as jnp
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 1, 0, cluster_detection_method="deactivate")
from etils import epath
from bt_jax.engine.checkpoint import Checkpoints
from bt_jax.runtime.preemption import Preemption
preemption, checkpoints = Preemption(), Checkpoints(epath.Path(sys.argv[2]))
preemption._several = True  # asks as with others
assert not any(preemption.reached() for _ in range(50))
checkpoints.save(10_000, {"w": jnp.zeros(3)})
checkpoints.wait()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(2)  # the service has a thread of its own
print("stopped at ask", next((ask for ask in range(51, 100) if preemption.reached()), None), flush=True)
os._exit(0)  # instead of waiting for the service to end
"""


def test_a_save_leaves_the_sync_point_alone(tmp_path):
    """Of JAX's own service: after a save at step 10 000, a signal stops the run at its next ask, which is the 51st."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-c", OF_THE_SERVICE, str(port), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "stopped at ask 51\n", ended.stderr


def test_errors_of_what_may_be_broken_off():
    with Preemption() as preemption, pytest.raises(ZeroDivisionError):
        preemption.finished(lambda: 1 / 0)


def slurm(tmp_path, monkeypatch, text, **environment):
    """A `scontrol` that records its arguments, and a job's environment."""
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{text}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def told(number, capsys):
    with Preemption() as preemption:
        os.kill(os.getpid(), number)
    preemption.requeue()
    return capsys.readouterr().err


def test_slurm_is_asked_after_its_signal(tmp_path, monkeypatch, capsys):
    """After SIGUSR1, not after SIGTERM; an array's job by both its numbers; a refusal is reported."""
    slurm(tmp_path, monkeypatch, "", SLURM_JOB_ID="42")
    assert told(signal.SIGTERM, capsys) == "" and not (tmp_path / "asked").exists()
    assert "job 42 was requeued" in told(signal.SIGUSR1, capsys)
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    slurm(
        tmp_path,
        monkeypatch,
        "echo no >&2; exit 1",
        SLURM_ARRAY_JOB_ID="40",
        SLURM_ARRAY_TASK_ID="3",
        SLURM_JOB_ID="42",
    )
    assert "job 40_3 was not requeued (no); submit it again" in told(signal.SIGUSR1, capsys)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "was not requeued" in told(signal.SIGUSR1, capsys)


def test_outside_of_slurm_nothing_is_asked(tmp_path, monkeypatch, capsys):
    slurm(tmp_path, monkeypatch, "")
    assert told(signal.SIGUSR1, capsys) == "" and not (tmp_path / "asked").exists()
