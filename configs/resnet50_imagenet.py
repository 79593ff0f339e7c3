"""ResNet-50 on ImageNet: Barlow Twins with the official hyper-parameters, or another method with those of its own paper.

    python main.py --config=configs/resnet50_imagenet.py --config.data.data_dir=DIR              Barlow Twins
    python main.py --config=configs/resnet50_imagenet.py:simclr --config.data.data_dir=DIR       or byol, swav, pirl,
                                                                                                 vicreg, supervised,
                                                                                                 package.module:Class

Source:    Barlow Twins: Zbontar et al. 2021 (arXiv 2103.03230), section 2.2, and the defaults of the official main.py, which
           differ from the paper's in λ (0.0051; 5e-3 there) and the weight decay (1e-6; 1.5e-6 there): here the program's.
           SimCLR: Chen et al. 2020 (arXiv 2002.05709), appendix B, and google-research/simclr: batches of 4096, 1000 epochs,
           LARS with the rate inside its momentum, 0.3 × N/256 (the same as 0.075 × √N there; for smaller batches the square
           root is better: --config.optimizer.scaling=sqrt --config.optimizer.learning_rate_weights=1.2, and _biases), weight
           decay 1e-6, temperature 0.1, a projector of 2048-128, pixels from 0 to 1. Its official loss is twice the paper's,
           hence `gradient_divisor = 0.5`. Its first version, which has these numbers, adds to the brightness and
           changes contrast around each channel's mean; views here are torchvision's, which multiply the brightness and take
           the mean of the grey image.
           BYOL: Grill et al. 2020 (arXiv 2006.07733), appendix B, and deepmind-research, byol/configs/byol.py: batches of 4096,
           1000 epochs, 0.2 × N/256, weight decay 1.5e-6, τ from 0.996. For 300 epochs: 0.3, 1e-6 and 0.99. Its brightness and
           contrast are those of SimCLR's first version too, and here torchvision's.
           SwAV: Caron et al. 2020 (arXiv 2006.09882), appendix A, and facebookresearch/swav, scripts/swav_800ep_pretrain.sh: two
           crops of 224 pixels and six of 96, 3000 prototypes, batches of 4096, 800 epochs, SGD under LARC with 0.3 × N/256 from
           a sixteenth of it, weight decay 1e-6. For batches of 256: swav.queue = 3840, optimizer.learning_rate = 0.6 and no
           warm-up. Without small crops: swav.small_crops = 0 and swav.view.crop_scale = (0.08, 1).
           PIRL: Misra and van der Maaten 2020 (arXiv 1912.01991), appendix A, and facebookresearch/vissl,
           pretrain/pirl/pirl_jigsaw_4node_resnet50.yaml: batches of 1024, 800 epochs, SGD with 0.03 × N/256 and a cosine by the
           epoch, weight decay 1e-4 except for biases and batch norm, NCE with 32 000 negatives at temperature 0.07, patches of
           64 pixels. Its posterising, sharpening, solarising and autocontrast are left out. For the variant with an MLP head:
           pirl.loss=cross_entropy, pirl.temperature=0.1, pirl.projector="(2048,128)", and SimCLR's views.
           VICReg: Bardes et al. 2022 (arXiv 2105.04906), section 4.2 and appendix C, and facebookresearch/vicreg: batches of
           2048, 1000 epochs, 0.2 × N/256, weight decay 1e-6. Views are alike, as in appendix C.1 (blur 0.5, solarise 0.1);
           the official augmentations.py has Barlow Twins' asymmetric ones (blur 1.0 and 0.1, solarise 0 and 0.2).
           Supervised: Goyal et al. 2017 (arXiv 1706.02677): 90 epochs of SGD with Nesterov momentum, learning rate 0.1 for a
           batch of 256 after 5 epochs of warm-up (from 0; there from 0.1, whatever the batch), divided by 10 after 30, 60 and
           80, weight decay 1e-4 except for batch norm.
Data:      TFDS `imagenet2012` (1 281 167 images), prepared by hand; or an image folder:
           --config.data.source=folder --config.data.data_dir=DIR with DIR/train/<class>/*.JPEG
Hardware:  the paper: 32 V100 GPUs, 124 hours. Here any number of devices, with the same arithmetic. Supervised: by the source,
           batches of up to 8192 give the same accuracy; set --config.batch_size=N, and the learning rate follows.
Expected:  Barlow Twins: 73.2 % top-1 of a linear classifier (paper, Table 1); 73.5 % for the official project's published
           weights. SimCLR: 69.3 % (its Table 6). BYOL: 74.3 % (its Table 1). SwAV: 75.3 % (its README). PIRL: 63.6 % (its Table 2). VICReg: 73.2 % (its Table 1). Supervised: 76.4 %
           top-1 (the source, for a batch of 256). None of these runs has been made with this code.

The official gradient is the true one divided by the number of GPUs, 16 in the run with 73.5 %. For weights LARS cancels that,
but not for batch-norm scales and biases: hence `gradient_divisor = 16`.
"""

from bt_jax.config import default


def get_config(method: str = "barlow_twins"):
    config = default(method=method)
    config.dtype = "bfloat16"
    config.batch_size = 2048
    config.epochs = 1000

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.eval_resize = 256

    config.model.arch = "resnet50"

    config.monitor.every_epochs = 10
    config.monitor.train_examples = 50000
    config.monitor.test_examples = 10000
    config.pod.images = 1_281_167
    if method in RECIPES:
        RECIPES[method](config)
    return config


def barlow_twins(config):
    config.barlow_twins.projector = (8192, 8192, 8192)
    config.barlow_twins.lambd = 0.0051

    config.optimizer.learning_rate_weights = 0.2
    config.optimizer.learning_rate_biases = 0.0048
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10
    config.optimizer.gradient_divisor = 16.0


def supervised(config):
    config.batch_size = 256
    config.epochs = 90

    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_norms = False
    config.optimizer.schedule = "steps"
    config.optimizer.decay_epochs = (30, 60, 80)
    config.optimizer.warmup_epochs = 5


def simclr(config):
    config.batch_size = 4096
    config.data.mean = (0.0, 0.0, 0.0)
    config.data.std = (1.0, 1.0, 1.0)
    config.simclr.projector = (2048, 128)
    config.simclr.temperature = 0.1

    config.optimizer.learning_rate_weights = 0.3
    config.optimizer.learning_rate_biases = 0.3
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10
    config.optimizer.end_factor = 0.0
    config.optimizer.rate_in_momentum = True
    config.optimizer.gradient_divisor = 0.5


def byol(config):
    config.batch_size = 4096
    config.byol.projector = (4096, 256)
    config.byol.predictor = (4096,)
    config.byol.target_momentum = 0.996

    config.optimizer.learning_rate_weights = 0.2
    config.optimizer.learning_rate_biases = 0.2
    config.optimizer.weight_decay = 1.5e-6
    config.optimizer.warmup_epochs = 10
    config.optimizer.end_factor = 0.0


def swav(config):
    config.batch_size = 4096
    config.epochs = 800
    config.data.std = (0.228, 0.224, 0.225)  # multicropdataset.py; elsewhere the first is 0.229
    config.model.zero_init_residual = False
    config.swav.projector = (2048, 128)
    config.swav.prototypes = 3000
    config.swav.freeze_epochs = 1
    config.swav.small_crops = 6
    config.swav.small_size = 96

    config.optimizer.learning_rate = 0.3
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10
    config.optimizer.start_factor = 0.0625
    config.optimizer.end_factor = 0.001


def pirl(config):
    config.batch_size = 1024
    config.epochs = 800
    config.model.zero_init_residual = False
    config.pirl.loss = "nce"
    config.pirl.temperature = 0.07
    config.pirl.negatives = 32000
    config.pirl.projector = (128,)
    config.pirl.patch_size, config.pirl.cell = 64, 85

    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_norms = False
    config.optimizer.decay_biases = False
    config.optimizer.end_factor = 0.001


def vicreg(config):
    config.vicreg.projector = (8192, 8192, 8192)

    config.optimizer.learning_rate_weights = 0.2
    config.optimizer.learning_rate_biases = 0.2
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10


RECIPES = {
    "barlow_twins": barlow_twins, "simclr": simclr, "byol": byol, "swav": swav, "pirl": pirl, "vicreg": vicreg,
    "supervised": supervised,
}  # fmt: skip
