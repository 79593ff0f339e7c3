"""Exports an encoder from a run, one of its checkpoints, or PyTorch weights to a folder, for use elsewhere.

    python main.py --config=configs/export.py --config.init_from=runs/quickstart --workdir=exports/quickstart

Source:    --config.init_from: a run's workdir, WORKDIR/checkpoints/STEP, a .pth or a .safetensors file.
Hardware:  any; seconds on a CPU.
Expected:  encoder.json, an Orbax checkpoint, encoder.safetensors with torchvision's names, and a jax.export program; each of
           them gives the same features (to 1e-5).
"""

from bt_jax.config import default


def get_config():
    return default("export")
