"""Seconds of the quickstart by phases, in a new environment (no compiled programs are kept yet) and again.

    python experiments/benchmarks/quickstart.py
    python experiments/benchmarks/quickstart.py --repeats 3 --config.mesh.cpu_devices=1      other fields of the run

Each run is `python main.py` in a process of its own, timed from the command to its last line; phases are told by its lines, which
come every 13 steps, three times an epoch. "first step" is compiling and the first 13 steps, "training" all other steps, and
"rest" what is between the run's last lines and its end.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
PHASES = ("start", "untrained", "first step", "training", "kNN", "evaluations", "rest")


def run(arguments: list[str], folder: str, cache: str) -> tuple[dict[str, float], list[str]]:
    """Seconds by phase, and the run's last lines."""
    seconds, lines, phase = dict.fromkeys(PHASES, 0.0), [], "start"
    command = [sys.executable, "-u", "main.py", "--config.log.every_steps=13", f"--workdir={folder}", *arguments]
    before = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": cache}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("bt_jax"):
            ended, following = "start", "untrained"
        elif "untrained; RankMe" in line:
            ended, following = "untrained", "first step"
        elif re.match(r" *\d+/\d+ ep", line):
            ended, following = phase, "training"
        elif "after epoch" in line:
            ended, following = "kNN", "training"
        elif line.startswith("done in"):
            ended, following = "evaluations", "rest"
        else:
            continue
        now = time.perf_counter()
        seconds[ended] += now - before
        before, phase = now, following
    if process.wait():
        sys.exit("the run failed.")
    seconds[phase] += time.perf_counter() - before
    return seconds, [line for line in lines if re.match(r"(kNN accuracy  |linear|few labels)", line)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs after the first; the median of each phase is shown"
    )
    arguments, fields = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        first, last = run(fields, f"{folder}/first", f"{folder}/cache")
        others = [run(fields, f"{folder}/{i}", f"{folder}/cache")[0] for i in range(arguments.repeats)]
    print(f"{'seconds':<12}{'first':>8}{'again':>8}")
    for phase in PHASES:
        print(f"{phase:<12}{first[phase]:8.1f}{statistics.median(other[phase] for other in others):8.1f}")
    totals = [sum(found.values()) for found in (first, *others)]
    print(f"{'in all':<12}{totals[0]:8.1f}{statistics.median(totals[1:]):8.1f}")
    print(*last, sep="\n")


if __name__ == "__main__":
    main()
