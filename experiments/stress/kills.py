"""Kills runs with SIGKILL at random moments and resumes them until they are complete: do they end with the same bits?

    python experiments/stress/kills.py DIR [--runs 20] [--kills 3]

One run is not interrupted. Each of the others is killed `--kills` times, at a random moment during the start or the steps after
it, with a checkpoint at every step; then it runs to the end. Every array of the last checkpoint is compared bit for bit, and
every line of metrics.jsonl except the speed.
"""

import argparse
import pathlib
import random
import shutil
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from small_runs import Run, final, newest, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, draw = arguments.folder.resolve(), random.Random(arguments.seed)
    prepare(folder)
    for name in ("compiling", "whole"):  # the first compiles; the second, with cached programs, is timed
        whole = Run(folder, folder / name)
        began = time.monotonic()
        whole.until(whole.training)
        ready = time.monotonic() - began
        if whole.wait() != 0:
            sys.exit(f"the uninterrupted run failed: {whole.last_words()}")
        took = time.monotonic() - began
        print(f"{name}: {took:.1f} s, of which {ready:.1f} s before the first step was reported", flush=True)
    equal, kills, in_save, in_start = 0, 0, 0, 0
    for i in range(arguments.runs):
        workdir = folder / f"killed_{i}"
        places = []
        while len(places) < arguments.kills:
            run = Run(folder, workdir)
            # One in five during the start; the others after the first step of this start.
            early = draw.random() < 0.2
            if early:
                time.sleep(draw.uniform(0, ready))
            else:
                run.until(run.training)
                time.sleep(draw.uniform(0, max(0.1, took - ready)))
            run.signal(signal.SIGKILL)
            if run.wait() == 0 and places:
                places.append("done")
                break
            if run.status == 0:  # it ended before its first kill: start again from scratch
                shutil.rmtree(workdir)
                continue
            kills += 1
            half = list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))
            in_save += bool(half)
            in_start += early and not half
            places.append(f"{newest(workdir)}{' in a save' if half else ''}")
        run = Run(folder, workdir)
        status = run.wait()
        same = []
        if i == 0:
            expected = final(folder, folder / "whole")
        if status == 0:
            found = final(folder, workdir)
            same = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        good = status == 0 and not same
        equal += good
        print(f"run {i:2}: killed at step {', '.join(places)}; then {'equal' if good else f'NOT EQUAL {same[:4]} {run.last_words()}'}",
              flush=True)  # fmt: skip
    print(f"{equal} of {arguments.runs} ended bit-identical to the uninterrupted run, after {kills} kills, "
          f"{in_save} of them while a checkpoint was half written, {in_start} before the first step")  # fmt: skip
    sys.exit(equal != arguments.runs)


if __name__ == "__main__":
    main()
