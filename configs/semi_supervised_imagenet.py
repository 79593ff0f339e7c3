"""ResNet-50 fine-tuned on 1 % or 10 % of ImageNet's labels: the paper's Table 2.

    python main.py --config=configs/semi_supervised_imagenet.py:1percent
    python main.py --config=configs/semi_supervised_imagenet.py:1percent --config.finetune.from_scratch=True --workdir=…

Source:    the official evaluate.py's command for 1 %: SGD without weight decay, 20 epochs, learning rates 0.005 (encoder) and
           0.5 (head), cosine. The paper (Zbontar et al. 2021, arXiv 2103.03230, section 3.2) has 0.002 and 0.5, ×0.2 after
           epochs 12 and 16: --config.sgd.schedule=steps --config.sgd.learning_rate_encoder=0.002. That is the setting here
           for 10 %, for which the official project gives no command.
Data:      TFDS `imagenet2012_subset/1pct` or `/10pct`, which are SimCLR's lists; or the whole image folder and such a list:
           --config.data.source=folder --config.data.data_dir=DIR --config.finetune.chosen_by=list
           --config.finetune.list_file=1percent.txt (from SimCLR's project, imagenet_subsets).
Encoder:   the run in runs/resnet50_imagenet; --config.init_from=PATH for another.
Hardware:  one or more GPUs.
Expected:  55.0 % top-1 and 79.2 % top-5 with 1 %, 69.7 and 89.3 with 10 %; from scratch 25.4 and 48.4, 56.4 and 80.4 (paper,
           Table 2, whose supervised rows used other recipes). Not measured with this code.
"""

from bt_jax.config import based_on
from bt_jax.errors import UserError
from configs import resnet50_imagenet

SUBSETS = {"1percent": ("1pct", 1.0, 0.005, "cosine"), "10percent": ("10pct", 10.0, 0.002, "steps")}


def get_config(subset: str = "1percent"):
    if subset not in SUBSETS:
        raise UserError(f"semi_supervised_imagenet.py:{subset} is not known; it takes {' or '.join(SUBSETS)}.")
    name, percent, rate, schedule = SUBSETS[subset]
    config = based_on(resnet50_imagenet.get_config(), "finetune")
    config.init_from = "runs/resnet50_imagenet"
    config.batch_size = 256
    config.epochs = 20
    config.data.name = f"imagenet2012_subset/{name}"
    config.data.test_split = "validation"

    config.sgd.learning_rate_encoder = rate
    config.sgd.learning_rate_head = 0.5
    config.sgd.weight_decay = 0.0
    config.sgd.schedule = schedule
    config.sgd.decay_epochs = (12, 16)  # for steps
    config.sgd.decay_factor = 0.2

    config.finetune.chosen_by = "source"
    config.finetune.percent = percent
    return config
