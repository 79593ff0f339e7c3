"""Barlow Twins for JAX: one command, whose config says what to do.

    python main.py                                                    the quickstart: minutes on a CPU, nothing to download
    python main.py --list                                             names all configs
    python main.py --config=configs/resnet50_imagenet.py --config.data.data_dir=DIR --workdir=gs://bucket/run
    python main.py --config=configs/quickstart.py:supervised          another method
    python main.py --config.epochs=40 --config.optimizer.weight_decay=1e-4      changes single fields
    python main.py --fields                                           prints all fields of that run and exits

The same command resumes an interrupted run. Installed, the package has the same command as `bt_jax` (bt_jax/command.py).
"""

from bt_jax.command import run

if __name__ == "__main__":
    run(__doc__)
