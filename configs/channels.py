"""A narrow ResNet-18 on images that are not photographs: grey, of more than 8 bits, or with any number of channels.

    python main.py --config=configs/channels.py:grey --config.data.data_dir=DIR …             one channel, such as X-rays
    python main.py --config=configs/channels.py:spectral --config.data.data_dir=DIR …         bands, such as of satellites
    python main.py --config=configs/channels.py:spectral,simclr --config.data.data_dir=DIR …  or byol, swav, pirl, vicreg, …

`--config.task=statistics` prints the options that go in place of the dots: channels, range, mean and standard deviation.

Source:    ours: the quickstart's recipe for images of 64 pixels, with views by a preset of bt_jax/config/presets.py: `natural` for
           red, green and blue of any depth, `grey` and `spectral` without what changes colours, `spectral` with quarter turns and
           dropped bands.
Data:      a folder of images, an .npz file with --config.data.source=arrays, or archives (docs/channels.md).
Hardware:  2 CPU cores.
Expected:  depends on the images. For two made-up sets see experiments/results/channels.md.
"""

from bt_jax.config.presets import set_views
from configs import quickstart


def get_config(argument: str = "grey"):
    preset, _, method = argument.partition(",")
    config = quickstart.get_config(method or "barlow_twins")
    config.epochs = 20
    config.data.source = "folder"
    config.data.data_dir = "images"
    config.data.image_size = 64
    config.checkpoint.every_epochs = 5
    config.monitor.every_epochs = 5
    config.monitor.judge_at_end = False
    set_views(config, preset)
    return config
