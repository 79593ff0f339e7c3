"""A linear classifier on the official ResNet-50: does the evaluation give what the official project reports?

    wget https://dl.fbaipublicfiles.com/barlowtwins/ljng/resnet50.pth
    python main.py --config=configs/linear_official_weights.py --config.data.data_dir=DIR

Source:    the protocol of linear_imagenet.py on the weights of the official project's README (facebookresearch/barlowtwins),
           which gives the file above (its README has the current address, should it have moved). The full checkpoint.pth
           beside it, with the projector, is read as well.
Data:      as resnet50_imagenet.py: TFDS `imagenet2012`, or an image folder.
Encoder:   ./resnet50.pth; --config.init_from=PATH for another place. Read without PyTorch; no code in it is run.
Hardware:  as linear_imagenet.py.
Expected:  73.5 % top-1, as the official project says of these weights. Theirs; this has not been measured here.
"""

from configs import linear_imagenet


def get_config():
    config = linear_imagenet.get_config()
    config.init_from = "resnet50.pth"
    return config
