"""ResNet-50 on ImageNet for 300 epochs at another batch size: the paper's Figure 2.

    python main.py --config=configs/resnet50_imagenet_batch_size.py:256

Source:    Zbontar et al. 2021 (arXiv 2103.03230), section 4, "Robustness to Batch Size"; learning rates and top-1 as its authors
           give them in issue 7 of the official project. There, a loss scaled by 0.024 makes that of biases and batch norms
           0.024 × that of weights. Here they have that rate and the loss is not scaled, as in today's main.py. For weights that
           is not quite the same: LARS adds the weight decay to the gradient, which makes it 1/0.024 ≈ 42 times weaker relative
           to the gradient here; and the authors found that separate rates do "not yield the same accuracy in practice"
           (issue 23).
Hardware:  the paper does not say; the gradient divisor is kept as in resnet50_imagenet.py.
Expected:  the top-1 of a linear classifier below, all by the paper. Not measured with this code.

    batch size                128    256    512    1024   2048   4096
    learning rate of weights  0.7    0.4    0.3    0.25   0.2    0.2
    top-1, %                  69.7   70.7   71.4   71.7   71.4   70.7
"""

from bt_jax.errors import UserError
from configs import resnet50_imagenet

LEARNING_RATES = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}


def get_config(batch_size: str = "256"):
    if not batch_size.isdigit() or int(batch_size) not in LEARNING_RATES:
        raise UserError(
            f"resnet50_imagenet_batch_size.py:{batch_size} is not in the paper; it has {', '.join(map(str, LEARNING_RATES))}."
        )
    config = resnet50_imagenet.get_config()
    config.batch_size = int(batch_size)
    config.epochs = 300
    config.optimizer.learning_rate_weights = LEARNING_RATES[config.batch_size]
    config.optimizer.learning_rate_biases = round(0.024 * LEARNING_RATES[config.batch_size], 6)
    return config
