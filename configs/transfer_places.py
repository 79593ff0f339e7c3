"""A linear classifier on the frozen ResNet-50, on Places: the paper's Table 3, first column.

Source:    Zbontar et al. 2021 (arXiv 2103.03230), section 3.2 and appendix C.1: SGD, 14 epochs, learning rate 0.01 divided by
           10 at two equal intervals, weight decay 5e-4, momentum 0.9, batch 256, crop and flip, and otherwise the settings of
           PIRL. Those are vissl's eval_resnet_8gpu_transfer_places205_linear.yaml: batch norm on the features, Nesterov
           momentum, no decay of the batch norm. There the rate is divided after 4, 8 and 12 epochs, which the paper's sentence
           excludes, and the features of the last stage are pooled to 2 × 2, where here all positions are averaged.
Data:      TFDS `places365_small` (1.8 M images). The paper uses Places-205, which TFDS cannot fetch: prepare it as an image
           folder, --config.data.source=folder --config.data.data_dir=DIR --config.data.test_split=val
Encoder:   the run in runs/resnet50_imagenet; --config.init_from=PATH for another.
Hardware:  one or more GPUs.
Expected:  54.1 % top-1 on Places-205 (paper, Table 3; supervised 53.2 %). Not measured with this code.
"""

from bt_jax.config import based_on
from configs import resnet50_imagenet


def get_config():
    config = based_on(resnet50_imagenet.get_config(), "transfer")
    config.transfer.protocol = "linear"
    config.init_from = "runs/resnet50_imagenet"
    config.batch_size = 256
    config.epochs = 14
    config.data.name = "places365_small"
    config.data.test_split = "validation"

    config.linear.batch_norm = True
    config.sgd.learning_rate_head = 0.01
    config.sgd.nesterov = True
    config.sgd.weight_decay = 5e-4
    config.sgd.decay_norms = False
    config.sgd.schedule = "steps"
    config.sgd.decay_epochs = (14 / 3, 28 / 3)
    config.sgd.decay_factor = 0.1
    return config
