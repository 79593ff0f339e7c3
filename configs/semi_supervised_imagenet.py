"""ResNet-50 fine-tuned on 1 % or 10 % of ImageNet's labels: the six systems of the paper's Table 2, and VICReg.

    python main.py --config=configs/semi_supervised_imagenet.py:1percent                        Barlow Twins
    python main.py --config=configs/semi_supervised_imagenet.py:10percent,simclr                by SimCLR's own protocol
    python main.py --config=configs/semi_supervised_imagenet.py:10percent,simclr,barlow_twins   by Barlow Twins' protocol
    python main.py --config=configs/semi_supervised_imagenet.py:1percent,supervised             from scratch on the labels
    python -m bt_jax.evaluation.table WORKDIR…                                                  Table 2, next to the paper's

The argument is SUBSET[,METHOD[,PROTOCOL]]: METHOD pre-trained the encoder (or is `supervised`: none did), PROTOCOL is the system
whose fine-tuning is used, by default METHOD's own. `simclr,barlow_twins`, `byol,barlow_twins`, … compare all methods by one
protocol; the paper compares each by its own. `supervised,barlow_twins` trains from scratch, with Barlow Twins' batch, epochs and
schedule.

Source:    Barlow Twins: the official evaluate.py's command for 1 %: SGD without weight decay, 20 epochs, learning rates 0.005
           (encoder) and 0.5 (head), cosine. The paper (Zbontar et al. 2021, arXiv 2103.03230, section 3.1, rates in
           appendix B.2) has 0.002 and 0.5, ×0.2 after epochs 12 and 16: --config.sgd.schedule=steps
           --config.sgd.learning_rate_encoder=0.002. That is the setting here for 10 %, for which the official project gives no
           command.
           SimCLR: Chen et al. 2020 (arXiv 2002.05709), appendix B.5: Nesterov momentum, batches of 4096, 0.05 × N/256 for all
           parameters, no weight decay, 60 epochs for 1 % and 30 for 10 %; a cosine, as in its code.
           BYOL: Grill et al. 2020 (arXiv 2006.07733), appendix C.1: Nesterov momentum, batches of 1024, no weight decay, one
           rate of {0.005, 0.01, 0.02, 0.05, 0.1} and 30 or 50 epochs, chosen on 10 009 train images. Which were chosen is not
           said; here it is 0.02 and 30, to be searched: --config.sgd.learning_rate_encoder=… --config.epochs=… Its rates are those of
           the batch of 1024; the fields have them for 256, so a fourth: 0.005.
           SwAV: Caron et al. 2020 (arXiv 2006.09882) and facebookresearch/swav, eval_semisup.py with its README's commands:
           batches of 256, 20 epochs, no weight decay, ×0.2 after epochs 12 and 16; encoder and head 0.02 and 5 for 1 %, 0.01
           and 0.2 for 10 %. Its code reports the best epoch on the validation images; results here are the last epoch's.
           PIRL: Misra and van der Maaten 2020 (arXiv 1912.01991) does not list its settings. The nearest code is vissl's
           fine-tuning: Nesterov momentum, batches of 256, 70 epochs, 0.05 × N/256 for all parameters, divided by 10 after 30,
           no weight decay.
           Supervised: Zhai et al. 2019, "S4L" (arXiv 1905.03670), and google-research/s4l, config/supervised_imagenet_1p.sh and
           _10p.sh: from scratch, SGD without Nesterov momentum, batches of 256, 5 epochs of warm-up, pixels from -1 to 1, crop
           and flip. 1 %: 1000 epochs, 0.01 × N/256 divided by 10 after 700, 800 and 900, weight decay 1e-2; 10 %: 200 epochs,
           0.1 × N/256 divided by 10 after 140, 160 and 180, weight decay 1e-3; both of kernels only. Three things differ here:
           its network is a ResNet-50 v2, ours v1; its noise in hue, saturation and value for 1 % is left out, because its
           factors, powers of two, cannot be expressed as a view; and its random crops are TensorFlow's, ours torchvision's.
           VICReg: the commands of its official README: 20 epochs, batches of 256, cosine, 0.03 and 0.08 for 1 %, 0.01 and 0.1
           for 10 %.
           All: the incomplete last batch of an epoch is dropped, and batch norm is over the global batch. The programs of
           Barlow Twins, VICReg and SwAV keep that batch, and those of the first two have batch norm for each GPU.
Data:      TFDS `imagenet2012_subset/1pct` or `/10pct`, which are SimCLR's lists; or the whole image folder and such a list:
           --config.data.source=folder --config.data.data_dir=DIR --config.finetune.chosen_by=list
           --config.finetune.list_file=1percent.txt (from SimCLR's project, imagenet_subsets). PIRL's published numbers are on
           random lists of its own, and Supervised's on its own lists of 13 000 and 128 000 images.
Encoder:   the run in runs/resnet50_imagenet, or runs/resnet50_imagenet-METHOD; --config.init_from=PATH for another.
Hardware:  one or more GPUs.
Expected:  top-1 and top-5 with 1 %, then with 10 % (paper, Table 2): Supervised 25.4 and 48.4, 56.4 and 80.4; PIRL only top-5,
           57.2, then 83.8; SimCLR 48.3 and 75.5, 65.6 and 87.8; BYOL 53.2 and 78.4, 68.8 and 89.0; SwAV 53.9 and 78.5, 70.2 and
           89.9; Barlow Twins 55.0 and 79.2, 69.7 and 89.3. VICReg (its paper): 54.8 and 79.4, 69.5 and 89.5. Not measured with
           this code.
"""

from bt_jax.config import based_on
from bt_jax.errors import UserError
from configs import resnet50_imagenet

SUBSETS = {"1percent": ("1pct", 1.0), "10percent": ("10pct", 10.0)}


def get_config(argument: str = "1percent"):
    subset, method, protocol, *more = [*argument.split(","), "", ""]
    method = method or "barlow_twins"
    protocol = protocol or method
    if subset not in SUBSETS or {method, protocol} - set(PROTOCOLS) or any(more):
        raise UserError(
            f"semi_supervised_imagenet.py:{argument} is not known; it takes {' or '.join(SUBSETS)}, after a comma the method, "
            f"and after another, if it is not the method's own, the protocol: {', '.join(PROTOCOLS)}."
        )
    if protocol == "supervised" != method:
        raise UserError(
            f"semi_supervised_imagenet.py:{argument} names a protocol for training from scratch, but an encoder by {method}; "
            f"name another protocol, or the method supervised."
        )
    name, percent = SUBSETS[subset]
    config = based_on(resnet50_imagenet.get_config(method), "finetune")
    config.init_from = "runs/resnet50_imagenet" + (f"-{method}" if method != "barlow_twins" else "")
    config.data.name = f"imagenet2012_subset/{name}"
    config.data.test_split = "validation"

    config.sgd.weight_decay = 0.0
    config.sgd.schedule = "cosine"
    config.sgd.decay_epochs = (12, 16)  # for steps
    config.sgd.decay_factor = 0.2
    config.finetune.chosen_by = "source"
    config.finetune.percent = percent
    config.finetune.protocol, set_protocol = PROTOCOLS[protocol]
    set_protocol(config, subset)
    if method == "supervised":
        config.finetune.from_scratch = True
        config.init_from = ""
    return config


def barlow_twins(config, subset):
    _set(config, batch_size=256, epochs=20, encoder=0.005, head=0.5)
    if subset == "10percent":
        config.sgd.learning_rate_encoder = 0.002
        config.sgd.schedule = "steps"


def simclr(config, subset):
    _set(config, batch_size=4096, epochs=60 if subset == "1percent" else 30, encoder=0.05, head=0.05)
    config.sgd.nesterov = True


def byol(config, subset):
    del subset  # the same for both
    _set(config, batch_size=1024, epochs=30, encoder=0.02 * 256 / 1024, head=0.02 * 256 / 1024)
    config.sgd.nesterov = True


def swav(config, subset):
    encoder, head = (0.02, 5.0) if subset == "1percent" else (0.01, 0.2)
    _set(config, batch_size=256, epochs=20, encoder=encoder, head=head)
    config.sgd.schedule = "steps"


def pirl(config, subset):
    del subset  # the same for both
    _set(config, batch_size=256, epochs=70, encoder=0.05, head=0.05)
    config.sgd.nesterov = True
    config.sgd.schedule = "steps"
    config.sgd.decay_epochs = (30,)
    config.sgd.decay_factor = 0.1


def vicreg(config, subset):
    encoder, head = (0.03, 0.08) if subset == "1percent" else (0.01, 0.1)
    _set(config, batch_size=256, epochs=20, encoder=encoder, head=head)


def supervised(config, subset):
    few = subset == "1percent"
    rate = 0.01 if few else 0.1
    _set(config, batch_size=256, epochs=1000 if few else 200, encoder=rate, head=rate)
    config.finetune.learning_rate_from_scratch = rate
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)  # pixels from -1 to 1
    config.sgd.weight_decay = 1e-2 if few else 1e-3
    config.sgd.decay_norms = False
    config.sgd.decay_biases = False
    config.sgd.schedule = "steps"
    config.sgd.decay_epochs = (700, 800, 900) if few else (140, 160, 180)
    config.sgd.decay_factor = 0.1
    config.sgd.warmup_epochs = 5
    # An epoch has a quarter, or 2.5 times, as many images as the test.
    config.sgd.evaluate_every_epochs = 50 if few else 10


def _set(config, *, batch_size, epochs, encoder, head):
    config.batch_size = batch_size
    config.epochs = epochs
    config.sgd.learning_rate_encoder = encoder
    config.sgd.learning_rate_head = head


PROTOCOLS = {
    "barlow_twins": ("Barlow Twins", barlow_twins),
    "simclr": ("SimCLR", simclr),
    "byol": ("BYOL", byol),
    "swav": ("SwAV", swav),
    "pirl": ("PIRL (vissl)", pirl),
    "vicreg": ("VICReg", vicreg),
    "supervised": ("Supervised (Zhai et al. 2019)", supervised),
}
