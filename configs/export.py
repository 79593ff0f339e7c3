"""An encoder to be used elsewhere: from a run, one of its checkpoints, or PyTorch's weights, to a folder.

    python main.py --config=configs/export.py --config.init_from=runs/quickstart --workdir=exports/quickstart

Source:    what --config.init_from names: a run's workdir, WORKDIR/checkpoints/STEP, a .pth or a .safetensors file.
Hardware:  any; seconds on a CPU.
Expected:  encoder.json, an Orbax checkpoint, encoder.safetensors in torchvision's names, and a jax.export program; the same
           features from each of them (1e-5).
"""

from bt_jax.config import default


def get_config():
    return default("export")
