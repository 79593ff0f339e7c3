"""The features of all images of a folder, at any depth, with labels or without: OUT/embeddings.npz.

    python main.py --config=configs/embed.py --config.init_from=RUN --config.data.data_dir=DIR --workdir=OUT

Source:    --config.init_from: a run's workdir, by default runs/quickstart, an export, a .pth or a .safetensors file; images are
           resized and normalised for it. --config.data.data_dir: by default the folder images.
Hardware:  any; all devices are used. A million images take the time of one pass through the encoder, and bounded memory.
Expected:  `features` (N, F) float32, `paths` (N,) relative to DIR, and `labels` and `class_names` if the images have labels. The
           features of an image are those of `bt_jax.load_encoder` (experiments/results/own_images.md).

--config.data.train_split=val embeds a single split. --config.embed.parquet=True writes embeddings.parquet too. Nearest images and
near-duplicates: python -m bt_jax.evaluation.neighbours OUT
"""

from bt_jax.config import default


def get_config():
    config = default("embed")
    config.init_from = "runs/quickstart"
    config.data.data_dir = "images"
    return config
