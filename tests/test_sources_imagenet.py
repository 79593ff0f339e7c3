"""bt_jax/data/sources/imagenet.py: Kaggle's tree, and flat validation images with the development kit."""

import numpy as np
import pytest
from scipy import io
from test_sources_listing import touch

from bt_jax.config import default
from bt_jax.data.sources.layout import find_images
from bt_jax.data.sources.make import make_source
from bt_jax.errors import UserError

WNIDS = ("n02", "n01", "n03")  # by ILSVRC2012_ID, from 1
TRUTH = (3, 1, 2, 1, 3)
NAMES = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]
EXPECTED = [sorted(WNIDS).index(WNIDS[number - 1]) for number in TRUTH]


def kaggle(root):
    inside = root / "ILSVRC/Data/CLS-LOC"
    touch(
        inside,
        *(f"val/{name}" for name in NAMES),
        *(f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2)),
    )
    touch(inside, "test/ILSVRC2012_test_00000001.JPEG")
    rows = [f"{name[:-5]},{WNIDS[number - 1]} 1 2 3 4 " for name, number in zip(NAMES, TRUTH, strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]))
    (root / "LOC_train_solution.csv").write_text("ImageId,PredictionString\nn01_0,n01 1 2 3 4\n")
    return inside


def kit(root):
    """As torchvision's users have it: the archive of the development kit unpacked beside train and val."""
    touch(
        root, *(f"val/{name}" for name in NAMES), *(f"train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2))
    )
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in TRUTH))
    synsets = np.zeros(4, [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)])
    for i, wnid in enumerate((*WNIDS, "n99"), 1):
        synsets[i - 1] = (float(i), wnid, f"words of {wnid}", 0.0 if wnid in WNIDS else 3.0)
    io.savemat(data / "meta.mat", {"synsets": synsets[:, None]})
    return root


@pytest.mark.parametrize("layout", [kaggle, kit])
def test_both_splits(tmp_path, layout):
    """The flat validation images have the labels of the folders of the train images."""
    layout(tmp_path)
    config = default().data
    config.update(source="folder", data_dir=str(tmp_path), test_split="val")
    train, val = make_source(config, "train"), make_source(config, "test")
    assert train.class_names == val.class_names == tuple(sorted(WNIDS))
    assert val.labels.tolist() == EXPECTED and len(train) == 6 and list(val.relative) == NAMES
    assert train.described() == "6 images, 3 classes" and val.described().startswith("5 images, 3 classes from ")
    assert train.path(0).endswith("train/n01/n01_0.JPEG")


def test_inside_of_kaggles_tree(tmp_path):
    assert find_images(str(kaggle(tmp_path)), "val", use="test").labels.tolist() == EXPECTED


def test_a_subset_has_its_classes_only(tmp_path):
    """As ImageNet-100, with the validation images of its classes and the file of all."""
    inside = kaggle(tmp_path)
    for name, number in zip(NAMES, TRUTH, strict=True):
        if WNIDS[number - 1] == "n01":
            (inside / "val" / name).unlink()
    for labels in ("auto", f"{tmp_path}/LOC_val_solution.csv"):
        found = find_images(str(tmp_path), "val", use="test", labels=labels)
        assert found.class_names == ("n02", "n03") and len(found.labels) == 4


def test_without_a_file_of_labels(tmp_path):
    """Pre-training needs none."""
    touch(tmp_path, *(f"val/{name}" for name in NAMES))
    assert find_images(str(tmp_path), "val").class_names == ()


def test_a_damaged_kit(tmp_path):
    meta = kit(tmp_path) / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    meta.write_bytes(meta.read_bytes()[:60])
    with pytest.raises(UserError, match="devkit_t12 is not the development kit of ILSVRC2012 as it is distributed"):
        find_images(str(tmp_path), "val", use="test")
