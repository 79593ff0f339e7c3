"""A linear classifier on the frozen ResNet-50, on ImageNet: the paper's Table 1.

Source:    Zbontar et al. 2021 (arXiv 2103.03230), section 3.1 and appendix; the defaults of the official evaluate.py: SGD,
           learning rate 0.3 for a batch of 256, cosine by epoch over 100 epochs, weight decay 1e-6, crop and flip. Two things
           differ: the frozen encoder computes in bfloat16 (--config.dtype=float32 for the official float32), and the last batch of
           an epoch, which is not whole, is left out.
Data:      as in resnet50_imagenet.py: TFDS `imagenet2012`, or an image folder.
Encoder:   the run in runs/resnet50_imagenet; --config.init_from=PATH for another.
Hardware:  the official program uses a node of 8 GPUs. With --config.linear.cached=True it takes one pass over the images, and
           10.5 GB of features (1.28 M × 2048) in the devices' memory for L-BFGS.
Expected:  73.2 % top-1 and 91.0 % top-5 (paper, Table 1). Not measured with this code.
"""

from bt_jax.config import based_on
from configs import resnet50_imagenet


def get_config():
    config = based_on(resnet50_imagenet.get_config(), "linear")
    config.init_from = "runs/resnet50_imagenet"
    config.batch_size = 256
    config.epochs = 100

    config.sgd.learning_rate_head = 0.3
    config.sgd.weight_decay = 1e-6
    config.sgd.schedule = "cosine"
    return config
