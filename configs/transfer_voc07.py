"""Linear SVMs on features of the frozen ResNet-50, on PASCAL VOC 2007: the paper's Table 3, second column.

Source:    Zbontar et al. 2021 (arXiv 2103.03230), section 3.2 and appendix C.1; Goyal et al. 2019 (arXiv 1905.01235): one SVM per class, with
           C chosen by cross-validation on trainval; mean average precision on test.
Data:      TFDS `voc/2007`; or the official folders: --config.data.source=folder --config.data.data_dir=VOCdevkit
           --config.data.train_split=trainval
Encoder:   the run in runs/resnet50_imagenet; --config.init_from=PATH for another.
Hardware:  any: 9963 images go through the encoder once, and the SVMs take minutes on a CPU.
Expected:  86.2 % mAP (paper, Table 3; supervised 87.5 %), to be compared with the interpolated one of the three that are
           printed: the paper's settings are PIRL's (appendix C.1), whose code, VISSL, has that one. Not measured with this
           code, which differs from VISSL as bt_jax/evaluation/voc.py says.
"""

from bt_jax.config import based_on
from configs import resnet50_imagenet


def get_config():
    config = based_on(resnet50_imagenet.get_config(), "transfer")
    config.transfer.protocol = "svm"
    config.init_from = "runs/resnet50_imagenet"
    config.data.name = "voc/2007"
    config.data.train_split = "train+validation"
    config.data.test_split = "test"
    return config
