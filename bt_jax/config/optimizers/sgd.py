"""SGD with momentum, for training classifiers."""

from bt_jax.config.field import Field, Group, contradiction
from bt_jax.config.optimizers.shared import longer_than_its_warmup, name_field
from bt_jax.config.rules import anything, at_least, below_one, between, one_of, rising_above_zero


@contradiction("optimizer.schedule", "optimizer.decay_epochs")
def _steps_need_epochs(schedule, decay_epochs):
    if schedule == "steps" and tuple(decay_epochs) == ():
        return "optimizer.decay_epochs is empty, but must list the epochs when optimizer.schedule is 'steps'"
    return None


GROUP = Group(
    "optimizer",
    "SGD with momentum, warm-up, and cosine decay or steps",
    {
        "name": name_field("sgd"),
        "learning_rate": Field(
            0.1, at_least(0, float), "Peak learning rate for a batch of 256; scaled by batch_size / 256"
        ),
        "momentum": Field(0.9, below_one, "Momentum"),
        "nesterov": Field(False, anything, "Whether to use Nesterov momentum"),
        "weight_decay": Field(1e-4, at_least(0, float), "Weight decay"),
        "decay_norms": Field(
            True,
            anything,
            "Whether to decay the scales and shifts of batch norms too, as PyTorch does by default",
        ),
        "decay_biases": Field(
            True, anything, "Whether to decay the biases of linear layers too, as PyTorch does by default"
        ),
        "schedule": Field(
            "cosine", one_of(("cosine", "steps")), "How the learning rate falls after the warm-up: cosine or steps"
        ),
        "decay_epochs": Field(
            (),
            rising_above_zero,
            "With steps, the learning rate is multiplied by decay_factor after these epochs; fractions are allowed",
        ),
        "decay_factor": Field(0.1, between(0, 1), "Factor of the learning rate at each of decay_epochs"),
        "end_factor": Field(
            0.0, between(0, 1), "With cosine, the rate that it falls towards, as a fraction of the peak"
        ),
        "warmup_epochs": Field(0, at_least(0), "Epochs in which the learning rate rises from 0 to its peak"),
    },
    (longer_than_its_warmup, _steps_need_epochs),
)
