"""AdamW with warm-up and cosine decay, as Vision Transformers are trained."""

from bt_jax.config.field import Field, Group
from bt_jax.config.optimizers.shared import longer_than_its_warmup, name_field
from bt_jax.config.rules import above_zero, at_least, below_one, between

GROUP = Group(
    "optimizer",
    "AdamW with warm-up and cosine decay",
    {
        "name": name_field("adamw"),
        "learning_rate": Field(
            1.5e-4, at_least(0, float), "Peak learning rate for a batch of 256; scaled by batch_size / 256"
        ),
        "weight_decay": Field(
            0.1,
            at_least(0, float),
            "Weight decay, times the learning rate; not of biases, norms, class tokens and position embeddings",
        ),
        "beta1": Field(0.9, below_one, "Decay of the mean of gradients"),
        "beta2": Field(0.999, below_one, "Decay of the mean of squared gradients"),
        "eps": Field(1e-8, above_zero, "Added to the root of the mean square"),
        "warmup_epochs": Field(40, at_least(0), "Epochs in which the learning rate rises from 0 to its peak"),
        "end_factor": Field(0.0, between(0, 1), "The final learning rate as a fraction of the peak"),
    },
    (longer_than_its_warmup,),
)
