"""Images in tar archives: plain ones, shards as WebDataset writes them, and ImageNet as it is distributed."""

import collections

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from bt_jax.data.sources import imagenet
from bt_jax.data.sources.base import USUAL_SPLITS, numbers_as_names
from bt_jax.data.sources.lists import labels_for, numbered
from bt_jax.data.sources.packed import PackedSource, part_of
from bt_jax.data.sources.ranges import Ranges
from bt_jax.data.sources.shards import find_shards, has_shards
from bt_jax.data.sources.tar_index import NO_LABEL, REPLACED, TarIndex, archive_names, tar_index
from bt_jax.errors import UserError, some
from bt_jax.runtime.paths import as_path

_Labels = tuple[np.ndarray, tuple[str, ...], str]


def tar_source(config: ConfigDict, split: str, use: str) -> PackedSource:
    """The images of a split in tar archives (shards.py): in the order of their paths, or of the samples in the shards.

    Args:
      config: `config.data` of a run.
      split: its name.
      use: of the split: "train" or "test".

    Raises:
      UserError: as `find_shards` and `tar_index`, or the labels are not what they should be.
    """
    fraction = config.test_fraction
    other = config.test_split if use == "train" else config.train_split
    if fraction and has_shards(config.data_dir, config.test_split, ".tar"):
        fraction = 0.0  # there are test images
    archives = find_shards(
        config.data_dir, other if use == "test" and fraction else split, ".tar", use="train" if fraction else use
    )
    index = tar_index(archives)
    name = str(archives[0]) + (f" and {len(archives) - 1} more" if len(archives) > 1 else "")
    labels, class_names, words = _labelled(index, name, archives, config.labels)
    notices = _notices(index, name)
    keep, said = part_of(index.names, fraction, use, name)
    rows = slice(None) if keep is None else keep
    return PackedSource(
        name if keep is None or use == "train" else f"{name}, test part",
        Ranges(index.files, index.stamps),
        index.file_of[rows],
        index.starts[rows],
        index.sizes[rows],
        paths=index.names if keep is None else index.names.select(keep),
        inside=archive_names(index),
        labels=labels[rows],
        class_names=class_names,
        labels_from=words,
        notices=notices + said,
        digest=index.digest if keep is None else f"{index.digest} {use} {fraction!r}",
        cache_bytes=config.cache_bytes,
    )


def _notices(index: TarIndex, name: str) -> tuple[str, ...]:
    notices = []
    others = {kind: count for kind, count in index.passed.items() if kind != REPLACED}
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
        notices.append(f"{sum(others.values())} file(s) in {name} that are no images were passed over: {kinds}")
    if replaced := index.passed.get(REPLACED):
        notices.append(
            f"{replaced} image(s) in {name} were passed over, as later ones in their archive have the same names"
        )
    if index.changed:
        notices.append(
            f"{len(index.changed)} archive(s) changed since their index was made, which was made again: {some(list(index.changed))}"
        )
    return tuple(notices)


def _labelled(index: TarIndex, name: str, archives: list[epath.Path], wanted: str) -> _Labels:
    nothing = np.full(len(index.names), NO_LABEL, np.int32), (), ""
    if wanted == "none":
        return nothing
    if wanted == "folders":
        found = _by_folders(index)
        if found is None:
            raise UserError(
                f"some images in {name} lie in no folder, but data.labels is 'folders'; set data.labels to 'none'."
            )
        return found
    if wanted != "auto":
        return _by_file(index, name, wanted)
    if index.samples:
        lacking = int((index.labels == NO_LABEL).sum())
        if lacking == len(index.labels):
            return nothing
        if lacking:
            raise UserError(
                f"{lacking} of the {len(index.labels)} samples in {name} have no label; set data.labels to 'none'."
            )
        return index.labels, numbers_as_names(name, index.labels), "from .cls or .json files"
    if index.names[0].startswith(imagenet.VALIDATION) and "/" not in index.names[0]:
        known = imagenet.validation_labels(archives[0].parent)
        names = known and imagenet.label_names(list(index.names), known[0])
        return (*numbered(names), f"from {known[1]}") if known and names else nothing
    found = _by_folders(index)
    if found is None or len(found[1]) < 2 or set(found[1]) <= USUAL_SPLITS:
        return nothing
    return found


def _by_folders(index: TarIndex) -> _Labels | None:
    """A class for each folder below those that all images share; None if images lie beside such folders."""
    folders = [folder.split("/") for folder in index.names.folders]
    depth = 0
    while all(len(parts) > depth + 1 for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    if any(len(parts) <= depth or not parts[depth] for parts in folders):
        return None
    names = tuple(sorted({parts[depth] for parts in folders}))
    number = {name: i for i, name in enumerate(names)}
    of_folder = np.array([number[parts[depth]] for parts in folders], np.int32)
    return of_folder[index.names.folder_of], names, "by folders"


def _by_file(index: TarIndex, name: str, file: str) -> _Labels:
    path = as_path(file, "data.labels")
    if not path.exists():
        raise UserError(
            f"data.labels is {file!r}, which is no file; it must be 'auto', 'none', 'folders', or name a CSV file."
        )
    if again := [file for file, count in collections.Counter(index.names).items() if count > 1]:
        raise UserError(
            f"{len(again)} image(s) have the same path in several archives of {name}, such as {again[0]}, and {path}, which data.labels "
            "names, cannot tell them apart; rename them, or put the labels into the archives as .cls files."
        )
    found, known = labels_for(list(index.names), [], path)
    if found is None:
        raise UserError(
            f"{path}, which data.labels names, has no label of any of the {len(index.names)} images of {name}, such as "
            f"{index.names[0]}; it must have the columns path and label."
        )
    return *numbered(found, known), f"from {path}"
