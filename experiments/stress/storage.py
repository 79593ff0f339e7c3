"""Faults of storage and time: a full disk, damaged checkpoints, two runs, a read-only disk, a folder that disappears, a clock
that goes backwards, signals. Each case prints what it did, what the run printed, and whether that was right.

    python experiments/stress/storage.py DIR [CASE …]

Needs root, on Linux, to mount disks of a few MB (tmpfs). The clock is Python's, as a run sees it.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from common import disk, tell
from small_runs import EPOCHS, STEPS_AN_EPOCH, Run, final, newest, prepare

TOTAL = STEPS_AN_EPOCH * EPOCHS


def full_disk(folder: pathlib.Path) -> bool:
    """The disk fills up in the middle of a run; with space again the run resumes, and ends with the same bits."""
    with disk(folder / "disk", "24m") as small:
        run = Run(folder, small / "run", **{"checkpoint.keep": 1000, "log.tensorboard": True})
        run.until(lambda: newest(small / "run") >= TOTAL // 3)
        step = newest(small / "run")
        subprocess.run(["dd", "if=/dev/zero", f"of={small / 'ballast'}", "bs=64k"], check=False, capture_output=True)
        status, said = run.wait(), run.last_words()
        good = newest(small / "run")
        right = tell(
            "full disk", status == 1 and good >= step > 0 and f"step {good}" in said, f"status {status}; {said}"
        )
        (small / "ballast").unlink()
        status = Run(folder, small / "run", **{"checkpoint.keep": 3, "log.tensorboard": True}).wait()
        same = status == 0 and final(folder, small / "run") == final(folder, folder / "whole")
        return tell("space again", same, f"status {status}; {'the same bits' if same else 'other bits'}") and right


def damage(folder: pathlib.Path) -> bool:
    """The newest checkpoint is truncated, or one bit in a file of its arrays is flipped; then all are damaged."""
    right, draw = True, random.Random(0)
    for kind in ("truncated", "a flipped bit", "an empty file"):
        workdir = folder / f"damaged_{kind.replace(' ', '_')}"
        shutil.copytree(folder / "stopped", workdir)
        step = newest(workdir)
        files = [p for p in (workdir / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
        file = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        place = draw.randrange(len(content) // 4, len(content))
        if kind == "a flipped bit":
            content[place] ^= 1 << draw.randrange(8)
        file.write_bytes({"truncated": content[:place], "a flipped bit": content, "an empty file": b""}[kind])
        run = Run(folder, workdir)
        status = run.wait()
        note = next((line for line in run.said().splitlines() if "cannot be read" in line), "not reported")
        aside = (workdir / "damaged_checkpoints" / str(step)).is_dir()
        same = status == 0 and final(folder, workdir) == final(folder, folder / "whole")
        right &= tell(
            f"newest checkpoint, {kind}",
            aside and same,
            f"{note[:230]}; {'the same bits' if same else 'other bits'} at the end",
        )
    workdir = folder / "damaged_all"
    shutil.copytree(folder / "stopped", workdir)
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = sorted((str(p), p.stat().st_size) for p in (workdir / "checkpoints").rglob("*") if p.is_file())
    run = Run(folder, workdir)
    status = run.wait()
    after = sorted((str(p), p.stat().st_size) for p in (workdir / "checkpoints").rglob("*") if p.is_file())
    return (
        tell("all checkpoints damaged", status == 1 and before == after, f"status {status}; {run.last_words()[:330]}")
        and right
    )


def two_runs(folder: pathlib.Path) -> bool:
    """The second is refused while the first continues."""
    first = Run(folder, folder / "two")
    first.until((folder / "two" / "holder.json").exists)
    second = Run(folder, folder / "two")
    status, said = second.wait(), second.last_words()
    right = status == 1 and f"process {first.pid} on host {socket.gethostname()}" in said
    same = first.wait() == 0 and final(folder, folder / "two") == final(folder, folder / "whole")
    return tell(
        "two runs",
        right and same,
        f"status {status}; {said}; the first ended with {'the same' if same else 'other'} bits",
    )


def read_only(folder: pathlib.Path) -> bool:
    """From the start, and from the middle of a run."""
    with disk(folder / "read_only", "24m") as small:
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        run = Run(folder, small / "run")
        status = run.wait()
        right = tell(
            "read-only from the start", status == 1 and "cannot be written" in run.last_words(), run.last_words()
        )
    with disk(folder / "turns_read_only", "24m") as small:
        run = Run(folder, small / "run", **{"checkpoint.keep": 1000})
        run.until(run.training)
        run.signal(signal.SIGSTOP)  # a disk cannot turn read-only while a file is being written
        for _ in range(400):
            if subprocess.run(["mount", "-o", "remount,ro", small], check=False, capture_output=True).returncode == 0:
                break
            run.signal(signal.SIGCONT)
            time.sleep(0.01)
            run.signal(signal.SIGSTOP)
        else:
            run.signal(signal.SIGKILL)
            run.wait()
            return tell(
                "turns read-only", right, "not tried: metrics.jsonl is held open for writing, and the kernel refuses"
            )
        run.signal(signal.SIGCONT)
        status = run.wait()
        return tell("turns read-only", status == 1, run.last_words()) and right


def disappears(folder: pathlib.Path) -> bool:
    """Its disk is unmounted; its folder is moved away."""
    with disk(folder / "mount", "24m") as small:
        run = Run(folder, small / "run")
        run.until(run.training)
        subprocess.run(["umount", "-l", small], check=True)
        status = run.wait()
        stray = list((small / "run" / "checkpoints").glob("[0-9]*"))  # a save in progress recreates its folder
        said = run.last_words()
        right = tell(
            "disk unmounted",
            status == 1 and "no longer exists" in said and len(stray) <= 1,
            f"status {status}; {said}; {len(stray)} checkpoint(s) in its place",
        )
    run = Run(folder, folder / "deleted")
    run.until(run.training)
    (folder / "deleted").rename(folder / "deleted_elsewhere")
    status, said = run.wait(), run.last_words()
    stray = list((folder / "deleted" / "checkpoints").glob("[0-9]*"))
    good = status == 1 and "no longer exists" in said and len(stray) <= 1
    return (
        tell("folder moved away", good, f"status {status}; {said}; {len(stray)} checkpoint(s) in its place") and right
    )


def clock(folder: pathlib.Path) -> bool:
    """Python's clocks go back by a minute at every call, and by two more days before the run resumes."""

    def backwards(days: int):
        start, looks, real = time.time(), itertools.count(), datetime.datetime

        def now() -> float:
            return start - 86400 * days - 60 * next(looks)

        class Backwards(real):
            @classmethod
            def now(cls, tz=None):
                return real.fromtimestamp(now(), tz)

        time.time, time.time_ns, datetime.datetime = now, lambda: int(now() * 1e9), Backwards

    workdir = folder / "clock"
    run = Run(folder, workdir, before=lambda: backwards(1))
    run.until(lambda: newest(workdir) >= TOTAL // 3)
    run.signal(signal.SIGKILL)
    run.wait()
    stopped = newest(workdir)
    saved = json.loads((workdir / "checkpoints" / str(stopped) / "run" / "metadata").read_text())["saved"]
    run = Run(folder, workdir, before=lambda: backwards(3))
    status = run.wait()
    again = json.loads((workdir / "checkpoints" / str(newest(workdir)) / "run" / "metadata").read_text())["saved"]
    same = status == 0 and final(folder, workdir) == final(folder, folder / "whole")
    return tell(
        "clock going backwards",
        same and again < saved,
        f"killed at step {stopped}, saved at {saved}; the last step, after it, at {again}; status {status}, "
        f"{'the same bits' if same else 'other bits'}",
    )


def signals(folder: pathlib.Path) -> bool:
    """SIGTERM and SIGUSR1 at random moments: how long until the process exits, and which step is saved."""
    right, draw = True, random.Random(1)
    for i, number in enumerate([signal.SIGTERM, signal.SIGUSR1] * 2):
        workdir = folder / f"signal_{i}"
        run = Run(folder, workdir, **{"checkpoint.every_steps": 0, "checkpoint.every_epochs": EPOCHS})
        run.until(run.training)
        time.sleep(draw.uniform(0, 0.5))
        before = run.said().count(" lr ")
        start = time.monotonic()
        run.signal(number)
        status = run.wait()
        seconds = time.monotonic() - start
        steps = run.said().count(" lr ")
        right &= tell(number.name, status == 75 and newest(workdir) == steps and steps - before <= 2,
                      f"status {status} after {seconds:.2f} s; {run.last_words()}")  # fmt: skip
    unlike = {"checkpoint.every_steps": 0, "checkpoint.every_epochs": EPOCHS}
    status = Run(folder, workdir, **unlike).wait()
    same = status == 0 and final(folder, workdir)["step"] == str(TOTAL)
    return tell("and on", same, f"status {status}") and right


CASES = (full_disk, damage, two_runs, read_only, disappears, clock, signals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="created here; must not exist yet")
    names = [case.__name__ for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all of {', '.join(names)} by default")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cases) - set(names)):
        parser.error(f"unknown case {unknown[0]}; known cases: {', '.join(names)}")
    folder = arguments.folder.resolve()
    if folder.exists():
        parser.error(f"{folder} already exists; name a new folder")
    prepare(folder)
    for name in ("compiling", "whole"):
        if not (folder / name / "pretrain.json").exists() and Run(folder, folder / name).wait() != 0:
            sys.exit(f"the uninterrupted run failed: {folder / name}")
    if not (folder / "stopped").exists():
        run = Run(folder, folder / "stopped")
        run.until(lambda: newest(folder / "stopped") >= TOTAL // 2)
        run.signal(signal.SIGTERM)
        run.wait()
    wanted = [case for case in CASES if not arguments.cases or case.__name__ in arguments.cases]
    results = [case(folder) for case in wanted]
    print(f"{sum(results)} of {len(results)} cases are right")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
