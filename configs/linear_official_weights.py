"""A linear classifier on the official ResNet-50: does the evaluation reproduce the accuracy that the official project reports?

    wget https://dl.fbaipublicfiles.com/barlowtwins/ljng/resnet50.pth
    python main.py --config=configs/linear_official_weights.py --config.data.data_dir=DIR

Source:    the protocol of linear_imagenet.py on the official project's weights. Its README (facebookresearch/barlowtwins) has
           the current address of the file. The full checkpoint.pth, with the projector, can be read too.
Data:      as in resnet50_imagenet.py: TFDS `imagenet2012`, or an image folder.
Encoder:   ./resnet50.pth; --config.init_from=PATH for another place. Read without PyTorch; no code in it is run.
Hardware:  as for linear_imagenet.py.
Expected:  73.5 % top-1 (the official project, for these weights). Not measured with this code.
"""

from configs import linear_imagenet


def get_config():
    config = linear_imagenet.get_config()
    config.init_from = "resnet50.pth"
    return config
