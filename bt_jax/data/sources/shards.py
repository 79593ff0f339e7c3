"""Which files `data.data_dir` means for a split, where many images lie in few files: archives and tables.

- a folder with `<split>/*.tar`, or with `*.tar` whose names have the split's as a word, as in `imagenet-train-0001.tar`;
- a folder whose files name no split: all of them, to train on;
- one file, or a pattern: `DIR/train-{0000..0999}.tar`, `DIR/{train,extra}-*.tar`. The fields of the splits may be patterns too.
"""

import glob
import itertools
import re
from collections.abc import Sequence

from etils import epath

from bt_jax.data.sources.base import USUAL_SPLITS, other_split
from bt_jax.errors import UserError, some
from bt_jax.runtime.paths import as_path

_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".zst", ".zip")  # which cannot be read at random
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(data_dir: str, split: str, ending: str, *, use: str = "train") -> list[epath.Path]:
    """The files of a split, in the order of their names.

    Args:
      data_dir: as this field of `config.data`.
      split: its name, or a pattern for files in the folder; "." for all files of the folder.
      ending: of the files, such as ".tar".
      use: of the split: "train" or "test".

    Raises:
      UserError: there are none, or some of those that a pattern with braces names are missing.
    """
    top = as_path(data_dir, "data.data_dir")
    if _is_pattern(data_dir) and not top.exists():
        if use == "test":
            raise _no_test(data_dir)
        folder, _, pattern = data_dir.rpartition("/")
        if _is_pattern(folder) and as_path(folder, "data.data_dir").is_dir():
            return _by_pattern(pattern, ending, folder)
        return _by_pattern(data_dir, ending)
    if top.exists() and not top.is_dir():
        if use == "test":
            raise _no_test(data_dir)
        return [top]
    if not top.is_dir():
        raise UserError(
            f"there is no {top}; data.data_dir must name a folder of {ending} files, one of them, or a pattern."
        )
    if _is_pattern(split):
        return _by_pattern(split, ending, str(top))
    folder, here = _folder_of(top, split, ending)
    if not here:
        raise _nothing(top, ending)
    if split == "." or (folder.name == split and folder != top):
        return [folder / name for name in here]
    if exact := [name for name in here if name in (split, f"{split}{ending}", f"ILSVRC2012_img_{split}{ending}")]:
        return [folder / exact[0]]
    if named := [name for name in here if _has_word(name, split)]:
        return [folder / name for name in named]
    others = [word for word in sorted(USUAL_SPLITS) if any(_has_word(name, word) for name in here)]
    if use == "train" and not others:
        return [folder / name for name in here]
    hint = other_split(split, others, use)
    if use == "train":
        hint += f"{hint and ', or '}set data.train_split to '.' to train on all of them"
    raise UserError(
        f"{folder} has no {ending} file of the split {split!r} (it holds {some(here)}); name a split in data.{use}_split, or a "
        f"pattern such as '{split}-*{ending}'{hint and ', or ' + hint}."
    )


def has_shards(data_dir: str, split: str, ending: str) -> bool:
    """Whether there are files of a test split."""
    try:
        return bool(split) and bool(find_shards(data_dir, split, ending, use="test"))
    except UserError:
        return False


def is_one_split(data_dir: str, split: str, ending: str) -> bool:
    """Whether `data.data_dir` has no splits: one file, a pattern, or files of which none is named for this split."""
    top = as_path(data_dir, "data.data_dir")
    if not top.is_dir():
        return True
    folder, here = _folder_of(top, split, ending)
    return split == "." or (folder.name != split and not any(_has_word(name, split) for name in here))


def _folder_of(top: epath.Path, split: str, ending: str) -> tuple[epath.Path, list[str]]:
    """The folder that holds a split's files, and the names of the files in it: Hugging Face keeps them in a folder data."""
    for folder in (top, top / "data") if split in ("", ".") else (top / split, top, top / "data"):
        if folder.is_dir() and (names := _names(folder, ending)):
            return folder, names
    return top, []


def _names(folder: epath.Path, ending: str) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", name) is not None


def _is_pattern(text: str) -> bool:
    return any(letter in text for letter in "*?[{")


def _by_pattern(pattern: str, ending: str, folder: str = "") -> list[epath.Path]:
    """The files that a pattern names: in this folder, whose own name is no pattern, whatever letters it has."""
    found, missing, within = [], [], f"{folder.rstrip('/')}/" if folder else ""
    for text in _expanded(pattern):
        path = as_path(within + text, "data.data_dir")
        if not any(letter in text for letter in "*?["):
            (found if path.exists() else missing).append(path)
            continue
        fixed = re.split(r"[*?\[]", text)[0].rpartition("/")[0]
        # Of local paths only what is given to glob is a pattern (runtime/paths.py).
        literal = glob.escape(within) if "://" in within else within
        root = as_path(literal + fixed or ("/" if text.startswith("/") else "."), "data.data_dir")
        found += [path for path in root.glob(text[len(fixed) :].lstrip("/")) if path.name.endswith(ending)]
    if missing:
        raise UserError(
            f"{len(missing)} of the files that {within}{pattern} names are missing, the first is {missing[0]}; all of them must exist."
        )
    if not found:
        raise UserError(
            f"no {ending} file is named {within}{pattern}; data.data_dir and the split must name at least one."
        )
    return sorted(set(found), key=str)


def _expanded(pattern: str) -> list[str]:
    """A text for each choice that braces give, as a shell has them: {a,b} and {000..123}."""
    parts = _BRACES.split(pattern)
    return [
        "".join(choice) for choice in itertools.product(*(_choices(p) if i % 2 else [p] for i, p in enumerate(parts)))
    ]


def _choices(inside: str) -> list[str]:
    if span := _RANGE.fullmatch(inside):
        first, last = span[1], span[2]
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        return [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    return inside.split(",")


def _nothing(folder: epath.Path, ending: str) -> UserError:
    there = sorted(path.name for path in folder.iterdir())
    compressed = [name for name in there if name.endswith(_COMPRESSED)]
    if compressed and ending == ".tar":
        return UserError(
            f"{folder} holds no {ending} files, but {some(compressed)}; compressed archives cannot be read at random places: "
            "decompress them, such as by gunzip."
        )
    return UserError(f"{folder} holds no {ending} files ({some(there) if there else 'it is empty'}).")


def _no_test(data_dir: str) -> UserError:
    return UserError(
        f"data.data_dir, {data_dir}, names no test images; name a folder that holds those of both splits, or set "
        "data.test_fraction, such as to 0.1, to set a part of the images aside."
    )


def relative_names(shards: Sequence[epath.Path]) -> list[str]:
    """The files' names, with as many folders in front as tell them apart."""
    names = [shard.name for shard in shards]
    return names if len(set(names)) == len(names) else [str(shard) for shard in shards]
