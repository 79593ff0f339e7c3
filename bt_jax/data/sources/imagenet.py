"""ImageNet as people have it: Kaggle's tree, and flat validation images with the labels of the development kit."""

import io
import posixpath
import tarfile

import numpy as np
from etils import epath

from bt_jax.data.sources.lists import read_table
from bt_jax.errors import UserError, first_line

_TREE = "ILSVRC/Data/CLS-LOC"  # in Kaggle's archive
_SOLUTION = "LOC_val_solution.csv"  # beside ILSVRC there
_KIT = "ILSVRC2012_devkit_t12"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
VALIDATION = "ILSVRC2012_val_"  # with which the names of its files begin


def top_of(folder: epath.Path) -> epath.Path:
    """The folder of the splits: in Kaggle's tree that of train, val and test, else the folder itself."""
    inside = folder / _TREE
    return inside if (inside / "train").is_dir() or (inside / "val").is_dir() else folder


def validation_labels(folder: epath.Path) -> tuple[dict[str, str], str] | None:
    """The WordNet id of each validation image by its name without ending, and the file that has them; None if there is none.

    Kaggle's LOC_val_solution.csv, or ILSVRC2012_devkit_t12 as a folder or as the .tar.gz that is distributed, is looked for in
    the folder of the images and in those above it, up to four.

    Raises:
      UserError: the file is there, but is not as it is distributed.
    """
    place = folder
    for _ in range(5):
        if (place / _SOLUTION).exists():
            return dict(read_table(place / _SOLUTION, "data.data_dir")), str(place / _SOLUTION)
        if (place / _KIT / _TRUTH).exists():
            return _of_the_kit(place / _KIT), str(place / _KIT)
        if (place / f"{_KIT}.tar.gz").exists():
            return _of_the_kit(place / f"{_KIT}.tar.gz"), str(place / f"{_KIT}.tar.gz")
        place = place.parent
    return None


def label_names(images: list[str], label_of: dict[str, str]) -> list[str] | None:
    """The WordNet ids of images by the names of their files; None if one has none."""
    found = [label_of.get(posixpath.splitext(posixpath.basename(image))[0]) for image in images]
    known = [label for label in found if label is not None]
    return known if len(known) == len(images) else None


def _of_the_kit(kit: epath.Path) -> dict[str, str]:
    """The i-th line of the ground truth is the ILSVRC2012_ID of validation image i; meta.mat has the WordNet id of each."""
    try:
        truth, meta = _files_of(kit)
        numbers = np.array(truth.split(), np.int64)
        wnids = _wnids(meta)
        return {f"{VALIDATION}{i:08d}": wnids[number] for i, number in enumerate(numbers.tolist(), 1)}
    except Exception as error:  # scipy and tarfile raise nearly anything on a damaged file
        raise UserError(
            f"{kit} is not the development kit of ILSVRC2012 as it is distributed ({type(error).__name__}: {first_line(error)})."
        ) from None


def _files_of(kit: epath.Path) -> tuple[bytes, bytes]:
    """The contents of the ground truth and of meta.mat, in a folder or in the archive of it."""
    if not kit.name.endswith(".tar.gz"):
        return (kit / _TRUTH).read_bytes(), (kit / _META).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(kit.read_bytes())) as archive:  # 2.5 MB
        truth, meta = (archive.extractfile(f"{_KIT}/{name}") for name in (_TRUTH, _META))
        assert truth is not None and meta is not None  # as for a folder of this name
        return truth.read(), meta.read()


def _wnids(meta: bytes) -> dict[int, str]:
    """The WordNet id by ILSVRC2012_ID, of the synsets without children."""
    from scipy import io as matlab  # JAX needs scipy too

    synsets = matlab.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
