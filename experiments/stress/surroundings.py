"""Commands under adverse conditions: odd names of folders, a missing library, output that cannot be printed, full disks,
damaged files, signals. Each case runs in a separate process and prints a line: what was done, what the command said, and whether
that was right.

    python experiments/stress/surroundings.py DIR [CASE …]

For Linux, as root: the cases with full disks mount disks of a few MB (tmpfs).
"""

import argparse
import contextlib
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from common import disk, tell

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "--config.batch_size=16", "--config.epochs=2", "--config.data.views=device", "--config.data.image_size=16",
    "--config.data.photographs.size=16", "--config.data.photographs.train_per_class=4",
    "--config.data.photographs.test_per_class=1", "--config.model.width=4", "--config.model.small_images=True",
)  # fmt: skip
RUN = (
    *TINY, "--config.barlow_twins.projector=(32, 32)", "--config.monitor.every_epochs=0", "--config.monitor.judge_at_end=False",
    "--config.log.every_steps=1", "--config.log.tensorboard=False",
)  # fmt: skip
STEPS = 8  # of such a run
LONG = "--config.epochs=500"
WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None; import main; main.run()"


class Command:
    """`python main.py` in a separate process; its output and errors go to files unless `stdout` and `stderr` are given."""

    def __init__(
        self,
        folder: pathlib.Path,
        *arguments: str,
        code: str = "import main; main.run()",
        module: str = "",
        cwd=ROOT,
        **options,
    ):
        self._files = {}
        environment = {
            **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **options.pop("environment", {}),
        }  # fmt: skip
        for name in ("stdout", "stderr"):
            self._files[name] = folder / "said" / f"{time.time_ns()}_{name}"
            if name not in options:
                options[name] = open(self._files[name], "w")  # noqa: SIM115
        program = ["-m", module] if module else ["-c", code]
        self.process = subprocess.Popen([sys.executable, *program, *arguments], env=environment, cwd=cwd, **options)

    def said(self, name: str = "stdout") -> str:
        return self._files[name].read_text(errors="replace") if self._files[name].exists() else ""

    def last(self) -> str:
        """The last line on standard error, where the command says why it ends."""
        return (self.said("stderr").strip().splitlines() or ["(nothing)"])[-1]

    def one_sentence(self, *parts: str) -> bool:
        """Whether it ended by status 1 and one line on standard error, with these words in it."""
        status = self.wait()
        lines = self.said("stderr").strip().splitlines()
        return status == 1 and len(lines) == 1 and lines[0].startswith("error: ") and all(p in lines[0] for p in parts)

    def until(self, happened: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not happened() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    def wait(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def newest(workdir: pathlib.Path) -> int:
    return max((int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), default=0)


def plain(folder: pathlib.Path) -> pathlib.Path:
    """A run under a plain name, which the other commands take their encoder from."""
    workdir = folder / "plain"
    if not (workdir / "pretrain.json").exists():
        command = Command(folder, *RUN, f"--workdir={workdir}")
        if command.wait() != 0:
            sys.exit(f"the plain run failed: {command.last()}")
    return workdir


def names(folder: pathlib.Path) -> bool:
    """A run, the same command again, an export and a kNN evaluation under names that look like patterns; names that cannot be."""
    right = True
    for name in ("lr=[0.1]", "a*", "a?", "{a,b}"):
        top = folder / "names" / name
        top.mkdir(parents=True)
        run = Command(folder, *RUN, "--workdir=run", cwd=top)  # a relative path in such a folder
        good = run.wait() == 0
        again = Command(folder, *RUN, f"--workdir={top / 'run'}")
        good &= again.wait() == 0 and f"this run has finished all its {STEPS} steps" in again.said()
        export = Command(
            folder, "--config=configs/export.py", f"--config.init_from={top / 'run'}", f"--workdir={top / 'out'}"
        )
        good &= export.wait() == 0
        knn = Command(
            folder, "--config=configs/knn.py:quickstart", *TINY[3:], "--config.knn.k=(5,)", f"--config.init_from={top / 'out'}",
            f"--workdir={top / 'knn'}",
        )  # fmt: skip
        good &= knn.wait() == 0
        said = "run, resumed, exported, evaluated" if good else [c.last() for c in (run, again, export, knn)]
        right &= tell(f"names: {name}", good, str(said))
    for name, part in (
        ("a\\b", "tensorstore"),
        (b"\xff".decode(errors="surrogateescape"), "UTF-8"),
        ("file:///x", "neither a local"),
    ):
        place = name if "://" in name else folder / "names" / name
        for arguments in (RUN, ("--config=configs/export.py", f"--config.init_from={plain(folder)}")):
            command = Command(folder, *arguments, f"--workdir={place}")
            good = command.one_sentence(part) and ("://" in name or not place.exists())
            right &= tell(f"names: {name!r}, {'run' if arguments == RUN else 'export'}", good, command.last())
    return right


def missing(folder: pathlib.Path) -> bool:
    """TensorFlow cannot be imported: where it is needed, a message says so before anything is written."""
    right = True
    (folder / "images").mkdir(exist_ok=True)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(20):
                shutil.copyfile(_picture(folder), folder / "images" / split / name / f"{i}.png")
    cases = {
        "quickstart": ("--config.data.views=host",),
        "folder": (
            "--config.data.views=host",
            "--config.data.source=folder",
            f"--config.data.data_dir={folder / 'images'}",
        ),
        "knn": (f"--config.init_from={plain(folder)}",),
    }
    for case, more in cases.items():
        workdir = folder / f"missing_{case}"
        arguments = ("--config=configs/knn.py:quickstart", *TINY[3:], *more) if case == "knn" else (*RUN, *more)
        command = Command(folder, *arguments, f"--workdir={workdir}", code=WITHOUT_TENSORFLOW)
        good = command.one_sentence("TensorFlow", "pip install tensorflow") and not workdir.exists()
        right &= tell(f"missing: {case}", good, f"{command.last()}{' (workdir made)' if workdir.exists() else ''}")
    command = Command(folder, *RUN, f"--workdir={folder / 'missing_device'}", code=WITHOUT_TENSORFLOW)
    return (
        tell(
            "missing: views on the device",
            command.wait() == 0,
            "trained without" if command.wait() == 0 else command.last(),
        )
        and right
    )


def _picture(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "picture.png"
    if not path.exists():
        from PIL import Image

        Image.new("RGB", (16, 16), (200, 10, 10)).save(path)
    return path


def output(folder: pathlib.Path) -> bool:
    """Encodings that lack letters, a name that is not UTF-8, readers that exit, a full disk under the log, a closed terminal."""
    right = True

    def done(case: str, command: Command, workdir: pathlib.Path, parts: tuple[str, ...] = ()) -> bool:
        status = command.wait()
        said = command.said("stderr") + command.said()
        good = status == 0 and newest(workdir) == STEPS and all(part in said for part in parts)
        notes = [line for line in said.splitlines() if line.startswith("note:")]
        return tell(
            f"output: {case}", good, f"status {status}, step {newest(workdir)}; {(notes or ['nothing to note'])[0]}"
        )

    for encoding in ("ascii", "latin-1"):
        workdir = folder / f"output_{encoding}"
        command = Command(
            folder, *RUN, f"--workdir={workdir}", environment={"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
        )
        right &= done(encoding, command, workdir, ("done in",))
    images = folder / "odd_images"
    for split in ("train", "test"):
        for name in (b"a\xff".decode(errors="surrogateescape"), "b"):
            (images / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(40):
                shutil.copyfile(_picture(folder), images / split / name / f"{i}\udcfe.png")
    bad = next((images / "train").iterdir()) / "0\udcfe.png"
    bad.write_text("no image")
    arguments = (
        "--config.data.views=host",
        "--config.data.source=folder",
        f"--config.data.data_dir={images}",
        "--config.batch_size=16",
    )
    workdir = folder / "output_bytes"
    command = Command(folder, *RUN, *arguments, "--config.data.max_bad_fraction=0.1", f"--workdir={workdir}")
    status = command.wait()
    good = status == 0 and "cannot be read as an image" in command.said() and "\\udcfe.png" in command.said()
    right &= tell("output: names that are not UTF-8", good, f"status {status}; {command.last()}")

    for case, streams in (("| head -1", ("stdout",)), ("2>&1 | head -1", ("stdout", "stderr"))):
        workdir = folder / f"output_head_{len(streams)}"
        reader, writer = os.pipe()
        command = Command(folder, *RUN, f"--workdir={workdir}", **dict.fromkeys(streams, writer))
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        right &= done(case, command, workdir, ("Broken pipe",) * (len(streams) == 1))
    with disk(folder / "log", "64k") as small:
        (small / "ballast").write_bytes(bytes(64 * 1024))
        with open(small / "log", "w") as log:
            workdir = folder / "output_full"
            command = Command(folder, *RUN, f"--workdir={workdir}", stdout=log)
            right &= done("a full disk under the log", command, workdir, ("No space left",))
    workdir = folder / "output_terminal"
    with terminal(folder, *RUN, LONG, f"--workdir={workdir}") as (command, shown, close):
        command.until(lambda: b" ep " in b"".join(shown))  # not of a certain epoch: the bar may skip it
        close()
        time.sleep(3)
        still = command.process.poll() is None or command.process.returncode == 75
        command.process.send_signal(signal.SIGTERM)
        status = command.wait()
        good = still and status == 75 and newest(workdir) > 0
        right &= tell("output: a terminal that is closed", good, f"status {status}, step {newest(workdir)} saved")
    return right


@contextlib.contextmanager
def terminal(folder: pathlib.Path, *arguments: str):
    """A command on its own terminal: (the command, what it has shown so far, a function that closes the terminal)."""
    ours, its = pty.openpty()
    shown: list[bytes] = []
    command = Command(folder, *arguments, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    closed = threading.Event()

    def read():
        with contextlib.suppress(OSError):
            while not closed.is_set():
                shown.append(os.read(ours, 4096))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def close():
        if not closed.is_set():
            closed.set()
            os.close(ours)

    try:
        yield command, shown, close
    finally:
        command.process.kill()
        close()


def full(folder: pathlib.Path) -> bool:
    """The disk of the workdir is full when a result is written: the numbers are printed, one sentence follows."""
    source, right = plain(folder), True
    few = (
        "--config.finetune.chosen_by=seed",
        "--config.finetune.per_class=2",
        "--config.batch_size=16",
        "--config.epochs=1",
    )
    tasks = {
        "knn": ("--config=configs/knn.py:quickstart", "--config.knn.k=(5,)"),
        "linear": ("--config=configs/linear_cifar10.py", "--config.linear.cached=True"),
        "finetune": ("--config=configs/semi_supervised_cifar10.py:10percent", *few),
        "transfer": ("--config=configs/transfer_places.py", "--config.linear.cached=True"),
    }
    for task, more in tasks.items():
        data = (
            "--config.data.source=photographs", "--config.data.eval_resize=0", "--config.data.train_split=train",
            "--config.data.test_split=test", "--config.model.arch=resnet18", "--config.data.in_memory_bytes=1000000",
        )  # fmt: skip
        with disk(folder / f"full_{task}", "8m") as small:
            arguments = (*more, *data, *TINY[3:], f"--config.init_from={source}", f"--workdir={small / 'run'}")
            command = Command(
                folder, *arguments, "--config.log.tensorboard=False" if task == "finetune" else "--config.seed=0"
            )
            command.until((small / "run" / "judged.json").exists)
            subprocess.run(["dd", "if=/dev/zero", f"of={small / 'ballast'}", "bs=1k"], check=False, capture_output=True)
            numbers = {"knn": "kNN top-1"}.get(task, "top-1, final")
            good = command.one_sentence("No space left") and (numbers in command.said() or task == "finetune")
            left = sorted(
                path.name for path in (small / "run").iterdir() if path.name.endswith((".new", f"{task}.json"))
            )
            right &= tell(f"full: {task}", good and not left, f"{command.last()} {left or ''}")
    with disk(folder / "full_export", "100k") as small:
        command = Command(
            folder, "--config=configs/export.py", f"--config.init_from={source}", f"--workdir={small / 'out'}"
        )
        good = command.one_sentence("No space left") and not (small / "out").exists()
        right &= tell("full: export", good, command.last())
    with disk(folder / "full_pretrain", "24m") as small:
        command = Command(folder, *RUN, LONG, "--config.checkpoint.keep=1000", f"--workdir={small / 'run'}")
        command.until(lambda: (small / "run" / "checkpoints").exists() and newest(small / "run") >= 8)
        subprocess.run(["dd", "if=/dev/zero", f"of={small / 'ballast'}", "bs=1k"], check=False, capture_output=True)
        right &= tell("full: pretrain", command.one_sentence("No space left", "step"), command.last())
    try:
        import libtpu  # noqa: F401
    except ImportError:
        print("not tried  full: pod_plan: libtpu is not installed")
        return right
    with disk(folder / "full_plan", "4k") as small:
        (small / "ballast").write_bytes(bytes(4096))
        plan = ("--config.task=pod_plan", "--config.data.views=host", "--config.pod.topology=v5e:2x2")
        command = Command(folder, *RUN, *plan, f"--workdir={small}")
        good = command.one_sentence("No space left") and "a step" in command.said()
        return tell("full: pod_plan", good, command.last()) and right


def files(folder: pathlib.Path) -> bool:
    """Damaged files of a run that stopped in its middle."""
    stopped, right = folder / "stopped", True
    if not stopped.exists():
        command = Command(folder, *RUN, LONG, f"--workdir={stopped}")
        command.until(lambda: " ep 1." in command.said())
        command.process.send_signal(signal.SIGTERM)
        command.wait()
    step = newest(stopped)

    def resumed(case: str, more: tuple[str, ...] = ()) -> tuple[Command, pathlib.Path]:
        workdir = folder / f"files_{case}"
        command = Command(folder, *RUN, LONG, *more, f"--workdir={workdir}")
        command.until(lambda: f" ep {(step + 20) / 4:.1f}" in command.said())
        command.process.send_signal(signal.SIGTERM)
        command.wait()
        return command, workdir

    def copy(case: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(stopped, folder / f"files_{case}"))

    lines = (stopped / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for case, line in (("cut", lines[1][:20] + b"\n"), ("byte", lines[1].replace(b"e", b"\xff", 1)), ("empty", b"\n")):
        damaged = copy(f"line_{case}") / "metrics.jsonl"
        damaged.write_bytes(b"".join([lines[0], line, *lines[2:]]))
        command, workdir = resumed(f"line_{case}")
        same = (workdir / "metrics.jsonl").read_bytes().startswith(b"".join(lines[:step]))
        note = next((text for text in command.said().splitlines() if "damaged in line 2" in text), "no note")
        right &= tell(
            f"files: a line of metrics.jsonl, {case}", command.wait() == 75 and same and note != "no note", note
        )
    notes = copy("notes") / "checkpoints" / str(step) / "run" / "metadata"
    content = bytearray(notes.read_bytes())
    content[content.index(b'"lambd": ') + 9] ^= 1  # of the config's 0.0051
    notes.write_bytes(content)
    for other in notes.parents[2].iterdir():  # so that there is no earlier one to go on from
        if other.is_dir() and other.name != str(step):
            shutil.rmtree(other)
    command = Command(folder, *RUN, LONG, f"--workdir={folder / 'files_notes'}")
    refused = command.one_sentence("its notes were changed or damaged after they were written")
    right &= tell("files: one bit in a checkpoint's notes", refused and notes.exists(), command.last())
    for case, content in (("list", b"[]"), ("null", b"null"), ("text", b"hello"), ("bytes", b"\xff")):
        (copy(f"config_{case}") / "config.json").write_bytes(content)
        command, _ = resumed(f"config_{case}")
        right &= tell(
            f"files: config.json, {case}",
            command.one_sentence("config.json is not the config of a run"),
            command.last(),
        )
    (copy("config_lost") / "config.json").unlink()
    command, workdir = resumed("config_lost", ("--config.barlow_twins.lambd=0.1",))
    good = (
        command.one_sentence("barlow_twins.lambd was 0.0051 and is now 0.1") and not (workdir / "config.json").exists()
    )
    right &= tell("files: config.json lost, and another config", good, command.last())
    table = folder / "table"
    table.mkdir(exist_ok=True)
    for content in ("[]", "null", '{"task": "knn"}', "x"):
        (table / "knn.json").write_text(content)
        command = Command(folder, str(table), module="bt_jax.evaluation.table")
        right &= tell(f"files: the table of {content}", command.one_sentence("knn.json"), command.last())
    return right


def signals(folder: pathlib.Path) -> bool:
    """Ctrl-C, a second one, a closed terminal, nohup; on one process and on two."""
    right = True
    for case, number in (("Ctrl-C", signal.SIGINT), ("SIGHUP", signal.SIGHUP)):
        workdir = folder / f"signals_{case}"
        with terminal(folder, *RUN, LONG, f"--workdir={workdir}") as (command, shown, _):
            command.until(lambda shown=shown: b" ep " in b"".join(shown))
            command.process.send_signal(number)
            status, step = command.wait(), newest(workdir)
            time.sleep(0.5)
            said = b"".join(shown).decode(errors="replace").replace("\r", "\n").splitlines()
            last = next((line for line in reversed(said) if line.startswith("stopped by")), "(nothing)")
        good = status == 75 and f"step {step} of" in last and "the same command resumes" in last
        right &= tell(f"signals: {case}", good, f"status {status}; {last}")
    workdir = folder / "signals_twice"
    command = Command(folder, *RUN, LONG, f"--workdir={workdir}")
    command.until(lambda: " ep 1." in command.said())
    command.process.send_signal(signal.SIGSTOP)  # so that both arrive before its next step
    command.process.send_signal(signal.SIGINT)
    start = time.monotonic()
    command.process.send_signal(signal.SIGCONT)
    command.until(lambda: "a second Ctrl-C" in command.said("stderr"))
    command.process.send_signal(signal.SIGINT)
    status = command.wait()
    good = status in (130, 75)
    right &= tell(
        "signals: Ctrl-C twice", good, f"status {status} after {time.monotonic() - start:.2f} s; {command.last()}"
    )
    workdir = folder / "signals_nohup"
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import main; main.run()"
    command = Command(folder, *RUN, f"--workdir={workdir}", code=code)
    command.until(lambda: " ep " in command.said())
    command.process.send_signal(signal.SIGHUP)
    right &= tell("signals: SIGHUP under nohup", command.wait() == 0, f"status {command.wait()}")
    for number in (signal.SIGINT, signal.SIGHUP):
        workdir = folder / f"signals_two_{number.name}"
        port = 20000 + os.getpid() % 20000 + number
        mesh = (f"--config.mesh.coordinator=localhost:{port}", "--config.mesh.processes=2")
        both = [
            Command(folder, *RUN, LONG, *mesh, f"--config.mesh.process_index={i}", f"--workdir={workdir}")
            for i in (0, 1)
        ]
        both[0].until(lambda both=both: " ep 1." in both[0].said())
        both[1].process.send_signal(number)
        statuses = [command.wait() for command in both]
        last = next(
            (line for line in both[0].said("stderr").splitlines() if line.startswith("stopped by")), both[0].last()
        )
        good = statuses == [75, 75] and f"step {newest(workdir)} of" in last
        right &= tell(f"signals: {number.name} to one of two processes", good, f"status {statuses}; {last}")
    return right


CASES = (names, missing, output, full, files, signals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="created for the cases; must not exist yet")
    known = [case.__name__ for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all of {', '.join(known)} by default")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(known)):
        parser.error(f"there is no case {unknown[0]}; there are {', '.join(known)}")
    folder = arguments.folder.resolve()
    if folder.exists():
        parser.error(f"{folder} already exists; name a new folder")
    (folder / "said").mkdir(parents=True)
    wanted = [case for case in CASES if not arguments.cases or case.__name__ in arguments.cases]
    results = [case(folder) for case in wanted]
    print(f"{sum(results)} of {len(results)} cases as they should be")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
