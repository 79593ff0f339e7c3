"""Lists of images, and files of labels: `.txt` and `.csv`."""

import collections
import csv
import os
import posixpath
import re
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from bt_jax.data.sources.base import unreachable
from bt_jax.data.sources.listing import IMAGE_ENDINGS, Paths, is_image
from bt_jax.errors import UserError, first_line, some

_PATH_COLUMNS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image",
    "image_path",
    "imageid",
    "image_id",
    "id",
    "name",
)
_LABEL_COLUMNS = ("label", "class", "class_name", "target", "category", "predictionstring", "y", "wnid")
_IS = f"a list has an image file in each line of a .txt ({', '.join(IMAGE_ENDINGS)}), or the columns path and label in a .csv"


def is_list(path: epath.Path) -> bool:
    """Whether a path is that of a list, by its name."""
    return path.name.lower().endswith((".txt", ".csv"))


def read_table(path: epath.Path, what: str) -> list[tuple[str, str]]:
    """(path, label) of each line, as they are written; the label is "" if there is none.

    In a .csv the columns are found by their titles, such as path and label, or are the first two. In a .txt the label follows
    the path after a space or a tab, or there is none.

    Args:
      what: the field that names the file, for errors.

    Raises:
      UserError: it cannot be read, is empty, or has lines without a path.
    """
    return _table(path, what)[0]


def _table(path: epath.Path, what: str) -> tuple[list[tuple[str, str]], bool]:
    """(what `read_table` gives, whether the columns have titles); raises as that."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}, which {what} names, cannot be read as text ({why}).") from None
    try:
        rows, titled = _rows_of_csv(text) if path.name.lower().endswith(".csv") else (_rows_of_text(text), False)
    except csv.Error as error:
        raise UserError(f"{path}, which {what} names, cannot be read as a CSV file ({error}).") from None
    if not rows:
        raise UserError(f"{path}, which {what} names, is empty; {_IS}.")
    lacking = [number for number, (name, _) in enumerate(rows, 1) if not name]
    if lacking:
        raise UserError(
            f"{path}, which {what} names, has {len(lacking)} line(s) without a path: {some(lacking)}; {_IS}."
        )
    return rows, titled


def _rows_of_text(text: str) -> list[tuple[str, str]]:
    rows = []
    for line in text.splitlines():
        line = line.strip()
        if not line:
            continue
        # A path may have spaces: what follows one with an image's ending is the label.
        if is_image(line):
            rows.append((line, ""))
        elif found := _WITH_LABEL.match(line):
            rows.append((found[1], found[2].strip()))
        else:
            path, _, label = line.partition("\t")
            rows.append((path, label))
    return rows


_WITH_LABEL = re.compile(rf"(.*(?:{'|'.join(map(re.escape, IMAGE_ENDINGS))}))\s+(\S.*)", re.IGNORECASE)


def _rows_of_csv(text: str) -> tuple[list[tuple[str, str]], bool]:
    """(the rows, whether there are titles above them)."""
    lines = [
        [cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)
    ]
    if not lines:
        return [], False
    titles = [cell.lower() for cell in lines[0]]
    at, label_at = 0, 1
    titled = any(title in _PATH_COLUMNS + _LABEL_COLUMNS for title in titles) and not any(map(is_image, titles))
    if titled:
        at = next((i for name in _PATH_COLUMNS for i, title in enumerate(titles) if title == name), 0)
        others = [i for i in range(len(titles)) if i != at]
        named = [i for name in _LABEL_COLUMNS for i in others if titles[i] == name]
        # Without a title that says so, the only other column has the labels.
        label_at = named[0] if named else others[0] if len(others) == 1 else len(titles)
        lines = lines[1:]
        if label_at < len(titles) and titles[label_at] == "predictionstring":  # Kaggle's: the class, and its boxes
            lines = [[cell.split(" ")[0] if i == label_at else cell for i, cell in enumerate(row)] for row in lines]
    rows = [(row[at] if at < len(row) else "", row[label_at] if label_at < len(row) else "") for row in lines]
    return rows, titled


def listed_images(path: epath.Path) -> tuple[Paths, Paths, list[str] | None]:
    """The images that a list names: (their paths, those as the list writes them, their labels or None).

    Paths are relative to the list's folder unless they are absolute.

    Raises:
      UserError: as `read_table`; files are missing (how many, and the first of them), named twice, or no images; only some
        lines have a label; they are in a store that does not answer.
    """
    rows = read_table(path, "data.data_dir")
    base = str(path.parent)
    written = [plain(name) for name, _ in rows]
    files = [name if "://" in name or os.path.isabs(name) else f"{base}/{name}" for name in written]
    strange = [name for name in written if not is_image(name)]
    if strange:
        raise UserError(f"{path} names {len(strange)} file(s) that are no images, the first is {strange[0]}; {_IS}.")
    split = [posixpath.split(file) for file in files]
    missing = _missing(split)
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(rows)} files that {path} names are missing, the first is {files[missing[0]]}; paths "
            "are relative to the list's folder."
        )
    twice = [file for file, count in collections.Counter(files).items() if count > 1]
    if twice:
        raise UserError(f"{path} names {len(twice)} file(s) more than once: {some(twice)}; name each once.")
    labels = [label for _, label in rows]
    lacking = [name for name, label in rows if not label]
    if lacking and len(lacking) < len(rows):
        raise UserError(
            f"{len(lacking)} of the {len(rows)} lines of {path} have no label, the first is {lacking[0]}; give all of them a "
            "label, or none."
        )
    written_paths = Paths.of(posixpath.split(name) for name in written)
    return Paths.of(split), written_paths, None if lacking else labels


def plain(name: str) -> str:
    """A path as others write it: without ./, doubled slashes and backslashes."""
    scheme, _, rest = name.rpartition("://")
    return f"{scheme}://{rest}" if scheme else posixpath.normpath(name.replace("\\", "/")) if name else name


def _missing(files: Sequence[tuple[str, str]]) -> list[int]:
    """The numbers of the (folder, name) that do not exist; every folder is read once, as a query for each would take longer."""
    there: dict[str, set[str]] = {}
    for folder in {folder for folder, _ in files}:
        try:
            if "://" in folder:
                there[folder] = {entry.name for entry in epath.Path(folder).iterdir()}
            else:
                there[folder] = set(os.listdir(folder or "."))
        except (OSError, ValueError) as error:  # a ValueError for a zero byte, which no path has
            if "://" in folder and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise unreachable(folder, error) from error
            there[folder] = set()
    return [number for number, (folder, name) in enumerate(files) if name not in there[folder]]


def numbered(labels: Iterable[str], among: Iterable[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, (n,) int32, and the names of the classes: in the order of numbers if all are, else of text.

    Args:
      among: all labels that there are, if not only these.
    """
    labels = list(labels)
    names = set(labels if among is None else among)
    if all(name.removeprefix("-").isdecimal() for name in names):
        order = sorted(names, key=lambda name: (int(name), name))
    else:
        order = sorted(names)
    number = {name: i for i, name in enumerate(order)}
    return np.array([number[label] for label in labels], np.int32), tuple(order)


def labels_for(images: Sequence[str], prefixes: Sequence[str], path: epath.Path) -> tuple[list[str] | None, list[str]]:
    """(the label of each image, all labels) by a file of labels; (None, all labels) if it names none of the images.

    A line names an image by its path, with one of `prefixes` or without; or by the name of its file, with its ending or
    without.

    Args:
      images: their paths relative to the folder of their split.

    Raises:
      UserError: as `read_table`; lines without a label, or with different labels of one image; a first line that seems to have
        titles, which would be a class; images that the file does not name, if it names others; images that it cannot tell apart.
    """
    rows, titled = _table(path, "data.labels")
    rows = [(plain(name), label) for name, label in rows]
    lacking = [name for name, label in rows if not label]
    if lacking:
        raise UserError(
            f"{len(lacking)} line(s) of {path}, which data.labels names, have no label, the first is that of {lacking[0]}; it "
            "must have the columns path and label."
        )
    label_of = dict(rows)
    if len(label_of) < len(rows):
        clash = next((name for name, label in rows if label_of[name] != label), None)
        if clash is not None:
            raise UserError(f"{path}, which data.labels names, has several labels of {clash}; each image has one.")
    all_labels = list(dict.fromkeys(label for _, label in rows))
    ways = [lambda image, prefix=prefix: f"{prefix}{image}" for prefix in ("", *prefixes)]
    ways += [posixpath.basename, lambda image: posixpath.splitext(posixpath.basename(image))[0]]
    if path.name.lower().endswith(".csv") and not titled and _seem_titles(rows):
        title, label_title = rows[0]
        if all(way(image) != title for way in ways for image in images):
            raise UserError(
                f"{path}, which data.labels names, begins with the line {title!r}, {label_title!r}, which names no image and seems to "
                "have the titles of the columns; call these path and label."
            )
    for way in ways:
        names = [way(image) for image in images]
        found = [label_of.get(name) for name in names]
        if not any(label is not None for label in found):
            continue
        if way in ways[-2:] and len(set(names)) < len(names):
            clash = next(name for name, count in collections.Counter(names).items() if count > 1)
            raise UserError(
                f"{path}, which data.labels names, has names of files without their folders, and several images are called "
                f"{clash}; write their paths."
            )
        unknown = [image for image, label in zip(images, found, strict=True) if label is None]
        if unknown:
            raise UserError(
                f"{path}, which data.labels names, has no label of {len(unknown)} of the {len(images)} images, the first is "
                f"{unknown[0]}; add them, or remove these images."
            )
        return [label for label in found if label is not None], all_labels
    return None, all_labels


def _seem_titles(rows: Sequence[tuple[str, str]]) -> bool:
    """Whether the first of (path, label) looks like no other: its label is that of no other, and its path has no ending of an image
    or, where none has, no digit, as all others do."""
    (first, its_label), others = rows[0], rows[1:]
    if not others or is_image(first) or any(label == its_label for _, label in others):
        return False
    if all(is_image(name) for name, _ in others):
        return True
    return not _DIGIT.search(first) and all(_DIGIT.search(name) and not is_image(name) for name, _ in others)


_DIGIT = re.compile(r"\d")
