"""The source that a config names: the only module that knows all kinds."""

from ml_collections import ConfigDict

from bt_jax.data.sources.arrays import array_source
from bt_jax.data.sources.base import ArraySource, Source, import_tfds
from bt_jax.data.sources.folder import FolderSource
from bt_jax.data.sources.photographs import PHOTOGRAPHS, photograph_crops
from bt_jax.errors import UserError


def make_source(config: ConfigDict, split: str) -> Source:
    """The source that `config.data` names.

    Args:
      config: `config.data` of a run.
      split: "train" or "test", which `config.train_split` and `config.test_split` translate.

    Raises:
      UserError: it does not exist, or is not what it should be.
    """
    name = config[f"{split}_split"]
    if not name:
        raise UserError(f"data.{split}_split is empty; name the {split} split, or set monitor.every_epochs to 0.")
    if config.source == "photographs":
        crops = config.photographs
        images, labels = photograph_crops(split, size=crops.size, per_class=crops[f"{split}_per_class"])
        return ArraySource(f"crops of {len(PHOTOGRAPHS)} photographs, {split}", images, labels, tuple(PHOTOGRAPHS))
    if config.source == "folder":
        return FolderSource(config.data_dir, name, config.cache_bytes, use=split)
    if config.source == "arrays":
        return array_source(config.data_dir, name, split)
    if config.source == "tfds":
        import_tfds()
        from bt_jax.data.sources.tfds import tfds_source

        return tfds_source(config, name, split)
    raise UserError(f"data.source is {config.source!r}; it must be photographs, tfds, folder or arrays.")
