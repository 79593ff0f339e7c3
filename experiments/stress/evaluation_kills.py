"""Kills evaluations with SIGKILL in all of their phases and starts them again: do they end with the same numbers?

    python experiments/stress/evaluation_kills.py DIR [--kills 4] [--only NAME …]

Each evaluation runs twice without interruption, the second time with all programs compiled, which gives its duration. Then it is killed
`--kills` times in one workdir, at moments that are spread evenly over that duration, and the same command is run to its end. In another
workdir it is killed as soon as each of its files, and its first two checkpoints, are there. Numbers are compared exactly, except times;
files of embeddings and exports by their contents.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from common import tell
from small_runs import Run, config_of, newest, prepare

from bt_jax import config as config_lib
from bt_jax.engine.storage import steps_in
from bt_jax.tasks.embed import embed
from bt_jax.tasks.export import export
from bt_jax.tasks.finetune import finetune
from bt_jax.tasks.knn import knn
from bt_jax.tasks.linear import linear
from bt_jax.tasks.transfer import transfer

_TASKS = {"linear": linear, "finetune": finetune, "knn": knn, "transfer": transfer, "embed": embed, "export": export}
_CASES: dict[str, tuple[str, dict]] = {
    "export": ("export", {}),
    "embed": ("embed", {"embed.piece": 16}),
    "knn": ("knn", {"knn.k": (5,)}),
    "linear": ("linear", {"epochs": 4, "repeats": 2}),
    "linear, cached": ("linear", {"linear.cached": True, "repeats": 2}),
    "finetune": ("finetune", {"epochs": 4, "finetune.percent": 50.0}),
    "transfer": ("transfer", {"epochs": 2}),
}
_TIMES = ("seconds", "per_second", "time")


def command(folder: pathlib.Path, name: str, workdir: pathlib.Path) -> Callable[[], object]:
    task, changes = _CASES[name]

    def run():
        config = config_lib.based_on(config_of(folder), task)
        config.init_from = str(folder / "pretrained")
        if task not in ("export", "embed", "knn"):
            config.batch_size = 8
        if "features" in config:
            config.features.batch_size = 16
        config.update_from_flattened_dict(changes)
        return _TASKS[task](config, str(workdir))

    return run


def numbers(workdir: pathlib.Path) -> dict[str, object]:
    """What an evaluation leaves, without times and places: results, arrays, weights."""
    found: dict[str, object] = {}
    for path in sorted(workdir.glob("*")):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {
                    f"{path.name}/{name}": hashlib.sha256(arrays[name].tobytes()).hexdigest() for name in arrays.files
                }
        elif path.suffix == ".safetensors":
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".jax_export":  # it names lines of the code that made it, some of them in this script
            found[path.name] = "there"
        elif path.stem in _TASKS and path.suffix == ".json":
            said = json.loads(path.read_text())
            found |= _flat({name: said[name] for name in ("runs", "mean", "spread", "checkpoint") if name in said})
    return found


def _flat(value: object, place: str = "") -> dict[str, object]:
    if isinstance(value, list):
        value = {str(i): part for i, part in enumerate(value)}
    if isinstance(value, dict):
        parts = [_flat(part, f"{place}/{name}") for name, part in value.items() if not any(t in name for t in _TIMES)]
        return functools.reduce(lambda a, b: a | b, parts, {})
    return {place: json.dumps(value)}


def half_done(workdir: pathlib.Path) -> str:
    """What lies there after a kill, and the newest checkpoint's step."""
    names = {path.name for path in workdir.glob("*")} - {"holder.json", "tensorboard"}
    step = f" of step {newest(workdir)}" if "checkpoints" in names and newest(workdir) else ""
    return " + ".join(f"{name}{step if name == 'checkpoints' else ''}" for name in sorted(names)) or "nothing"


Moment = Callable[[Run, pathlib.Path], object]  # waits until a run in that workdir is to be killed


def spread(seconds: float, count: int) -> list[Moment]:
    return [lambda run, workdir, i=i: time.sleep(seconds * (i + 0.5) / count) for i in range(count)]


def files(whole: pathlib.Path) -> list[Moment]:
    """When each file that a complete evaluation has is there, the result last, and when there are one and two checkpoints."""
    names = [name for name in ("judged.json", "config.json", "metrics.jsonl") if (whole / name).exists()]
    results = [path.name for path in whole.glob("*.json") if path.stem in _TASKS]

    def there(name: str) -> Moment:
        return lambda run, workdir: run.until((workdir / name).exists)

    def next_checkpoint(run: Run, workdir: pathlib.Path) -> None:
        before = newest(workdir)
        run.until(lambda: newest(workdir) > before)

    checkpoints = min(2, len(steps_in(epath.Path(whole / "checkpoints"))))
    return [*map(there, names), *[next_checkpoint] * checkpoints, *map(there, results)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES))
    arguments = parser.parse_args()
    folder, right = arguments.folder.resolve(), True
    prepare(folder)
    if Run(folder, folder / "pretrained", epochs=2).wait():
        sys.exit("the pre-training failed")
    for name in arguments.only:
        for turn in ("compiling", "whole"):
            whole = folder / f"{name.replace(', ', '_')}_{turn}"
            shutil.rmtree(whole, ignore_errors=True)
            began = time.monotonic()
            run = Run(folder, whole, task=command(folder, name, whole))
            if run.wait():
                sys.exit(f"{name} failed without a kill: {run.last_words()}")
            took = time.monotonic() - began
        expected, at = numbers(whole), f"{name} ({took:.1f} s)"
        for how, moments in (("spread", spread(took, arguments.kills)), ("at each file", files(whole))):
            workdir = folder / f"{name.replace(', ', '_')}_killed_{how.replace(' ', '_')}"
            shutil.rmtree(workdir, ignore_errors=True)
            places = []
            for moment in moments:
                run = Run(folder, workdir, task=command(folder, name, workdir))
                moment(run, workdir)
                run.signal(signal.SIGKILL)
                places.append("complete" if run.wait() == 0 else half_done(workdir))
            run = Run(folder, workdir, task=command(folder, name, workdir))
            status = run.wait()
            found = numbers(workdir) if status == 0 else {}
            differ = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
            good = status == 0 and bool(expected) and not differ
            right &= tell(f"{at}, {how}", good, f"{len(expected)} numbers or files; after kills there was {'; '.join(places)}; "
                          f"then {'the same' if good else f'{differ[:4]} {run.last_words()}'}")  # fmt: skip
    sys.exit(not right)


if __name__ == "__main__":
    main()
