"""SGD under LARC with warm-up and cosine decay, as SwAV's official code has it."""

from bt_jax.config.field import Field, Group
from bt_jax.config.optimizers.shared import longer_than_its_warmup, name_field
from bt_jax.config.rules import above_zero, at_least, below_one, between

GROUP = Group(
    "optimizer",
    "SGD with momentum under LARC, with warm-up and cosine decay",
    {
        "name": name_field("larc"),
        "learning_rate": Field(
            0.3, at_least(0, float), "Peak learning rate for a batch of 256; scaled by batch_size / 256"
        ),
        "weight_decay": Field(1e-6, at_least(0, float), "Weight decay, for biases and batch norms too"),
        "momentum": Field(0.9, below_one, "Momentum"),
        "trust_coefficient": Field(
            0.001, above_zero, "A parameter's step is scaled by this times ‖parameter‖ / ‖gradient‖, biases too"
        ),
        "warmup_epochs": Field(10, at_least(0), "Epochs in which the learning rate rises to its peak"),
        "start_factor": Field(
            0.0, between(0, 1), "The learning rate at the first step of the warm-up, as a fraction of the peak"
        ),
        "end_factor": Field(1e-3, between(0, 1), "The final learning rate as a fraction of the peak"),
    },
    (longer_than_its_warmup,),
)
