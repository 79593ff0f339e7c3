"""Images in an .npz file of arrays."""

import zipfile

import numpy as np
from etils import epath

from bt_jax.data.sources.base import ArraySource, numbers_as_names
from bt_jax.errors import UserError, first_line


def array_source(file: str, split: str) -> ArraySource:
    """The arrays `x_<split>` (N, H, W, 3) uint8 and `y_<split>` (N,) integers of a file, local or gs://.

    Raises:
      UserError: the file does not exist, cannot be read, or lacks these arrays; arrays of another shape or type.
    """
    path = epath.Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(f"there is no file {str(path)!r}; data.data_dir must name an .npz file of arrays.")
    images, labels = f"x_{split}", f"y_{split}"
    try:
        with path.open("rb") as opened, np.load(opened) as arrays:
            missing = [name for name in (images, labels) if name not in arrays]
            if not missing:
                # Both splits have the same classes, though one may lack the last of them.
                known = [numbers_as_names(arrays[name]) for name in arrays.files if name.startswith("y_")]
                return ArraySource(f"{path}, {split}", arrays[images], arrays[labels], max(known, key=len))
            found = ", ".join(arrays.files)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        why = "images of mixed sizes make no array" if "Object arrays" in str(error) else first_line(error)
        raise UserError(f"{path} cannot be read as an .npz file of arrays ({why}).") from None
    raise UserError(f"{path} holds {found or 'no arrays'}; it must hold {images} and {labels}.")
