"""Quickstart."""

from bt_jax.config import default


def get_config():
    config = default()
    config.seed = 0
    config.batch_size = 256
    config.epochs = 15

    config.data.source = "photographs"
    config.data.image_size = 32
    config.data.eval_resize = 0
    config.data.view_a.crop_scale = (0.2, 1.0)
    config.data.view_b.crop_scale = (0.2, 1.0)
    config.data.view_a.blur = 0.0
    config.data.view_b.blur = 0.0

    config.model.arch = "resnet18"
    config.model.width = 16
    config.model.small_images = True
    config.model.stem_stride = 2
    config.model.projector = (512, 512, 512)

    config.optimizer.learning_rate_weights = 0.3
    config.optimizer.learning_rate_biases = 0.3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.trust_coefficient = 0.02
    config.optimizer.gradient_divisor = 10.0
    config.optimizer.warmup_epochs = 2

    config.checkpoint.every_epochs = 5
    config.monitor.every_epochs = 5
    config.monitor.k = 20
    config.log.every_steps = 5
    return config
