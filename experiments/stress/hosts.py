"""Two hosts: a run of two processes, each in a network namespace of its own, with a line between them that can be slow, lossy and cut.

    python experiments/stress/hosts.py DIR [--only CASE …]

For Linux, as root. A TUN device in each namespace is the host's only way out, and a process that has both forwards their packets: after
a delay, each direction by itself, and without those that the line loses. Each host is `python main.py` with its own host name, and
both write into one workdir. Every array of the last checkpoint, and every line of metrics.jsonl except the speed, is compared with a run
of two processes without namespaces.
"""

import argparse
import collections
import contextlib
import fcntl
import heapq
import multiprocessing
import os
import pathlib
import random
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from common import tell
from small_runs import final, newest
from surroundings import ROOT, RUN

NAMES, ADDRESSES, PORT = ("btjax0", "btjax1"), ("10.98.0.1", "10.98.0.2"), 23456
HEARTBEAT = 20
LEAVING = 5  # seconds that a process may take to end once it knows that it must
EPOCHS = 10  # of four steps
SLOW = 0.005
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Line:
    """Forwards packets between two TUN devices, in a separate process.

    Attributes:
      devices: the file descriptors of the two.
    """

    def __init__(self, devices: tuple[int, int]):
        self.devices = devices
        context = multiprocessing.get_context("fork")
        self._shared = context.Array("d", 3, lock=False)  # delay, loss, whether it is cut
        self._process = context.Process(target=self._forward, args=(os.getpid(),), daemon=True)
        self._process.start()

    def set(self, delay: float = 0.0, loss: float = 0.0) -> None:
        """Args:
        delay: seconds, each way.
        loss: the probability that a packet is lost, each way.
        """
        self._shared[:] = (delay, loss, 0.0)

    def cut(self) -> float:
        """Forwards nothing from now on, nor what is under way; returns the time."""
        self._shared[2] = 1.0
        return time.monotonic()

    def mend(self) -> None:
        self._shared[2] = 0.0

    def close(self) -> None:
        self._process.terminate()
        self._process.join()

    def _forward(self, parent: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process once the runs have ended
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        draw, count = random.Random(0), 0
        waiting: list[tuple[float, int, int, bytes]] = []  # when, a number for ties, to which device, packet
        while os.getppid() == parent:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
            ready, _, _ = select.select(self.devices, [], [], pause)
            delay, loss, cut = self._shared
            for device in ready:
                with contextlib.suppress(OSError):
                    packet, other = os.read(device, 65536), self.devices[device == self.devices[0]]
                    if not cut and draw.random() >= loss:
                        count += 1
                        heapq.heappush(waiting, (time.monotonic() + delay, count, other, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):  # its queue is full: lost, as on a real line
                    if not cut:
                        os.write(device, packet)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


def _remove() -> None:
    for name in NAMES:
        _ip("netns", "delete", name, check=False)
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[Line]:
    """Two network namespaces, and the line between them; all is removed at the end, however that comes.

    Raises:
      OSError, subprocess.CalledProcessError: there is no right to make them, or no such thing.
    """
    devices: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [os.close(device) for device in devices])  # with which a TUN device ends
        _remove()  # of a command that was killed
        stack.callback(_remove)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            devices.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            fcntl.ioctl(devices[-1], _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("netns", "add", name)
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # JAX's collectives on CPUs (Gloo) tell each other the address that the host's own name has.
            hosts = pathlib.Path(f"/etc/netns/{name}/hosts")
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(
                "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NAMES, strict=True))
            )
        line = Line((devices[0], devices[1]))
        stack.callback(line.close)
        yield line


def inside(name: str, *command: str) -> list[str]:
    """A command in a namespace, under that host name; /etc/netns is known to `ip netns exec`."""
    named = 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", named, name, *command]


_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5000))
print(flush=True)
while True: s.sendto(*s.recvfrom(9))
"""
_ASK = """
import socket, sys, time
s, took = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), []
s.settimeout(0.2)
for i in range(400):
    start = time.monotonic()
    s.sendto(b"%d" % i, (sys.argv[1], 5000))
    try:
        while s.recv(9) != b"%d" % i: pass
        took.append(time.monotonic() - start)
    except TimeoutError: pass
print(*took)
"""


def round_trips(line: Line, delay: float, loss: float) -> tuple[list[float], float]:
    """Seconds of the round trips of 400 datagrams through the line, and the share that did not come back."""
    line.set(delay, loss)
    with subprocess.Popen(inside(NAMES[0], sys.executable, "-c", _ECHO), stdout=subprocess.PIPE) as echo:
        try:
            echo.stdout.readline()
            asked = subprocess.run(
                inside(NAMES[1], sys.executable, "-c", _ASK, ADDRESSES[0]), capture_output=True, text=True, check=True
            )
        finally:
            echo.kill()
    took = [float(word) for word in asked.stdout.split()]
    return took, 1 - len(took) / 400


class Hosts:
    """The two processes of a run, with what each says in a file."""

    def __init__(self, folder: pathlib.Path, workdir: pathlib.Path, *, apart: bool = True, **changes: object):
        """Args:
        apart: whether each is in its namespace; otherwise both are on 127.0.0.1 of this one.
        changes: fields of the config by their names.
        """
        mesh = {
            "mesh.coordinator": f"{ADDRESSES[0] if apart else '127.0.0.1'}:{PORT}", "mesh.processes": 2,
            "mesh.heartbeat_seconds": HEARTBEAT, "mesh.join_seconds": 60, "epochs": EPOCHS, "checkpoint.every_steps": 4,
            "report.write": False,
        }  # fmt: skip
        options = [f"--config.{name}={value}" for name, value in {**mesh, **changes}.items()]
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        self._workdir = workdir
        self._said = [folder / f"said_{workdir.name}_{time.time_ns()}_{i}" for i in (0, 1)]
        self._processes: list[subprocess.Popen] = []
        self._ended: dict[int, float] = {}
        self._began = time.monotonic()
        for i, said in enumerate(self._said):
            command = [
                sys.executable, "main.py", *RUN, *options, f"--config.mesh.process_index={i}", f"--workdir={workdir}",
            ]  # fmt: skip
            with open(said, "w") as file:
                self._processes.append(
                    subprocess.Popen(
                        inside(NAMES[i], *command) if apart else command, env=environment, cwd=ROOT, stdout=file,
                        stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def said(self, i: int) -> str:
        return self._said[i].read_text(errors="replace")

    def last(self, i: int) -> str:
        """The last line of a process, where it says why it ends."""
        return (self.said(i).strip().splitlines() or ["(nothing)"])[-1]

    def kill(self, i: int) -> float:
        self._processes[i].kill()
        return time.monotonic()

    def _running(self) -> bool:
        for i, process in enumerate(self._processes):
            if i not in self._ended and process.poll() is not None:
                self._ended[i] = time.monotonic()
        return len(self._ended) < 2

    def until(self, happened: Callable[[], bool], seconds: float = 600) -> bool:
        """Waits until something happens or both processes have ended; returns whether it happened."""
        until = time.monotonic() + seconds
        while not happened():
            if not self._running() or time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def in_training(self) -> bool:
        """Until a step in the middle of training, when no checkpoint is being written."""
        return self.until(lambda: f"\n10/{4 * EPOCHS} ep" in self.said(0))

    def in_save(self) -> bool:
        return self.until(lambda: any((self._workdir / "checkpoints").glob("8.orbax-checkpoint-tmp*")))

    def ends(self, seconds: float = 900) -> tuple[list[int | None], float]:
        """The statuses of both, None for one that still runs, and the seconds that the run took."""
        self.until(lambda: False, seconds)
        statuses = [process.poll() for process in self._processes]
        time.sleep(0.5)  # the companion of a process prints its last words after it
        return statuses, time.monotonic() - self._began

    def ended_after(self, since: float) -> list[float]:
        return [self._ended.get(i, float("inf")) - since for i in (0, 1)]

    def sentence(self, i: int) -> bool:
        """Whether the process ended by an error in a sentence."""
        status = self._processes[i].poll()
        return status not in (None, 0) and self.last(i).startswith("error: ") and 'File "' not in self.said(i)


class Trials:
    """The cases; each is named after its method."""

    def __init__(self, folder: pathlib.Path, line: Line):
        self._folder, self._line = folder, line
        with Hosts(folder, self._fresh("on_one_host"), apart=False) as both:
            statuses, seconds = both.ends()
            if statuses != [0, 0]:
                sys.exit(f"two processes on one host failed: {both.last(0)}")
        self._expected = final(folder, folder / "on_one_host")
        print(f"two processes on 127.0.0.1: {seconds:.0f} s, step {newest(folder / 'on_one_host')}", flush=True)

    def _to_the_end(self, case: str, workdir: pathlib.Path, **changes: object) -> bool:
        with Hosts(self._folder, workdir, **changes) as both:
            return self._equal(case, workdir, both)

    def _equal(self, case: str, workdir: pathlib.Path, both: Hosts) -> bool:
        statuses, seconds = both.ends()
        same = statuses == [0, 0] and final(self._folder, workdir) == self._expected
        words = "equal" if same else f"NOT EQUAL, status {statuses}: {both.last(0)} | {both.last(1)}"
        return tell(case, same, f"{words}, {seconds:.0f} s")

    def _fresh(self, name: str) -> pathlib.Path:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name

    def line(self) -> bool:
        """The line itself."""
        right = True
        for delay, loss in ((0, 0), (SLOW, 0), (SLOW, 0.01), (0, 0.05)):
            took, lost = round_trips(self._line, delay, loss)
            expected = 1 - (1 - loss) ** 2
            good = min(took) >= 2 * delay and abs(lost - expected) <= 4 * (expected / 400) ** 0.5
            median, longest = 1000 * statistics.median(took), 1000 * max(took)
            right &= tell(
                f"the line, {1000 * delay:g} ms and {100 * loss:g} % lost each way", good,
                f"a round trip takes {median:.2f} ms (median; at most {longest:.1f}), {100 * lost:.1f} % did not come back",
            )  # fmt: skip
        return right

    def good(self) -> bool:
        self._line.set()
        return self._to_the_end("a good line", self._fresh("good"))

    def slow(self) -> bool:
        self._line.set(SLOW)
        return self._to_the_end("5 ms", self._fresh("slow"))

    def slow_and_lossy(self) -> bool:
        self._line.set(SLOW, 0.01)
        return self._to_the_end("5 ms, 1 % lost", self._fresh("slow_and_lossy"))

    def lossy(self) -> bool:
        self._line.set(0, 0.05)
        return self._to_the_end("5 % lost", self._fresh("lossy"))

    def cut(self) -> bool:
        self._line.set(SLOW)
        workdir = self._fresh("cut")
        with Hosts(self._folder, workdir) as both:
            reached = both.in_training()
            right = self._both_end("the line is cut", both, self._line.cut(), reached, (0, 1))
        self._line.mend()
        return right & self._to_the_end("the same command, once the line is mended", workdir)

    def _both_end(self, case: str, both: Hosts, since: float, reached: bool, those: tuple[int, ...]) -> bool:
        """Whether those processes end by themselves, in a sentence, within the heartbeat."""
        both.ends(10 * HEARTBEAT)
        seconds = both.ended_after(since)
        good = reached and all(both.sentence(i) and seconds[i] <= HEARTBEAT + LEAVING for i in those)
        return tell(case, good, "; ".join(f"host {i} after {seconds[i]:.1f} s: {both.last(i)}" for i in those))

    def killed(self) -> bool:
        right = True
        for i, in_save in ((1, False), (0, False), (1, True)):
            self._line.set(SLOW)
            workdir = self._fresh(f"killed_{i}{'_in_save' * in_save}")
            with Hosts(self._folder, workdir) as both:
                reached = both.in_save() if in_save else both.in_training()
                case = f"host {i} is killed{' while a checkpoint is written' * in_save}"
                right &= self._both_end(case, both, both.kill(i), reached, (1 - i,))
            right &= self._to_the_end("the same command", workdir)
        return right

    def healed(self) -> bool:
        right = True
        for seconds in (1, 2, HEARTBEAT // 4):
            self._line.set(SLOW)
            workdir = self._fresh(f"healed_{seconds}")
            with Hosts(self._folder, workdir) as both:
                reached = both.in_training()
                self._line.cut()
                time.sleep(seconds)
                self._line.mend()
                right &= reached & self._equal(f"the line is cut for {seconds} s", workdir, both)
        return right


CASES = ("line", "good", "slow", "slow_and_lossy", "lossy", "cut", "killed", "healed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with contextlib.ExitStack() as stack:
        try:
            line = stack.enter_context(two_hosts())
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or str(error)
            sys.exit(
                f"skipped: two hosts need Linux's network namespaces and TUN devices, and the right to make them ({why.strip()})"
            )
        trials = Trials(folder, line)
        results = collections.Counter(getattr(trials, case)() for case in arguments.only)
    sys.exit(bool(results[False]))


if __name__ == "__main__":
    main()
