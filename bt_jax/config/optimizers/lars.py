"""LARS with a warm-up and a cosine, as the official program has it."""

from bt_jax.config.field import Field, Group
from bt_jax.config.optimizers.shared import longer_than_its_warmup, name_field
from bt_jax.config.rules import above_zero, at_least, below_one, between

GROUP = Group(
    "optimizer",
    "LARS: a warm-up, then a cosine",
    {
        "name": name_field("lars"),
        "learning_rate_weights": Field(
            0.2, at_least(0, float), "Peak rate of weights, for a batch of 256: scaled by batch_size / 256"
        ),
        "learning_rate_biases": Field(
            0.0048, at_least(0, float), "Peak rate of 1-D parameters (biases, batch-norm scales), scaled likewise"
        ),
        "weight_decay": Field(1e-6, at_least(0, float), "Weight decay, of weights alone"),
        "momentum": Field(0.9, below_one, "Momentum"),
        "trust_coefficient": Field(0.001, above_zero, "A weight's step is scaled by this times ‖weight‖ / ‖update‖"),
        "warmup_epochs": Field(10, at_least(0), "Epochs in which rates rise from 0 to their peak"),
        "end_factor": Field(1e-3, between(0, 1), "The last rate over the peak rate"),
        "gradient_divisor": Field(
            1.0,
            above_zero,
            "Divides the gradient; the number of GPUs of an official run that is to be matched, which divided by it too",
        ),
    },
    (longer_than_its_warmup,),
)
