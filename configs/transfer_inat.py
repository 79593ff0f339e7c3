"""A linear classifier on the frozen ResNet-50, on iNaturalist 2018: the paper's Table 3, last column.

Source:    Zbontar et al. 2021 (arXiv 2103.03230), section 3.2 and appendix C.1: as in transfer_places.py, with 84
           epochs. In vissl's file the rate is divided after 24, 48 and 72.
Data:      TFDS `i_naturalist2018` (437 513 train images, 8142 classes), its validation split.
Encoder:   the run in runs/resnet50_imagenet; --config.init_from=PATH for another.
Hardware:  one or more GPUs.
Expected:  46.5 % top-1 (paper, Table 3; supervised 46.7 %). Not measured with this code.
"""

from configs import transfer_places


def get_config():
    config = transfer_places.get_config()
    config.epochs = 84
    config.data.name = "i_naturalist2018"
    config.data.test_split = "validation"
    config.sgd.decay_epochs = (28, 56)
    return config
