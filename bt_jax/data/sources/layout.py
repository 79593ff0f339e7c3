"""Which images `data.data_dir` means for a split, and where their labels come from.

It takes folders of any layout, a list file, or several of these, separated by commas:

- `DIR/<split>/<class>/**`, the layout with splits;
- `DIR/<class>/**`, or images at any depth of DIR: the whole folder, of which `data.test_fraction` sets a test part aside;
- `DIR/<split>` or DIR may be a list file (lists.py);
- ImageNet as people have it (imagenet.py).
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from bt_jax.data.sources import imagenet
from bt_jax.data.sources.base import USUAL_SPLITS, other_split
from bt_jax.data.sources.listing import IMAGE_ENDINGS, Listing, Paths, images_below, is_hidden, is_image, listing
from bt_jax.data.sources.lists import is_list, labels_for, listed_images, numbered
from bt_jax.errors import UserError, some
from bt_jax.runtime.paths import as_path

LABELS = ("auto", "none", "folders")  # besides a file
_EACH_CLASS = "it must hold a folder of images for each class, or images"


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a split.

    Attributes:
      name: of their folder, or of the first of several.
      places: the folders, or the list files.
      paths: of the files.
      relative: the same, relative to their place: what tells an image wherever the folder is.
      labels: (N,) int32, -1 without labels.
      class_names: () without labels.
      labels_from: in words; "" in the layout with splits, where each folder is a class.
      notices: a sentence for each thing that was passed over.
    """

    name: str
    places: tuple[epath.Path, ...]
    paths: Paths
    relative: Paths
    labels: np.ndarray
    class_names: tuple[str, ...]
    labels_from: str
    notices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a split's images are, in one of the roots.

    Attributes:
      top: of the splits, or the whole.
      path: the folder or list.
      whole: whether there are no splits.
      shared: whether the test part is set aside here, so that train and test images share it.
    """

    top: epath.Path
    path: epath.Path
    whole: bool
    shared: bool


def find_images(
    data_dir: str, split: str, *, other: str = "", use: str = "train", labels: str = "auto", test_fraction: float = 0.0
) -> Images:
    """The images of a split.

    Args:
      data_dir, labels, test_fraction: as these fields of `config.data`.
      split: its name; "." for all images of a folder.
      other: the name of the other split, of train and test; "" for none.
      use: of the split: "train" or "test".

    Raises:
      UserError: there is no such split, it has no images, or its labels are not what they should be.
    """
    if not data_dir:
        raise UserError("data.data_dir is empty; it must name a folder of images, or a list of them.")
    tops = roots_of(data_dir)
    test, train = (split, other) if use == "test" else (other, split)
    places, problem = [], None
    for top in tops:
        try:
            places.append(_place(top, train, test, use, test_fraction))
        except UserError as error:  # one root may lack a split that another has
            problem = problem or error
    if problem is not None and (not places or use == "train"):
        raise problem
    return _Found(places, use, labels, test_fraction).images()


def has_split(data_dir: str, split: str) -> bool:
    """Whether there is such a folder or list in one of the roots."""
    return bool(split) and any((imagenet.top_of(top) / split).exists() for top in roots_of(data_dir))


def is_whole(data_dir: str, split: str) -> bool:
    """Whether `data.data_dir` has no splits: a list, folders without one of this name, or all of them as "." takes them."""
    return split == "." or not has_split(data_dir, split)


def roots_of(data_dir: str) -> list[epath.Path]:
    """The folders or lists that `data.data_dir` names: one whose name may have commas, or several."""
    whole = as_path(data_dir, "data.data_dir")
    if "," not in data_dir or whole.exists():
        return [whole]
    return [as_path(part.strip(), "data.data_dir") for part in data_dir.split(",") if part.strip()]


def _place(top: epath.Path, train: str, test: str, use: str, test_fraction: float) -> _Place:
    split = test if use == "test" else train
    if top.exists() and not top.is_dir() and is_list(top):
        if use == "test" and not test_fraction:
            raise _no_test(top, f"{top} is a list without splits")
        return _Place(top.parent, top, whole=True, shared=test_fraction > 0)
    top = imagenet.top_of(top)
    folder = top if split == "." else top / split
    if split and _is_place(folder):
        if use == "train":
            _check_no_class(top, folder)
        shared = use == "train" and test_fraction > 0 and not (test and _is_place(top / test))
        return _Place(top, folder, whole=split == ".", shared=shared)
    if top.is_dir():
        here = [name for name, is_folder in listing(top) if is_folder]
        if use == "test" and test_fraction > 0:
            return dataclasses.replace(_place(top, train, "", "train", test_fraction), shared=True)
        hint = other_split(split, here, use)
        if use == "train" and not hint and not set(here) & USUAL_SPLITS:
            return _Place(top, top, whole=True, shared=test_fraction > 0 and not (test and _is_place(top / test)))
        found = f"{top} holds {some(here) if here else 'no folders'}"
        if use == "test" and not hint:
            raise _no_test(folder, found)
        if use == "train":
            theirs = f", those of {test} too, with data.test_split empty" if test and _is_place(top / test) else ""
            hint += f"{hint and ', or '}set data.train_split to '.' to train on all images of {top}{theirs}"
    else:
        hint, found = "", f"{top} is a file" if top.exists() else f"{top} does not exist"
    raise UserError(f"there is no image folder {folder} ({found}); {_EACH_CLASS}{hint and ', or ' + hint}.")


def _no_test(place: epath.Path, found: str) -> UserError:
    return UserError(
        f"there is no image folder {place} ({found}) for the test images; {_EACH_CLASS}, or set data.test_fraction, such as "
        "to 0.1, to set a part of the images aside."
    )


def _is_place(path: epath.Path) -> bool:
    return path.is_dir() or (is_list(path) and path.exists())


def _check_no_class(top: epath.Path, folder: epath.Path) -> None:
    """Raises UserError if the split's folder may as well be one of several classes: in a set of vehicles, the trains."""
    if "://" in str(top) or folder == top or not folder.is_dir():
        return
    beside = [
        name
        for name, is_folder in listing(top)
        if is_folder and name != folder.name and name not in USUAL_SPLITS and not is_hidden(name)
    ]
    if beside and _has_images(folder):
        classes = [name for name in beside if _has_images(top / name)]
        if classes:
            raise UserError(
                f"{folder} holds images beside {some(classes)}, which do so too, so that it may be a split or a class; set "
                "data.train_split to '.' to train on all of them, or move the others elsewhere."
            )


def _has_images(folder: epath.Path) -> bool:
    return any(not is_folder and is_image(name) and not is_hidden(name) for name, is_folder in listing(folder))


class _Found:
    """What the places of a split hold."""

    def __init__(self, places: Sequence[_Place], use: str, labels: str, test_fraction: float):
        self._places, self._use, self._labels, self._fraction = places, use, labels, test_fraction
        self._whole = all(place.whole for place in places)
        self._name = str(places[0].path) + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        self._notices: list[str] = []
        self._given: list[str] = []  # labels in list files
        self._listings = [self._read(place) for place in places]

    def _read(self, place: _Place) -> tuple[Paths, Paths]:
        """(paths, relative paths) of a place."""
        path = place.path
        if not path.is_dir():
            paths, relative, labels = listed_images(path)
            self._given += labels or []
            return paths, relative
        found = images_below(path)
        if found.hidden:
            self._notices.append(f"{found.hidden} hidden file(s) in {path} were skipped")
        if found.passed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in found.passed.items())
            self._notices.append(
                f"{sum(found.passed.values())} file(s) in {path} that are no images were passed over: {kinds}"
            )
        if not len(found.images):
            raise self._nothing(path, found)
        if found.empty:
            self._notices.append(f"{len(found.empty)} folder(s) in {path} hold no images: {some(list(found.empty))}")
        folders = [f"{path}/{folder}" if folder else str(path) for folder in found.images.folders]
        return found.images.within(folders), found.images

    def _nothing(self, path: epath.Path, found: Listing) -> UserError:
        if not found.passed and not found.hidden and not found.empty:
            return UserError(f"the image folder {path} is empty; {_EACH_CLASS}.")
        kinds = ", ".join(
            [
                *(f"{count} {kind}" for kind, count in found.passed.items()),
                *([f"{found.hidden} hidden"] if found.hidden else []),
            ]
        )
        holds = (
            f"holds {kinds} file(s), but no images" if kinds else f"holds {len(found.empty)} folder(s), but no images"
        )
        return UserError(f"{path} {holds} ({', '.join(IMAGE_ENDINGS)}); {_EACH_CLASS}.")

    def images(self) -> Images:
        paths, relative, place_of = self._together()
        labels, names, words = self._labelled(relative)
        name = self._name
        if (keep := self._part(relative, place_of)) is not None:
            count = int(keep.sum())
            if self._use == "test":
                name += ", test part"
            if not count:
                raise UserError(
                    f"data.test_fraction is {self._fraction:g}, which leaves {self._name} with {len(keep)} images no "
                    f"{self._use} part; set it to another fraction."
                )
            if self._use == "train":
                aside = len(keep) - count
                self._notices.append(
                    f"{aside} more images are set aside for tests, by data.test_fraction {self._fraction:g}"
                )
            paths, relative, labels = paths.select(keep), relative.select(keep), labels[keep]
        places = tuple(place.path for place in self._places)
        return Images(name, places, paths, relative, labels, names, words, tuple(self._notices))

    def _together(self) -> tuple[Paths, Paths, np.ndarray]:
        """(paths, relative paths, the number of each one's place) of all places.

        Those of several are in the order of their relative paths, whatever the order of the places.
        """
        if len(self._listings) == 1:
            paths, relative = self._listings[0]
            return paths, relative, np.zeros(len(paths), np.int32)
        rows = [
            (relative.replace("/", "\0"), relative, path, number)
            for number, (paths, relatives) in enumerate(self._listings)
            for path, relative in zip(paths, relatives, strict=True)
        ]
        if not self._given:  # a list's labels are in its order
            rows.sort()
        twice: dict[str, str] = {}
        clashes = [(twice[key], path) for key, _, path, _ in rows if twice.setdefault(key, path) != path]
        if clashes:
            raise UserError(
                f"{len(clashes)} image(s) have the same path in several folders of data.data_dir, such as "
                f"{' and '.join(clashes[0])}; name a folder that holds all of them, or rename these."
            )
        split = lambda path: path.rpartition("/")[::2]  # noqa: E731
        return (
            Paths.of(split(path) for _, _, path, _ in rows),
            Paths.of(split(relative) for _, relative, _, _ in rows),
            np.array([number for *_, number in rows], np.int32),
        )

    def _labelled(self, relative: Paths) -> tuple[np.ndarray, tuple[str, ...], str]:
        """(labels, names of the classes, where they come from in words)."""
        nothing = np.full(len(relative), -1, np.int32), (), ""
        lists = [place for place in self._places if not place.path.is_dir()]
        if self._labels == "none":
            return nothing
        if self._labels == "folders":
            return self._by_folders(relative, demanded=True)
        if self._labels != "auto":
            return self._by_file(relative)
        if lists:
            if not self._given:
                return nothing
            if len(self._given) < len(relative):
                raise UserError(
                    f"of {self._name} only some have labels; give all of them labels, or set data.labels to 'none'."
                )
            return *numbered(self._given), f"from {self._name}"
        if (found := self._of_imagenet(relative)) is not None:
            return found
        labels, names, words = self._by_folders(relative)
        # A whole folder with a single folder in it says nothing by it; nor do splits.
        if self._whole and (len(names) < 2 or set(names) <= USUAL_SPLITS):
            return nothing
        return labels, names, words

    def _by_folders(self, relative: Paths, *, demanded: bool = False) -> tuple[np.ndarray, tuple[str, ...], str]:
        """A class for each folder at the top; without `demanded`, none if images lie beside these."""
        used = np.unique(relative.folder_of)
        tops = [relative.folders[i].partition("/")[0] for i in used]
        if "" in tops:
            if demanded:
                count = int(np.isin(relative.folder_of, used[[top == "" for top in tops]]).sum())
                raise UserError(
                    f"{count} of the {len(relative)} images in {self._name} lie in no folder, but data.labels is 'folders'; move "
                    "them into folders, or set data.labels to 'none'."
                )
            if len(set(tops)) > 1:
                self._notices.append(
                    f"in {self._name} images lie beside {len(set(tops)) - 1} folder(s) of images, which are no classes therefore; "
                    "set data.labels, or move these images"
                )
            return np.full(len(relative), -1, np.int32), (), ""
        names = tuple(sorted(set(tops)))
        number = {name: i for i, name in enumerate(names)}
        of_folder = np.zeros(len(relative.folders), np.int32)
        of_folder[used] = [number[top] for top in tops]
        return of_folder[relative.folder_of], names, "by folders" if self._whole else ""

    def _by_file(self, relative: Paths) -> tuple[np.ndarray, tuple[str, ...], str]:
        path = as_path(self._labels, "data.labels")
        if not path.exists():
            kinds = ", ".join(repr(kind) for kind in LABELS)
            raise UserError(
                f"data.labels is {self._labels!r}, which is no file; it must be {kinds}, or name a CSV file."
            )
        prefixes = [f"{place.path.name}/" for place in self._places]
        found, known = labels_for(list(relative), prefixes, path)
        if found is None:
            # As of a file that has the labels of the test images only.
            labels, names, words = self._by_folders(relative)
            if not names:
                raise UserError(
                    f"{path}, which data.labels names, has no label of any of the {len(relative)} images of {self._name}, such "
                    f"as {relative[0]}; it must have the columns path and label."
                )
            # In the order that classes of the file have: those of a split that it names are in it.
            labels, names = numbered([names[label] for label in labels], names)
            return labels, names, words
        # An ImageNet of fewer classes has the file of all of them.
        every = None if "LOC_val_solution" in path.name else known
        return *numbered(found, every), f"from {path}"

    def _of_imagenet(self, relative: Paths) -> tuple[np.ndarray, tuple[str, ...], str] | None:
        """The labels of ImageNet's flat validation images, if these are such and their labels are found."""
        if set(np.unique(relative.folder_of)) != {0} or relative.folders[0] or len(self._places) > 1:
            return None
        if not relative[0].startswith(imagenet.VALIDATION):
            return None
        found = imagenet.validation_labels(self._places[0].path)
        names = found and imagenet.label_names(list(relative), found[0])
        if not found or names is None:
            return None
        return *numbered(names), f"from {found[1]}"

    def _part(self, relative: Paths, place_of: np.ndarray) -> np.ndarray | None:
        """Which images belong to the part that is wanted, (n,) bool; None for all. A place with splits of its own has all of its."""
        shared = np.array([place.shared for place in self._places])
        if not shared.any():
            return None
        is_test = np.fromiter((in_test_part(path, self._fraction) for path in relative), bool, len(relative))
        return (is_test if self._use == "test" else ~is_test) | ~shared[place_of]


def in_test_part(path: str, fraction: float) -> bool:
    """Whether the image with this relative path is set aside: by a hash, so the same on every machine, whatever else is there."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
