"""ResNet-50 fine-tuned on 1 % or 10 % of ImageNet's labels: the paper's Table 2, by each system's own protocol.

    python main.py --config=configs/semi_supervised_imagenet.py:1percent
    python main.py --config=configs/semi_supervised_imagenet.py:10percent,simclr                or byol, vicreg
    python main.py --config=configs/semi_supervised_imagenet.py:1percent --config.finetune.from_scratch=True --workdir=…

Source:    Barlow Twins: the official evaluate.py's command for 1 %: SGD without weight decay, 20 epochs, learning rates 0.005
           (encoder) and 0.5 (head), cosine. The paper (Zbontar et al. 2021, arXiv 2103.03230, section 3.2) has 0.002 and 0.5,
           ×0.2 after epochs 12 and 16: --config.sgd.schedule=steps --config.sgd.learning_rate_encoder=0.002. That is the
           setting here for 10 %, for which the official project gives no command.
           SimCLR: Chen et al. 2020 (arXiv 2002.05709), appendix B.5: Nesterov momentum, batches of 4096, 0.05 × N/256 for all
           parameters, no weight decay, 60 epochs for 1 % and 30 for 10 %; a cosine, as in its code.
           BYOL: Grill et al. 2020 (arXiv 2006.07733), appendix C.1: Nesterov momentum, batches of 1024, no weight decay, one
           rate of {0.005, 0.01, 0.02, 0.05, 0.1} and 30 or 50 epochs, chosen on 10 009 train images. Which were chosen is not
           said; here it is 0.02 and 30, to be searched: --config.sgd.learning_rate_encoder=… --config.epochs=…
           VICReg: the commands of its official README: 20 epochs, batches of 256, cosine, 0.03 and 0.08 for 1 %, 0.01 and 0.1
           for 10 %.
Data:      TFDS `imagenet2012_subset/1pct` or `/10pct`, which are SimCLR's lists; or the whole image folder and such a list:
           --config.data.source=folder --config.data.data_dir=DIR --config.finetune.chosen_by=list
           --config.finetune.list_file=1percent.txt (from SimCLR's project, imagenet_subsets).
Encoder:   the run in runs/resnet50_imagenet, or runs/resnet50_imagenet_METHOD; --config.init_from=PATH for another.
Hardware:  one or more GPUs.
Expected:  top-1 and top-5 with 1 %, then with 10 % (papers): Barlow Twins 55.0 and 79.2, 69.7 and 89.3; SimCLR 48.3 and 75.5, 65.6 and
           87.8; BYOL 53.2 and 78.4, 68.8 and 89.0; VICReg 54.8 and 79.4, 69.5 and 89.5; from scratch 25.4 and 48.4, 56.4 and
           80.4, by another recipe. Not measured with this code.
"""

from bt_jax.config import based_on
from bt_jax.errors import UserError
from configs import resnet50_imagenet

SUBSETS = {"1percent": ("1pct", 1.0), "10percent": ("10pct", 10.0)}


def get_config(argument: str = "1percent"):
    subset, _, method = argument.partition(",")
    method = method or "barlow_twins"
    if subset not in SUBSETS or method not in PROTOCOLS:
        raise UserError(
            f"semi_supervised_imagenet.py:{argument} is not known; it takes {' or '.join(SUBSETS)}, and after a comma "
            f"{', '.join(PROTOCOLS)}."
        )
    name, percent = SUBSETS[subset]
    config = based_on(resnet50_imagenet.get_config(method), "finetune")
    config.init_from = "runs/resnet50_imagenet" + (f"_{method}" if method != "barlow_twins" else "")
    config.data.name = f"imagenet2012_subset/{name}"
    config.data.test_split = "validation"

    config.sgd.weight_decay = 0.0
    config.sgd.schedule = "cosine"
    config.sgd.decay_epochs = (12, 16)  # for steps
    config.sgd.decay_factor = 0.2
    config.finetune.chosen_by = "source"
    config.finetune.percent = percent
    PROTOCOLS[method](config, subset)
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
    _set(config, batch_size=1024, epochs=30, encoder=0.02, head=0.02)
    config.sgd.nesterov = True


def vicreg(config, subset):
    encoder, head = (0.03, 0.08) if subset == "1percent" else (0.01, 0.1)
    _set(config, batch_size=256, epochs=20, encoder=encoder, head=head)


def _set(config, *, batch_size, epochs, encoder, head):
    config.batch_size = batch_size
    config.epochs = epochs
    config.sgd.learning_rate_encoder = encoder
    config.sgd.learning_rate_head = head


PROTOCOLS = {"barlow_twins": barlow_twins, "simclr": simclr, "byol": byol, "vicreg": vicreg}
